// Package trace is a tracker of whole disks and partitions with nothing
// underneath: programs in the kernel (eBPF, no module) that mark in a bitmap
// what is written, zeroed or discarded.
//
// Programs and maps are pinned, so that they go on when the process that
// started them ends, and the next one finds them. A reboot ends them. The
// history of a disk is a row of numbered generations, each a map; the programs
// write to the last. Every consumer keeps the generations since its own last
// image. See docs/tracking.md for what is seen and what is not.
package trace

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
)

// Name is the tracker's name in manifests, reports and --tracker.
const Name = "trace"

// version changes whenever a tracer of another version cannot be gone on with.
const version = 1

// Limits of one tracer.
const (
	maxDisks     = 1024
	maxConsumers = 1024
	maxFlights   = 1 << 16
)

// Errors that callers decide on.
var (
	// ErrStopped means that no tracer runs.
	ErrStopped = errors.New("no tracer is running: platter tracker run")
	// ErrVersion means that the tracer was started by another version of the
	// program.
	ErrVersion = errors.New("the tracer is of another version: platter tracker stop, then platter tracker run; histories begin anew")
)

// A Tracer is the running tracer of this machine. It belongs to one goroutine;
// other processes may use the same tracer.
type Tracer struct {
	dir       string
	id        [16]byte // of the programs: another one each time they are loaded
	boot      [16]byte
	resizes   bool // a resize is noticed when it happens
	about     *ebpf.Map
	disks     *ebpf.Map
	consumers *ebpf.Map
	flights   *ebpf.Map
	programs  []*ebpf.Program
}

// options change what is loaded, for tests.
type options struct {
	points []string // nil for all
	kernel *kernel  // read before, to save the time
	edit   func(k *kernel, point string, ins asm.Instructions) asm.Instructions
}

// Run returns the tracer of the directory dir, DefaultDir for the machine's
// own, and starts it if there is none. started says which. One of another
// version is an ErrVersion.
func Run(dir string) (t *Tracer, started bool, err error) { return run(dir, options{}) }

func run(dir string, o options) (t *Tracer, started bool, err error) {
	if err := makeDir(dir); err != nil {
		return nil, false, err
	}
	held, err := lock(dir)
	if err != nil {
		return nil, false, err
	}
	defer held.Close()
	t, err = Open(dir)
	if !errors.Is(err, ErrStopped) {
		return t, false, err
	}
	if err := start(dir, o); err != nil {
		return nil, false, fmt.Errorf("start the tracer: %w", err)
	}
	t, err = Open(dir)
	return t, true, err
}

// Open returns the tracer of a directory, or an error wrapping ErrStopped.
func Open(dir string) (*Tracer, error) {
	t := &Tracer{dir: dir}
	if err := t.open(); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}

// pins are all that a tracer keeps in one folder, which takes its name at once.
func (t *Tracer) pin(name string) string { return filepath.Join(t.dir, "tracer", name) }

func (t *Tracer) open() (err error) {
	if t.boot, err = bootID(); err != nil {
		return err
	}
	if _, err := os.Stat(t.pin("about")); errors.Is(err, fs.ErrNotExist) {
		return ErrStopped
	}
	for name, m := range map[string]**ebpf.Map{"about": &t.about, "disks": &t.disks, "consumers": &t.consumers, "flights": &t.flights} {
		if *m, err = ebpf.LoadPinnedMap(t.pin(name), nil); err != nil {
			return fmt.Errorf("open the tracer's %s: %w", name, err)
		}
	}
	var about aboutRecord
	if err := t.about.Lookup(uint32(0), &about); err != nil {
		return fmt.Errorf("open the tracer: %w", err)
	}
	if about.Version != version {
		return ErrVersion
	}
	t.id = about.ID
	return t.openPrograms()
}

// openPrograms finds the programs by what attaches them: one that is not
// attached is not there.
func (t *Tracer) openPrograms() error {
	names, err := t.pinned("link_")
	if err != nil {
		return err
	}
	missing := map[string]bool{}
	for _, p := range points {
		missing[p] = true
	}
	for _, name := range names {
		p, err := programOf(t.pin("link_" + name))
		if err != nil {
			return fmt.Errorf("open the tracer's program at %s: %w", name, err)
		}
		t.programs = append(t.programs, p)
		delete(missing, name)
		t.resizes = t.resizes || name == resizers[0]
	}
	if len(missing) > 0 && !t.partial() {
		return fmt.Errorf("open the tracer: %d of its programs are gone: platter tracker stop, then platter tracker run", len(missing))
	}
	return nil
}

// partial reports whether a test wanted fewer programs.
func (t *Tracer) partial() bool {
	_, err := os.Stat(t.pin("partial"))
	return err == nil
}

func programOf(path string) (*ebpf.Program, error) {
	l, err := link.LoadPinnedLink(path, nil)
	if err != nil {
		return nil, err
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil {
		return nil, err
	}
	return ebpf.NewProgramFromID(info.Program)
}

// pinned returns the names of pins after a prefix.
func (t *Tracer) pinned(prefix string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(t.dir, "tracer"))
	if err != nil {
		return nil, fmt.Errorf("list the tracer's objects: %w", err)
	}
	var names []string
	for _, e := range entries {
		if name, ok := strings.CutPrefix(e.Name(), prefix); ok {
			names = append(names, name)
		}
	}
	return names, nil
}

// Close ends this process's use of the tracer, which goes on.
func (t *Tracer) Close() error {
	var errs []error
	for _, m := range []*ebpf.Map{t.about, t.disks, t.consumers, t.flights} {
		if m != nil {
			errs = append(errs, m.Close())
		}
	}
	for _, p := range t.programs {
		errs = append(errs, p.Close())
	}
	return errors.Join(errs...)
}

// Stop ends the tracer of a directory and with it the history of every disk.
// It is an ErrStopped if none runs.
func Stop(dir string) error {
	held, err := lock(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return ErrStopped
	}
	if err != nil {
		return err
	}
	defer held.Close()
	path := filepath.Join(dir, "tracer")
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return ErrStopped
	}
	return os.RemoveAll(path)
}

// misses returns how often a program was not run because it was running
// already on that CPU. What it would have marked is unknown.
func (t *Tracer) misses() (uint64, error) {
	var n uint64
	for _, p := range t.programs {
		s, err := p.Stats()
		if err != nil {
			return 0, fmt.Errorf("ask for what programs missed: %w", err)
		}
		n += s.RecursionMisses
	}
	return n, nil
}

// aboutRecord is kept in a map of its own.
type aboutRecord struct {
	Version uint64
	ID      [16]byte
}

// start loads and attaches the programs. They are pinned in a folder that then
// takes its name: a start that is cut short leaves no tracer.
func start(dir string, o options) error {
	if err := rlimit.RemoveMemlock(); err != nil {
		return err
	}
	k, err := o.kernel, error(nil)
	if k == nil {
		if k, err = readKernel(); err != nil {
			return err
		}
	}
	leftovers, _ := filepath.Glob(filepath.Join(dir, "new_*"))
	for _, l := range leftovers {
		os.RemoveAll(l)
	}
	l := &loader{k: k, dir: filepath.Join(dir, "new_"+random()), o: o}
	defer l.close()
	if err := os.Mkdir(l.dir, 0o700); err != nil {
		return err
	}
	if err := l.load(); err != nil {
		return errors.Join(err, os.RemoveAll(l.dir))
	}
	return os.Rename(l.dir, filepath.Join(dir, "tracer"))
}

func random() string {
	var b [8]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

func randomWord() uint64 {
	var b [8]byte
	rand.Read(b[:])
	return binary.NativeEndian.Uint64(b[:])
}

func bootID() (id [16]byte, err error) {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err == nil {
		_, err = hex.Decode(id[:], []byte(strings.ReplaceAll(strings.TrimSpace(string(text)), "-", "")))
	}
	if err != nil {
		return id, fmt.Errorf("read the boot ID: %w", err)
	}
	return id, nil
}
