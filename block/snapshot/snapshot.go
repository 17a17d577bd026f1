// Package snapshot takes still views of devices: what a device held at one
// moment, to be read while the device goes on being written to.
//
// Folders below it have one Provider each. A provider's snapshots are named
// and tagged so that they are found again: by the next run, which needs the
// one its parent image was made from, and by whoever cleans up after a run
// that died. What an image is, and what has changed, they know nothing of.
package snapshot

import (
	"context"
	"errors"
	"time"

	"platter/block"
)

var (
	// ErrFilled means that a snapshot ran out of room for what was
	// overwritten meanwhile, so that it is no view of any moment. The text
	// that wraps it says what to do about it.
	ErrFilled = errors.New("the snapshot is full")
	// ErrUnfit means that a provider cannot take a view of a device after
	// all: the caller goes on to the next one, and says why.
	ErrUnfit = errors.New("no still view")
)

// A View is a still view of a device, opened to be read. Its Info describes
// the device and not the snapshot, so that an image of a view is an image of
// the device. Check fails when the view is none any more (ErrFilled): it is
// asked when all is read, before the image counts.
type View interface {
	block.Source
	// Method is the Name of the provider that took it.
	Method() string
	// ID names the snapshot among all there ever are of this method: random
	// hex digits, never used again. Empty for a view that leaves no snapshot.
	ID() string
	// Taken is the moment that the view shows.
	Taken() time.Time
	// Keep leaves the snapshot in place when the view is closed, marked as
	// kept, and then removes all others of the same consumer. It is called
	// when the manifest of the view's image is durable; afterwards the
	// snapshot is what the next run compares with.
	Keep(ctx context.Context) error
	// Close ends the reading, and removes the snapshot unless it is kept.
	Close() error
}

// A Consumer is a volume in a repository: what a kept snapshot is kept for.
// Two repositories that image one device each have their own.
type Consumer struct {
	Repository string // its ID, hex
	Volume     string // HOST/NAME
}

// Options say for whom a view is taken.
type Options struct {
	Consumer Consumer
	// Run is the process that takes it, by which leftovers of dead ones are
	// told: ThisProcess().
	Run string
	// BlockSize is what the image is made of, in bytes: a view that gives
	// parts of the device from memory has them in whole blocks.
	BlockSize int64
	// Base is the ID of the snapshot that the parent image was made from, "" for
	// none.
	Base string
	// Together is how many views are to be of one moment, this one among them: 0
	// if it has one of its own. Otherwise filesystems on a block device stand
	// still already when it is taken.
	Together int
}

// A Fit says whether a provider can take a view of a device.
type Fit struct {
	OK bool
	// Why, for people: what makes it fit ("a thin volume of pool vg/pool"),
	// or what is missing and, if something can be done, what to do. Empty
	// where the device is of a kind that the provider is not about.
	Why string
	// Cost is what the view costs while it is there, for people; "" for
	// nothing to speak of.
	Cost string
}

// A Provider takes still views by one method. It is safe for concurrent use.
type Provider interface {
	// Name is the word for the method in manifests and reports: reflink.
	Name() string
	// Fits looks at a device, without changing anything, and quickly.
	Fits(ctx context.Context, d block.Device) Fit
	// Take takes a view of the device as it is now. It gives up when ctx
	// ends, leaving nothing behind; ctx always has a deadline. Where the
	// device turns out not to fit, the error wraps ErrUnfit.
	Take(ctx context.Context, d block.Device, o Options) (View, error)
	// Snapshots lists the snapshots of the device that Take made, of every
	// consumer and run, whether they are in use, kept or left behind.
	Snapshots(ctx context.Context, d block.Device) ([]Snapshot, error)
	// Remove deletes a snapshot that Snapshots listed. One that is gone
	// already is no error.
	Remove(ctx context.Context, s Snapshot) error
}

// A Joint is a Provider that can take views of several of its devices which
// are all of one moment.
type Joint interface {
	// TakeAll is Take for several devices, with options for each: it returns a
	// view of each, in their order, or none. Its errors name the device.
	TakeAll(ctx context.Context, devices []block.Device, options []Options) ([]View, error)
}

// A Looker is a Provider whose devices are no files of this machine: they have
// names of a kind of their own.
type Looker interface {
	// Look describes the device of a name, as block.Look does. mine is false
	// for names of another kind.
	Look(ctx context.Context, name string) (d block.Device, mine bool, err error)
}

// A Splitter is a Looker that has names for several of its devices, such as all
// disks of a machine.
type Splitter interface {
	// Split returns the names of the devices, or none where the name is of one
	// device or of another kind.
	Split(ctx context.Context, name string) ([]string, error)
}

// A Snapshot is one that a provider found.
type Snapshot struct {
	Method string    `json:"method"`
	Name   string    `json:"name"`     // for people and Remove: vg/lv, path, dataset@name
	ID     string    `json:"snapshot"` // as View.ID
	Tag    string    `json:"consumer"` // Consumer.Tag
	Run    string    `json:"run"`      // Options.Run
	Kept   bool      `json:"kept"`
	Time   time.Time `json:"time"` // when it was taken, zero if unknown
}
