package libvirt

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"platter/block"
	"platter/block/nbd"
	"platter/block/snapshot"
)

// cleanLimit is how long the end of a view may take.
const cleanLimit = time.Minute

// A View is a disk of a running domain as it was.
type View struct {
	block.Source
	device block.Device
	target string
	format string
	backup *backup
	client *nbd.Client
	taken  time.Time
	base   string // ID of the checkpoint that the parent began with, "" for none
	since  string // its name, as long as libvirt can tell what was written since
	why    string // why it cannot
	frozen time.Duration
	notes  []string
}

// Take implements snapshot.Provider.
func (p Provider) Take(ctx context.Context, d block.Device, o snapshot.Options) (snapshot.View, error) {
	views, err := p.TakeAll(ctx, []block.Device{d}, []snapshot.Options{o})
	if err != nil {
		return nil, err
	}
	return views[0], nil
}

// TakeAll takes views of disks of one domain.
func (Provider) TakeAll(ctx context.Context, devices []block.Device, options []snapshot.Options) (views []snapshot.View, err error) {
	of, _, _ := place(devices[0].Path)
	found, err := find(ctx, of)
	if err != nil {
		return nil, fmt.Errorf("view of %s: %w", devices[0].Path, err)
	}
	b := &backup{domain: found, label: label{snapshot.NewID(), group(options).Tag(), options[0].Run}}
	for i, d := range devices {
		other, target, _ := place(d.Path)
		if other != of {
			return nil, fmt.Errorf("views of %s and %s: they are of two machines, which nothing holds still together", devices[0].Path, d.Path)
		}
		k, err := found.disk(target)
		if err != nil {
			return nil, fmt.Errorf("view of %s: %w", d.Path, err)
		}
		b.views = append(b.views, &View{device: d, target: k.Target, format: k.Format, backup: b, base: options[i].Base})
	}
	if err := b.take(ctx); err != nil {
		return nil, fmt.Errorf("view of %s by libvirt: %w", devices[0].Path, err)
	}
	for _, v := range b.views {
		views = append(views, v)
	}
	return views, ctx.Err()
}

// group is whom a checkpoint is for: all volumes that are imaged together.
func group(options []snapshot.Options) snapshot.Consumer {
	c := options[0].Consumer
	for _, o := range options[1:] {
		c.Volume += "\n" + o.Consumer.Volume
	}
	return c
}

// take begins the backup and connects to what it offers.
func (b *backup) take(ctx context.Context) (err error) {
	if err := clear(ctx, b.domain.UUID); err != nil {
		return err
	}
	all, err := checkpoints(ctx, b.domain.UUID)
	if err != nil {
		return err
	}
	incremental := false
	for _, v := range b.views {
		for _, l := range all {
			if v.base != "" && l.id == v.base {
				v.since, incremental = l.String(), true
			}
		}
	}
	frozen, notes := b.still(ctx, func() {
		if err = b.begin(ctx); err == nil || !incremental || ctx.Err() != nil {
			return
		}
		// The image does not depend on what was written being known.
		why := err
		for _, v := range b.views {
			if v.since != "" {
				v.since, v.why = "", why.Error()
			}
		}
		if err = b.begin(ctx); err != nil {
			err = errors.Join(why, err)
		}
	})
	if err != nil {
		return err
	}
	taken := time.Now()
	b.open = len(b.views)
	for _, v := range b.views {
		v.taken, v.frozen, v.notes = taken, frozen, notes
	}
	for _, v := range b.views {
		if err := v.open(ctx); err != nil {
			for _, v := range b.views {
				err = errors.Join(err, v.Close())
			}
			return err
		}
	}
	return nil
}

func (v *View) open(ctx context.Context) (err error) {
	contexts := []string{nbd.Allocation}
	if v.since != "" {
		contexts = append(contexts, "qemu:dirty-bitmap:"+bitmap)
	}
	v.client, err = nbd.Dial(ctx, "unix", v.backup.socket(), nbd.Options{Export: v.target, Contexts: contexts})
	if err != nil {
		return err
	}
	v.Source = nbd.Source(ctx, v.client, v.device.Info)
	return nil
}

// Method implements snapshot.View.
func (v *View) Method() string { return Method }

// ID implements snapshot.View.
func (v *View) ID() string { return v.backup.label.id }

// Taken implements snapshot.View.
func (v *View) Taken() time.Time { return v.taken }

// Persistent reports whether libvirt can keep a bitmap of the disk.
func (v *View) Persistent() bool { return v.format == "qcow2" }

// Frozen is how long the guest's filesystems stood still.
func (v *View) Frozen() time.Duration { return v.frozen }

// Notes are what the run's report should say of how the view came about.
func (v *View) Notes() []string { return v.notes }

// Dirty calls each with what was written between the view of an ID and this one.
func (v *View) Dirty(ctx context.Context, id string, each func(block.Extent)) error {
	switch {
	case !v.Persistent():
		return errors.New("libvirt keeps no checkpoint of a disk that is no qcow2")
	case v.why != "":
		return fmt.Errorf("libvirt cannot tell what was written since its checkpoint %s%s: %s", prefix, id, v.why)
	case id != v.base || v.since == "":
		return fmt.Errorf("libvirt has no checkpoint %s%s any more", prefix, id)
	}
	return v.client.Dirty(ctx, "qemu:dirty-bitmap:"+bitmap, each)
}

// Keep implements snapshot.View: when the images of all disks are durable, the
// checkpoint takes the place of those before.
func (v *View) Keep(ctx context.Context) error {
	b := v.backup
	if b.kept++; b.kept < len(b.views) {
		return nil
	}
	all, err := checkpoints(ctx, b.domain.UUID)
	if err != nil {
		return err
	}
	var errs []error
	for _, l := range all {
		if l.tag == b.label.tag && l.id != b.label.id && (l.run == b.label.run || !snapshot.Running(l.run)) {
			errs = append(errs, remove(ctx, b.domain.UUID, l))
		}
	}
	return errors.Join(errs...)
}

// Close implements snapshot.View: with the last view the backup ends.
func (v *View) Close() error {
	var errs []error
	if v.client != nil {
		errs = append(errs, v.client.Close())
	}
	b := v.backup
	if b.open--; b.open > 0 {
		return errors.Join(errs...)
	}
	ctx, cancel := context.WithTimeout(context.Background(), cleanLimit)
	defer cancel()
	if _, err := virsh(ctx, "domjobabort", "--domain", b.domain.UUID); err != nil {
		errs = append(errs, fmt.Errorf("end the backup of domain %s: %w", b.domain.Name, err))
	}
	if b.kept == 0 && b.marks() {
		errs = append(errs, remove(ctx, b.domain.UUID, b.label))
	}
	if err := os.Remove(b.socket()); err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
