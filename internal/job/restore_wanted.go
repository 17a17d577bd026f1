package job

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"regexp"
	"strconv"

	"platter/block"
	"platter/image"
	"platter/image/reader"
	"platter/internal/export/adapt"
	"platter/internal/export/files"
	"platter/internal/export/overlay"
)

// What is wanted of an image: all of it, as much as fits a smaller target, or
// one partition.
type wanted struct {
	image  *image.Manifest
	part   *block.Partition // nil for all of it
	region block.Extent     // of the image, that is written
	fit    *block.Fit
	grows  []string // what of filesystems is done when all is written
	reader *reader.Reader
	disk   *reader.Disk
	source *imageBytes // what the fit is made of: the image, or the partition

	table   *block.Table
	content string

	over    *overlay.Disk // the image as it is to be, nil where that is as it is
	adapted *adapt.Report
}

var partitionPattern = regexp.MustCompile(`^(.+):p([0-9]{1,3})$`)

// openWanted finds the image that spec names, or a partition of it, and looks
// at its table. It reads the image's own bytes, verified.
func openWanted(ctx context.Context, env *Env, spec string) (*wanted, error) {
	number := 0
	if m := partitionPattern.FindStringSubmatch(spec); m != nil {
		spec = m[1]
		number, _ = strconv.Atoi(m[2])
	}
	m, err := Find(ctx, env, spec)
	if err != nil {
		return nil, err
	}
	w := &wanted{image: m, region: block.Extent{Length: m.Size}, reader: env.reader()}
	w.disk = reader.NewDisk(w.reader, m, env.Memory/16)
	w.source = &imageBytes{ctx: ctx, disk: w.disk, size: m.Size}
	if err := w.look(number); err != nil {
		w.close()
		return nil, fmt.Errorf("restore image %.8s of %s: %w", m.ID, m.Volume, damaged(m, err))
	}
	return w, nil
}

func (w *wanted) close() {
	if w.over != nil {
		w.over.Close()
	}
	w.disk.Close()
}

// look finds out what the image, or its partition, holds.
func (w *wanted) look(number int) error {
	d := &w.image.Device
	sector := 0
	switch {
	case d.Table != nil:
		sector = d.Table.SectorSize
	case d.Kind != block.KindFile:
		sector = d.LogicalSector
	}
	if sector != 512 && sector != 4096 {
		sector = 0
	}
	w.table, w.content = block.Probe(w.source, w.image.Size, sector)
	if w.source.failed != nil {
		return w.source.failed
	}
	if number == 0 {
		return nil
	}
	if w.table != nil {
		for i, p := range w.table.Partitions {
			if p.Number == number && p.Offset+p.Length <= w.image.Size {
				w.part = &w.table.Partitions[i]
			}
		}
	}
	if w.part == nil {
		return fmt.Errorf("%w: it has no partition %d: %s", ErrUsage, number, partitionsThere(w.table))
	}
	w.region, w.content, w.table = w.part.Extent, w.part.Content, nil
	w.source.base, w.source.size = w.part.Offset, w.part.Length
	return nil
}

func partitionsThere(t *block.Table) string {
	if t == nil || len(t.Partitions) == 0 {
		return "there is no partition table"
	}
	text := "there are"
	for _, p := range t.Partitions {
		text += fmt.Sprintf(" p%d", p.Number)
		if p.Content != "" {
			text += " (" + p.Content + ")"
		}
	}
	return text
}

// target plans the target, and how the image fits it.
func (w *wanted) target(env *Env, opts *RestoreOptions) (*block.TargetPlan, error) {
	o := block.TargetOptions{Size: w.region.Length, InPlace: opts.InPlace, Fit: func(t block.Info) error {
		return w.fitTo(block.FitTo{Size: t.Size, Sector: t.LogicalSector, Grow: opts.Grow, Firmware: opts.Adapt.Firmware}, t)
	}}
	if w.table != nil {
		o.SectorSize = w.table.SectorSize
	}
	if place := env.Repo.Store.Location(); filepath.IsAbs(place) {
		o.Repository = place
	}
	t, err := block.PlanTarget(opts.Target, o)
	if err == nil && opts.Grow && !t.File {
		err = w.planGrow()
	}
	if err == nil && t.File {
		if opts.Grow {
			return nil, fmt.Errorf("restore to %s: %w: --grow is for disks: a file is as large as its image", opts.Target, ErrUsage)
		}
		sector := 512
		if w.table != nil {
			sector = w.table.SectorSize
		}
		err = w.fitTo(block.FitTo{Size: w.region.Length, Sector: sector}, t.Info)
	}
	return t, damaged(w.image, err)
}

// fitTo has the image fit the target, or says why it cannot.
func (w *wanted) fitTo(to block.FitTo, t block.Info) (err error) {
	w.fit, err = block.FitImage(w.source, w.source.size, w.table, w.content, to)
	if err == nil && w.part == nil {
		w.region.Length = w.fit.Length
		if w.table != nil && t.Kind == block.KindPartition {
			w.fit.Notices = append(w.fit.Notices, fmt.Sprintf("the image is a whole disk and %s is a partition: the kernel will not see the partitions inside", t.Path))
		}
	}
	return err
}

// planGrow adds to the plan what --grow will do, or says why it cannot.
func (w *wanted) planGrow() error {
	if w.fit.Grown == nil {
		w.fit.Notices = append(w.fit.Notices, "nothing grows: there is no room behind the last partition")
		return nil
	}
	step, err := planGrow(w.fit.Grown)
	w.grows = []string{step}
	return err
}

// canvas returns the target by the offsets of the image.
func (w *wanted) canvas(t *block.Target) (canvas, error) {
	if w.region == (block.Extent{Length: w.image.Size}) {
		return t, nil
	}
	return newAperture(t, w)
}

// imageBytes is an image, or a part of it, to be looked at.
type imageBytes struct {
	ctx        context.Context
	disk       files.Device
	base, size int64
	failed     error // the first that was not the end
}

// ReadAt reads what is in the part.
func (b *imageBytes) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= b.size {
		return 0, io.EOF
	}
	want := min(int64(len(p)), b.size-off)
	n, err := b.disk.ReadAt(b.ctx, p[:want], b.base+off)
	if err != nil && err != io.EOF && b.failed == nil {
		b.failed = err
	}
	if err == nil && n < len(p) {
		err = io.EOF
	}
	return n, err
}

// A canvas is a target by the offsets of the image.
type canvas interface {
	io.ReaderAt
	io.WriterAt
	Zero(ctx context.Context, e block.Extent) error
	Data(off int64) (block.Extent, error)
	Reserve(e block.Extent) error
	Sync() error
}

// An aperture is a target that holds a part of the image. Where the first and
// the last block reach beyond the part it reads as the image does, and writes
// are dropped.
type aperture struct {
	*block.Target
	part         block.Extent
	size         int64  // of the image
	before       []byte // what the first block has before the part
	after        []byte // what the last one has behind it
	beforeOffset int64
}

func newAperture(t *block.Target, w *wanted) (*aperture, error) {
	bs := int64(w.image.BlockSize)
	a := &aperture{Target: t, part: w.region, size: w.image.Size, beforeOffset: w.region.Offset / bs * bs}
	a.before = make([]byte, w.region.Offset-a.beforeOffset)
	a.after = make([]byte, min((w.region.End()+bs-1)/bs*bs, w.image.Size)-w.region.End())
	if _, err := w.disk.ReadAt(w.source.ctx, a.before, a.beforeOffset); err != nil && err != io.EOF {
		return nil, err
	}
	if _, err := w.disk.ReadAt(w.source.ctx, a.after, w.region.End()); err != nil && err != io.EOF {
		return nil, err
	}
	return a, nil
}

// inside returns what of e is in the part.
func (a *aperture) inside(e block.Extent) block.Extent {
	start, end := max(e.Offset, a.part.Offset), min(e.End(), a.part.End())
	return block.Extent{Offset: start, Length: max(0, end-start)}
}

func (a *aperture) ReadAt(p []byte, off int64) (int, error) {
	e := block.Extent{Offset: off, Length: int64(len(p))}
	in := a.inside(e)
	if off < a.part.Offset {
		copy(p, a.before[off-a.beforeOffset:])
	}
	if e.End() > a.part.End() {
		from := max(off, a.part.End())
		copy(p[from-off:], a.after[from-a.part.End():])
	}
	if in.Length > 0 {
		if n, err := a.Target.ReadAt(p[in.Offset-off:][:in.Length], in.Offset-a.part.Offset); int64(n) < in.Length {
			return int(in.Offset-off) + n, err
		}
	}
	return len(p), nil
}

func (a *aperture) WriteAt(p []byte, off int64) (int, error) {
	in := a.inside(block.Extent{Offset: off, Length: int64(len(p))})
	if in.Length > 0 {
		if _, err := a.Target.WriteAt(p[in.Offset-off:][:in.Length], in.Offset-a.part.Offset); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

func (a *aperture) Zero(ctx context.Context, e block.Extent) error {
	in := a.inside(e)
	if in.Length == 0 {
		return nil
	}
	in.Offset -= a.part.Offset
	return a.Target.Zero(ctx, in)
}

func (a *aperture) Reserve(e block.Extent) error {
	in := a.inside(e)
	in.Offset -= a.part.Offset
	return a.Target.Reserve(in)
}

func (a *aperture) Data(off int64) (block.Extent, error) {
	if off < a.part.Offset {
		return block.Extent{Offset: off, Length: a.part.Offset - off}, nil
	}
	if off < a.part.End() {
		e, err := a.Target.Data(off - a.part.Offset)
		if err != io.EOF {
			e.Offset += a.part.Offset
			return e, err
		}
		off = a.part.End()
	}
	if end := a.part.End() + int64(len(a.after)); off < end {
		return block.Extent{Offset: off, Length: end - off}, nil
	}
	return block.Extent{}, io.EOF
}
