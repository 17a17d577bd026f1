package reflink

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"platter/block"
	"platter/block/snapshot"
)

// A View is a copy of a file.
type View struct {
	block.Source
	provider snapshot.Provider
	device   block.Device
	consumer snapshot.Consumer
	id, path string
	taken    time.Time
	kept     bool
}

func (v *View) open() error {
	src, err := block.Open(v.path, block.OpenOptions{})
	if err != nil {
		return err
	}
	v.Source = snapshot.As(v.device.Info, src)
	return nil
}

// Method returns Name.
func (*View) Method() string { return Name }

// ID names the copy.
func (v *View) ID() string { return v.id }

// Taken is when the copy was made.
func (v *View) Taken() time.Time { return v.taken }

// Path is where the copy is.
func (v *View) Path() string { return v.path }

// Device is what the copy is of.
func (v *View) Device() block.Device { return v.device }

// Keep leaves the copy in place, and removes the consumer's others.
func (v *View) Keep(ctx context.Context) error {
	if v.kept {
		return nil
	}
	path := strings.TrimSuffix(v.path, taken) + kept
	if err := os.Rename(v.path, path); err != nil {
		return fmt.Errorf("keep the copy of %s: %w", v.device.Path, err)
	}
	v.path, v.kept = path, true
	if err := syncFolder(filepath.Dir(path)); err != nil {
		return fmt.Errorf("keep the copy of %s: %w", v.device.Path, err)
	}
	_, err := snapshot.Clean(ctx, v.provider, v.device, v.consumer, v.id)
	return err
}

// Close ends the reading. A copy that is not kept goes.
func (v *View) Close() error {
	var err error
	if v.Source != nil {
		err = v.Source.Close()
	}
	if v.kept {
		return err
	}
	return errors.Join(err, v.provider.Remove(context.Background(), snapshot.Snapshot{Name: v.path}))
}
