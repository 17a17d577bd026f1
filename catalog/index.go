package catalog

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/sstable"
)

// indexFormat of Pebble's files. A newer one comes with a newer schema, so
// that an older platter says so in clear text.
const indexFormat = pebble.FormatTableFormatV6

// bloomBits for each key, in the filters of the index's own tables.
const bloomBits = 10

// tableBytes is how large a table gets. Its filter is read whole, so it must be
// small beside the cache.
const tableBytes = 8 << 20

// indexOptions are Pebble's options for an index. release is called when it is
// open, or when opening it failed.
func indexOptions(dir *directory, opts Options, state *failure, fresh bool) (o *pebble.Options, release func()) {
	cache := pebble.NewCache(opts.Memory / 2)
	o = &pebble.Options{
		FS:                          guardFS{dir.fs, &freezer{state: state}},
		Cache:                       cache,
		Comparer:                    comparer(),
		FormatMajorVersion:          indexFormat,
		ErrorIfNotExists:            !fresh,
		ErrorIfExists:               fresh,
		MemTableSize:                memTable(opts.Memory),
		MemTableStopWritesThreshold: 2,
		MaxOpenFiles:                256,
		Logger:                      logger{state},
		CompactionConcurrencyRange:  func() (int, int) { return 1, 2 },
	}
	if opts.Timeless {
		o.Experimental.CompactionScheduler = pebble.NewConcurrencyLimitSchedulerWithNoPeriodicGrantingForTest()
	}
	o.EventListener = &pebble.EventListener{
		BackgroundError: func(error) {}, // tried again, and met again by whoever needs the file
		DataCorruption: func(info pebble.DataCorruptionInfo) {
			state.set(ErrDamaged, fmt.Sprintf("%s: %v", info.Path, info.Details))
		},
	}
	for i := range o.Levels {
		l := &o.Levels[i]
		l.FilterPolicy = bloom.FilterPolicy(bloomBits)
		// Keys and IDs are random: compressing them costs time and saves little.
		l.Compression = func() *sstable.CompressionProfile { return sstable.NoCompression }
		l.BlockSize = 4 << 10
		l.IndexBlockSize = 32 << 10
	}
	for i := range o.TargetFileSizes {
		o.TargetFileSizes[i] = tableBytes
	}
	o.EnsureDefaults()
	return o, cache.Unref
}

// openIndex opens the Pebble database in a sub-directory of the catalog's.
func openIndex(dir *directory, opts Options, name string, state *failure, o *pebble.Options) (*pebble.DB, error) {
	db, err := pebble.Open(dir.path(name), o)
	if failed := state.get(); failed != nil {
		// What Pebble says after a failed write is of no interest.
		if err == nil {
			failed = errors.Join(failed, db.Close())
		}
		return nil, failed
	}
	if err != nil {
		return nil, openError(opts, name, err)
	}
	return db, nil
}

// memTable is the size of one write buffer, in bytes. There can be two.
func memTable(memory int64) uint64 {
	return uint64(min(memory/8, 32<<20))
}

// openError tells errors of the machine from damage: what is wrong with files
// that this program wrote, is damage.
func openError(opts Options, name string, err error) error {
	var errno syscall.Errno
	machine := errors.As(err, &errno) && !errors.Is(err, fs.ErrNotExist)
	if machine || errors.Is(err, ErrFailed) {
		return fmt.Errorf("open catalog %s/%s: %w", opts.Dir, name, err)
	}
	return fmt.Errorf("open catalog %s/%s: %w: %w%s", opts.Dir, name, ErrDamaged, err, advice(ErrDamaged))
}

// comparer orders keys as bytes, and tells Pebble's filters that a block is
// looked for by the hash of its ID, wherever it is stored.
func comparer() *pebble.Comparer {
	c := *pebble.DefaultComparer
	c.Name = "platter.catalog"
	c.Split = func(key []byte) int {
		if len(key) > blockPrefix && key[0] == tagBlock {
			return blockPrefix
		}
		return len(key)
	}
	return &c
}
