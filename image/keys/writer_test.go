package keys

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"platter/image"
)

func TestWhoSignedAnObjectIsTold(t *testing.T) {
	admin := newEncrypted(t)
	agent := mustWriter(t, admin, true)
	second := mustWriter(t, admin, false)
	if agent.Writer() == admin.Writer() || second.Writer() == admin.Writer() || agent.Writer().Rights != 0 || second.Writer().Rights != allRights {
		t.Fatalf("writers %+v, %+v, %+v", admin.Writer(), agent.Writer(), second.Writer())
	}
	for _, kind := range kinds {
		for _, w := range []*Domain{admin, agent, second} {
			b, sum := seal(t, w, kind, "name")
			for _, reader := range []*Domain{admin, agent, second} {
				var got thing
				s, err := reader.Open(kind, "name", b, &got)
				if w == agent && !anyWriter(kind) {
					if !errors.Is(err, ErrForged) {
						t.Errorf("%s of an agent: %v, want forged", kind, err)
					}
				} else if err != nil || s != (Signed{sum, w.Writer()}) {
					t.Errorf("%s: signed %+v, %v, want %+v", kind, s, err, w.Writer())
				}
			}
		}
	}
}

func TestEveryFlippedBitOfASignedObjectIsFound(t *testing.T) {
	d := newEncrypted(t)
	b, _ := seal(t, d, KindManifest, "name")
	for i := range b {
		b[i] ^= 1 << (i % 8)
		// A flip is damage, and no forgery: those may be passed over.
		if p, _, err := d.Payload(KindManifest, "name", b); !errors.Is(err, image.ErrCorrupt) || errors.Is(err, ErrForged) || p != nil {
			t.Fatalf("byte %d: %v, want corrupt and not forged", i, err)
		}
		b[i] ^= 1 << (i % 8)
	}
}

// TestForgedSignatures has somebody with an agent's keys, which are all that
// digests and encryption are made of, try to be somebody else.
func TestForgedSignatures(t *testing.T) {
	admin := newEncrypted(t)
	agent, other := mustWriter(t, admin, true), mustWriter(t, admin, true)
	foreign := newEncrypted(t) // signs well, under another administrator
	with := func(change func(s *signing)) *Domain {
		d, s := *agent, *agent.signing
		change(&s)
		d.signing = &s
		return &d
	}
	for what, d := range map[string]*Domain{
		"another's certificate":       with(func(s *signing) { s.certificate = other.signing.certificate }),
		"the admin's certificate":     with(func(s *signing) { s.certificate = admin.signing.certificate }),
		"another domain's":            with(func(s *signing) { s.key, s.certificate = foreign.signing.key, foreign.signing.certificate }),
		"rights raised":               with(func(s *signing) { s.certificate[32] = byte(allRights) }),
		"another key in its place":    with(func(s *signing) { s.key = foreign.signing.key }),
		"certified by itself":         with(func(s *signing) { s.adminKey = s.key; _ = s.certify(allRights) }),
		"no signature":                func() *Domain { d := *agent; d.signing = nil; return &d }(),
		"a certificate all of zeros":  with(func(s *signing) { s.certificate = [CertificateSize]byte{} }),
		"a byte of the rest not zero": with(func(s *signing) { s.certificate[39] = 1 }),
	} {
		for _, kind := range kinds {
			b, _ := seal(t, d, kind, "name")
			for _, reader := range []*Domain{admin, other} {
				if p, _, err := reader.Payload(kind, "name", b); !errors.Is(err, ErrForged) || p != nil {
					t.Errorf("%s with %s: %v, want forged", kind, what, err)
				}
			}
		}
	}
	if _, err := agent.NewWriter(true); !errors.Is(err, ErrRights) {
		t.Errorf("an agent makes a writer: %v, want ErrRights", err)
	}
	if _, _, err := with(func(s *signing) { s.maker = nil }).KeyFileSlot(make([]byte, MinKeyFile), ""); !errors.Is(err, ErrRights) {
		t.Errorf("an agent makes a slot: %v, want ErrRights", err)
	}
}

func TestSigningKeysThatDoNotBelongTogetherAreRefused(t *testing.T) {
	admin, foreign := newEncrypted(t), newEncrypted(t)
	agent := mustWriter(t, admin, true)
	good, other, full := agent.signing.secrets(), foreign.signing.secrets(), admin.signing.secrets()
	if _, err := signingOf(good); err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]func(s *signingSecrets){
		"none at all":                   func(s *signingSecrets) { *s = signingSecrets{} },
		"no administrator":              func(s *signingSecrets) { s.Admin = "" },
		"another administrator":         func(s *signingSecrets) { s.Admin = other.Admin },
		"another administrator's seed":  func(s *signingSecrets) { s.AdminSeed = other.AdminSeed },
		"a short seed":                  func(s *signingSecrets) { s.AdminSeed = full.AdminSeed[2:] },
		"another writer's seed":         func(s *signingSecrets) { s.Seed = full.Seed },
		"another writer's certificate":  func(s *signingSecrets) { s.Certificate = full.Certificate },
		"another domain's certificate":  func(s *signingSecrets) { s.Certificate = other.Certificate },
		"a certificate cut":             func(s *signingSecrets) { s.Certificate = s.Certificate[2:] },
		"no hex":                        func(s *signingSecrets) { s.Seed = strings.Repeat("zz", 32) },
		"a certificate of other rights": func(s *signingSecrets) { s.Certificate = s.Certificate[:64] + "03" + s.Certificate[66:] },
	} {
		s := good
		change(&s)
		if got, err := signingOf(s); !errors.Is(err, image.ErrCorrupt) || got != nil {
			t.Errorf("%s: %v, want corrupt", what, err)
		}
	}
}

func TestWriteOnlySlotsHoldNoKeyOfTheAdministrator(t *testing.T) {
	admin := newEncrypted(t)
	plain, err := mustWriter(t, admin, true).secrets()
	if err != nil {
		t.Fatal(err)
	}
	var fields map[string]string
	if err := json.Unmarshal(plain, &fields); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"data_private", "admin_private"} {
		if fields[name] != "" {
			t.Errorf("it holds %s", name)
		}
	}
	full := admin.signing.secrets()
	if bytes.Contains(plain, []byte(full.AdminSeed)) || bytes.Contains(plain, []byte(full.Seed)) || fields["writer_private"] == "" {
		t.Error("it holds another's key, or none of its own")
	}
}

func TestNothingIsSignedInClear(t *testing.T) {
	b, _ := seal(t, ours, KindManifest, "name")
	tail := b[len(b)-tailSize : len(b)-digestSize]
	if !bytes.Equal(tail, make([]byte, len(tail))) {
		t.Error("a signature in a repository that is not encrypted")
	}
	tail[3] = 1
	sum := ours.digest(KindManifest, "name", b[:len(b)-digestSize])
	copy(b[len(b)-digestSize:], sum[:])
	if _, _, err := ours.Payload(KindManifest, "name", b); !errors.Is(err, ErrForged) {
		t.Errorf("a signature where none is made: %v, want forged", err)
	}
}
