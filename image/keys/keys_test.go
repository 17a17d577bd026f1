package keys

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/zeebo/blake3"

	"platter/image"
)

// A thing is what these tests seal.
type thing struct {
	Name  string `json:"name"`
	Count int64  `json:"count"`
}

var (
	ours   = &Domain{ID: [32]byte{1}, Structure: [32]byte{2}}
	theirs = &Domain{ID: [32]byte{1}, Structure: [32]byte{3}}
	kinds  = []string{KindConfig, KindSlot, KindManifest, KindLease, KindCondemned, KindTombstone, KindDamage, KindAttested, KindPin, KindVerified, KindScreen}
)

func seal(t testing.TB, d *Domain, kind, name string) ([]byte, image.Digest) {
	t.Helper()
	b, sum, err := d.Seal(kind, name, thing{"a", 1 << 60})
	if err != nil {
		t.Fatal(err)
	}
	return b, sum
}

func TestSealedObjectsOpen(t *testing.T) {
	for _, kind := range kinds {
		b, sum := seal(t, ours, kind, "some/name")
		var got thing
		opened, err := ours.Open(kind, "some/name", b, &got)
		if err != nil || got != (thing{"a", 1 << 60}) || opened != (Signed{sum, ours.Writer()}) {
			t.Errorf("%s: got %+v, digest %v, %v; want what was sealed, digest %v", kind, got, opened, err, sum)
		}
	}
}

// TestObjectIsAsSpecified takes an object apart by FORMAT.md.
func TestObjectIsAsSpecified(t *testing.T) {
	for _, kind := range kinds {
		b, sum := seal(t, ours, kind, "some/name")
		payload := `{"name":"a","count":1152921504606846976}`
		want := []byte("PLTR" + kind + "\x01\x00\x00\x00\x00\x00\x00\x00")
		want = binary.LittleEndian.AppendUint64(want, uint64(len(payload)))
		want = append(want, make([]byte, 32)...)
		want = append(want, payload...)
		context, material := "platter 2026 object digest", ours.Structure[:]
		if kind == KindConfig || kind == KindSlot {
			context, material = "platter 2026 public object digest", nil
		}
		key := make([]byte, 32)
		blake3.DeriveKey(context, material, key)
		h, err := blake3.NewKeyed(key)
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, make([]byte, 104+64)...) // nobody signs
		h.Write([]byte("\x09\x00\x00\x00some/name"))
		h.Write(want)
		want = h.Sum(want)
		if !bytes.Equal(sum[:], want[len(want)-32:]) {
			t.Errorf("%s: digest %v, want %x", kind, sum, want[len(want)-32:])
		}
		if !bytes.Equal(b, want) {
			t.Errorf("%s: got\n%q, want\n%q", kind, b, want)
		}
	}
}

func TestEveryFlippedBitOfAnObjectIsFound(t *testing.T) {
	for _, kind := range kinds {
		b, _ := seal(t, ours, kind, "name")
		for i := range b {
			for bit := range 8 {
				b[i] ^= 1 << bit
				if p, _, err := ours.Payload(kind, "name", b); !errors.Is(err, image.ErrCorrupt) || p != nil {
					t.Fatalf("%s: bit %d of byte %d: got %q, %v, want corrupt", kind, bit, i, p, err)
				}
				b[i] ^= 1 << bit
			}
		}
	}
}

func TestEveryOtherLengthOfAnObjectIsFound(t *testing.T) {
	b, _ := seal(t, ours, KindManifest, "name")
	longer := append(bytes.Clone(b), make([]byte, 200)...)
	for n := range longer {
		if n == len(b) {
			continue
		}
		if _, _, err := ours.Payload(KindManifest, "name", longer[:n]); !errors.Is(err, image.ErrCorrupt) {
			t.Fatalf("%d bytes of %d: got %v, want corrupt", n, len(b), err)
		}
	}
}

func TestSwappedObjectsAreFound(t *testing.T) {
	for _, kind := range kinds {
		b, _ := seal(t, ours, kind, "name")
		for _, as := range kinds {
			_, _, err := ours.Payload(as, "name", b)
			if (err == nil) != (as == kind) || err != nil && !errors.Is(err, image.ErrCorrupt) {
				t.Errorf("%s read as %s: %v", kind, as, err)
			}
			// Another kind written into the header does not help.
			forged := bytes.Clone(b)
			copy(forged[4:], as)
			if _, _, err := ours.Payload(as, "name", forged); (err == nil) != (as == kind) {
				t.Errorf("%s renamed %s: %v", kind, as, err)
			}
		}
		for _, as := range []string{"", "nam", "name2", "other"} {
			if _, _, err := ours.Payload(kind, as, b); !errors.Is(err, image.ErrCorrupt) {
				t.Errorf("%s under the name %q: %v, want corrupt", kind, as, err)
			}
		}
		public := kind == KindConfig || kind == KindSlot
		if _, _, err := theirs.Payload(kind, "name", b); (err == nil) != public || err != nil && !errors.Is(err, image.ErrCorrupt) {
			t.Errorf("%s read under another domain's keys: %v", kind, err)
		}
	}
}

// A name and the bytes after it must not be cut at another place.
func TestNameAndBytesStayApart(t *testing.T) {
	a, b := ours.digest(KindLease, "ab", []byte("c")), ours.digest(KindLease, "a", []byte("bc"))
	if a == b {
		t.Error("ab+c and a+bc have one digest")
	}
}

// reseal makes the digest of a changed object right.
func reseal(d *Domain, kind, name string, b []byte) []byte {
	body := b[:len(b)-digestSize]
	sum := d.digest(kind, name, body)
	copy(b[len(body):], sum[:])
	return b
}

func TestNewerObjectsAreTold(t *testing.T) {
	for _, kind := range kinds {
		for off, what := range map[int]string{8: "version", 9: "version", 10: "protection", 11: "protection"} {
			b, _ := seal(t, ours, kind, "name")
			b[off] += 2
			if _, _, err := ours.Payload(kind, "name", b); !errors.Is(err, image.ErrCorrupt) {
				t.Errorf("%s: %s changed and the digest not: %v, want corrupt", kind, what, err)
			}
			if _, _, err := ours.Payload(kind, "name", reseal(ours, kind, "name", b)); !errors.Is(err, ErrNewer) || errors.Is(err, image.ErrCorrupt) {
				t.Errorf("%s: another %s: %v, want newer", kind, what, err)
			}
		}
		b, _ := seal(t, ours, kind, "name")
		b[8] = 0
		if _, _, err := ours.Payload(kind, "name", reseal(ours, kind, "name", b)); err == nil {
			t.Errorf("%s of version 0 was taken", kind)
		}
	}
}

func TestHostileObjects(t *testing.T) {
	for name, v := range map[string]uint64{"0": 0, "one less": 39, "one more": 41, "just too much": MaxPayload + 1, "all": 1<<64 - 1, "negative": 1 << 63, "around": 1<<64 - headerSize} {
		b, _ := seal(t, ours, KindManifest, "name")
		if got := binary.LittleEndian.Uint64(b[16:]); got != 40 {
			t.Fatalf("payload of %d bytes, want 40", got)
		}
		binary.LittleEndian.PutUint64(b[16:], v)
		if _, _, err := ours.Payload(KindManifest, "name", reseal(ours, KindManifest, "name", b)); !errors.Is(err, image.ErrCorrupt) {
			t.Errorf("payload length %s: %v, want corrupt", name, err)
		}
	}
	for _, text := range []string{"", "{", "nonsense", `{"count":"x"}`, `{"count":1e99}`, `[]`, `"x"`, strings.Repeat("[", 20000), `{"name":` + strings.Repeat("[", 20000)} {
		b, _ := seal(t, ours, KindManifest, "name")
		body := append(bytes.Clone(b[:headerSize]), text...)
		binary.LittleEndian.PutUint64(body[16:], uint64(len(text)))
		body = append(body, make([]byte, tailSize)...)
		if _, err := ours.Open(KindManifest, "name", reseal(ours, KindManifest, "name", body), new(thing)); !errors.Is(err, image.ErrCorrupt) {
			t.Errorf("payload %.20q: %v, want corrupt", text, err)
		}
	}
	if _, _, err := ours.Seal(KindManifest, "name", strings.Repeat("x", MaxPayload)); err == nil {
		t.Error("an object above the bound was sealed")
	}
	if _, _, err := ours.Seal(KindManifest, "name", func() {}); err == nil {
		t.Error("a function was sealed")
	}
}

func TestKeysOfOtherThingsDiffer(t *testing.T) {
	object, footer := ours.digester(KindManifest).key, ours.digesters().footer.key
	if public := ours.digester(KindConfig).key; object == footer || object == public || footer == public || object == ours.Structure {
		t.Error("two of the derived keys are one")
	}
	if a, b := ours.VolumeTag("h/a", ""), ours.VolumeTag("h/b", ""); a == b || len(a) != 32 || a == theirs.VolumeTag("h/a", "") || a == ours.VolumeTag("h/a", "01") {
		t.Errorf("tags %s and %s", a, b)
	}
	a, b := New(), New()
	if a.ID == b.ID || a.Structure == b.Structure || a.ID == a.Structure || a.Fingerprint() == b.Fingerprint() {
		t.Error("new domains share keys")
	}
	if ours.Fingerprint() == theirs.Fingerprint() {
		t.Error("the fingerprint does not depend on the structure key")
	}
}

func TestSlotsHoldTheirKeys(t *testing.T) {
	d := New()
	name, object, err := d.ClearSlot()
	if err != nil || !strings.HasPrefix(name, "keys/") || len(name) != len("keys/")+32 {
		t.Fatalf("name %q, %v", name, err)
	}
	got, err := OpenSlot(name, object, nil)
	if err != nil || got.Fingerprint() != d.Fingerprint() {
		t.Fatalf("got %v, %v, want the keys", got, err)
	}
	if _, err := OpenSlot("keys/0", object, nil); !errors.Is(err, image.ErrCorrupt) {
		t.Errorf("under another name: %v, want corrupt", err)
	}
	for i := range object {
		object[i] ^= 1
		if got, err := OpenSlot(name, object, nil); !errors.Is(err, image.ErrCorrupt) || got != nil {
			t.Fatalf("byte %d flipped: %v, want corrupt", i, err)
		}
		object[i] ^= 1
	}
	key := strings.Repeat("00", 32)
	for what, s := range map[string]Slot{
		"no keys":      {Type: SlotClear},
		"a short key":  {Type: SlotClear, ID: key[2:], Structure: key},
		"a long key":   {Type: SlotClear, ID: key, Structure: key + "00"},
		"an odd digit": {Type: SlotClear, ID: key[1:], Structure: key},
		"no hex":       {Type: SlotClear, ID: "zz" + key[2:], Structure: key},
	} {
		object, _, err := (*Domain)(nil).Seal(KindSlot, "keys/1", s)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := OpenSlot("keys/1", object, nil); !errors.Is(err, image.ErrCorrupt) {
			t.Errorf("%s: %v, want corrupt", what, err)
		}
	}
	object, _, err = d.Seal(KindSlot, "keys/1", Slot{Type: "tpm"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenSlot("keys/1", object, nil); !errors.Is(err, ErrNewer) {
		t.Errorf("a slot of a later type: %v, want newer", err)
	}
}

func TestFingerprintIsAsSpecified(t *testing.T) {
	sum := make([]byte, 32)
	blake3.DeriveKey("platter 2026 domain fingerprint", append(bytes.Clone(ours.ID[:]), ours.Structure[:]...), sum)
	if got, want := ours.Fingerprint(), hex.EncodeToString(sum[:16]); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// FuzzObject opens made-up bytes as they are, and with their digest and
// length made right.
func FuzzObject(f *testing.F) {
	for _, kind := range []string{KindManifest, KindConfig} {
		b, _ := seal(f, ours, kind, "name")
		f.Add(b)
		f.Add(b[:len(b)-1])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, kind := range []string{KindManifest, KindSlot} {
			check := func(b []byte) {
				var v thing
				_, err := ours.Open(kind, "name", b, &v)
				if err != nil && !errors.Is(err, image.ErrCorrupt) && !errors.Is(err, ErrNewer) {
					t.Fatalf("got %v", err)
				}
			}
			check(b)
			if len(b) >= headerSize+tailSize {
				b = bytes.Clone(b)
				copy(b, magic+kind)
				check(reseal(ours, kind, "name", b))
				binary.LittleEndian.PutUint64(b[16:], uint64(len(b)-headerSize-tailSize))
				check(reseal(ours, kind, "name", b))
			}
		}
	})
}

func TestObjectsOfRandomLengthsOpen(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for range 200 {
		text := strings.Repeat("x", rng.IntN(5000))
		b, _, err := ours.Seal(KindLease, "n", text)
		if err != nil {
			t.Fatal(err)
		}
		var got string
		if _, err := ours.Open(KindLease, "n", b, &got); err != nil || got != text {
			t.Fatalf("%d bytes: %v", len(text), err)
		}
	}
}
