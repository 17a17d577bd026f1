package keys

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"

	"platter/image"
)

// Errors of signatures and rights.
var (
	// ErrForged means that an object was written whole by somebody who holds
	// the structure key, and that its signature is not of one who may write
	// such an object. It is a kind of image.ErrCorrupt: where damage must stop
	// the work, and this need not, ask for ErrForged first.
	ErrForged = fmt.Errorf("not signed by a writer who may: %w", image.ErrCorrupt)
	// ErrRights means that the key in use may write images, and that nobody
	// would heed what it was about to write.
	ErrRights = errors.New("the key in use may write images, and nothing else")
)

// Rights are what a writer may do beside writing images of its own.
type Rights uint8

// Rights of a writer.
const (
	// RightRead: the writer holds the data key. Blocks are what it says.
	RightRead Rights = 1 << iota
	// RightCollect: what it writes of trash, notes and attestations counts for
	// all, and it makes keys.
	RightCollect

	allRights = RightRead | RightCollect
)

// A Writer is who signed an object. In a repository that is not encrypted
// nothing is signed: there everybody has all rights, and Key is zero.
type Writer struct {
	Key    [ed25519.PublicKeySize]byte
	Rights Rights
}

// String returns the writer's public key as 64 hex digits, "" without one.
func (w Writer) String() string {
	if w.Key == ([32]byte{}) {
		return ""
	}
	return hex.EncodeToString(w.Key[:])
}

// Vouches reports whether blocks are what the writer says they are: it could
// read them.
func (w Writer) Vouches() bool { return w.Rights&RightRead != 0 }

// MayCollect reports whether what it writes about others' objects counts.
func (w Writer) MayCollect() bool { return w.Rights&RightCollect != 0 }

// Certificate, 104 bytes:
//
//	 0:32  the writer's public key, Ed25519
//	32:33  rights: 1 reads, 2 collects
//	33:40  zero
//	40:104 the administrator's signature of "platter 2026 writer" and 0:40
const (
	certificateBody = 40
	CertificateSize = certificateBody + ed25519.SignatureSize
	SignatureSize   = ed25519.SignatureSize

	certificateContext = "platter 2026 writer"
)

// signing is what an encrypted repository's objects are signed with. known
// caches the certificates that were found good.
type signing struct {
	admin       ed25519.PublicKey
	adminKey    ed25519.PrivateKey // nil with keys that only write
	key         ed25519.PrivateKey
	certificate [CertificateSize]byte
	known       *sync.Map // of certificates, to Writer
	maker       *Domain   // who makes the slot of a new writer; nil for itself
}

// newSigning makes the administrator's key pair and the first writer.
func newSigning() (*signing, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	s := &signing{admin: public, adminKey: private, known: new(sync.Map)}
	return s, s.certify(allRights)
}

// certify gives s a key of its own.
func (s *signing) certify(rights Rights) error {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	s.key = private
	copy(s.certificate[:], public)
	s.certificate[32] = byte(rights)
	clear(s.certificate[33:certificateBody])
	copy(s.certificate[certificateBody:], ed25519.Sign(s.adminKey, certified(s.certificate[:])))
	return nil
}

func certified(certificate []byte) []byte {
	return append([]byte(certificateContext), certificate[:certificateBody]...)
}

// NewWriter returns these keys as another writer has them, with a signing key
// of its own: all of them, or those that write only. It returns ErrRights when
// these keys make no others.
func (d *Domain) NewWriter(writeOnly bool) (*Domain, error) {
	if d.signing == nil {
		return d, nil
	}
	if d.signing.adminKey == nil {
		return nil, ErrRights
	}
	w, s := *d, *d.signing
	w.signing = &s
	rights := allRights
	if writeOnly {
		rights = 0
	}
	if err := s.certify(rights); err != nil {
		return nil, err
	}
	if writeOnly {
		w.private, s.adminKey = nil, nil
	}
	return w.MadeBy(d), nil
}

// MadeBy returns these keys with their next slots made by another's, who has
// the right to.
func (d *Domain) MadeBy(maker *Domain) *Domain {
	if d.signing == nil {
		return d
	}
	w, s := *d, *d.signing
	w.signing, s.maker = &s, maker
	return &w
}

// Writer returns who signs with these keys.
func (d *Domain) Writer() Writer {
	if !d.signs() {
		return Writer{Rights: allRights}
	}
	return Writer{Key: [32]byte(d.signing.certificate[:32]), Rights: Rights(d.signing.certificate[32])}
}

// Certificate returns the certificate of these keys' writer; zeros where
// nothing is signed.
func (d *Domain) Certificate() (c [CertificateSize]byte) {
	if d.signs() {
		c = d.signing.certificate
	}
	return c
}

// signs reports whether objects of these keys bear a signature.
func (d *Domain) signs() bool { return d != nil && d.signing != nil }

// Sign returns the signature of a message, under a context, by these keys'
// writer; zeros where nothing is signed. The message covers the certificate.
func (d *Domain) Sign(context string, message []byte) (signature [SignatureSize]byte) {
	if d.signs() {
		copy(signature[:], ed25519.Sign(d.signing.key, append([]byte(context), message...)))
	}
	return signature
}

// Signer checks a signature that Sign made, and returns who made it. It
// returns ErrForged, where nothing is signed also for what is not zero.
func (d *Domain) Signer(context string, certificate, signature, message []byte) (Writer, error) {
	if !d.signs() {
		for _, b := range [][]byte{certificate, signature} {
			for _, c := range b {
				if c != 0 {
					return Writer{}, fmt.Errorf("a signature where none is made: %w", ErrForged)
				}
			}
		}
		return Writer{Rights: allRights}, nil
	}
	w, err := d.certificate([CertificateSize]byte(certificate))
	if err == nil && !ed25519.Verify(w.Key[:], append([]byte(context), message...), signature) {
		err = fmt.Errorf("signature of writer %.16s: %w", w, ErrForged)
	}
	if err != nil {
		return Writer{}, err
	}
	return w, nil
}

// certificate checks a certificate.
func (d *Domain) certificate(c [CertificateSize]byte) (Writer, error) {
	if w, ok := d.signing.known.Load(c); ok {
		return w.(Writer), nil
	}
	if !ed25519.Verify(d.signing.admin, certified(c[:]), c[certificateBody:]) {
		return Writer{}, fmt.Errorf("certificate of writer %x: %w", c[:8], ErrForged)
	}
	w := Writer{Key: [32]byte(c[:32]), Rights: Rights(c[32])}
	d.signing.known.Store(c, w)
	return w, nil
}

// signingSecrets is what a slot seals of it.
type signingSecrets struct {
	Admin       string `json:"admin_public,omitempty"`
	AdminSeed   string `json:"admin_private,omitempty"`
	Seed        string `json:"writer_private,omitempty"`
	Certificate string `json:"certificate,omitempty"`
}

func (s *signing) secrets() signingSecrets {
	out := signingSecrets{
		Admin: hex.EncodeToString(s.admin), Seed: hex.EncodeToString(s.key.Seed()), Certificate: hex.EncodeToString(s.certificate[:]),
	}
	if s.adminKey != nil {
		out.AdminSeed = hex.EncodeToString(s.adminKey.Seed())
	}
	return out
}

// signingOf reads what secrets wrote, and checks that it belongs together.
func signingOf(in signingSecrets) (*signing, error) {
	bad := func(what string) error { return fmt.Errorf("signing key: %s: %w", what, image.ErrCorrupt) }
	admin, err1 := hex.DecodeString(in.Admin)
	adminSeed, err2 := hex.DecodeString(in.AdminSeed)
	seed, err3 := hex.DecodeString(in.Seed)
	certificate, err4 := hex.DecodeString(in.Certificate)
	if errors.Join(err1, err2, err3, err4) != nil || len(admin) != ed25519.PublicKeySize || len(seed) != ed25519.SeedSize ||
		len(certificate) != CertificateSize || len(adminSeed) != 0 && len(adminSeed) != ed25519.SeedSize {
		return nil, bad("not as many hex digits as it has")
	}
	s := &signing{admin: admin, key: ed25519.NewKeyFromSeed(seed), certificate: [CertificateSize]byte(certificate), known: new(sync.Map)}
	if len(adminSeed) > 0 {
		s.adminKey = ed25519.NewKeyFromSeed(adminSeed)
		if !s.admin.Equal(s.adminKey.Public()) {
			return nil, bad("the administrator's halves do not belong together")
		}
	}
	w, err := (&Domain{signing: s}).certificate(s.certificate)
	if err != nil {
		return nil, bad("the certificate is not the administrator's")
	}
	if !ed25519.PublicKey(w.Key[:]).Equal(s.key.Public()) {
		return nil, bad("the certificate is of another writer")
	}
	return s, nil
}
