package job

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"regexp"
	"strings"

	"platter/block"
	"platter/image"
	"platter/internal/export/files"
	"platter/internal/export/files/tree"
)

// FilesOptions say what to take out of an image. Where it goes is told by the
// functions; without any, nothing but List is done.
type FilesOptions struct {
	// Spec is IMAGE, or IMAGE:PATH, where PATH begins with "/" or with "p" and
	// a partition's number.
	Spec string
	// Kernel has the running kernel read the filesystem.
	Kernel bool
	Deep   bool // list also what is in folders of the folder
	// One of:
	List func(files.Line) error
	To   string    // a folder to copy to; it is made if it does not exist
	Tar  io.Writer // takes an archive
	Cat  io.Writer // takes the content of one file
}

// A FilesReport tells of what was taken out of an image.
type FilesReport struct {
	Image     *image.Manifest `json:"image"`
	Partition int             `json:"partition,omitempty"` // 0: the device as a whole
	Content   string          `json:"filesystem"`
	Path      string          `json:"path"`
	To        string          `json:"to,omitempty"`
	*files.Report
}

// fileSpec splits IMAGE:PATH. The times of an image have colons too, but
// digits behind them.
var fileSpec = regexp.MustCompile(`^(.*?)(?::(?:p([0-9]{1,3}))?(/.*)?)?$`)

// splitSpec returns the image, the partition or 0, and the path or "/".
func splitSpec(spec string) (name string, partition int, p string) {
	m := fileSpec.FindStringSubmatch(spec)
	if m == nil {
		return spec, 0, "/"
	}
	fmt.Sscan(m[2], &partition)
	if p = m[3]; p == "" {
		p = "/"
	}
	return m[1], partition, p
}

// Files takes files out of an image. Its report is not nil once something was.
func Files(ctx context.Context, env *Env, opts FilesOptions) (report *FilesReport, err error) {
	name, partition, p := splitSpec(opts.Spec)
	o, err := offer(ctx, env, &OfferOptions{Image: name, Writable: opts.Kernel})
	if err != nil {
		return nil, fmt.Errorf("files: %w", err)
	}
	defer func() { err = errors.Join(err, o.close()) }()
	where := func(err error) error {
		return fmt.Errorf("files of image %s of %s: %w", o.image.ID, o.image.Volume, err)
	}
	part, err := pickPart(ctx, o, partition)
	if err != nil {
		return nil, where(err)
	}
	var lost error // what the kernel calls an input error
	f, err := openPart(ctx, o, part, opts.Kernel, func(err error) {
		env.warn("%v", err)
		lost = err
	})
	if err != nil {
		return nil, where(fmt.Errorf("%s: %w", part.name(), err))
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	found, err := files.Find(ctx, f.Root, p, opts.Cat != nil)
	if err != nil {
		return nil, where(fmt.Errorf("%s: %w", part.name(), err))
	}
	n := f.Root
	for _, node := range found {
		n = node
		defer node.Close()
	}
	report = &FilesReport{Image: o.image, Partition: part.Number, Content: part.Content, Path: p, To: opts.To}
	base := path.Base(path.Clean(p))
	if base == "/" {
		base = ""
	}
	memory := env.Memory / 4
	switch {
	case opts.Cat != nil:
		var count int64
		count, err = files.Print(ctx, n, opts.Cat)
		report.Report = &files.Report{Files: 1, Bytes: count}
	case opts.Tar != nil:
		report.Report, err = files.Tar(ctx, n, base, opts.Tar, memory)
	case opts.To != "":
		if err = os.MkdirAll(opts.To, 0o700); err == nil {
			report.Report, err = files.Copy(ctx, n, base, opts.To, memory)
		}
	default:
		err = files.List(ctx, n, base, opts.Deep, memory, opts.List)
	}
	if err == nil && report.Report != nil {
		err = firstDamage(lost, report.Err)
	}
	if err != nil {
		return report, where(fmt.Errorf("%s: %s: %w", part.name(), p, err))
	}
	return report, nil
}

// firstDamage returns the first error that is of stored data.
func firstDamage(list ...error) error {
	for _, err := range list {
		if errors.Is(err, ErrDamaged) {
			return err
		}
	}
	return nil
}

// A part of an image that may hold a filesystem: a partition, or with the
// number 0 the whole.
type part struct {
	Number int
	block.Extent
	Content string
}

func (p part) name() string {
	if p.Number == 0 {
		return "the device"
	}
	return fmt.Sprintf("partition %d", p.Number)
}

// diskParts are the partitions of an image, or the image where it has none,
// with what is in them now.
func diskParts(ctx context.Context, o *offered) []part {
	look := func(e block.Extent) string {
		_, content := block.Probe(&files.Section{Context: ctx, Device: o.disk, Extent: e}, e.Length, 0)
		return content
	}
	if o.image.Device.Table == nil {
		whole := block.Extent{Length: o.image.Size}
		return []part{{Extent: whole, Content: look(whole)}}
	}
	var list []part
	for _, p := range o.image.Device.Table.Partitions {
		if inDisk(o.image, p.Extent) {
			list = append(list, part{p.Number, p.Extent, look(p.Extent)})
		}
	}
	return list
}

// inDisk reports whether an extent is of the image's disk, whatever its
// manifest says.
func inDisk(m *image.Manifest, e block.Extent) bool {
	return e.Offset >= 0 && e.Length > 0 && e.Length <= m.Size && e.Offset <= m.Size-e.Length
}

// noFiles are contents that are no filesystem, and what to do about them.
func noFiles(content string) string {
	switch content {
	case "LVM2_member":
		return "it is a part of LVM: show the image with platter mount, attach disk.raw with losetup -P, and mount its volumes"
	case "crypto_LUKS", "BitLocker":
		return "it is encrypted: show the image with platter mount, and open it with its key"
	case "linux_raid_member", "zfs_member":
		return "it is a member of an array: show all of them with platter mount, and assemble it"
	case "swap", "swsuspend":
		return "it is swap"
	case "":
		return "it holds nothing known"
	}
	return ""
}

// pickPart finds the partition of a number, or the only one with a filesystem.
func pickPart(ctx context.Context, o *offered, number int) (part, error) {
	list := diskParts(ctx, o)
	var fit []part
	var all []string
	for _, p := range list {
		if number == 0 && noFiles(p.Content) == "" || number > 0 && p.Number == number {
			fit = append(fit, p)
		}
		all = append(all, fmt.Sprintf("p%d (%s)", p.Number, orNothing(p.Content)))
	}
	switch {
	case len(list) == 1 && len(fit) == 0 && number == 0:
		return part{}, fmt.Errorf("%s: %s", list[0].name(), noFiles(list[0].Content))
	case len(fit) == 0 && number > 0:
		return part{}, fmt.Errorf("there is no partition %d: there are %s", number, strings.Join(all, ", "))
	case len(fit) == 0:
		return part{}, fmt.Errorf("no partition holds a filesystem: there are %s", strings.Join(all, ", "))
	case len(fit) > 1:
		return part{}, fmt.Errorf("%w: several partitions hold filesystems; name one as IMAGE:pN/PATH: there are %s", ErrUsage, strings.Join(all, ", "))
	}
	if why := noFiles(fit[0].Content); why != "" {
		return part{}, fmt.Errorf("%s: %s", fit[0].name(), why)
	}
	return fit[0], nil
}

func orNothing(content string) string {
	if content == "" {
		return "nothing known"
	}
	return content
}

// openPart opens the filesystem of a part.
func openPart(ctx context.Context, o *offered, p part, byKernel bool, log func(error)) (*files.Filesystem, error) {
	if byKernel {
		return files.OpenByKernel(o.over, p.Extent, p.Content, temporaryDir, log)
	}
	f, err := files.Open(ctx, o.disk, p.Extent, p.Content)
	if errors.Is(err, tree.ErrNeedsKernel) {
		return nil, fmt.Errorf("%w; say --kernel, as root, if you trust what is in it not to attack this kernel", err)
	}
	return f, err
}
