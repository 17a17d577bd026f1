package keys

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/hpke"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"

	"filippo.io/age"
	"filippo.io/age/plugin"
	"github.com/zeebo/blake3"

	"platter/image"
)

// ErrNoDataKey means that these keys can write a repository, find what changed
// and dedupe, but not read the content of blocks.
var ErrNoDataKey = errors.New("the key in use can write images, not read them")

// Sizes in bytes.
const (
	// Overhead is by how much sealing lengthens what is sealed.
	Overhead = 16
	// WrappedSize is the length of a wrapped segment key: what HPKE puts
	// before it, the key, and its tag.
	WrappedSize = 32 + 32 + Overhead
)

// NewEncrypted returns a Domain of random keys, the data key pair with both
// its halves among them, and signing keys with all rights.
func NewEncrypted() (*Domain, error) {
	d := New()
	var err error
	if d.signing, err = newSigning(); err != nil {
		return nil, err
	}
	private, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	return d, d.setData(private.PublicKey().Bytes(), private.Bytes())
}

// setData sets the data key pair; private may be empty.
func (d *Domain) setData(public, private []byte) error {
	p, err := ecdh.X25519().NewPublicKey(public)
	if err != nil {
		return fmt.Errorf("data key: %w: %w", err, image.ErrCorrupt)
	}
	if d.public, err = hpke.NewDHKEMPublicKey(p); err != nil {
		return fmt.Errorf("data key: %w: %w", err, image.ErrCorrupt)
	}
	if len(private) == 0 {
		return nil
	}
	s, err := ecdh.X25519().NewPrivateKey(private)
	if err != nil || !s.PublicKey().Equal(p) {
		return fmt.Errorf("data key: its halves do not belong together: %w", image.ErrCorrupt)
	}
	if d.private, err = hpke.NewDHKEMPrivateKey(s); err != nil {
		return fmt.Errorf("data key: %w: %w", err, image.ErrCorrupt)
	}
	return nil
}

// Encrypted reports whether objects are sealed under these keys.
func (d *Domain) Encrypted() bool { return d != nil && d.public != nil }

// CanRead reports whether these keys open the content of blocks.
func (d *Domain) CanRead() bool { return d.public == nil || d.private != nil }

// WrapKey makes the random key of a new segment and wraps it for the data key
// pair. origin is the segment's first name, which its payloads are bound to.
func (d *Domain) WrapKey(origin image.SegmentID) (key [32]byte, wrapped [WrappedSize]byte) {
	rand.Read(key[:])
	b, err := hpke.Seal(d.public, hpke.HKDFSHA256(), hpke.AES256GCM(), wrapInfo(origin), key[:])
	if err != nil || copy(wrapped[:], b) != len(b) {
		panic(fmt.Sprintf("wrap segment key: %v", err)) // only for a key that setData refuses
	}
	return key, wrapped
}

// UnwrapKey opens what WrapKey wrapped.
func (d *Domain) UnwrapKey(origin image.SegmentID, wrapped []byte) (key [32]byte, err error) {
	if d.private == nil {
		return key, ErrNoDataKey
	}
	b, err := hpke.Open(d.private, hpke.HKDFSHA256(), hpke.AES256GCM(), wrapInfo(origin), wrapped)
	if err != nil || copy(key[:], b) != len(key) {
		return key, fmt.Errorf("key of segment %s: %w", origin, image.ErrCorrupt)
	}
	return key, nil
}

func wrapInfo(origin image.SegmentID) []byte {
	return append([]byte("platter 2026 segment key"), origin[:]...)
}

// PageKey is the key of a page segment, which whoever holds the structure key
// can open.
func (d *Domain) PageKey(origin image.SegmentID) [32]byte {
	return d.derive("platter 2026 page segment", origin[:])
}

// SealFooter encrypts a footer in place, dst having room for Overhead more.
func (d *Domain) SealFooter(id image.SegmentID, footer []byte) []byte {
	return AEAD(d.derive("platter 2026 segment footer", id[:])).Seal(footer[:0], make([]byte, NonceSize), footer, nil)
}

// OpenFooter returns what SealFooter encrypted.
func (d *Domain) OpenFooter(id image.SegmentID, sealed []byte) ([]byte, error) {
	return AEAD(d.derive("platter 2026 segment footer", id[:])).Open(nil, make([]byte, NonceSize), sealed, nil)
}

// derive returns a key for one purpose and one object, to be used for nothing
// else: so its nonce may be zero.
func (d *Domain) derive(purpose string, object []byte) (key [32]byte) {
	blake3.DeriveKey(purpose, append(d.Structure[:len(d.Structure):len(d.Structure)], object...), key[:])
	return key
}

// NonceSize is the length of an AEAD's nonce in bytes.
const NonceSize = 12

// AEAD returns AES-256-GCM under a key.
func AEAD(key [32]byte) cipher.AEAD {
	block, err := aes.NewCipher(key[:])
	if err != nil {
		panic(err) // only for a key of another length
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		panic(err) // only for a cipher of other blocks
	}
	return gcm
}

// ParseRecipient reads an age recipient: age1…, or of a plugin.
func ParseRecipient(text string) (age.Recipient, error) {
	if upper := strings.ToUpper(text); strings.HasPrefix(upper, "AGE-SECRET-KEY-") || strings.HasPrefix(upper, "AGE-PLUGIN-") {
		return nil, errors.New("age recipient: that is a secret key, which others may have seen by now; want age1…")
	}
	if r, err := age.ParseX25519Recipient(text); err == nil {
		return r, nil
	}
	r, err := plugin.NewRecipient(text, pluginUI())
	if err != nil {
		return nil, fmt.Errorf("age recipient %q: %w", text, err)
	}
	return r, nil
}

// ParseIdentities reads age identities, one a line, as an identity file or a
// printed recovery key holds them.
func ParseIdentities(text string) (list []age.Identity, err error) {
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		var id age.Identity
		if strings.HasPrefix(line, "AGE-PLUGIN-") {
			id, err = plugin.NewIdentity(line, pluginUI())
		} else {
			id, err = age.ParseX25519Identity(line)
		}
		if err != nil {
			return nil, errors.New("age identity: not one that can be read")
		}
		list = append(list, id)
	}
	return list, nil
}

// pluginUI answers plugins that want nothing but to be touched: there may be
// no terminal.
func pluginUI() *plugin.ClientUI {
	refuse := func(name string) error {
		return fmt.Errorf("age plugin %s asks for input, which platter does not give", name)
	}
	return &plugin.ClientUI{
		DisplayMessage: func(name, message string) error { return nil },
		RequestValue:   func(name, prompt string, secret bool) (string, error) { return "", refuse(name) },
		Confirm:        func(name, prompt, yes, no string) (bool, error) { return false, refuse(name) },
		WaitTimer:      func(name string) {},
	}
}

// NewRecovery returns a new age identity and its recipient, as text.
func NewRecovery() (identity, recipient string, err error) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		return "", "", err
	}
	return id.String(), id.Recipient().String(), nil
}
