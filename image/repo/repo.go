// Package repo is a repository: a store, its config and its keys, and the
// objects in it by what they are.
//
// A Repo is safe for concurrent use. The bytes are described in
// image/FORMAT.md.
package repo

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"platter/image"
	"platter/image/keys"
	"platter/image/segment"
	"platter/image/store"
)

// Errors that callers decide on.
var (
	// ErrNoRepository means that the store holds no repository.
	ErrNoRepository = errors.New("no repository")
	// ErrIsRepository means that the store holds one already.
	ErrIsRepository = errors.New("holds a repository already")
	// ErrRemains means that the store holds objects of a repository that has
	// lost its config.
	ErrRemains = errors.New("holds what is left of a repository")
)

// Block sizes that a repository can have, in bytes.
const (
	MinBlockSize     = 4 << 10
	MaxBlockSize     = 4 << 20
	DefaultBlockSize = 64 << 10
)

const (
	configName    = "config"
	formatVersion = 1
	lz4Name       = "lz4"
	noEncryption  = "none"
	encryption    = "aes-256-gcm+x25519"
	slotPrefix    = "keys/"
)

// A Config is what a repository is for all its life.
type Config struct {
	Version     int       `json:"version"`    // of the format
	Repository  string    `json:"repository"` // ID, 32 hex digits
	BlockSize   int       `json:"block_size"` // bytes
	IDAlgorithm string    `json:"id_algorithm"`
	Compression string    `json:"compression"`
	Encryption  string    `json:"encryption"`
	Created     time.Time `json:"created"`
	// Domain is the fingerprint of the keys that the key slots hold.
	Domain string `json:"domain"`
	// Features that a program must know to read or write the repository.
	Features []string `json:"features,omitempty"`
}

// A Repo is an open repository.
type Repo struct {
	Config Config
	Keys   *keys.Domain
	Store  store.Store
	ID     [16]byte
	// Machine is the one that the program runs on; tests put others here.
	Machine Machine
	hasher  *image.Hasher
	landed  *sync.Map // names of leases of the dead that land has waited for
}

// InitOptions are the choices that a repository keeps for all its life.
type InitOptions struct {
	BlockSize   int         // bytes; 0 for the default
	IDAlgorithm string      // "" for the default
	Encryption  *Encryption // nil for a repository that anybody can read
}

// Init makes a repository in an empty store. The config is written last: until
// it is durable there is no repository.
func Init(ctx context.Context, st store.Store, opts InitOptions) (*Repo, error) {
	if opts.BlockSize == 0 {
		opts.BlockSize = DefaultBlockSize
	}
	if opts.IDAlgorithm == "" {
		opts.IDAlgorithm = image.IDAlgorithm
	}
	if err := checkBlockSize(opts.BlockSize); err != nil {
		return nil, err
	}
	if _, err := st.Head(ctx, configName); err == nil {
		return nil, fmt.Errorf("%s: %w: it is left as it is", st.Location(), ErrIsRepository)
	} else if !errors.Is(err, store.ErrNotFound) {
		return nil, err
	}
	if err := remains(ctx, st); err != nil {
		return nil, err
	}
	var id [16]byte
	rand.Read(id[:])
	d, err := newDomain(opts.Encryption)
	if err != nil {
		return nil, err
	}
	if err := putSlots(ctx, st, d, opts.Encryption); err != nil {
		return nil, fmt.Errorf("init %s: %w", st.Location(), err)
	}
	now, err := st.Now(ctx)
	if err != nil {
		return nil, err
	}
	c := Config{
		Version: formatVersion, Repository: hex.EncodeToString(id[:]), BlockSize: opts.BlockSize,
		IDAlgorithm: opts.IDAlgorithm, Compression: lz4Name, Encryption: noEncryption, Created: now.UTC(),
		Domain: d.Fingerprint(),
	}
	if d.Encrypted() {
		c.Encryption = encryption
	}
	object, _, err := d.Seal(keys.KindConfig, configName, c)
	if err != nil {
		return nil, err
	}
	if err := st.Put(ctx, configName, object); err != nil {
		if errors.Is(err, store.ErrExists) {
			return nil, fmt.Errorf("%s: %w: another init was quicker", st.Location(), ErrIsRepository)
		}
		return nil, fmt.Errorf("init %s: write config: %w", st.Location(), err)
	}
	return attach(st, c, d)
}

// remains returns an error when a store holds what is left of a repository that
// has lost its config: to a new one it would be garbage.
func remains(ctx context.Context, st store.Store) error {
	for _, prefix := range []string{"segments/", "images/"} {
		err := st.List(ctx, prefix, func(o store.Info) error {
			return fmt.Errorf("%s: %w, %s, and no config: put back config and keys/ from a copy, or name another place", st.Location(), ErrRemains, o.Name)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func checkBlockSize(n int) error {
	if n < MinBlockSize || n > MaxBlockSize || n&(n-1) != 0 {
		return fmt.Errorf("block size %d: want a power of two from %d to %d bytes", n, MinBlockSize, MaxBlockSize)
	}
	return nil
}

// Open opens the repository that a store holds, if it is not encrypted.
func Open(ctx context.Context, st store.Store) (*Repo, error) { return Unlock(ctx, st, nil) }

// Unlock opens the repository that a store holds with whatever of c fits. It
// returns keys.ErrCredentials when nothing does.
func Unlock(ctx context.Context, st store.Store, c *keys.Credentials) (*Repo, error) {
	object, err := Object(ctx, st, keys.KindConfig, configName)
	if errors.Is(err, store.ErrNotFound) {
		return nil, fmt.Errorf("%s: %w: make one with platter init", st.Location(), ErrNoRepository)
	} else if err != nil {
		return nil, err
	}
	var config Config
	if _, err := (*keys.Domain)(nil).Open(keys.KindConfig, configName, object, &config); err != nil {
		return nil, fmt.Errorf("%s: %w", st.Location(), err)
	}
	if err := config.check(); err != nil {
		return nil, fmt.Errorf("%s: config: %w", st.Location(), err)
	}
	d, err := openKeys(ctx, st, &config, c)
	if err == nil {
		_, _, err = d.Payload(keys.KindConfig, configName, object)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", st.Location(), err)
	}
	return attach(st, config, d)
}

// attach makes a Repo of a config and keys that belong together.
func attach(st store.Store, config Config, d *keys.Domain) (*Repo, error) {
	r := &Repo{Config: config, Keys: d, Store: st, Machine: thisMachine{}, landed: new(sync.Map)}
	id, err := hex.DecodeString(config.Repository)
	if err != nil || copy(r.ID[:], id) != len(r.ID) {
		return nil, fmt.Errorf("%s: config: repository ID %q: %w", st.Location(), config.Repository, image.ErrCorrupt)
	}
	if r.hasher, err = image.NewHasher(config.IDAlgorithm, d.ID); err != nil {
		return nil, fmt.Errorf("%s: config: %w: %w", st.Location(), err, keys.ErrNewer)
	}
	return r, nil
}

// check refuses what this program does not know.
func (c *Config) check() error {
	if c.Version != formatVersion {
		return fmt.Errorf("format version %d, this platter knows %d: %w", c.Version, formatVersion, keys.ErrNewer)
	}
	if len(c.Features) > 0 || c.Compression != lz4Name || c.Encryption != noEncryption && c.Encryption != encryption {
		return fmt.Errorf("features %q, compression %q, encryption %q: %w", c.Features, c.Compression, c.Encryption, keys.ErrNewer)
	}
	if id, err := hex.DecodeString(c.Repository); err != nil || len(id) != 16 {
		return fmt.Errorf("repository ID %q: %w", c.Repository, image.ErrCorrupt)
	}
	if err := checkBlockSize(c.BlockSize); err != nil {
		return fmt.Errorf("%w: %w", err, image.ErrCorrupt)
	}
	return nil
}

// Hasher returns a Hasher of the repository's domain for one goroutine.
func (r *Repo) Hasher() *image.Hasher { return r.hasher.Clone() }

// Segments calls f for every segment, in order of name.
func (r *Repo) Segments(ctx context.Context, f func(id image.SegmentID, size int64, modified time.Time) error) error {
	return r.Store.List(ctx, "segments/", func(o store.Info) error {
		var id image.SegmentID
		if len(o.Name) < 32 || id.UnmarshalText([]byte(o.Name[len(o.Name)-32:])) != nil || segment.Name(id) != o.Name {
			return nil // nobody's: named by no writer of ours
		}
		return f(id, o.Size, o.Modified)
	})
}

// Footer reads and checks the footer of a segment.
func (r *Repo) Footer(ctx context.Context, id image.SegmentID) (*segment.Footer, error) {
	o, err := r.Store.Head(ctx, segment.Name(id))
	if err != nil {
		return nil, err
	}
	return segment.ReadFooter(ctx, r.Store, r.Keys, id, o.Size)
}

// Unlock makes the payloads of a segment readable, as far as the keys go.
func (r *Repo) Unlock(ctx context.Context, f *segment.Footer) error {
	return f.Unlock(ctx, r.Store, r.Keys, r.ID)
}

// NewSegment begins a segment in buf.
func (r *Repo) NewSegment(buf []byte, kind segment.Kind, run [16]byte) *segment.Builder {
	return segment.NewBuilder(buf, kind, r.ID, run, r.Keys, r.Machine.Now())
}

// ReadPage reads and checks record n of a page segment.
func (r *Repo) ReadPage(ctx context.Context, f *segment.Footer, n int) (*image.Page, error) {
	if err := r.Unlock(ctx, f); err != nil {
		return nil, err
	}
	rec := &f.Records[n]
	stored := make([]byte, rec.Stored)
	if err := r.Store.ReadAt(ctx, segment.Name(f.ID), stored, rec.Offset); err != nil {
		return nil, err
	}
	return r.decodePage(f, n, stored, new(segment.Codec), r.Hasher())
}

func (r *Repo) decodePage(f *segment.Footer, n int, stored []byte, c *segment.Codec, h *image.Hasher) (*image.Page, error) {
	rec := &f.Records[n]
	corrupt := func(err error) error {
		return fmt.Errorf("%s at %d: page %d: %w", segment.Name(f.ID), rec.Offset, n, err)
	}
	if rec.Kind != segment.Pages || rec.Plain < image.PageSize || rec.Plain > image.MaxPageEncoded {
		return nil, corrupt(fmt.Errorf("kind %d, %d bytes: %w", rec.Kind, rec.Plain, image.ErrCorrupt))
	}
	plain := make([]byte, rec.Plain)
	if err := f.Decode(c, plain, stored, n); err != nil {
		return nil, err
	}
	if h.Page(plain[:image.PageSize]) != rec.ID {
		return nil, corrupt(fmt.Errorf("content is not what its ID says: %w", image.ErrCorrupt))
	}
	p, err := image.DecodePage(plain)
	if err != nil {
		return nil, corrupt(err)
	}
	return p, nil
}

// Pages calls f for every page of a page segment, decoded and checked.
func (r *Repo) Pages(ctx context.Context, f *segment.Footer, visit func(record int, p *image.Page, id image.ID) error) error {
	const window = 1 << 20
	if err := r.Unlock(ctx, f); err != nil {
		return err
	}
	c, h := new(segment.Codec), r.Hasher()
	var buf []byte
	for first := 0; first < len(f.Records); {
		last := first
		start := f.Records[first].Offset
		for last+1 < len(f.Records) && f.Records[last+1].Offset+int64(f.Records[last+1].Stored)-start <= window {
			last++
		}
		end := f.Records[last].Offset + int64(f.Records[last].Stored)
		buf = slices.Grow(buf[:0], int(end-start))[:end-start]
		if err := r.Store.ReadAt(ctx, segment.Name(f.ID), buf, start); err != nil {
			return err
		}
		for ; first <= last; first++ {
			rec := &f.Records[first]
			p, err := r.decodePage(f, first, buf[rec.Offset-start:][:rec.Stored], c, h)
			if err != nil {
				return err
			}
			if err := visit(first, p, rec.ID); err != nil {
				return err
			}
		}
	}
	return nil
}

// Object reads the object of a kind that has this name. One longer than any of
// its kind is damage.
func Object(ctx context.Context, st store.Store, kind, name string) ([]byte, error) {
	b, err := st.Get(ctx, name, keys.MaxObject(kind))
	if errors.Is(err, store.ErrTooLarge) {
		return nil, fmt.Errorf("%w: %w", err, image.ErrCorrupt)
	}
	return b, err
}

// CheckObject checks an object that is no image's as those who use it do, and
// returns who wrote it. v holds what it says where that is a Lease.
func (r *Repo) CheckObject(kind, name string, object []byte) (s keys.Signed, v any, err error) {
	switch kind {
	case keys.KindLease:
		v = new(Lease)
	case keys.KindCondemned:
		v = new(Condemned)
	case keys.KindDamage:
		v = new(damage)
	case keys.KindAttested:
		v = new(attestation)
	case keys.KindPin:
		v = new(Pin)
	case keys.KindVerified:
		v = new(checks)
	case keys.KindScreen:
		v = new(screen)
	default:
		_, s, err = r.Keys.Payload(kind, name, object)
		return s, nil, err
	}
	s, err = r.Keys.Open(kind, name, object, v)
	return s, v, err
}
