package catalog

import (
	"fmt"

	"github.com/cockroachdb/pebble/v2/objstorage/objstorageprovider"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// bulkName is a directory beside the index for tables that are being made.
const bulkName = "bulk"

// tables are finished sorted tables for Pebble to take in. No two overlap.
type tables struct {
	c       *Catalog
	dir     string
	paths   []string
	writers []*tableWriter
}

func (c *Catalog) newTables() (*tables, error) {
	t := &tables{c: c, dir: c.dir.path(bulkName)}
	if err := t.remove(); err != nil {
		return nil, err
	}
	return t, c.dir.fs.MkdirAll(t.dir, 0o700)
}

// remove removes what Pebble has not taken in.
func (t *tables) remove() error {
	for _, w := range t.writers {
		// One that is still open belongs to a round that failed, and its end
		// says nothing new.
		_ = w.finish()
	}
	return t.c.dir.fs.RemoveAll(t.dir)
}

func (t *tables) create(name string) (vfs.File, error) {
	if err := t.c.dir.room(t.c.opts); err != nil {
		return nil, err
	}
	return t.c.dir.fs.Create(t.c.dir.fs.PathJoin(t.dir, name), vfs.WriteCategoryUnspecified)
}

// A tableWriter writes keys in order to one table after the other.
type tableWriter struct {
	t *tables
	w *sstable.Writer
}

func (t *tables) writer() *tableWriter {
	w := &tableWriter{t: t}
	t.writers = append(t.writers, w)
	return w
}

func (w *tableWriter) set(key, value []byte) error {
	if w.w != nil && w.w.Raw().EstimatedSize() >= tableBytes {
		if err := w.finish(); err != nil {
			return err
		}
	}
	if w.w == nil {
		name := fmt.Sprintf("%08d.sst", len(w.t.paths))
		f, err := w.t.create(name)
		if err != nil {
			return err
		}
		w.w = sstable.NewWriter(objstorageprovider.NewFileWritable(f), w.t.c.tableOptions)
		w.t.paths = append(w.t.paths, w.t.c.dir.fs.PathJoin(w.t.dir, name))
	}
	return w.w.Set(key, value)
}

// finish ends the last table and makes it durable.
func (w *tableWriter) finish() error {
	if w.w == nil {
		return nil
	}
	err := w.w.Close()
	w.w = nil
	return err
}
