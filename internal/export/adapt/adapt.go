// Package adapt makes the Linux systems of an image start on other hardware
// than they were imaged on, and gives a disk identities of its own, so that it
// can be in one machine with the disk it is a copy of.
//
// What it changes is an overlay of the image: the caller writes it to a target,
// starts a machine from it, or forgets it. Nothing that is in an image is run,
// and no device of this machine is made of what is in it but loop devices. FAT is
// read by this program's own code and written to by mtools; other filesystems
// are mounted by the running kernel, where nobody sees them.
package adapt

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"platter/block"
	"platter/internal/export"
)

// Options say what to change.
type Options struct {
	Table  *block.Table // of the disk; nil for a filesystem without one
	Sector int          // logical, bytes
	Disk   string       // what the machine called the disk, such as sda; "" if unknown
	Serial string       // the disk's

	Hardware bool   // start on other hardware
	Firmware string // that the other hardware has: bios or uefi; "" for what the image starts by
	NewIDs   bool   // new identities of disk, partitions and filesystems

	ResetMachineID bool // the system makes itself a new one
	ResetNetwork   bool // what binds names and settings to the old network cards goes

	Dir string // a folder for what is needed meanwhile
	// Tree is where files of Debian's packages with boot loaders are, as they lie
	// in a system: "/" is this machine's own.
	Tree string
	Log  func(error) // of what cannot be read
}

// A Report says what was changed, for people.
type Report struct {
	IDs     []block.IDChange `json:"ids,omitempty"` // of disk, partitions and filesystems
	Changes []string         `json:"changes"`
	Left    []string         `json:"left,omitempty"` // what names old devices or IDs, or would matter, and is as it was
}

// refuse is why an image cannot be adapted, and what to do.
func refuse(reason, remedy string) error {
	return fmt.Errorf("%w: the image cannot be adapted: %s: %s", block.ErrRefused, reason, remedy)
}

// Apply changes a disk. An error that wraps block.ErrRefused says why this image
// cannot be changed so, and what to do; after any error the disk is to be
// thrown away.
func Apply(ctx context.Context, device export.Writer, opts Options) (_ *Report, err error) {
	if os.Geteuid() != 0 {
		return nil, refuse("only root can have the kernel mount its filesystems", "run platter as root")
	}
	a := &adapter{ctx: ctx, device: device, opts: &opts, report: &Report{}, renamed: map[string]string{}, seen: map[string]bool{}}
	if a.dir, err = os.MkdirTemp(opts.Dir, "platter-adapt-"); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(a.dir)) }()
	if err := a.apply(); err != nil {
		return nil, err
	}
	return a.report, ctx.Err()
}

// An adapter changes one disk.
type adapter struct {
	ctx    context.Context
	device export.Writer
	opts   *Options
	report *Report
	dir    string

	volumes []*volume
	systems []*system
	renamed map[string]string // old identities and their new ones
	seen    map[string]bool   // initial file systems that were done
	// reinstall says that GRUB for a BIOS does not find its files any more.
	reinstall bool
	// rootDisk are the names that a system has for the imaged disk; nil until asked.
	rootDisk map[string]bool
}

func (a *adapter) apply() (err error) {
	a.look()
	if a.opts.NewIDs {
		if err := a.newIDs(); err != nil {
			return err
		}
	}
	defer func() { err = errors.Join(err, a.close()) }()
	if err := a.open(); err != nil {
		return err
	}
	if a.opts.Hardware && len(a.systems) == 0 {
		return refuse("no Linux system was found in it: "+a.contents(), "restore it without --adapt")
	}
	for _, s := range a.systems {
		if err := a.adaptSystem(s); err != nil {
			return err
		}
	}
	if a.opts.Hardware {
		if err := a.boot(); err != nil {
			return err
		}
	}
	if a.reinstall {
		if err := a.toBIOS(); err != nil {
			return err
		}
	}
	if a.opts.NewIDs {
		a.searchOld()
	}
	return nil
}

// adaptSystem changes the files of one system.
func (a *adapter) adaptSystem(s *system) error {
	if err := a.rewrite(s); err != nil {
		return err
	}
	if err := a.initramfs(s); err != nil {
		return err
	}
	if a.opts.Hardware {
		if err := a.keepDrivers(s); err != nil {
			return err
		}
	}
	if a.opts.ResetMachineID {
		if err := a.resetMachineID(s); err != nil {
			return err
		}
	}
	if a.opts.ResetNetwork {
		return a.resetNetwork(s)
	}
	return nil
}

func (a *adapter) changed(format string, args ...any) {
	a.report.Changes = append(a.report.Changes, fmt.Sprintf(format, args...))
}

// left notes what is as it was, once.
func (a *adapter) left(format string, args ...any) {
	if text := fmt.Sprintf(format, args...); !slices.Contains(a.report.Left, text) {
		a.report.Left = append(a.report.Left, text)
	}
}

// contents is what the disk holds, in words.
func (a *adapter) contents() string {
	var list []string
	for _, v := range a.volumes {
		content := v.content
		if content == "" {
			content = "nothing known"
		}
		list = append(list, fmt.Sprintf("%s (%s)", v.name, content))
	}
	if len(list) == 0 {
		return "it holds nothing known"
	}
	return "there are " + strings.Join(list, ", ")
}

func isRefused(err error) bool { return errors.Is(err, block.ErrRefused) }

func missing(err error) bool { return errors.Is(err, fs.ErrNotExist) }
