// Package durable puts files where no crash and no power cut takes them away.
package durable

import (
	"errors"
	"os"
	"path/filepath"
)

// Replace puts a file in place, or replaces it, in one step: after a crash it is
// the old one or the new one, and when Replace has returned, the new one. It
// belongs to its owner alone (0600). Its folder is there already.
func Replace(path string, content []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return SyncDir(filepath.Dir(path))
}

// SyncDir makes the names in a folder durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
