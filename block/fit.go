package block

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"platter/block/fat"
)

// A Fit is how the image of one device comes to lie on another, larger or
// smaller or with other sectors: how much of it is written, and what of its
// tables and filesystems is another than in the image. It is made from the
// image alone, and written when all else is.
type Fit struct {
	Length  int64    `json:"length"`            // bytes of the image that are written, from its start
	Changes []string `json:"changes,omitempty"` // for people
	Notices []string `json:"notices,omitempty"`
	// Grown is the last partition as it will be, nil unless that was asked for
	// and there is room. The filesystem in it is as it was. Without a table it
	// is the whole target.
	Grown *Partition `json:"grown,omitempty"`

	patches []patch
	rebuilt []*fat.Layout
}

// A patch is written over what the image has there.
type patch struct {
	at int64
	b  []byte
}

// FitTo says what an image is to be fitted to.
type FitTo struct {
	Size   int64 // of the target, bytes
	Sector int   // logical, bytes
	Grow   bool  // the last partition takes the room that there is
	// Firmware starts from the target, bios or uefi; "" is what the image starts by.
	Firmware string
}

// A misfit is why an image cannot lie on the target.
type misfit struct{ reason, remedy string }

func (e *misfit) Error() string { return e.reason + ": " + e.remedy }

// A fitter makes a Fit.
type fitter struct {
	*Fit
	image   io.ReaderAt
	size    int64 // of the image
	to      FitTo
	table   *Table // of the image; nil for none
	content string
	from    int64 // bytes of a sector that the image's table counts in
	sector  int64 // of the target
}

// FitImage finds out how an image of size bytes lies on another device. table
// and content are what Probe says of it. An error that is no trouble in reading
// says why it cannot, and what to do.
func FitImage(image io.ReaderAt, size int64, table *Table, content string, to FitTo) (*Fit, error) {
	f := &fitter{
		Fit: &Fit{Length: min(size, to.Size)}, image: image, size: size, to: to, table: table, content: content,
		sector: int64(to.Sector), from: int64(to.Sector),
	}
	if table != nil {
		f.from = int64(table.SectorSize)
	}
	if err := f.starts(); err != nil {
		return nil, err
	}
	if err := f.contents(); err != nil {
		return nil, err
	}
	switch {
	case table == nil:
		return f.Fit, f.whole()
	case table.Type == "gpt":
		return f.Fit, f.gpt()
	}
	return f.Fit, f.mbr()
}

// starts refuses sectors that the image's system does not start from: a BIOS reads
// by sectors of 512 bytes, and boot code finds the rest of itself by those of its
// own disk. Of an MBR it is not known whether anything starts from it.
func (f *fitter) starts() error {
	if f.table == nil || f.table.Type != "gpt" || !f.converts() || f.to.Firmware == "uefi" {
		return nil
	}
	first := make([]byte, mbrSize)
	if _, err := readFull(f.image, first, 0); err != nil {
		return err
	}
	switch firmware(f.table, first) {
	case "bios":
		return &misfit{
			fmt.Sprintf("has sectors of %d bytes, and the image starts by a BIOS, whose boot code counts in sectors of %d", f.sector, f.from),
			"choose a target with sectors of " + fmt.Sprint(f.from) + " bytes, or restore to a file",
		}
	case "both":
		f.Notices = append(f.Notices, fmt.Sprintf("by a BIOS the image does not start from sectors of %d bytes: the machine must start by UEFI", f.sector))
	}
	return nil
}

// whole fits what has no table.
func (f *fitter) whole() error {
	if f.size > f.to.Size {
		return f.tooSmall(fmt.Sprintf("it has %d bytes, the image %d", f.to.Size, f.size))
	}
	if f.to.Grow && f.to.Size > f.size {
		f.Grown = &Partition{Extent: Extent{0, f.to.Size}, Content: f.content}
	}
	return nil
}

func (f *fitter) tooSmall(why string) error {
	return &misfit{"is too small: " + why, "choose a larger target or restore to a file"}
}

// changed says in words what is done.
func (f *fitter) changed(format string, args ...any) {
	f.Changes = append(f.Changes, fmt.Sprintf(format, args...))
}

func (f *fitter) patch(at int64, b []byte) { f.patches = append(f.patches, patch{at, b}) }

// converts reports whether the table counts in other sectors than the target.
func (f *fitter) converts() bool { return f.from != f.sector }

// place returns where a partition is on the target, in its sectors. What is
// left of a sector at its end is cut off: nothing that works on such sectors
// uses it.
func (f *fitter) place(number int, e Extent) (first, last int64, err error) {
	if e.Offset%f.sector != 0 || e.Length < f.sector {
		return 0, 0, &misfit{
			fmt.Sprintf("has sectors of %d bytes, and partition %d begins at byte %d, which is no multiple of that", f.sector, number, e.Offset),
			"choose a target with sectors of " + fmt.Sprint(f.from) + " bytes, or restore to a file",
		}
	}
	return e.Offset / f.sector, e.End()/f.sector - 1, nil
}

// inUse returns the partitions that filesystems and the like are in: an
// extended one only surrounds others.
func (t *Table) inUse() (list []Partition) {
	for _, p := range t.Partitions {
		if t.Type != "mbr" || !extendedHex(p.Type) {
			list = append(list, p)
		}
	}
	return list
}

func extendedHex(kind string) bool { return kind == "05" || kind == "0f" || kind == "85" }

// last returns the partition that ends last.
func (t *Table) last() *Partition {
	var last *Partition
	for i, p := range t.inUse() {
		if last == nil || p.End() > last.End() {
			last = &t.inUse()[i]
		}
	}
	return last
}

// Empty reports whether nothing but the image's own bytes is written.
func (f *Fit) Empty() bool { return len(f.patches) == 0 && len(f.rebuilt) == 0 }

// Write writes what is another than in the image, in an order in which the
// disk is never left with no whole table where it had one. image is the one
// that the Fit was made from.
func (f *Fit) Write(ctx context.Context, image io.ReaderAt, d Disk) error {
	for _, l := range f.rebuilt {
		if err := l.Write(ctx, image, d); err != nil {
			return fmt.Errorf("convert a FAT filesystem: %w", err)
		}
	}
	for _, p := range f.patches {
		if _, err := d.WriteAt(p.b, p.at); err != nil {
			return fmt.Errorf("fit the partition table: %w", err)
		}
	}
	return nil
}

// Check reads back what Write wrote of tables.
func (f *Fit) Check(d Disk) error {
	for i, p := range f.patches {
		got := make([]byte, len(p.b))
		if _, err := readFull(d, got, p.at); err != nil {
			return fmt.Errorf("read back the partition table: %w", err)
		}
		covered := false // by one that was written later
		for _, later := range f.patches[i+1:] {
			covered = covered || later.at < p.at+int64(len(p.b)) && p.at < later.at+int64(len(later.b))
		}
		if !covered && !bytes.Equal(got, p.b) {
			return fmt.Errorf("read back the partition table: %d bytes at %d are not what was written", len(p.b), p.at)
		}
	}
	return nil
}

// Unfit reports whether an error says that an image cannot lie on a target.
func Unfit(err error) bool {
	var u *misfit
	return errors.As(err, &u)
}
