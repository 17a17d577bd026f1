package disk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"platter/vmtests/loop"
)

// A Change is a file to write, or to remove if Body is nil, in a folder that
// is there already.
type Change struct {
	Part string // the partition's name
	Path string // below its root
	Body []byte
}

// CanMount reports whether the running kernel knows a file system.
func CanMount(content string) bool {
	b, err := os.ReadFile("/proc/filesystems")
	return err == nil && slices.Contains(strings.Fields(string(b)), content)
}

// Change edits the disk. With dev, the disk's loop device, it mounts what it
// changes; without (nil) it writes into the file, which is possible for ext4
// and vfat only.
func (d *Disk) Change(ctx context.Context, dev *loop.Device, changes []Change) error {
	byPart := map[string][]Change{}
	for _, c := range changes {
		byPart[c.Part] = append(byPart[c.Part], c)
	}
	for _, p := range d.Parts {
		var err error
		switch all := byPart[p.Name]; {
		case len(all) == 0:
		case p.Content == "vfat": // many kernels have it as a module only
			err = d.changeFAT(ctx, p, dev, all)
		case dev != nil:
			err = loop.Mount(ctx, dev.Partition(p.Number), func(dir string) error { return changeTree(dir, all) })
		case p.Content == "ext4":
			err = d.changeExt4(ctx, p, all)
		default:
			err = errors.New("needs a loop device")
		}
		if err != nil {
			return fmt.Errorf("change %s of partition %s: %w", p.Content, p.Name, err)
		}
	}
	if dev != nil {
		return dev.Flush()
	}
	return nil
}

func changeTree(dir string, changes []Change) error {
	for _, c := range changes {
		path := filepath.Join(dir, c.Path)
		if c.Body == nil {
			if err := os.Remove(path); err != nil {
				return err
			}
			continue
		}
		if err := os.WriteFile(path, c.Body, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (d *Disk) changeFAT(ctx context.Context, p Part, dev *loop.Device, changes []Change) error {
	image := fmt.Sprintf("%s@@%d", d.Path, p.Start)
	if dev != nil {
		image = dev.Partition(p.Number)
	}
	return eachFile(changes, func(c Change, body string) error {
		if c.Body == nil {
			return run(ctx, "mdel", "-i", image, "::"+c.Path)
		}
		return run(ctx, "mcopy", "-o", "-i", image, body, "::"+c.Path)
	})
}

// changeExt4 uses the file system's debugger, which does not replace files.
func (d *Disk) changeExt4(ctx context.Context, p Part, changes []Change) error {
	image := fmt.Sprintf("%s?offset=%d", d.Path, p.Start)
	return eachFile(changes, func(c Change, body string) error {
		run(ctx, "debugfs", "-w", "-R", "rm /"+c.Path, image) // it may not be there
		if c.Body == nil {
			return nil
		}
		return run(ctx, "debugfs", "-w", "-R", fmt.Sprintf("write %s /%s", body, c.Path), image)
	})
}

// eachFile calls f for every change, with a file that holds its body.
func eachFile(changes []Change, f func(c Change, body string) error) error {
	dir, err := os.MkdirTemp("", "platter-change-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	for i, c := range changes {
		body := filepath.Join(dir, fmt.Sprint(i))
		if err := os.WriteFile(body, c.Body, 0o644); err != nil {
			return err
		}
		if err := f(c, body); err != nil {
			return err
		}
	}
	return nil
}
