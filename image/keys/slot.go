package keys

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"time"

	"filippo.io/age"
	"golang.org/x/crypto/argon2"

	"platter/image"
)

// Types of key slot.
const (
	SlotClear      = "clear"      // not encrypted: the keys stand there
	SlotPassphrase = "passphrase" // sealed under a key that argon2id makes of a passphrase
	SlotKeyFile    = "keyfile"    // sealed under a key made of a file of random bytes
	SlotAge        = "age"        // encrypted to an age recipient
)

// A Slot is what its object holds. It says nothing of the keys but how to open
// it.
type Slot struct {
	Type      string    `json:"type"`
	Label     string    `json:"label,omitempty"` // for people
	Created   time.Time `json:"created,omitzero"`
	WriteOnly bool      `json:"write_only,omitempty"` // lacks the private half of the data key
	Recipient string    `json:"recipient,omitempty"`  // of age, public
	Argon2id  *Argon2id `json:"argon2id,omitempty"`
	Salt      string    `json:"salt,omitempty"`   // hex, of passphrase and key file
	Sealed    string    `json:"sealed,omitempty"` // base64
	Writer    string    `json:"writer,omitempty"` // public key of who writes with it, hex

	// Of a clear slot.
	ID        string `json:"id_key,omitempty"`
	Structure string `json:"structure_key,omitempty"`

	Name string `json:"-"` // of the object
}

// Argon2id is what a passphrase is worked through by.
type Argon2id struct {
	Time    uint32 `json:"time"`
	Memory  uint32 `json:"memory_kib"`
	Threads uint8  `json:"threads"`
}

// The cost of a new passphrase slot, and the bounds of what a reader accepts:
// less is too weak to have been written, more would be an attack on memory and
// patience.
const (
	newArgon2Time    = 3
	newArgon2Threads = 4
	minArgon2Memory  = 64 << 10  // KiB
	maxArgon2Memory  = 128 << 10 // KiB
	maxArgon2Time    = 16
)

// secrets is what a slot seals.
type secrets struct {
	ID        string `json:"id_key"`
	Structure string `json:"structure_key"`
	Public    string `json:"data_public"`
	Private   string `json:"data_private,omitempty"`
	signingSecrets
}

// Credentials open slots. Each may be empty.
type Credentials struct {
	Passphrase []byte
	KeyFile    []byte // the content of a key file
	Identities []age.Identity
}

// Empty reports whether there is nothing to open a slot with.
func (c *Credentials) Empty() bool {
	return c == nil || len(c.Passphrase) == 0 && len(c.KeyFile) == 0 && len(c.Identities) == 0
}

// ErrCredentials means that a slot is not opened by the credentials at hand.
var ErrCredentials = errors.New("wrong password or key")

// MinKeyFile is the length of the shortest key file in bytes.
const MinKeyFile = 32

// ClearSlot returns the name and bytes of a slot that holds d in clear, for a
// repository that is not encrypted.
func (d *Domain) ClearSlot() (name string, object []byte, err error) {
	return d.slot(Slot{Type: SlotClear, ID: hex.EncodeToString(d.ID[:]), Structure: hex.EncodeToString(d.Structure[:])})
}

// PassphraseSlot returns a slot that a passphrase opens.
func (d *Domain) PassphraseSlot(passphrase []byte, label string) (name string, object []byte, err error) {
	if len(passphrase) == 0 {
		return "", nil, errors.New("an empty password protects nothing")
	}
	cost := &Argon2id{Time: newArgon2Time, Memory: minArgon2Memory, Threads: newArgon2Threads}
	return d.saltedSlot(Slot{Type: SlotPassphrase, Label: label, Argon2id: cost}, passphrase)
}

// KeyFileSlot returns a slot that the content of a key file opens.
func (d *Domain) KeyFileSlot(content []byte, label string) (name string, object []byte, err error) {
	if len(content) < MinKeyFile {
		return "", nil, fmt.Errorf("key file of %d bytes: want at least %d random ones", len(content), MinKeyFile)
	}
	return d.saltedSlot(Slot{Type: SlotKeyFile, Label: label}, content)
}

func (d *Domain) saltedSlot(s Slot, secret []byte) (name string, object []byte, err error) {
	var salt [16]byte
	rand.Read(salt[:])
	s.Salt = hex.EncodeToString(salt[:])
	key, err := s.key(secret)
	if err != nil {
		return "", nil, err
	}
	plain, err := d.secrets()
	if err != nil {
		return "", nil, err
	}
	s.Sealed = base64.StdEncoding.EncodeToString(AEAD(key).Seal(nil, make([]byte, NonceSize), plain, nil))
	return d.slot(s)
}

// AgeSlot returns a slot that the identity of an age recipient opens.
func (d *Domain) AgeSlot(recipient age.Recipient, text, label string) (name string, object []byte, err error) {
	plain, err := d.secrets()
	if err != nil {
		return "", nil, err
	}
	var sealed bytes.Buffer
	w, err := age.Encrypt(&sealed, recipient)
	if err == nil {
		_, err = w.Write(plain)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return "", nil, fmt.Errorf("seal keys for %s: %w", text, err)
	}
	return d.slot(Slot{Type: SlotAge, Label: label, Recipient: text, Sealed: base64.StdEncoding.EncodeToString(sealed.Bytes())})
}

func (d *Domain) slot(s Slot) (name string, object []byte, err error) {
	var id [16]byte
	rand.Read(id[:])
	name = slotPrefix + hex.EncodeToString(id[:])
	s.Name, s.Created, s.WriteOnly, s.Writer = name, time.Now().UTC().Truncate(time.Second), !d.CanRead(), d.Writer().String()
	maker := d
	if d.signing != nil && d.signing.maker != nil {
		maker = d.signing.maker // a new writer does not sign its own slot
	}
	if !maker.Writer().MayCollect() {
		return "", nil, ErrRights
	}
	object, _, err = maker.Seal(KindSlot, name, s)
	return name, object, err
}

const slotPrefix = "keys/"

func (d *Domain) secrets() ([]byte, error) {
	s := secrets{ID: hex.EncodeToString(d.ID[:]), Structure: hex.EncodeToString(d.Structure[:])}
	if d.public != nil {
		s.Public = hex.EncodeToString(d.public.Bytes())
	}
	if d.private != nil {
		b, err := d.private.Bytes()
		if err != nil {
			return nil, err
		}
		s.Private = hex.EncodeToString(b)
	}
	if d.signing != nil {
		s.signingSecrets = d.signing.secrets()
	}
	return json.Marshal(s)
}

// ReadSlot reads a slot without opening it.
func ReadSlot(name string, object []byte) (*Slot, error) {
	s := &Slot{Name: name}
	if _, err := (*Domain)(nil).Open(KindSlot, name, object, s); err != nil {
		return nil, err
	}
	return s, nil
}

// OpenSlot returns the Domain that a slot holds. It returns ErrCredentials
// when c does not open it, and ErrForged when it was not made with the rights
// that it takes: who knows a recipient, or a password, can seal anything for
// it.
func OpenSlot(name string, object []byte, c *Credentials) (*Domain, error) {
	s, err := ReadSlot(name, object)
	if err != nil {
		return nil, err
	}
	d, err := s.open(c)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if _, _, err := d.Payload(KindSlot, name, object); err != nil {
		return nil, err
	}
	return d, nil
}

func (s *Slot) open(c *Credentials) (*Domain, error) {
	if s.Type == SlotClear {
		return domain(secrets{ID: s.ID, Structure: s.Structure})
	}
	if c == nil {
		c = new(Credentials)
	}
	var plain []byte
	var err error
	switch s.Type {
	case SlotPassphrase:
		plain, err = s.unseal(c.Passphrase)
	case SlotKeyFile:
		plain, err = s.unseal(c.KeyFile)
	case SlotAge:
		plain, err = s.decrypt(c.Identities)
	default:
		return nil, fmt.Errorf("key slot of type %q: %w", s.Type, ErrNewer)
	}
	if err != nil {
		return nil, err
	}
	var found secrets
	if err := json.Unmarshal(plain, &found); err != nil {
		return nil, fmt.Errorf("keys: %w: %w", err, image.ErrCorrupt)
	}
	return domain(found)
}

func (s *Slot) unseal(secret []byte) ([]byte, error) {
	if len(secret) == 0 {
		return nil, ErrCredentials
	}
	sealed, err := base64.StdEncoding.DecodeString(s.Sealed)
	if err != nil {
		return nil, fmt.Errorf("sealed keys: %w: %w", err, image.ErrCorrupt)
	}
	key, err := s.key(secret)
	if err != nil {
		return nil, err
	}
	plain, err := AEAD(key).Open(nil, make([]byte, NonceSize), sealed, nil)
	if err != nil {
		return nil, ErrCredentials
	}
	return plain, nil
}

// key works a passphrase or the content of a key file into a key. The salt is
// of this slot alone, so that its key seals one thing.
func (s *Slot) key(secret []byte) (key [32]byte, err error) {
	salt, err := hex.DecodeString(s.Salt)
	if err != nil || len(salt) != 16 {
		return key, fmt.Errorf("salt %q: %w", s.Salt, image.ErrCorrupt)
	}
	if s.Type == SlotKeyFile {
		d := Domain{}
		public().sum(&d.Structure, secret)
		return d.derive("platter 2026 key file", salt), nil
	}
	a := s.Argon2id
	if a == nil || a.Memory < minArgon2Memory || a.Memory > maxArgon2Memory || a.Time < 1 || a.Time > maxArgon2Time || a.Threads < 1 {
		return key, fmt.Errorf("argon2id costs %+v: %w", a, image.ErrCorrupt)
	}
	copy(key[:], argon2.IDKey(secret, salt, a.Time, a.Memory, a.Threads, uint32(len(key))))
	runtime.GC() // the next slot's 128 MiB take the place of these
	return key, nil
}

// Password returns the password to try; c may be nil.
func (c *Credentials) Password() []byte {
	if c == nil {
		return nil
	}
	return c.Passphrase
}

// SlotCost returns what trying a password on a slot costs, by what one on a new
// slot does: 0 if it costs nothing.
func SlotCost(name string, object []byte) int {
	s, err := ReadSlot(name, object)
	if err != nil || s.Type != SlotPassphrase || s.Argon2id == nil || s.Argon2id.Memory > maxArgon2Memory || s.Argon2id.Time > maxArgon2Time {
		return 0
	}
	return max(1, int(s.Argon2id.Time)*int(s.Argon2id.Memory)/(newArgon2Time*minArgon2Memory))
}

// maxSecrets bounds what an age file may decrypt to.
const maxSecrets = 64 << 10

func (s *Slot) decrypt(identities []age.Identity) ([]byte, error) {
	if len(identities) == 0 {
		return nil, ErrCredentials
	}
	sealed, err := base64.StdEncoding.DecodeString(s.Sealed)
	if err != nil {
		return nil, fmt.Errorf("sealed keys: %w: %w", err, image.ErrCorrupt)
	}
	r, err := age.Decrypt(bytes.NewReader(sealed), identities...)
	var wrong *age.NoIdentityMatchError
	if errors.As(err, &wrong) {
		return nil, ErrCredentials
	}
	if err != nil {
		return nil, fmt.Errorf("sealed keys: %w: %w", err, image.ErrCorrupt)
	}
	plain, err := io.ReadAll(io.LimitReader(r, maxSecrets))
	if err != nil {
		return nil, fmt.Errorf("sealed keys: %w: %w", err, image.ErrCorrupt)
	}
	return plain, nil
}

func domain(s secrets) (*Domain, error) {
	d := new(Domain)
	for _, f := range []struct {
		dst  []byte
		text string
	}{{d.ID[:], s.ID}, {d.Structure[:], s.Structure}} {
		b, err := hex.DecodeString(f.text)
		if err != nil || len(b) != len(f.dst) {
			return nil, fmt.Errorf("a key of %d hex digits, want %d: %w", len(f.text), 2*len(f.dst), image.ErrCorrupt)
		}
		copy(f.dst, b)
	}
	d.ready = d.digesters()
	if s.Public == "" {
		return d, nil
	}
	pub, err1 := hex.DecodeString(s.Public)
	private, err2 := hex.DecodeString(s.Private)
	if err := errors.Join(err1, err2); err != nil {
		return nil, fmt.Errorf("data key: %w: %w", err, image.ErrCorrupt)
	}
	if err := d.setData(pub, private); err != nil {
		return nil, err
	}
	if d.signing, err1 = signingOf(s.signingSecrets); err1 != nil {
		return nil, err1
	}
	return d, nil
}
