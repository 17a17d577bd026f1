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
	device block.Device
	client *nbd.Client
	work   *work
	format string
	taken  time.Time
	old    []bitmap // of this consumer, when the view was taken
	kept   bool
	reads  atomic.Uint64
}

// Take implements snapshot.Provider.
func (p Provider) Take(ctx context.Context, d block.Device, o snapshot.Options) (snapshot.View, error) {
	views, err := p.TakeAll(ctx, []block.Device{d}, []snapshot.Options{o})
	if err != nil {
		return nil, err
	}
	return views[0], nil
}

// TakeAll takes views of disks of one machine.
func (Provider) TakeAll(ctx context.Context, devices []block.Device, options []snapshot.Options) (_ []snapshot.View, err error) {
	socket, _, _ := place(devices[0].Path)
	for _, d := range devices[1:] {
		if s, _, _ := place(d.Path); s != socket {
			return nil, fmt.Errorf("views of %s and %s: they are of two machines, which nothing holds still together", devices[0].Path, d.Path)
		}
	}
	m, _, err := look(ctx, devices[0].Path)
	if err != nil {
		return nil, err
	}
	shared := &connection{m, 1} // of this function, and of each view
	var all []*View
	var views []snapshot.View
	defer func() {
		for _, v := range all {
			if err != nil {
				err = errors.Join(err, v.end())
			}
		}
		err = errors.Join(err, shared.leave())
	}()
	list, err := drives(ctx, m)
	if err != nil {
		return nil, err
	}
	var actions []action
	for i, d := range devices {
		_, name, _ := place(d.Path)
		found, err := choose(list, name)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", d.Path, err)
		}
		v := newView(shared, d, found, options[i])
		all, views = append(all, v), append(views, v)
		if err := v.work.prepare(ctx, found); err != nil {
			return nil, v.named(err)
		}
		sound, _ := v.copies()
		actions = append(actions, v.work.moment(found.format, sound)...)
	}
	if err := m.Do(ctx, "transaction", arguments{"actions": actions}, nil); err != nil {
		return nil, all[0].named(err)
	}
	taken := time.Now()
	address, err := all[0].work.listen(ctx, len(all))
	if err != nil {
		return nil, all[0].named(err)
	}
	for _, v := range all {
		v.taken = taken
		if err := v.open(ctx, address); err != nil {
			return nil, v.named(err)
		}
	}
	return views, ctx.Err()
}

func newView(m *connection, d block.Device, found *drive, o snapshot.Options) *View {
	m.views++
	v := &View{
		device: d, format: found.format,
		work: &work{m: m, label: label{id: snapshot.NewID(), tag: o.Consumer.Tag(), run: o.Run}, node: found.node},
	}
	for _, b := range found.bitmaps {
		if l, ok := parse(b.Name); ok && l.of == "" && l.tag == v.work.label.tag {
			v.old = append(v.old, b)
		}
	}
	return v
}

func (v *View) named(err error) error {
	return fmt.Errorf("view of %s by QEMU: %w", v.device.Path, err)
}

// copies returns the bitmaps that can be relied on, and the names of their
// copies.
func (v *View) copies() (sound []bitmap, names []string) {
	for _, b := range v.old {
		if l, _ := parse(b.Name); b.Recording && !b.Inconsistent {
			sound, names = append(sound, b), append(names, v.work.copyOf(l.id))
		}
	}
	return sound, names
}

// open connects to the view.
func (v *View) open(ctx context.Context, address string) (err error) {
	_, copies := v.copies()
	if v.client, err = v.work.offer(ctx, address, copies); err != nil {
		return err
	}
	v.Source = nbd.Source(ctx, v.client, v.device.Info)
	return nil
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
	return v.client.Dirty(ctx, dirty(v.work.copyOf(id)), each)
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
	free, err := snapshot.Room()
	if err == nil && free < minRoom {
		err = fmt.Errorf("only %d MiB are left in %s for what the machine overwrites: %w: given up before it stops the machine; name another directory by TMPDIR",
			free>>20, snapshot.ScratchDir(), snapshot.ErrFilled)
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
	list, err := jobs(ctx, v.work.m.Client)
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
			errs = append(errs, removeBitmap(ctx, v.work.m.Client, v.work.node, b.Name))
		}
	}
	return errors.Join(errs...)
}

// Close implements snapshot.View.
func (v *View) Close() error { return v.end() }

// Abandon lets go of a view as a process does that dies: nothing is taken back.
func (v *View) Abandon() error { return errors.Join(v.client.Close(), v.work.m.leave()) }

// end takes back all that the view has in QEMU. Where the connection is of no
// more use, it is done by another.
func (v *View) end() error {
	var errs []error
	if v.client != nil {
		errs = append(errs, v.client.Close())
	}
	ctx, cancel := context.WithTimeout(context.Background(), cleanLimit)
	defer cancel()
	if err := v.work.m.renew(ctx); err != nil {
		return errors.Join(append(errs, err, v.work.m.leave())...)
	}
	errs = append(errs, v.work.clear(ctx))
	if !v.kept {
		errs = append(errs, removeBitmap(ctx, v.work.m.Client, v.work.node, v.work.name()))
	}
	return errors.Join(append(errs, v.work.m.leave())...)
}

// Of returns the view of QEMU that a view is, if it is one.
func Of(v snapshot.View) (*View, bool) {
	q, ok := v.(*View)
	return q, ok
}
