// Package keys holds the keys of a domain, and seals and opens the small
// objects of a repository under them.
//
// A domain's keys lie in slots, one object each. A repository that is not
// encrypted has one slot that holds them in clear: then they protect nothing,
// but the layout of every object is the same.
//
// The bytes are described in image/FORMAT.md.
package keys

import (
	"bytes"
	"crypto/cipher"
	"crypto/hpke"
	"crypto/rand"
	"crypto/subtle"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"

	"github.com/zeebo/blake3"

	"platter/image"
)

// A Domain holds the keys of writers who share dedupe.
type Domain struct {
	ID        [32]byte // makes block and page IDs
	Structure [32]byte // authenticates and seals footers, pages and manifests

	// The data key pair, which wraps the keys of data segments. public is nil
	// in a repository that is not encrypted, private with keys that only write.
	public  hpke.PublicKey
	private hpke.PrivateKey

	signing *signing // nil in a repository that is not encrypted

	ready *digesters // under Structure; nil until it is there to stay
}

// New returns a Domain of random keys.
func New() *Domain {
	d := new(Domain)
	rand.Read(d.ID[:])
	rand.Read(d.Structure[:])
	d.ready = d.digesters()
	return d
}

// Fingerprint tells these keys from others without telling what they are.
func (d *Domain) Fingerprint() string {
	var sum [32]byte
	material := append(append([]byte(nil), d.ID[:]...), d.Structure[:]...)
	if d.public != nil {
		material = append(material, d.public.Bytes()...)
		material = append(material, d.signing.admin...)
	}
	blake3.DeriveKey("platter 2026 domain fingerprint", material, sum[:])
	return hex.EncodeToString(sum[:16])
}

// Kinds of object, as they stand in its header.
const (
	KindConfig    = "CONF"
	KindSlot      = "KEYS"
	KindManifest  = "MANI"
	KindLease     = "LEAS"
	KindCondemned = "COND"
	KindTombstone = "TOMB"
	KindDamage    = "DAMG"
	KindIndex     = "INDX"
	KindMoves     = "MOVE"
	KindAttested  = "ATTE"
	KindPin       = "PINS"
	KindVerified  = "VERI"
	KindScreen    = "SCRN"
)

// anyWriter reports whether objects of a kind are of use from every writer: it
// is for those who read them to tell whose say counts. All other kinds count
// only from a writer with RightCollect.
func anyWriter(kind string) bool {
	switch kind {
	case KindManifest, KindLease, KindTombstone, KindDamage:
		return true
	}
	return false
}

// Object, little-endian:
//
//	 0:4   "PLTR"
//	 4:8   kind, four letters
//	 8:10  version, 1
//	10:12  protection: 0 digest only, 1 AES-256-GCM besides
//	12:16  zero
//	16:24  payload length P, as stored
//	24:56  zero; with protection 1 random, from which the object's key is made
//	56:    payload
//	+104   the writer's certificate; zero where nothing is signed
//	 +64   its signature of the keyed BLAKE3-256 of name length (4), name and
//	       all bytes before it
//	 +32   keyed BLAKE3-256 of name length (4), name and all bytes before
const (
	magic         = "PLTR"
	objectVersion = 1
	digestOnly    = 0
	encrypted     = 1
	saltAt        = 24
	headerSize    = 56
	digestSize    = 32
	tailSize      = CertificateSize + SignatureSize + digestSize

	objectContext = "platter 2026 object signature"
)

// MaxPayload bounds the payload of an object in bytes, on reading and writing.
const MaxPayload = 64 << 20

// maxPayload bounds the payload of objects of a kind, as stored, in bytes: what
// is decoded takes several times as much memory. Only what grows with the
// repository may be large.
func maxPayload(kind string) int {
	switch kind {
	case KindConfig, KindSlot, KindLease, KindPin:
		return 1 << 20
	case KindManifest:
		return 4 << 20
	case KindMoves:
		return 8 << 20
	case KindTombstone: // holds a manifest twice
		return 12 << 20
	case KindDamage, KindIndex:
		return 16 << 20
	}
	return MaxPayload
}

// MaxObject is the length of the largest object of a kind, in bytes.
func MaxObject(kind string) int64 { return int64(headerSize + maxPayload(kind) + tailSize) }

// VolumeTag returns the name that a volume's line of images has in the store,
// 32 hex digits that do not tell the volume's own. Those who hold the data key
// share one line; any other writer has its own, so that nobody writes into
// another's. writer is "" for the first, else the writer's String.
func (d *Domain) VolumeTag(volume, writer string) string {
	var tag [32]byte
	line := []byte(volume)
	if writer != "" {
		line = append(append(line, 0), writer...)
	}
	d.digesters().volume.sum(&tag, line)
	return hex.EncodeToString(tag[:16])
}

// protection is how objects of a kind are stored. Those that are read before
// any key is known are never encrypted.
func (d *Domain) protection(kind string) uint16 {
	if kind == KindConfig || kind == KindSlot || !d.Encrypted() {
		return digestOnly
	}
	return encrypted
}

// A Signed is what is known of an object that was opened.
type Signed struct {
	Digest image.Digest
	Writer Writer
}

// Seal returns the object that holds v as JSON, bound to its kind and name and
// signed by these keys' writer.
func (d *Domain) Seal(kind, name string, v any) ([]byte, image.Digest, error) {
	payload, err := json.Marshal(v)
	if err != nil {
		return nil, image.Digest{}, fmt.Errorf("encode %s: %w", name, err)
	}
	return d.SealBytes(kind, name, payload)
}

// SealBytes is Seal for a payload that is not JSON.
func (d *Domain) SealBytes(kind, name string, payload []byte) ([]byte, image.Digest, error) {
	if most := maxPayload(kind) - Overhead; len(payload) > most {
		return nil, image.Digest{}, fmt.Errorf("encode %s: %d bytes, at most %d fit", name, len(payload), most)
	}
	b := make([]byte, headerSize, headerSize+len(payload)+Overhead+tailSize)
	copy(b, magic)
	copy(b[4:], kind)
	binary.LittleEndian.PutUint16(b[8:], objectVersion)
	if p := d.protection(kind); p == encrypted {
		binary.LittleEndian.PutUint16(b[10:], p)
		rand.Read(b[saltAt:headerSize])
		payload = d.objectAEAD(b).Seal(nil, make([]byte, NonceSize), payload, nil)
	}
	binary.LittleEndian.PutUint64(b[16:], uint64(len(payload)))
	b = append(b, payload...)
	return d.end(kind, name, b)
}

// end signs an object's bytes and adds its digest.
func (d *Domain) end(kind, name string, b []byte) ([]byte, image.Digest, error) {
	certificate := d.Certificate()
	b = append(b, certificate[:]...)
	var inner image.Digest
	if d.signs() {
		inner = d.digest(kind, name, b)
	}
	signature := d.Sign(objectContext, inner[:])
	b = append(b, signature[:]...)
	sum := d.digest(kind, name, b)
	return append(b, sum[:]...), sum, nil
}

// objectAEAD is keyed for one object by the random bytes in its header.
func (d *Domain) objectAEAD(header []byte) cipher.AEAD {
	return AEAD(d.derive("platter 2026 object", header[saltAt:headerSize]))
}

func (d *Domain) digest(kind, name string, body []byte) (sum image.Digest) {
	length := binary.LittleEndian.AppendUint32(nil, uint32(len(name)))
	d.digester(kind).sum((*[32]byte)(&sum), length, []byte(name), body)
	return sum
}

// Payload checks an object against its kind and name and returns its payload,
// its digest and who signed it. d may be nil for a config or a slot: then no
// signature is checked.
func (d *Domain) Payload(kind, name string, b []byte) ([]byte, Signed, error) {
	corrupt := func(format string, args ...any) error {
		return fmt.Errorf("%s: %s: %w", name, fmt.Sprintf(format, args...), image.ErrCorrupt)
	}
	if len(b) < headerSize+tailSize {
		return nil, Signed{}, corrupt("%d bytes, an object has at least %d", len(b), headerSize+tailSize)
	}
	if string(b[:4]) != magic || string(b[4:8]) != kind {
		return nil, Signed{}, corrupt("begins %q, want %q", b[:8], magic+kind)
	}
	length := binary.LittleEndian.Uint64(b[16:])
	if length > uint64(maxPayload(kind)) || int(length) != len(b)-headerSize-tailSize {
		return nil, Signed{}, corrupt("payload of %d bytes in an object of %d", length, len(b))
	}
	sum, want := image.Digest(b[len(b)-digestSize:]), d.digest(kind, name, b[:len(b)-digestSize])
	if subtle.ConstantTimeCompare(sum[:], want[:]) != 1 {
		return nil, Signed{}, corrupt("digest %.16s…, want %.16s…", sum, want)
	}
	// A whole object of a later format is not damage: say what to do.
	v, p := binary.LittleEndian.Uint16(b[8:]), binary.LittleEndian.Uint16(b[10:])
	if v != objectVersion || p > encrypted || p > digestOnly && (kind == KindConfig || kind == KindSlot) {
		return nil, Signed{}, fmt.Errorf("%s: object version %d, protection %d: %w", name, v, p, ErrNewer)
	}
	if p != d.protection(kind) {
		return nil, Signed{}, corrupt("protection %d, want %d", p, d.protection(kind))
	}
	w, err := d.signer(kind, name, b[:len(b)-digestSize])
	if err != nil {
		return nil, Signed{}, fmt.Errorf("%s: %w", name, err)
	}
	payload := b[headerSize : headerSize+length]
	if p == encrypted {
		if payload, err = d.objectAEAD(b).Open(nil, make([]byte, NonceSize), payload, nil); err != nil {
			return nil, Signed{}, corrupt("%v", err)
		}
	}
	return payload, Signed{sum, w}, nil
}

// signer checks the signature at the end of b, an object without its digest.
func (d *Domain) signer(kind, name string, b []byte) (Writer, error) {
	if d == nil {
		return Writer{}, nil
	}
	body, signature := b[:len(b)-SignatureSize], b[len(b)-SignatureSize:]
	var inner image.Digest
	if d.signs() {
		inner = d.digest(kind, name, body)
	}
	w, err := d.Signer(objectContext, body[len(body)-CertificateSize:], signature, inner[:])
	if err == nil && !anyWriter(kind) && !w.MayCollect() {
		err = fmt.Errorf("written by %.16s, which only writes images: %w", w, ErrForged)
	}
	return w, err
}

// Open checks an object as Payload does and decodes it into v.
func (d *Domain) Open(kind, name string, b []byte, v any) (Signed, error) {
	payload, s, err := d.Payload(kind, name, b)
	if err != nil {
		return s, err
	}
	return s, decode(kind, name, payload, v)
}

// sparse returns how many bytes of JSON there are for each object in it, at
// least, where a writer made it: what is denser would take far more memory than
// its length lets expect.
func sparse(kind string) int {
	switch kind {
	case KindCondemned, KindAttested, KindDamage, KindVerified:
		return 64
	}
	return 16
}

func decode(kind, name string, payload []byte, v any) error {
	const few = 4096
	if n, most := bytes.Count(payload, []byte("{")), few+len(payload)/sparse(kind); n > most {
		return fmt.Errorf("%s: %d values in %d bytes, at most %d: %w", name, n, len(payload), most, image.ErrCorrupt)
	}
	if n, most := bytes.Count(payload, []byte(",")), few+len(payload)/6; n > most {
		return fmt.Errorf("%s: lists of %d values in %d bytes, at most %d: %w", name, n, len(payload), most, image.ErrCorrupt)
	}
	if err := json.Unmarshal(payload, v); err != nil {
		// The text may hold a part of the payload, as long as that is.
		return fmt.Errorf("%s: decode: %.200s: %w", name, err.Error(), image.ErrCorrupt)
	}
	return nil
}

// ErrNewer means that an object was written by a later version.
var ErrNewer = fmt.Errorf("written by a newer platter: update this one")
