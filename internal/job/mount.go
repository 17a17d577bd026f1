package job

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"platter/block"
	"platter/image"
	"platter/internal/export/mount"
)

// MountOptions say which image to show as files, and where.
type MountOptions struct {
	OfferOptions
	Dir string // an empty directory
	// Ready is called once the files are there.
	Ready func(MountOffer)
}

// A MountOffer is what is being shown.
type MountOffer struct {
	Image  string   `json:"image"`
	Volume string   `json:"volume"`
	Dir    string   `json:"dir"`
	Files  []string `json:"files"`
}

// Mount shows an image in a directory, as disk.raw and a file for each
// partition, until ctx ends or somebody unmounts it.
func Mount(ctx context.Context, env *Env, opts MountOptions) (err error) {
	o, err := offer(ctx, env, &opts.OfferOptions)
	if err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	defer func() { err = errors.Join(err, o.close()) }()
	info, err := json.MarshalIndent(o.image, "", "  ")
	if err != nil {
		return err
	}
	files := diskFiles(o.image)
	m, err := mount.Open(opts.Dir, mount.Options{
		Device: o.disk, Files: files, Info: append(info, '\n'), Time: o.image.Time, Name: o.image.Volume,
		Log: func(err error) { env.warn("%v", err) },
	})
	if err != nil {
		return err
	}
	if opts.Ready != nil {
		ready := MountOffer{Image: o.image.ID.String(), Volume: o.image.Volume, Dir: opts.Dir}
		for _, f := range files {
			ready.Files = append(ready.Files, f.Name)
		}
		opts.Ready(ready)
	}
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		m.Wait()
	}()
	select {
	case <-gone:
		return nil
	case <-ctx.Done():
	}
	if err := m.Close(); err != nil {
		env.warn("%v", err)
	}
	<-gone
	return nil
}

// diskFiles are the disk and its partitions.
func diskFiles(m *image.Manifest) []mount.File {
	files := []mount.File{{Name: "disk.raw", Extent: block.Extent{Length: m.Size}}}
	if m.Device.Table == nil {
		return files
	}
	for _, p := range m.Device.Table.Partitions {
		if inDisk(m, p.Extent) {
			files = append(files, mount.File{Name: fmt.Sprintf("partition-%d.raw", p.Number), Extent: p.Extent})
		}
	}
	return files
}
