package qemu

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"platter/block"
	"platter/block/nbd"
	"platter/block/snapshot"
)

// cleanLimit is how long the end of a view may take.
const cleanLimit = time.Minute

// A View is a disk of a running machine as it was.
type View struct {
	block.Source
	client *nbd.Client
	work   *work
	format string
	taken  time.Time
	old    []bitmap // of this consumer, when the view was taken
	kept   bool
	reads  atomic.Uint64
}

// Take implements snapshot.Provider.
func (Provider) Take(ctx context.Context, d block.Device, o snapshot.Options) (_ snapshot.View, err error) {
	m, found, err := look(ctx, d.Path)
	if err != nil {
		return nil, err
	}
	id := snapshot.NewID()
	v := &View{
		work:   &work{m: m, label: label{id: id, tag: o.Consumer.Tag(), run: o.Run}, node: found.node},
		format: found.format,
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("view of %s by QEMU: %w", d.Path, err), v.end())
		}
	}()
	for _, b := range found.bitmaps {
		if l, ok := parse(b.Name); ok && l.of == "" && l.tag == v.work.label.tag {
			v.old = append(v.old, b)
		}
	}
	var sound []bitmap
	var copies []string
	for _, b := range v.old {
		if l, _ := parse(b.Name); b.Recording && !b.Inconsistent {
			sound, copies = append(sound, b), append(copies, v.work.copyOf(l.id))
		}
	}
	if err := v.work.prepare(ctx, found); err != nil {
		return nil, err
	}
	if err := v.work.begin(ctx, found, sound); err != nil {
		return nil, err
	}
	v.taken = time.Now()
	if v.client, err = v.work.offer(ctx, copies); err != nil {
		return nil, err
	}
	info := d.Info
	info.Size = v.client.Size()
	block.Examine(v.client.ReaderAt(ctx), &info)
	v.Source = nbd.Source(v.client, info)
	return v, ctx.Err()
}

// Method implements snapshot.View.
func (v *View) Method() string { return Method }

// ID implements snapshot.View.
func (v *View) ID() string { return v.work.label.id }

// Taken implements snapshot.View.
func (v *View) Taken() time.Time { return v.taken }

// Persistent reports whether bitmaps are kept with the disk when the machine is
// off.
func (v *View) Persistent() bool { return v.format == "qcow2" }

// A Bitmap is what is known of one that the consumer has, when the view was
// taken.
type Bitmap struct {
	Recording    bool
	Inconsistent bool
}

// Bitmap returns the bitmap that began with the view of an ID. It is false where
// there is none.
func (v *View) Bitmap(id string) (Bitmap, bool) {
	for _, b := range v.old {
		if l, ok := parse(b.Name); ok && l.id == id {
			return Bitmap{b.Recording, b.Inconsistent}, true
		}
	}
	return Bitmap{}, false
}

// Dirty calls each with what was written between the view of an ID and this
// one.
func (v *View) Dirty(ctx context.Context, id string, each func(block.Extent)) error {
	all := block.Extent{Length: v.client.Size()}
	return v.client.Walk(ctx, dirty(v.work.copyOf(id)), all, func(s nbd.Status) error {
		if s.Flags&nbd.StatusDirty != 0 {
			each(s.Extent)
		}
		return nil
	})
}

// lookEvery is after how many reads the room for what is overwritten is looked
// at, and minRoom what must be left of it, in bytes: once there is none, QEMU
// fails what the machine writes.
const (
	lookEvery = 64
	minRoom   = 256 << 20
)

// ReadAt implements block.Source.
func (v *View) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if v.reads.Add(1)%lookEvery == 0 {
		if err := roomLeft(); err != nil {
			return 0, err
		}
	}
	return v.Source.ReadAt(ctx, p, off)
}

func roomLeft() error {
	free, err := room(scratchDir())
	if err == nil && free < minRoom {
		err = fmt.Errorf("only %d MiB are left in %s for what the machine overwrites: %w: given up before it stops the machine; name another directory by TMPDIR",
			free>>20, scratchDir(), snapshot.ErrFilled)
	}
	return err
}

// Check implements block.Source.
func (v *View) Check() error {
	if err := v.Source.Check(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), cleanLimit)
	defer cancel()
	list, err := jobs(ctx, v.work.m)
	if err != nil {
		return err
	}
	for _, j := range list {
		if j.Device == v.work.name() {
			return nil
		}
	}
	return fmt.Errorf("QEMU's job %s has ended: what was read is of no one moment", v.work.name())
}

// Keep implements snapshot.View: the bitmap that began with the view takes the
// place of those before.
func (v *View) Keep(ctx context.Context) error {
	v.kept = true
	var errs []error
	for _, b := range v.old {
		if l, _ := parse(b.Name); l.run == v.work.label.run || !snapshot.Running(l.run) {
			errs = append(errs, removeBitmap(ctx, v.work.m, v.work.node, b.Name))
		}
	}
	return errors.Join(errs...)
}

// Close implements snapshot.View.
func (v *View) Close() error { return v.end() }

// Abandon lets go of a view as a process does that dies: nothing is taken back.
func (v *View) Abandon() error { return errors.Join(v.client.Close(), v.work.m.Close()) }

// end takes back all that the view has in QEMU. Where the connection is of no
// more use, it is done by another.
func (v *View) end() error {
	var errs []error
	if v.client != nil {
		errs = append(errs, v.client.Close())
	}
	ctx, cancel := context.WithTimeout(context.Background(), cleanLimit)
	defer cancel()
	m, err := v.work.m.Again(ctx)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	v.work.m = m
	errs = append(errs, v.work.clear(ctx))
	if !v.kept {
		errs = append(errs, removeBitmap(ctx, m, v.work.node, v.work.name()))
	}
	return errors.Join(append(errs, m.Close())...)
}

// Of returns the view of QEMU that a view is, if it is one.
func Of(v snapshot.View) (*View, bool) {
	q, ok := v.(*View)
	return q, ok
}
