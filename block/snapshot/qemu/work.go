package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"platter/block/nbd"
	"platter/block/qmp"
	"platter/block/snapshot"
)

// arguments of a command.
type arguments = map[string]any

// work is what one view needs within QEMU: a file for what is overwritten, the
// job that copies it there, and the export of both.
type work struct {
	m     *connection
	label label
	node  string // the drive
}

// A connection is one that the views of a machine's disks share: its socket takes
// one at a time. It belongs to one goroutine.
type connection struct {
	*qmp.Client
	views int
}

// renew sees to it that the connection can be relied on.
func (c *connection) renew(ctx context.Context) error {
	m, err := c.Again(ctx)
	if err == nil {
		c.Client = m
	}
	return err
}

// leave ends the connection with its last view.
func (c *connection) leave() error {
	if c.views--; c.views > 0 {
		return nil
	}
	return c.Close()
}

func (w *work) name() string    { return w.label.String() } // of the job and the bitmap
func (w *work) short() string   { return prefix + w.label.id }
func (w *work) scratch() string { return "plfile-" + w.label.id }

// copyOf is the name of the frozen copy of a bitmap.
func (w *work) copyOf(id string) string {
	l := w.label
	l.of = id
	return l.String()
}

// prepare makes the file for what is overwritten. It has no name, and is gone
// with the last process that has it open.
func (w *work) prepare(ctx context.Context, d *drive) error {
	fd, err := unix.Open(snapshot.ScratchDir(), unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("make a file in %s: %w", snapshot.ScratchDir(), err)
	}
	f := os.NewFile(uintptr(fd), filepath.Join(snapshot.ScratchDir(), "scratch"))
	defer f.Close()
	var set struct {
		ID int `json:"fdset-id"`
	}
	if err := w.m.DoWith(ctx, f, "add-fd", arguments{"opaque": w.name()}, &set); err != nil {
		return err
	}
	file := arguments{"driver": "file", "node-name": w.scratch(), "filename": fmt.Sprintf("/dev/fdset/%d", set.ID)}
	if err := w.m.Do(ctx, "blockdev-add", file, nil); err != nil {
		return err
	}
	if err := w.format(ctx, d.size); err != nil {
		return err
	}
	return w.m.Do(ctx, "blockdev-add", arguments{
		"driver": "qcow2", "node-name": w.short(), "file": w.scratch(), "backing": w.node,
	}, nil)
}

// format lets QEMU make an empty qcow2 of the file.
func (w *work) format(ctx context.Context, size int64) error {
	id := "plformat-" + w.label.id
	err := w.m.Do(ctx, "blockdev-create", arguments{
		"job-id": id, "options": arguments{"driver": "qcow2", "file": w.scratch(), "size": size},
	}, nil)
	if err != nil {
		return err
	}
	var failed string
	err = w.m.Until(ctx, func() (bool, error) {
		var all []struct{ ID, Status, Error string }
		if err := w.m.Do(ctx, "query-jobs", nil, &all); err != nil {
			return false, err
		}
		for _, j := range all {
			if j.ID == id {
				failed = j.Error
				return j.Status == "concluded", nil
			}
		}
		return false, fmt.Errorf("QEMU has forgotten the job %s", id)
	})
	if err != nil {
		return err
	}
	if failed != "" {
		err = fmt.Errorf("QEMU: make a qcow2 of the file in %s: %s", snapshot.ScratchDir(), failed)
	}
	return errors.Join(err, w.m.Do(ctx, "job-dismiss", arguments{"id": id}, nil))
}

// An action is a part of a transaction.
type action struct {
	Type string    `json:"type"`
	Data arguments `json:"data"`
}

// moment is what is to happen at the moment of the view: the job begins, a new
// bitmap does, and what the bitmaps of this consumer have recorded is copied.
func (w *work) moment(format string, old []bitmap) (all []action) {
	for _, b := range old {
		l, _ := parse(b.Name)
		c := w.copyOf(l.id)
		all = append(all,
			action{"block-dirty-bitmap-add", arguments{"node": w.node, "name": c, "granularity": b.Granularity, "disabled": true}},
			action{"block-dirty-bitmap-merge", arguments{"node": w.node, "target": c, "bitmaps": []string{b.Name}}})
	}
	return append(all,
		action{"block-dirty-bitmap-add", arguments{"node": w.node, "name": w.name(), "granularity": granularity, "persistent": format == "qcow2"}},
		action{"blockdev-backup", arguments{"job-id": w.name(), "device": w.node, "target": w.short(), "sync": "none"}})
}

// granularity of new bitmaps, in bytes.
const granularity = 64 << 10

// listen has QEMU offer exports at an address. The socket is of no name: QEMU
// gets it open. One server is for all disks of the machine.
func (w *work) listen(ctx context.Context, disks int) (address string, err error) {
	address = fmt.Sprintf("@platter/%s", w.label.id)
	l, err := net.Listen("unix", address)
	if err != nil {
		return "", err
	}
	defer l.Close()
	f, err := l.(*net.UnixListener).File()
	if err != nil {
		return "", err
	}
	defer f.Close()
	if err := w.m.DoWith(ctx, f, "getfd", arguments{"fdname": w.short()}, nil); err != nil {
		return "", err
	}
	listen := arguments{"addr": arguments{"type": "fd", "data": arguments{"str": w.short()}}, "max-connections": 4 * disks}
	if err := w.m.Do(ctx, "nbd-server-start", listen, nil); err != nil {
		_ = w.m.Do(ctx, "closefd", arguments{"fdname": w.short()}, nil)
		return "", fmt.Errorf("%w (another backup of this machine may be under way)", err)
	}
	return address, nil
}

// offer exports the view and connects to it.
func (w *work) offer(ctx context.Context, address string, copies []string) (*nbd.Client, error) {
	options := arguments{"id": w.short(), "type": "nbd", "node-name": w.short(), "name": w.short(), "writable": false}
	if len(copies) > 0 {
		options["bitmaps"] = copies
	}
	if err := w.m.Do(ctx, "block-export-add", options, nil); err != nil {
		return nil, err
	}
	contexts := []string{nbd.Allocation}
	for _, c := range copies {
		contexts = append(contexts, dirty(c))
	}
	return nbd.Dial(ctx, "unix", address, nbd.Options{Export: w.short(), Contexts: contexts})
}

// dirty is what NBD calls a bitmap.
func dirty(bitmap string) string { return "qemu:dirty-bitmap:" + bitmap }

// clear takes back all that a view has in QEMU, but for bitmaps that are no
// copies. What is not there is let be.
func (w *work) clear(ctx context.Context) error {
	return errors.Join(w.unexport(ctx), w.unjob(ctx),
		gone(w.m.Do(ctx, "blockdev-del", arguments{"node-name": w.short()}, nil)),
		gone(w.m.Do(ctx, "blockdev-del", arguments{"node-name": w.scratch()}, nil)),
		w.forgetFile(ctx), w.forgetCopies(ctx))
}

// unexport ends the export, and the server if it has no other.
func (w *work) unexport(ctx context.Context) error {
	err := gone(w.m.Do(ctx, "block-export-del", arguments{"id": w.short(), "mode": "hard"}, nil))
	if err != nil {
		return err
	}
	var left []struct{ ID, Type string }
	err = w.m.Until(ctx, func() (bool, error) {
		left = nil
		if err := w.m.Do(ctx, "query-block-exports", nil, &left); err != nil {
			return false, err
		}
		return !slices.ContainsFunc(left, func(e struct{ ID, Type string }) bool { return e.ID == w.short() }), nil
	})
	if err != nil || slices.ContainsFunc(left, func(e struct{ ID, Type string }) bool { return e.Type == "nbd" }) {
		return err
	}
	err = w.m.Do(ctx, "nbd-server-stop", nil, nil)
	if said := (*qmp.Error)(nil); errors.As(err, &said) && strings.Contains(said.Desc, "not running") {
		return nil
	}
	return err
}

// unjob ends the job, which copies no more from then on.
func (w *work) unjob(ctx context.Context) error {
	if err := gone(w.m.Do(ctx, "block-job-cancel", arguments{"device": w.name(), "force": true}, nil)); err != nil {
		return err
	}
	return w.m.Until(ctx, func() (bool, error) {
		list, err := jobs(ctx, w.m.Client)
		return !slices.Contains(list, jobInfo{w.name()}), err
	})
}

// forgetFile lets go of the file for what was overwritten.
func (w *work) forgetFile(ctx context.Context) error {
	var sets []struct {
		ID  int `json:"fdset-id"`
		FDs []struct{ Opaque string }
	}
	if err := w.m.Do(ctx, "query-fdsets", nil, &sets); err != nil {
		return err
	}
	for _, s := range sets {
		if len(s.FDs) > 0 && s.FDs[0].Opaque == w.name() {
			return gone(w.m.Do(ctx, "remove-fd", arguments{"fdset-id": s.ID}, nil))
		}
	}
	return nil
}

// forgetCopies removes the copies of bitmaps that this view has made.
func (w *work) forgetCopies(ctx context.Context) error {
	list, err := drives(ctx, w.m.Client)
	if err != nil {
		return err
	}
	var errs []error
	for _, d := range list {
		for _, b := range d.bitmaps {
			if l, ok := parse(b.Name); ok && d.node == w.node && l.id == w.label.id && l.of != "" {
				errs = append(errs, removeBitmap(ctx, w.m.Client, w.node, b.Name))
			}
		}
	}
	return errors.Join(errs...)
}
