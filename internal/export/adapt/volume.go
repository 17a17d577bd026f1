package adapt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"platter/block"
	"platter/block/lvm2"
	"platter/internal/export"
	"platter/internal/export/files"
	"platter/internal/export/files/kernel"
	"platter/internal/export/mount"
)

// A volume is what a filesystem may be in: a partition, a logical volume, or the
// whole disk.
type volume struct {
	name      string // for people
	number    int    // of the partition, 0 for the whole
	kind      string // of the partition
	lv        string // GROUP/NAME of a logical volume
	device    export.Writer
	extent    block.Extent // of the device
	content   string
	uuid      string
	label     string
	partUUID  string
	partLabel string

	kernel *kernel.FS // while it is mounted
	fs     filesystem // nil where it is none that is looked into
}

// raw reads and writes a disk as tables want it.
type raw struct {
	ctx    context.Context
	device export.Writer
	sector int
}

func (r raw) Size() int64     { return r.device.Size() }
func (r raw) SectorSize() int { return r.sector }

func (r raw) ReadAt(p []byte, off int64) (int, error) {
	s := files.Section{Context: r.ctx, Device: r.device, Extent: block.Extent{Length: r.device.Size()}}
	return s.ReadAt(p, off)
}

func (r raw) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off > r.Size()-int64(len(p)) {
		return 0, io.ErrShortWrite
	}
	return len(p), r.device.WriteAt(r.ctx, p, off)
}

func (a *adapter) raw() raw { return raw{a.ctx, a.device, a.opts.Sector} }

// begin is where a volume begins on the disk.
func (v *volume) begin() int64 {
	if s, ok := v.device.(*segments); ok {
		return s.list[0].Offset
	}
	return v.extent.Offset
}

func (v *volume) raw(ctx context.Context) raw { return raw{ctx, v.device, lvm2.Sector} }

// look finds the volumes, and what they are called now.
func (a *adapter) look() {
	a.volumes = nil
	table, content := block.Probe(a.raw(), a.device.Size(), a.opts.Sector)
	if table == nil {
		a.volumes = []*volume{{name: "the disk", device: a.device, extent: block.Extent{Length: a.device.Size()}, content: content}}
	} else {
		for _, p := range table.Partitions {
			if p.End() > a.device.Size() {
				continue
			}
			v := &volume{
				name: fmt.Sprintf("partition %d", p.Number), device: a.device, number: p.Number, kind: p.Type, extent: p.Extent, content: p.Content,
				partUUID: strings.ToLower(p.ID), partLabel: p.Name,
			}
			if table.Type == "mbr" {
				v.partUUID = fmt.Sprintf("%s-%02x", strings.ToLower(table.ID), p.Number)
			}
			a.volumes = append(a.volumes, v)
		}
	}
	a.logical()
	for _, v := range a.volumes {
		v.uuid = block.FilesystemID(v.raw(a.ctx), v.extent, v.content)
		v.label = label(v.raw(a.ctx), v.extent, v.content)
	}
}

// label is what a filesystem calls itself.
func label(r io.ReaderAt, e block.Extent, content string) string {
	at := map[string][2]int64{
		"ext2": {1024 + 120, 16}, "ext3": {1024 + 120, 16}, "ext4": {1024 + 120, 16},
		"xfs": {108, 12}, "btrfs": {65536 + 299, 256}, "swap": {1024 + 28, 16},
	}[content]
	b := make([]byte, at[1])
	if len(b) == 0 || at[0]+at[1] > e.Length {
		return ""
	}
	if _, err := r.ReadAt(b, e.Offset+at[0]); err != nil {
		return ""
	}
	b, _, _ = bytes.Cut(b, []byte{0})
	return string(b)
}

// mountable are the filesystems that systems are on.
func mountable(content string) bool {
	return slices.Contains([]string{"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs"}, content)
}

// mount has the kernel mount a volume.
func (a *adapter) mount(v *volume) error {
	if v.kernel != nil {
		return nil
	}
	k, err := kernel.OpenWritable(v.device, v.extent, v.content, a.dir, a.opts.Log)
	if err != nil {
		return fmt.Errorf("%s: %w", v.name, err)
	}
	v.kernel, v.fs = k, &kernelFS{k.Folder()}
	return nil
}

// unmount brings to the disk what was written.
func (v *volume) unmount() error {
	if v.kernel == nil {
		return nil
	}
	k := v.kernel
	v.kernel, v.fs = nil, nil
	if err := k.Close(); err != nil {
		return fmt.Errorf("%s: %w", v.name, err)
	}
	return nil
}

func (a *adapter) close() error {
	var all []error
	for _, s := range a.systems {
		s.close()
	}
	for _, v := range a.volumes {
		all = append(all, v.unmount())
	}
	return errors.Join(all...)
}

// asFile shows a volume as a file, for tools that take one, while f runs.
func (a *adapter) asFile(v *volume, f func(path string) error) (err error) {
	at, err := os.MkdirTemp(a.dir, "volume-")
	if err != nil {
		return err
	}
	defer os.Remove(at)
	shown, err := mount.Open(at, mount.Options{Device: v.device, Files: []mount.File{{Name: "volume", Extent: v.extent}}, Name: "platter-adapt", Log: a.opts.Log})
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, shown.Close())
		shown.Wait()
	}()
	return f(filepath.Join(at, "volume"))
}
