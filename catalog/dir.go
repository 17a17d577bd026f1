package catalog

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"syscall"

	"github.com/cespare/xxhash/v2"
	"github.com/cockroachdb/errors/oserror"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// The directory of a catalog:
//
//	lock            held by the process that works with the catalog
//	current         which index counts, and what repository it is of
//	index-00000001  the index, a Pebble database
//	bulk            tables that are being made for the index
//	filter          which blocks the index surely does not know
//
// A rebuilt index gets a directory of its own; replacing current makes it
// count at once or not at all.
const (
	lockName   = "lock"
	headName   = "current"
	filterName = "filter"
	tempSuffix = ".new"
)

// schema is the version of keys and values. Another one is another catalog.
const schema = 1

// directory is a locked catalog directory.
type directory struct {
	fs   vfs.FS
	root string
	lock io.Closer
}

// head is what the file current says.
type head struct {
	repository [16]byte
	blockSize  int
	instance   [16]byte // random: another for each index ever made
	index      string   // name of its directory
}

func openDirectory(ctx context.Context, opts Options) (*directory, error) {
	d := &directory{root: opts.Dir, fs: opts.FS}
	if d.fs == nil {
		d.fs = privateFS{vfs.Default}
	}
	_, err := d.fs.Stat(opts.Dir)
	made := oserror.IsNotExist(err)
	if err != nil && !made {
		return nil, fmt.Errorf("open catalog: %w", err)
	}
	if made {
		if err := d.fs.MkdirAll(opts.Dir, 0o700); err != nil {
			return nil, fmt.Errorf("create catalog: %w", err)
		}
	}
	if opts.FS == nil {
		if d.lock, err = lockDirectory(ctx, opts); err != nil {
			return nil, err
		}
	}
	return d, nil
}

func (d *directory) close() error {
	if d.lock == nil {
		return nil
	}
	return d.lock.Close()
}

func (d *directory) path(name string) string { return d.fs.PathJoin(d.root, name) }

// head reads the file current; ErrNotFound when there is no catalog.
func (d *directory) head() (head, error) {
	text, err := d.get(headName)
	if oserror.IsNotExist(err) {
		return head{}, ErrNotFound
	}
	if err != nil {
		return head{}, fmt.Errorf("open catalog: %w", err)
	}
	h, err := parseHead(text)
	if err != nil {
		return head{}, fmt.Errorf("open catalog: %s: %w", d.path(headName), err)
	}
	return h, nil
}

const headFormat = "platter catalog\nschema %d\nrepository %s\nblock-size %d\ninstance %s\nindex %s\n"

func (h head) encode() []byte {
	b := fmt.Appendf(nil, headFormat, schema, hex.EncodeToString(h.repository[:]), h.blockSize,
		hex.EncodeToString(h.instance[:]), h.index)
	return fmt.Appendf(b, "checksum %016x\n", xxhash.Sum64(b))
}

// headEnd is the length of the last line, in every schema.
const headEnd = len("checksum ") + 16 + 1

func parseHead(text []byte) (h head, err error) {
	damaged := func(what string) (head, error) {
		return head{}, fmt.Errorf("%s: %w%s", what, ErrDamaged, advice(ErrDamaged))
	}
	n := len(text) - headEnd
	if n < 0 || string(text[n:]) != fmt.Sprintf("checksum %016x\n", xxhash.Sum64(text[:n])) {
		return damaged("checksum differs")
	}
	var version int
	if _, err := fmt.Sscanf(string(text), "platter catalog\nschema %d\n", &version); err != nil {
		return damaged("no schema")
	}
	if version > schema {
		return head{}, fmt.Errorf("%w: schema %d, this one knows %d: use the newer platter, or another directory with --catalog", ErrNewer, version, schema)
	}
	var repository, instance []byte
	_, err = fmt.Sscanf(string(text[:n]), "platter catalog\nschema %d\nrepository %x\nblock-size %d\ninstance %x\nindex %s\n",
		&version, &repository, &h.blockSize, &instance, &h.index)
	if err != nil || len(repository) != 16 || len(instance) != 16 || !indexName.MatchString(h.index) {
		return damaged("fields missing")
	}
	copy(h.repository[:], repository)
	copy(h.instance[:], instance)
	return h, nil
}

var indexName = regexp.MustCompile(`^index-\d{8}$`)

// begin chooses the name of a new index and removes what is in the way. The
// index that counts, if any, stays.
func (d *directory) begin(opts Options) (head, error) {
	old, err := d.head()
	if err != nil && !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrDamaged) {
		return head{}, err
	}
	names, err := d.fs.List(d.root)
	if err != nil {
		return head{}, err
	}
	last := 0
	for _, name := range names {
		var n int
		if indexName.MatchString(name) {
			if _, err := fmt.Sscanf(name, "index-%d", &n); err != nil {
				return head{}, err
			}
			last = max(last, n)
		}
	}
	h := head{repository: opts.Repository, blockSize: opts.BlockSize, index: fmt.Sprintf("index-%08d", last+1)}
	rand.Read(h.instance[:])
	return h, d.clean(old.index)
}

// clean removes what a crash left: indexes other than keep, unfinished tables.
func (d *directory) clean(keep string) error {
	names, err := d.fs.List(d.root)
	if err != nil {
		return err
	}
	for _, name := range names {
		if name == keep || name != bulkName && !indexName.MatchString(name) {
			continue
		}
		if err := d.fs.RemoveAll(d.path(name)); err != nil {
			return err
		}
	}
	return nil
}

// setHead makes h the index that counts.
func (d *directory) setHead(h head) error { return d.put(headName, h.encode()) }

// put replaces a small file, durably and as a whole.
func (d *directory) put(name string, parts ...[]byte) error {
	temp := d.path(name + tempSuffix)
	f, err := d.fs.Create(temp, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	for _, p := range parts {
		if _, err = f.Write(p); err != nil {
			break
		}
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, d.fs.Remove(temp))
	}
	if err := d.fs.Rename(temp, d.path(name)); err != nil {
		return err
	}
	return d.sync()
}

func (d *directory) sync() error {
	f, err := d.fs.OpenDir(d.root)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// get reads a small file.
func (d *directory) get(name string) ([]byte, error) {
	f, err := d.fs.Open(d.path(name))
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(f)
	return b, errors.Join(err, f.Close())
}

// room returns an error when so little space is left that Pebble may not
// finish what it begins. A full disk met in the middle of its log would end
// the catalog; met here it ends one call.
func (d *directory) room(opts Options) error {
	usage, err := d.fs.GetDiskUsage(d.root)
	if err != nil {
		return nil // not known: Pebble finds out
	}
	if need := 2*memTable(opts.Memory) + 4<<20; usage.AvailBytes < need {
		return fmt.Errorf("%d bytes are free, %d are needed: %w", usage.AvailBytes, need, syscall.ENOSPC)
	}
	return nil
}

// privateFS makes files that nobody else reads, whatever the umask is: the
// catalog tells what is on every disk.
type privateFS struct{ vfs.FS }

func (p privateFS) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := p.FS.Create(name, category)
	return private(f, err)
}

func (p privateFS) OpenReadWrite(name string, category vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	f, err := p.FS.OpenReadWrite(name, category, opts...)
	return private(f, err)
}

func (p privateFS) MkdirAll(name string, _ os.FileMode) error {
	if err := p.FS.MkdirAll(name, 0o700); err != nil {
		return err
	}
	return os.Chmod(name, 0o700)
}

func (p privateFS) Lock(name string) (io.Closer, error) {
	lock, err := p.FS.Lock(name)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(name, 0o600); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return lock, nil
}

func (p privateFS) Unwrap() vfs.FS { return p.FS }

func private(f vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	if err := chmod(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
