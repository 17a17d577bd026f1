// Package history keeps a record of every run on this machine: what was run,
// when, and how it ended.
//
// A run is recorded when it begins and once more when it ends. One that was
// begun, has no end and no process is shown as died. The file is bounded by
// number and age; it is no part of a repository, and losing it loses no image.
package history

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"platter/image"
	"platter/image/repo"
	"platter/internal/agent/lines"
)

// Kinds of runs.
const (
	Backup  = "backup"
	Restore = "restore"
	Verify  = "verify"
	Prune   = "prune"
	Collect = "gc"
	Boot    = "boot"
)

// Kinds returns every kind of run there is.
func Kinds() []string { return []string{Backup, Restore, Verify, Prune, Collect, Boot} }

// An Outcome says how a run ended.
type Outcome string

// Outcomes of runs.
const (
	Running     Outcome = "running"
	Done        Outcome = "done"
	Incomplete  Outcome = "incomplete" // done, but data is missing, fuzzy or untrusted
	Failed      Outcome = "failed"
	Interrupted Outcome = "interrupted"
	Died        Outcome = "died" // its process is gone, and it never said how it ended
)

// Bad reports whether a run did not do all it was to do.
func (o Outcome) Bad() bool { return o != Running && o != Done }

// A Run is one of them. Sizes are in bytes.
type Run struct {
	ID         string    `json:"id"` // 16 hex digits
	Kind       string    `json:"kind"`
	Job        string    `json:"job,omitempty"`      // of the config; empty for the command line
	Subjects   []string  `json:"subjects,omitempty"` // devices, images or volumes, as they were named
	Repository string    `json:"repository,omitempty"`
	Start      time.Time `json:"start"`
	End        time.Time `json:"end,omitzero"` // not known of one that died
	Outcome    Outcome   `json:"outcome"`
	Exit       int       `json:"exit"` // status of the command line
	Error      string    `json:"error,omitempty"`
	Read       int64     `json:"bytes_read"`   // from devices, or from the repository to verify
	Stored     int64     `json:"bytes_stored"` // to the repository, or to the target of a restore
	Volumes    []Volume  `json:"volumes,omitempty"`
	Process    Process   `json:"process"`
}

// A Volume is what a run did for one volume. All but the name and the image is
// of images that it made; sizes are in bytes.
type Volume struct {
	Name    string    `json:"volume"`
	Image   string    `json:"image,omitempty"` // hex
	Time    time.Time `json:"time,omitzero"`   // that the image is of
	Size    int64     `json:"size,omitempty"`  // of the device
	Read    int64     `json:"bytes_read"`
	Stored  int64     `json:"bytes_stored"`
	Tracker string    `json:"tracker,omitempty"`
	Why     string    `json:"why,omitempty"` // every block was compared, where a tracker was there

	Parent     bool  `json:"parent,omitempty"` // it was compared with an image
	Changed    int64 `json:"changed,omitempty"`
	Zero       int64 `json:"zero,omitempty"` // of what was read
	Known      int64 `json:"known,omitempty"`
	New        int64 `json:"new,omitempty"`
	Encoded    int64 `json:"encoded,omitempty"` // New, compressed
	Incomplete bool  `json:"incomplete,omitempty"`
	Missed     bool  `json:"missed,omitempty"` // a tracker had missed a write
}

// Imaged adds an image that the run made.
func (r *Run) Imaged(m *image.Manifest) {
	v := Volume{
		Name: m.Volume, Image: m.ID.String(), Time: m.Time, Size: m.Size,
		Read: m.Stats.Read, Stored: m.Stats.Stored + m.Stats.Overhead, Tracker: m.Tracker.Name, Why: m.Tracker.Why,
		Parent: m.Tracker.Parent != (image.ImageID{}), Zero: m.Stats.Zero, Known: m.Stats.Known, New: m.Stats.New,
		Encoded: m.Stats.Stored, Incomplete: m.Incomplete(), Missed: m.Missed(),
	}
	for _, c := range m.Changes {
		v.Changed += c.Bytes
	}
	r.Volumes = append(r.Volumes, v)
	r.Read += v.Read
	r.Stored += v.Stored
}

// Used adds an image that the run gave back, or tried.
func (r *Run) Used(m *image.Manifest) {
	r.Volumes = append(r.Volumes, Volume{Name: m.Volume, Image: m.ID.String()})
}

// Touched adds a volume that the run was about, once.
func (r *Run) Touched(volume string) {
	if volume != "" && !slices.ContainsFunc(r.Volumes, func(v Volume) bool { return v.Name == volume }) {
		r.Volumes = append(r.Volumes, Volume{Name: volume})
	}
}

// A Process is the one that a run belongs to.
type Process struct {
	PID   int    `json:"pid"`
	Boot  string `json:"boot"`
	Birth uint64 `json:"birth"` // clock ticks since boot
}

// A History is the record of the runs of one machine.
type History struct {
	path string
	// MaxRuns and MaxAge bound what is kept; older runs go first.
	MaxRuns int
	MaxAge  time.Duration
	now     func() time.Time
	machine repo.Machine
	// What was read last is read again only when the file is another.
	mu    sync.Mutex
	read  fs.FileInfo
	known []Run
}

// FileName is the name of the file in the state folder.
const FileName = "history.jsonl"

// Bounds of what is kept where nobody says.
const (
	DefaultRuns = 10_000
	DefaultAge  = 400 * 24 * time.Hour
)

// In returns the history in a machine's state folder. No file is made yet.
func In(dir string) *History {
	return &History{
		path: filepath.Join(dir, FileName), MaxRuns: DefaultRuns, MaxAge: DefaultAge,
		now: time.Now, machine: repo.ThisMachine(),
	}
}

// Begin records that a run begins now, in this process. The caller fills what
// it learns of the run into what is returned, and calls End with it.
func (h *History) Begin(r Run) (*Run, error) {
	var id [8]byte
	rand.Read(id[:])
	me := h.machine.Process()
	r.ID, r.Start, r.Outcome = hex.EncodeToString(id[:]), h.now(), Running
	r.Process = Process{PID: me.PID, Boot: me.Boot, Birth: me.Birth}
	return &r, h.write(&r)
}

// End records that a run of this process has ended, as its Outcome says.
func (h *History) End(r *Run) error {
	r.End = h.now()
	return h.write(r)
}

func (h *History) write(r *Run) error {
	if err := h.add(r); err != nil {
		return fmt.Errorf("record of runs: %w", err)
	}
	return nil
}

func (h *History) add(r *Run) error {
	line, err := json.Marshal(r)
	if err != nil {
		return err
	}
	f, err := lines.Open(h.path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Append(line); err != nil {
		return err
	}
	return h.bound(f)
}

// lineBytes is about what one line takes; a run has two.
const lineBytes = 512

// bound rewrites a file that has grown to twice what is kept.
func (h *History) bound(f *lines.File) error {
	if f.Size() < int64(h.MaxRuns)*4*lineBytes {
		return nil
	}
	all, err := f.Lines()
	if err != nil || len(all) < 4*h.MaxRuns {
		return err
	}
	var list [][]byte
	for _, r := range h.kept(parse(all)) {
		line, err := json.Marshal(r)
		if err != nil {
			return err
		}
		list = append(list, line)
	}
	return f.Replace(list)
}

// kept leaves out what is too old and too much.
func (h *History) kept(runs []Run) []Run {
	oldest := h.now().Add(-h.MaxAge)
	runs = slices.DeleteFunc(runs, func(r Run) bool { return r.Outcome != Running && r.Start.Before(oldest) })
	return runs[max(0, len(runs)-h.MaxRuns):]
}

// A Filter says which runs are wanted; its zero value wants all.
type Filter struct {
	Volume string // HOST/NAME or NAME, or a device as it was named
	Job    string
	Kind   string
	Failed bool // those that did not end well
}

// Runs returns the runs that a filter wants, in the order they began.
func (h *History) Runs(want Filter) ([]Run, error) {
	all, err := h.all()
	if err != nil {
		return nil, fmt.Errorf("record of runs: %w", err)
	}
	runs := h.kept(all)
	for i := range runs {
		if runs[i].Outcome == Running && h.gone(runs[i].Process) {
			runs[i].Outcome = Died
		}
	}
	return slices.DeleteFunc(runs, func(r Run) bool { return !want.wants(&r) }), nil
}

// all returns every run of the file, for the caller to keep.
func (h *History) all() ([]Run, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	info, err := os.Stat(h.path)
	if err == nil && h.read != nil && os.SameFile(info, h.read) && info.Size() == h.read.Size() && info.ModTime().Equal(h.read.ModTime()) {
		return slices.Clone(h.known), nil
	}
	all, problem := lines.Read(h.path)
	if problem != nil {
		return nil, problem
	}
	h.known, h.read = parse(all), nil
	if err == nil {
		h.read = info
	}
	return slices.Clone(h.known), nil
}

// gone reports whether a process surely runs no more. Its boot may be named
// with the space that its number is from, which is then another matter.
func (h *History) gone(p Process) bool {
	then, _, _ := strings.Cut(p.Boot, " ")
	now, _, _ := strings.Cut(h.machine.Process().Boot, " ")
	if then != now && now != "" {
		return true
	}
	l := h.machine.Process()
	l.PID, l.Boot, l.Birth = p.PID, p.Boot, p.Birth
	return h.machine.Gone(&l)
}

func (f Filter) wants(r *Run) bool {
	switch {
	case f.Job != "" && r.Job != f.Job, f.Kind != "" && r.Kind != f.Kind, f.Failed && !r.Outcome.Bad():
		return false
	case f.Volume == "" || slices.Contains(r.Subjects, f.Volume):
		return true
	}
	return slices.ContainsFunc(r.Volumes, func(v Volume) bool {
		_, name, _ := strings.Cut(v.Name, "/")
		return v.Name == f.Volume || name == f.Volume
	})
}

// parse returns the runs of lines, of each the last that is said of it, in the
// order they began. Lines that are damaged or of a later program are left out.
func parse(all [][]byte) (runs []Run) {
	at := map[string]int{}
	for _, line := range all {
		var r Run
		if json.Unmarshal(line, &r) != nil || r.ID == "" {
			continue
		}
		if i, known := at[r.ID]; known {
			runs[i] = r
			continue
		}
		at[r.ID] = len(runs)
		runs = append(runs, r)
	}
	return runs
}
