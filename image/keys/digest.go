package keys

import (
	"sync"

	"github.com/zeebo/blake3"
)

// A digester makes keyed BLAKE3-256 digests under one key. It is safe for
// concurrent use.
type digester struct {
	key  [32]byte
	idle sync.Pool // of *blake3.Hasher: each takes 10 KiB
}

func newDigester(purpose string, material []byte) *digester {
	d := new(digester)
	blake3.DeriveKey(purpose, material, d.key[:])
	return d
}

// sum puts the digest of the concatenated parts into out.
func (d *digester) sum(out *[32]byte, parts ...[]byte) {
	h, ok := d.idle.Get().(*blake3.Hasher)
	if ok {
		h.Reset()
	} else {
		var err error
		if h, err = blake3.NewKeyed(d.key[:]); err != nil {
			panic(err) // only for a key that is not 32 bytes long
		}
	}
	for _, p := range parts {
		h.Write(p)
	}
	h.Sum(out[:0])
	d.idle.Put(h)
}

// digesters are those of a Domain.
type digesters struct{ object, footer, volume *digester }

func (d *Domain) digesters() *digesters {
	if d.ready != nil {
		return d.ready
	}
	return &digesters{
		object: newDigester("platter 2026 object digest", d.Structure[:]),
		footer: newDigester("platter 2026 segment footer digest", d.Structure[:]),
		volume: newDigester("platter 2026 volume tag", d.Structure[:]),
	}
}

// public is the digester of the two kinds that are read before any key is
// known. It detects damage and swapped names, not forgery.
var public = sync.OnceValue(func() *digester { return newDigester("platter 2026 public object digest", nil) })

func (d *Domain) digester(kind string) *digester {
	if kind == KindConfig || kind == KindSlot {
		return public()
	}
	return d.digesters().object
}

// SumFooter puts the digest of the concatenated parts into out, under the key
// for the ends of segments.
func (d *Domain) SumFooter(out *[32]byte, parts ...[]byte) { d.digesters().footer.sum(out, parts...) }
