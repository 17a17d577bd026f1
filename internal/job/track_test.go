package job

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"platter/block"
	"platter/block/snapshot"
	"platter/cbt"
	"platter/image"
	"platter/image/repo"
)

// A tracked file is a device with a provider, whose snapshots are copies, and a
// tracker that writes down what the test says.
type tracked struct {
	t      *testing.T
	path   string
	log    []block.Extent
	copies []snapshot.Snapshot
	drop   func(n int) bool // whether the n-th write is forgotten
	broken error            // Take fails with it
	unfit  string           // why no view can be taken
	filled bool
	dead   bool // closing and keeping is left out, as by a process that dies
}

func newTracked(t *testing.T, size int, r *rand.Rand) *tracked {
	d := &tracked{t: t, path: filepath.Join(t.TempDir(), "device"), drop: func(int) bool { return false }}
	data := make([]byte, size)
	random(r, data)
	if err := os.WriteFile(d.path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return d
}

func (d *tracked) write(p []byte, off int64) {
	d.t.Helper()
	f, err := os.OpenFile(d.path, os.O_RDWR, 0)
	if err == nil {
		_, err = f.WriteAt(p, off)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		d.t.Fatal(err)
	}
	if !d.drop(len(d.log)) {
		d.log = append(d.log, block.Extent{Offset: off, Length: int64(len(p))})
	} else {
		d.log = append(d.log, block.Extent{})
	}
}

func (d *tracked) content() []byte {
	d.t.Helper()
	data, err := os.ReadFile(d.path)
	if err != nil {
		d.t.Fatal(err)
	}
	return data
}

func (d *tracked) ways() Ways {
	return Ways{Views: []snapshot.Provider{copier{d}}, Trackers: []cbt.Opener{noter{d}}}
}

// backup makes an image and proves that it is the device.
func (d *tracked) backup(env *Env, opts BackupOptions) *image.Manifest {
	d.t.Helper()
	opts.Devices, opts.Ways = []string{d.path}, d.ways()
	reports, err := Backup(d.t.Context(), env, opts)
	if err != nil {
		d.t.Fatal(err)
	}
	return reports[0].Image
}

type copier struct{ *tracked }

func (copier) Name() string { return "copy" }

func (c copier) Fits(context.Context, block.Device) snapshot.Fit {
	return snapshot.Fit{OK: c.unfit == "", Why: c.unfit}
}

func (c copier) Take(_ context.Context, d block.Device, o snapshot.Options) (snapshot.View, error) {
	id := snapshot.NewID()
	path := filepath.Join(c.t.TempDir(), id)
	if err := os.WriteFile(path, c.content(), 0o600); err != nil {
		return nil, err
	}
	src, err := block.Open(path, block.OpenOptions{})
	if err != nil {
		return nil, err
	}
	c.copies = append(c.copies, snapshot.Snapshot{Method: "copy", Name: path, ID: id, Tag: o.Consumer.Tag(), Run: "00000000-1-1-1"})
	return &copied{snapshot.As(d.Info, src), c, d, o.Consumer, id, time.Now()}, nil
}

func (c copier) Snapshots(context.Context, block.Device) ([]snapshot.Snapshot, error) {
	return slices.Clone(c.copies), nil
}

func (c copier) Remove(_ context.Context, s snapshot.Snapshot) error {
	c.copies = slices.DeleteFunc(c.copies, func(x snapshot.Snapshot) bool { return x.ID == s.ID })
	return nil
}

type copied struct {
	block.Source
	by       copier
	device   block.Device
	consumer snapshot.Consumer
	id       string
	taken    time.Time
}

func (v *copied) Method() string   { return "copy" }
func (v *copied) ID() string       { return v.id }
func (v *copied) Taken() time.Time { return v.taken }

func (v *copied) Check() error {
	if v.by.filled {
		return fmt.Errorf("read the copy: %w: make it larger", snapshot.ErrFilled)
	}
	return v.Source.Check()
}

func (v *copied) Keep(ctx context.Context) error {
	if v.by.dead {
		return nil
	}
	for i := range v.by.copies {
		if v.by.copies[i].ID == v.id {
			v.by.copies[i].Kept = true
		}
	}
	_, err := snapshot.Clean(ctx, v.by, v.device, v.consumer, v.id)
	return err
}

func (v *copied) Close() error {
	for _, s := range v.by.copies {
		if s.ID == v.id && !s.Kept && !v.by.dead {
			v.by.Remove(context.Background(), s)
		}
	}
	return v.Source.Close()
}

// noter's generation is the ID of a copy and a place in the log.
type noter struct{ *tracked }

func (noter) Name() string   { return "notes" }
func (noter) Method() string { return "copy" }

func (n noter) Base(g cbt.Generation) string {
	if len(g) != 24 {
		return ""
	}
	return string(g[:16])
}

func (n noter) Open(_ context.Context, v snapshot.View, _ snapshot.Consumer) (cbt.Tracker, error) {
	return &notes{n, v, len(n.log)}, nil
}

type notes struct {
	noter
	view snapshot.View
	at   int
}

func (n *notes) Mark(context.Context) (cbt.Generation, error) {
	return binary.BigEndian.AppendUint64([]byte(n.view.ID()), uint64(n.at)), nil
}

func (n *notes) Changed(_ context.Context, since cbt.Generation) (*cbt.Set, error) {
	if !slices.ContainsFunc(n.copies, func(s snapshot.Snapshot) bool { return s.ID == n.Base(since) }) {
		return nil, fmt.Errorf("the copy is gone: %w", cbt.ErrHistoryLost)
	}
	set := cbt.NewSet(n.view.Info().Size)
	for _, e := range n.log[binary.BigEndian.Uint64(since[16:]):n.at] {
		set.Add(e)
	}
	return set, nil
}

func (n *notes) Commit(ctx context.Context, _ cbt.Generation) error { return n.view.Keep(ctx) }
func (n *notes) Close() error                                       { return nil }

// calendar is a machine whose clock the test sets.
type calendar struct {
	repo.Machine
	now time.Time
}

func (c *calendar) Now() time.Time { return c.now }

const day = 24 * time.Hour

func withCalendar(env *Env) *calendar {
	c := &calendar{env.Repo.Machine, time.Date(2026, 1, 1, 3, 0, 0, 0, time.UTC)}
	env.Repo.Machine = c
	return c
}

func (d *tracked) proveContent(env *Env, m *image.Manifest) {
	d.t.Helper()
	if !bytes.Equal(content(d.t, env, m), d.content()) {
		d.t.Error("the image is not the device")
	}
}

// D12, D13: a tracker that can vouch spares the reading, and what no image is
// compared with any more goes.
func TestTrackedBackupReadsWhatChanged(t *testing.T) {
	const bs, size = 4 << 10, 16 << 20
	r, env := seeded(t, 10), newEnv(t, bs)
	d := newTracked(t, size, r)
	first := d.backup(env, BackupOptions{})
	if first.Tracker.Name != "full" || first.Tracker.Why != "first image of the volume" || first.Tracker.History != "notes" || first.Tracker.View != "copy" {
		t.Errorf("first image: %+v", first.Tracker)
	}
	for night := range 3 {
		p := make([]byte, 10_000)
		random(r, p)
		d.write(p, int64(5<<20+night*1<<20))
		m := d.backup(env, BackupOptions{Audit: AuditOff})
		d.proveContent(env, m)
		if m.Tracker.Name != "notes" || m.Tracker.Why != "" || m.Stats.Read > 4*bs {
			t.Errorf("night %d: %+v, read %d", night, m.Tracker, m.Stats.Read)
		}
		if m.Audit.Canaries != 2<<20 || m.Audit.Read != 0 {
			t.Errorf("night %d: audit %+v, want 2 MiB of canaries", night, m.Audit)
		}
		if len(m.Changes) != 1 || m.Changes[0].Bytes != m.Stats.Read {
			t.Errorf("night %d: changes %+v, read %d", night, m.Changes, m.Stats.Read)
		}
		if len(d.copies) != 1 || !d.copies[0].Kept {
			t.Errorf("night %d: copies %+v, want the one that was imaged", night, d.copies)
		}
	}
}

// D12, D16: where the parent is none for a tracker, every block is compared.
func TestTrackedBackupSaysWhyEveryBlockIsCompared(t *testing.T) {
	good := image.Manifest{Size: 4096, Tracker: image.Tracking{History: "notes", Generation: []byte{1}}, Device: block.Info{Identity: "a"}}
	for _, c := range []struct {
		why    string
		change func(parent, m *image.Manifest)
	}{
		{"", func(_, _ *image.Manifest) {}},
		{"the image before is fuzzy", func(p, _ *image.Manifest) { p.Fuzzy = true }},
		{"the device is read while it is written to", func(_, m *image.Manifest) { m.Fuzzy = true }},
		{"the device had 4096 bytes, and has 8192", func(_, m *image.Manifest) { m.Size = 8192 }},
		{"another device: b in place of a", func(_, m *image.Manifest) { m.Device.Identity = "b" }},
		{"the image before was not tracked", func(p, _ *image.Manifest) { p.Tracker.History = "" }},
		{"the image before was tracked by other, this one is by notes", func(p, _ *image.Manifest) { p.Tracker.History = "other" }},
		{"the tracker of the image before missed a write", func(p, _ *image.Manifest) { p.Audit = &image.Audit{Missed: []block.Extent{{}}} }},
	} {
		parent, m := good, good
		c.change(&parent, &m)
		if got := noParent(&notes{}, &m, &parent); got != c.why {
			t.Errorf("got %q, want %q", got, c.why)
		}
	}
	if got := noParent(&notes{}, &good, nil); got == "" {
		t.Error("without a parent: no reason")
	}
}

// D12: every block is compared when that is asked for, and the tracker's history
// goes on from the image.
func TestFullCompareKeepsTheHistory(t *testing.T) {
	const bs, size = 4 << 10, 4 << 20
	r, env := seeded(t, 12), newEnv(t, bs)
	d := newTracked(t, size, r)
	d.backup(env, BackupOptions{Tracker: "full"})
	if len(d.copies) != 0 {
		t.Errorf("a volume without a history got one: %+v", d.copies)
	}
	d.backup(env, BackupOptions{})
	d.write([]byte("before"), 2<<20)
	m := d.backup(env, BackupOptions{Tracker: "full"})
	if m.Tracker.Name != "full" || m.Tracker.Why != "" || m.Tracker.History != "notes" || m.Stats.Read != size {
		t.Errorf("got %+v, read %d, want every block compared and the history kept", m.Tracker, m.Stats.Read)
	}
	d.proveContent(env, m)
	d.write([]byte("after"), 3<<20-100)
	m = d.backup(env, BackupOptions{Audit: AuditOff})
	if m.Tracker.Name != "notes" || m.Stats.Read > 2*bs {
		t.Errorf("got %+v, read %d, want what was written since", m.Tracker, m.Stats.Read)
	}
	d.proveContent(env, m)
	// Where the tracker's way does not work, every block is compared without it.
	d.unfit = "it is Sunday"
	if m = d.backup(env, BackupOptions{Tracker: "full"}); m.Tracker.History != "" || m.Tracker.View != snapshot.Direct {
		t.Errorf("got %+v, want the device itself", m.Tracker)
	}
}

func TestTrackedBackupFallsBackAndSaysWhy(t *testing.T) {
	r, env := seeded(t, 11), newEnv(t, 4<<10)
	d := newTracked(t, 4<<20, r)
	d.backup(env, BackupOptions{})
	d.copies = nil
	d.write([]byte("unseen"), 2<<20)
	d.log = nil
	m := d.backup(env, BackupOptions{})
	if m.Tracker.Name != "full" || !strings.Contains(m.Tracker.Why, "the copy is gone") || m.Tracker.History != "notes" {
		t.Errorf("the base is gone: %+v", m.Tracker)
	}
	d.proveContent(env, m)

	d.unfit = "it is Sunday"
	m = d.backup(env, BackupOptions{})
	if m.Tracker.View != snapshot.Direct || !slices.Contains(m.Tracker.Passed, image.Passed{Way: "copy", Why: "it is Sunday"}) {
		t.Errorf("no view: %+v", m.Tracker)
	}
	if _, err := Backup(t.Context(), env, BackupOptions{Devices: []string{d.path}, Ways: d.ways(), Tracker: "notes"}); err == nil || !strings.Contains(err.Error(), "it is Sunday") {
		t.Errorf("--tracker notes: %v, want the reason why it does not fit", err)
	}
	if _, err := Backup(t.Context(), env, BackupOptions{Devices: []string{d.path}, Tracker: "notes"}); !errors.Is(err, ErrUsage) {
		t.Errorf("a tracker that is not there: %v", err)
	}
}

// D51: a snapshot that ran full is no view of anything: no image, and nothing
// is left of it.
func TestFilledSnapshotFailsTheRun(t *testing.T) {
	r, env := seeded(t, 12), newEnv(t, 4<<10)
	d := newTracked(t, 1<<20, r)
	d.backup(env, BackupOptions{})
	base := d.copies[0]
	d.filled = true
	_, err := Backup(t.Context(), env, BackupOptions{Devices: []string{d.path}, Ways: d.ways()})
	if !errors.Is(err, snapshot.ErrFilled) || countImages(t, env) != 1 {
		t.Errorf("got %v and %d images", err, countImages(t, env))
	}
	if len(d.copies) != 1 || d.copies[0] != base {
		t.Errorf("copies %+v, want the base %+v", d.copies, base)
	}
	d.filled = false
	if m := d.backup(env, BackupOptions{}); m.Tracker.Name != "notes" {
		t.Errorf("after the failed run: %+v", m.Tracker)
	}
}

// D13, D50: a run that dies between manifest and commit has made an image; its
// snapshot is what the next one is compared with.
func TestDeadRunLeavesItsBase(t *testing.T) {
	r, env := seeded(t, 13), newEnv(t, 4<<10)
	d := newTracked(t, 8<<20, r)
	for night := range 4 {
		d.dead = night%2 == 0
		d.write([]byte("night"), int64(3<<20+night*100_000))
		m := d.backup(env, BackupOptions{})
		d.proveContent(env, m)
		if night > 0 && m.Tracker.Name != "notes" {
			t.Errorf("night %d: %+v", night, m.Tracker)
		}
	}
	if len(d.copies) != 1 {
		t.Errorf("copies %+v, want one", d.copies)
	}
}

// D52: a canary that changed under a tracker that did not see it is an alarm.
func TestCanaryExposesABlindTracker(t *testing.T) {
	const bs, size = 4 << 10, 12 << 20
	r, env := seeded(t, 14), newEnv(t, bs)
	d := newTracked(t, size, r)
	d.backup(env, BackupOptions{})
	d.drop = func(int) bool { return true }
	d.write([]byte("superblock"), size-5000)
	d.write([]byte("lost"), 6<<20)
	m := d.backup(env, BackupOptions{})
	d.proveContent(env, m)
	at := block.Extent{Offset: (size - 5000) / bs * bs, Length: bs}
	if !m.Missed() || m.Audit.Missed[0] != at || m.Tracker.Name != "full" || m.Tracker.Generation != nil || m.Stats.Read != size {
		t.Errorf("tracking %+v, audit %+v, read %d; want an alarm at %v and all compared", m.Tracker, m.Audit, m.Stats.Read, at)
	}
	d.drop = func(int) bool { return false }
	for night, want := range []string{"full", "notes"} {
		d.write([]byte("more"), 4<<20+int64(night))
		m = d.backup(env, BackupOptions{})
		d.proveContent(env, m)
		if m.Tracker.Name != want {
			t.Errorf("night %d after the alarm: %+v, want %s", night, m.Tracker, want)
		}
	}
}

// D53: a tracker that loses bits at random is exposed within one cycle, and
// from that night on images are right again.
func TestAuditExposesALossyTrackerWithinOneCycle(t *testing.T) {
	const bs, size = 4 << 10, 24 << 20
	for seed := range uint64(3) {
		r, env := seeded(t, 100+seed), newEnv(t, bs)
		clock := withCalendar(env)
		d := newTracked(t, size, rand.New(rand.NewPCG(seed, 0)))
		d.backup(env, BackupOptions{})
		d.drop = func(n int) bool { return n%5 == int(seed) }
		exposed := -1
		for night := 1; night <= 30 && exposed < 0; night++ {
			clock.now = clock.now.Add(day)
			for range 3 {
				d.write([]byte{byte(1 + r.IntN(255)), byte(night)}, 1<<20+r.Int64N(size-2<<20-2))
			}
			m := d.backup(env, BackupOptions{})
			if m.Missed() {
				exposed = night
				d.proveContent(env, m)
			}
			if share := int64(size / 30); m.Audit.Read > 2*share+2*bs && !m.Missed() {
				t.Errorf("night %d read %d bytes for the audit, a thirtieth is %d", night, m.Audit.Read, share)
			}
		}
		if exposed < 0 {
			t.Errorf("seed %d: one write in five was lost for 30 nights, and the audit found none", seed)
		}
	}
}

// D53: every block has its turn in a cycle; what was missed carries over, and a
// cycle that goes on for too long is told.
func TestAuditGoesRoundInACycle(t *testing.T) {
	const bs, size = 4 << 10, 1 << 40
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for name, gap := range map[string]func(n int) time.Duration{
		"nightly":   func(int) time.Duration { return day },
		"hourly":    func(int) time.Duration { return time.Hour },
		"weekly":    func(int) time.Duration { return 7 * day },
		"irregular": func(n int) time.Duration { return time.Duration(1+n*n%5) * day },
		"a holiday": func(n int) time.Duration { return day + time.Duration(n/5%2*(1-n%5%2))*12*day },
	} {
		a, last, now := &image.Audit{Since: start}, start, start
		var most int64
		for n := 0; a.Done < size; n++ {
			now = now.Add(gap(n))
			e := due(a, &image.Manifest{Size: size, BlockSize: bs, Time: now}, last, AuditAuto)
			if e.Offset != a.Done || e.Length < 0 || e.End() > size {
				t.Fatalf("%s: %d bytes done, next %v", name, a.Done, e)
			}
			a.Done, last, most = e.End(), now, max(most, e.Length)
			if now.Sub(start) > 2*auditCycle {
				t.Fatalf("%s: %d of %d bytes after %v", name, a.Done, int64(size), now.Sub(start))
			}
		}
		late := time.Duration(0)
		if name == "a holiday" {
			late = 13 * day // it came in the end
		}
		if took := now.Sub(start); took > auditCycle+late || most > size/4+bs {
			t.Errorf("%s: the cycle took %v, and a night up to %d bytes", name, took, most)
		}
	}
	// A clock that was set back asks for nothing, and breaks nothing.
	e := due(&image.Audit{Since: start, Done: bs}, &image.Manifest{Size: size, BlockSize: bs, Time: start.Add(-day)}, start, AuditAuto)
	if e.Length != 0 {
		t.Errorf("before the cycle began: %v", e)
	}
}

func TestAuditFullReadsAllAndOffNothing(t *testing.T) {
	const bs, size = 4 << 10, 16 << 20
	r, env := seeded(t, 15), newEnv(t, bs)
	clock := withCalendar(env)
	d := newTracked(t, size, r)
	d.backup(env, BackupOptions{})
	clock.now = clock.now.Add(20 * day)
	d.write([]byte("x"), 5<<20)
	m := d.backup(env, BackupOptions{Audit: AuditOff})
	if m.Audit.Read != 0 || m.Audit.Done != 0 || m.Audit.Since.Sub(clock.now.Add(-20*day)).Abs() > time.Minute || len(m.Warnings) > 0 {
		t.Errorf("off: %+v, warnings %v", m.Audit, m.Warnings)
	}
	clock.now = clock.now.Add(20 * day)
	m = d.backup(env, BackupOptions{Audit: AuditOff})
	if len(m.Warnings) != 1 || !strings.Contains(m.Warnings[0], "overdue") {
		t.Errorf("off for 40 days: warnings %v", m.Warnings)
	}
	d.write([]byte("x"), 5<<20)
	m = d.backup(env, BackupOptions{Audit: AuditFull})
	if m.Audit.Read != size-bs || m.Audit.Done != 0 || m.Audit.Since.Sub(clock.now).Abs() > time.Minute || len(m.Warnings) > 0 {
		t.Errorf("full: %+v, want %d bytes read and a new cycle; warnings %v", m.Audit, size-bs, m.Warnings)
	}
}

// mover takes views that are written to once more after they are read, and are
// of one moment then, as those of disks in use are.
type mover struct {
	copier
	off int64
}

func (c mover) Take(ctx context.Context, d block.Device, o snapshot.Options) (snapshot.View, error) {
	v, err := c.copier.Take(ctx, d, o)
	if err != nil {
		return nil, err
	}
	return &moving{v.(*copied), c}, nil
}

type moving struct {
	*copied
	by mover
}

func (v *moving) Pass(context.Context) (block.Source, *cbt.Set, bool, error) {
	f, err := os.OpenFile(v.by.copies[len(v.by.copies)-1].Name, os.O_RDWR, 0)
	if err == nil {
		_, err = f.WriteAt([]byte("late"), v.by.off)
	}
	v.by.write([]byte("late"), v.by.off)
	set := cbt.NewSet(v.Info().Size)
	set.Add(block.Extent{Offset: v.by.off, Length: 4})
	return v, set, true, errors.Join(err, f.Close())
}

func (v *moving) Still() error { return nil }

// Written is what was since the last pass: nothing.
func (v *moving) Written(context.Context) (*cbt.Set, error) { return cbt.NewSet(v.Info().Size), nil }

// D53: what is written to a disk in use while it is copied, and its tracker told
// in time, is no write that the tracker missed.
func TestAuditOfADiskInUseIsOfWhatTheTrackerSpokeOf(t *testing.T) {
	const bs, size = 4 << 10, 1 << 20
	r, env := seeded(t, 18), newEnv(t, bs)
	d := newTracked(t, size, r)
	d.backup(env, BackupOptions{})
	ways := d.ways()
	ways.Views = []snapshot.Provider{mover{copier{d}, 100 * bs}}
	reports, err := Backup(t.Context(), env, BackupOptions{Devices: []string{d.path}, Ways: ways, Audit: AuditFull})
	if err != nil {
		t.Fatal(err)
	}
	m := reports[0].Image
	if m.Tracker.Name != "notes" || len(m.Audit.Missed) > 0 || len(m.Warnings) > 0 {
		t.Errorf("%+v, %+v, warnings %v", m.Tracker, m.Audit, m.Warnings)
	}
	d.proveContent(env, m)
}

// D11: a block that is damaged in the repository is stored again although no
// tracker has a reason to name it.
func TestTrackedBackupStoresDamagedBlocksAgain(t *testing.T) {
	const bs = 4 << 10
	r, env := seeded(t, 16), newEnv(t, bs)
	d := newTracked(t, 8<<20, r)
	first := d.backup(env, BackupOptions{})
	id := env.Repo.Hasher().Block(d.content()[1234*bs : 1235*bs])
	places, err := env.Catalog.Locate(t.Context(), id)
	if err == nil {
		err = env.Repo.NoteDamage(t.Context(), []image.ID{id}, places[:1])
	}
	if err != nil {
		t.Fatal(err)
	}
	m := d.backup(env, BackupOptions{Audit: AuditOff})
	if m.Tracker.Name != "notes" || m.Stats.Read != bs || m.Stats.New != bs || m.Root != first.Root {
		t.Errorf("%+v, read %d, new %d; want the damaged block stored again", m.Tracker, m.Stats.Read, m.Stats.New)
	}
}

// A converging view reads itself again until it is of one moment.
type converging struct {
	snapshot.View
	passes []func() (data []byte, again block.Extent)
	still  error
}

type memory struct {
	block.Source
	data []byte
}

func (m memory) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	return copy(p, m.data[off:]), nil
}

func (m memory) Data(off int64) (block.Extent, error) {
	if off >= int64(len(m.data)) {
		return block.Extent{}, io.EOF
	}
	return block.Extent{Offset: off, Length: int64(len(m.data)) - off}, nil
}

func (c *converging) Pass(context.Context) (block.Source, *cbt.Set, bool, error) {
	data, e := c.passes[0]()
	c.passes = c.passes[1:]
	set := cbt.NewSet(int64(len(data)))
	set.Add(e)
	return memory{c.View, data}, set, len(c.passes) == 0, nil
}

func (c *converging) Still() error { return c.still }
func (c *converging) Written(context.Context) (*cbt.Set, error) {
	return cbt.NewSet(c.Info().Size), nil
}

func TestBackupReadsInPassesUntilTheDeviceIsStill(t *testing.T) {
	const bs = 4 << 10
	for _, still := range []error{nil, errors.New("it never came to rest")} {
		r, env := seeded(t, 17), newEnv(t, bs)
		data := make([]byte, 1000*bs)
		random(r, data)
		v := &converging{View: snapshot.DirectView(&disk{name: "disk", data: data}), still: still}
		for i := range 3 {
			v.passes = append(v.passes, func() ([]byte, block.Extent) {
				e := block.Extent{Offset: int64(i) * 300 * bs, Length: 20 * bs}
				data = bytes.Clone(data)
				random(r, data[e.Offset:e.End()])
				return data, e
			})
		}
		run, err := beginRun(t.Context(), env, &BackupOptions{})
		if err != nil {
			t.Fatal(err)
		}
		report, err := run.device(t.Context(), &subject{path: "/mem/disk", volume: "host/disk", view: v})
		run.end(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(content(t, env, report.Image), data) {
			t.Error("the image is not what the last pass saw")
		}
		if report.Image.Fuzzy != (still != nil) || report.Image.Stats.Read != 1060*bs {
			t.Errorf("fuzzy %v, read %d", report.Image.Fuzzy, report.Image.Stats.Read)
		}
	}
}

// Of a disk with LVM the report says which volume was written to.
func TestChangesNameLogicalVolumes(t *testing.T) {
	f, err := os.Open("../../block/lvm2/testdata/physical-volume.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	const mib = 1 << 20
	head, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	env := newEnv(t, 64<<10)
	const first = mib // of the partition
	d := &disk{name: "disk", data: make([]byte, first+96*mib), table: &block.Table{Type: "gpt", Partitions: []block.Partition{
		{Number: 1, Extent: block.Extent{Offset: first, Length: 96 * mib}, Content: "LVM2_member"},
	}}}
	copy(d.data[first:], head)
	backup := func() *image.Manifest {
		out, err := Backup(t.Context(), env, BackupOptions{Sources: []block.Source{d}})
		if err != nil {
			t.Fatal(err)
		}
		return out[0].Image
	}
	backup()
	for _, at := range []int64{2, 30, 44, 60, 95} { // other, root twice, root's second piece, no volume
		d.data[first+at*mib] = 1
	}
	got := backup().Changes
	const content, bs = "LVM2_member", 64 << 10
	want := []image.Change{
		{Partition: 1, Content: content, Volume: "data-vg/other", Bytes: bs},
		{Partition: 1, Content: content, Volume: "data-vg/root", Bytes: 3 * bs},
		{Partition: 1, Content: content, Bytes: bs},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestChangesNamePartitions(t *testing.T) {
	at := func(n int, off, length int64) block.Partition {
		return block.Partition{Number: n, Extent: block.Extent{Offset: off, Length: length}, Content: fmt.Sprint("fs", n)}
	}
	c := newChanges(block.Info{Table: &block.Table{Partitions: []block.Partition{
		at(2, 2000, 6000), at(1, 1000, 1000), at(5, 3000, 1000), at(6, 5000, 1000), at(7, 5500, 10000), at(8, 20000, -5),
	}}})
	for _, off := range []int64{0, 999, 1000, 1999, 2000, 3000, 3999, 4000, 5000, 5999, 6000, 30000} {
		c.add(block.Extent{Offset: off, Length: 1})
	}
	want := map[int]int64{0: 6, 1: 2, 5: 2, 6: 2}
	for _, x := range c.list() {
		if want[x.Partition] != x.Bytes {
			t.Errorf("partition %d: %d bytes, want %d", x.Partition, x.Bytes, want[x.Partition])
		}
		delete(want, x.Partition)
	}
	if len(want) > 0 {
		t.Errorf("missing: %v", want)
	}
}
