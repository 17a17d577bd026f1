package block

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// TargetOptions say what will be written to a target.
type TargetOptions struct {
	// Size is the image's size in bytes; a target smaller than that is refused.
	Size int64
	// SectorSize is that of the image's partition table, 0 without one.
	SectorSize int
	// Fit, where it is not nil, says instead of Size and SectorSize whether the
	// image can lie on a device: an error that Unfit knows has it refused.
	Fit func(Info) error
	// InPlace keeps what an existing file holds. Otherwise it is cut to
	// nothing when the target is opened, so that no old data shows.
	InPlace bool
	// Repository and Catalog are local directories that the restore needs,
	// "" for none: a target that carries one of them is refused.
	Repository, Catalog string
}

// A TargetPlan is a target that was looked at, and not written to.
type TargetPlan struct {
	Info   Info   // of the target as it is now; Size 0 for a file to be created
	Create bool   // the file does not exist yet
	File   bool   // a regular file, present or not
	Old    string // what the target holds now, for people; "" for nothing
	// Notices are things to know before going on.
	Notices []string

	path   string // with links resolved, absolute
	opts   TargetOptions
	system system
	node   node
	stat   unix.Stat_t
}

// PlanTarget looks at a restore's target and opens nothing for writing. It
// returns an error wrapping ErrRefused, with the reason and what to do, when
// the target is in use, carries the repository or catalog, or does not fit.
func PlanTarget(path string, opts TargetOptions) (*TargetPlan, error) {
	return host().planTarget(path, opts)
}

// OpenTarget plans and opens in one step.
func OpenTarget(path string, opts TargetOptions) (*Target, error) {
	p, err := PlanTarget(path, opts)
	if err != nil {
		return nil, err
	}
	return p.Open()
}

func (s system) planTarget(path string, opts TargetOptions) (*TargetPlan, error) {
	if opts.Size < 0 {
		return nil, fmt.Errorf("plan restore to %s: image of %d bytes: %w", path, opts.Size, unix.EINVAL)
	}
	real, err := resolve(path)
	if err != nil {
		return nil, err
	}
	p := &TargetPlan{path: real, opts: opts, system: s}
	p.Info = Info{Path: path, Kind: KindFile, LogicalSector: 512, PhysicalSector: 512, Name: fileName(real)}
	err = unix.Stat(real, &p.stat)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		p.Create, p.File = true, true
		err = p.planNew()
	case err != nil:
		err = fmt.Errorf("plan restore to %s: %w", path, explain(err))
	case p.stat.Mode&unix.S_IFMT == unix.S_IFREG:
		p.File = true
		err = p.planFile()
	case p.stat.Mode&unix.S_IFMT == unix.S_IFBLK:
		err = p.planDevice()
	default:
		err = refuse(path, "is "+unfit(p.stat.Mode), "name a device or a file")
	}
	if err != nil {
		return nil, err
	}
	return p, nil
}

// resolve makes path absolute and free of links; its last part may be absent.
func resolve(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("plan restore to %s: %w", path, err)
	}
	real, err := filepath.EvalSymlinks(abs)
	if err == nil {
		return real, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("plan restore to %s: %w", path, explain(err))
	}
	if _, err := os.Lstat(abs); err == nil {
		return "", refuse(path, "is a symbolic link to nothing", "remove it or name a file")
	}
	dir, err := filepath.EvalSymlinks(filepath.Dir(abs))
	if err != nil {
		return "", fmt.Errorf("plan restore to %s: %w: the folder to create it in is missing", path, cause(err))
	}
	// A typing error in a device's name must not become a file on a ramdisk.
	if within(dir, "/dev") && !within(dir, "/dev/shm") {
		return "", refuse(path, "is no device that exists", "run 'platter devices' for those that do")
	}
	return filepath.Join(dir, filepath.Base(abs)), nil
}

func (p *TargetPlan) planNew() error {
	if err := unix.Access(filepath.Dir(p.path), unix.W_OK); err != nil {
		return fmt.Errorf("plan restore to %s: create it: %w", p.Info.Path, explain(err))
	}
	return p.checkPlace()
}

func (p *TargetPlan) planFile() error {
	p.Info.Size = p.stat.Size
	if err := p.checkPlace(); err != nil {
		return err
	}
	if err := unix.Access(p.path, unix.W_OK); err != nil {
		return fmt.Errorf("plan restore to %s: %w", p.Info.Path, explain(err))
	}
	return p.look()
}

func (p *TargetPlan) planDevice() error {
	n, err := p.system.node(p.stat.Rdev)
	if err != nil {
		return fmt.Errorf("plan restore to %s: %w", p.Info.Path, err)
	}
	p.node = n
	if err := p.checkPlace(); err != nil {
		return err
	}
	return p.look()
}

// look reads what the target holds now and checks that the image fits.
func (p *TargetPlan) look() error {
	src := &source{path: p.path, system: p.system}
	err := src.open(p.stat)
	defer src.Close()
	if err != nil {
		return fmt.Errorf("plan restore to %s: %w", p.Info.Path, explain(err))
	}
	path := p.Info.Path
	p.Info = src.info
	p.Info.Path = path
	p.Old = summary(p.Info)
	if p.File {
		return nil
	}
	return p.checkFit(src.any())
}

func (p *TargetPlan) checkFit(h *handle) error {
	ro, err := h.readOnly()
	switch {
	case err != nil:
		return fmt.Errorf("plan restore to %s: ask whether it is read-only: %w", p.Info.Path, err)
	case ro:
		return refuse(p.Info.Path, "is read-only", "blockdev --setrw "+p.Info.Path+", or choose another target")
	case p.opts.Fit != nil:
		if err := p.opts.Fit(p.Info); err != nil {
			if Unfit(err) {
				return fmt.Errorf("%w: %s %w", ErrRefused, p.Info.Path, err)
			}
			return fmt.Errorf("plan restore to %s: %w", p.Info.Path, err)
		}
	case p.Info.Size < p.opts.Size:
		return refuse(p.Info.Path, fmt.Sprintf("is too small: it has %d bytes, the image %d", p.Info.Size, p.opts.Size),
			"choose a larger target or restore to a file")
	case p.opts.SectorSize != 0 && p.opts.SectorSize != p.Info.LogicalSector:
		return refuse(p.Info.Path, fmt.Sprintf("has sectors of %d bytes, the image's partition table counts in sectors of %d",
			p.Info.LogicalSector, p.opts.SectorSize), "choose a target with the same sector size, or restore to a file")
	}
	if p.opts.SectorSize != 0 && p.Info.Kind == KindPartition {
		p.Notices = append(p.Notices, fmt.Sprintf("the image is a whole disk and %s is a partition: the kernel will not see the partitions inside", p.Info.Path))
	}
	return nil
}

// summary says in a few words what a device holds.
func summary(info Info) string {
	switch {
	case info.Table != nil:
		return tableSummary(info.Table)
	case info.Content != "":
		return info.Content
	case info.Kind == KindFile && info.Size > 0:
		return fmt.Sprintf("a file of %d bytes", info.Size)
	}
	return ""
}

// tableSummary lists what the partitions hold, the first few of them.
func tableSummary(t *Table) string {
	text := fmt.Sprintf("a %s partition table with %d partitions", strings.ToUpper(t.Type), len(t.Partitions))
	var contents []string
	for _, p := range t.Partitions[:min(8, len(t.Partitions))] {
		contents = append(contents, first(p.Content, "unknown"))
	}
	if len(contents) < len(t.Partitions) {
		contents = append(contents, "…")
	}
	if len(contents) > 0 {
		text += " (" + strings.Join(contents, ", ") + ")"
	}
	return text
}

// refuse is the error for a target that must not be written to.
func refuse(path, reason, remedy string) error {
	return fmt.Errorf("%w: %s %s: %s", ErrRefused, path, reason, remedy)
}
