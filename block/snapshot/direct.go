package snapshot

import (
	"context"
	"errors"
	"fmt"
	"time"

	"platter/block"
)

// Direct is the method of reading the device itself: a still view as long as
// nobody writes to it, which is looked at before and after.
const Direct = "direct"

// FitsDirect says whether a device may be read as it is. It is not for one
// that anybody may write to.
func FitsDirect(d block.Device) Fit {
	return Fit{OK: d.How == block.Still, Why: d.Why}
}

// OpenDirect opens the device itself. With live, also one that is in use: then
// the view is not still, and Observe says so.
func OpenDirect(path string, live bool) (View, error) {
	src, err := block.Open(path, block.OpenOptions{Live: live})
	if err != nil {
		return nil, err
	}
	return DirectView(src), nil
}

// DirectView is the view of a source that is open already, which it owns.
func DirectView(src block.Source) View { return DirectAs(Direct, src) }

// DirectAs is DirectView by another method, whose tracker needs nothing but that
// nobody writes.
func DirectAs(method string, src block.Source) View { return &direct{src, method, time.Now()} }

type direct struct {
	block.Source
	method string
	taken  time.Time
}

func (d *direct) Method() string   { return d.method }
func (*direct) ID() string         { return "" }
func (d *direct) Taken() time.Time { return d.taken }

// Keep cannot: there is no snapshot.
func (d *direct) Keep(context.Context) error {
	return fmt.Errorf("keep a view of %s: %w", d.Info().Path, errors.ErrUnsupported)
}

func (d *direct) unwrap() block.Source { return d.Source }

// Observe returns how a view of the device itself is in use, and what tells
// whether it was written to; nil for a view that cannot be written to.
func Observe(v View) block.Observer {
	w, ok := v.(interface{ unwrap() block.Source })
	if !ok {
		return nil
	}
	o, _ := w.unwrap().(block.Observer)
	return o
}

// A Told is a View whose Data leaves out what a tracker said is a hole.
type Told interface {
	// Doubt has what lies in e be read, whatever was said.
	Doubt(e block.Extent)
}

// As returns a source that reads src and is described as the device that src
// is a snapshot of. What can be seen in the bytes (partition table, content,
// firmware) and the size are those of src.
func As(device block.Info, src block.Source) block.Source {
	seen := src.Info()
	device.Size, device.Table, device.Content, device.Firmware = seen.Size, seen.Table, seen.Content, seen.Firmware
	return &renamed{src, device}
}

type renamed struct {
	block.Source
	info block.Info
}

func (r *renamed) Info() block.Info { return r.info }
