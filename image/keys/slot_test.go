package keys

import (
	"bytes"
	"encoding/base64"
	"errors"
	"runtime"
	"strings"
	"testing"

	"filippo.io/age"

	"platter/image"
)

// A sealedSlot is a slot, what opens it and what does not.
type sealedSlot struct {
	name         string
	object       []byte
	right, wrong *Credentials
}

func sealedSlots(t testing.TB, d *Domain) map[string]sealedSlot {
	t.Helper()
	mine, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	other, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	file := bytes.Repeat([]byte{1}, MinKeyFile)
	list := map[string]sealedSlot{}
	add := func(kind string, right, wrong *Credentials) func(string, []byte, error) {
		return func(name string, object []byte, err error) {
			if err != nil {
				t.Fatal(err)
			}
			list[kind] = sealedSlot{name, object, right, wrong}
		}
	}
	add(SlotPassphrase, &Credentials{Passphrase: []byte("right")}, &Credentials{Passphrase: []byte("wrong")})(d.PassphraseSlot([]byte("right"), "label"))
	add(SlotKeyFile, &Credentials{KeyFile: file}, &Credentials{KeyFile: file[1:]})(d.KeyFileSlot(file, "label"))
	text := mine.Recipient().String()
	add(SlotAge, &Credentials{Identities: []age.Identity{other, mine}}, &Credentials{Identities: []age.Identity{other}})(d.AgeSlot(mine.Recipient(), text, "label"))
	return list
}

func mustWriter(t testing.TB, d *Domain, writeOnly bool) *Domain {
	t.Helper()
	w, err := d.NewWriter(writeOnly)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func newEncrypted(t testing.TB) *Domain {
	t.Helper()
	d, err := NewEncrypted()
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestSealedSlotsOpenWithWhatTheyWereMadeFor(t *testing.T) {
	d := newEncrypted(t)
	for _, only := range []bool{false, true} {
		from := d
		if only {
			from = mustWriter(t, d, true)
		}
		for kind, s := range sealedSlots(t, from) {
			got, err := OpenSlot(s.name, s.object, s.right)
			if err != nil || got.Fingerprint() != d.Fingerprint() || got.CanRead() == only {
				t.Errorf("%s, write-only %v: %v", kind, only, err)
			}
			for what, c := range map[string]*Credentials{"a wrong one": s.wrong, "nothing": nil, "an empty one": {}} {
				if got, err := OpenSlot(s.name, s.object, c); !errors.Is(err, ErrCredentials) || got != nil {
					t.Errorf("%s with %s: %v, want wrong password", kind, what, err)
				}
			}
			slot, err := ReadSlot(s.name, s.object)
			if err != nil || slot.Type != kind || slot.Label != "label" || slot.WriteOnly != only || slot.Writer != from.Writer().String() || got.Writer() != from.Writer() {
				t.Errorf("%s: %+v, %v", kind, slot, err)
			}
			// No key stands there, in hex or in the bytes behind the base64.
			sealed, err := base64.StdEncoding.DecodeString(slot.Sealed)
			if err != nil || bytes.Contains(sealed, []byte("id_key")) || bytes.Contains(s.object, []byte("id_key")) {
				t.Errorf("%s: %v, or its keys stand there", kind, err)
			}
		}
	}
}

// Every bit of what is sealed counts, digest or none.
func TestFlippedBytesOfSealedSlots(t *testing.T) {
	d := newEncrypted(t)
	for kind, s := range sealedSlots(t, d) {
		for i := range s.object {
			b := bytes.Clone(s.object)
			b[i] ^= 1
			if _, err := OpenSlot(s.name, b, s.right); !errors.Is(err, image.ErrCorrupt) {
				t.Fatalf("%s: byte %d flipped: %v, want corrupt", kind, i, err)
			}
		}
		slot, err := ReadSlot(s.name, s.object)
		if err != nil {
			t.Fatal(err)
		}
		sealed, err := base64.StdEncoding.DecodeString(slot.Sealed)
		if err != nil {
			t.Fatal(err)
		}
		stride := 1
		if kind == SlotPassphrase {
			stride = len(sealed) / 4 // each try is argon2id's
		}
		for i := 0; i < len(sealed); i += stride {
			changed := *slot
			b := bytes.Clone(sealed)
			b[i] ^= 1
			changed.Sealed = base64.StdEncoding.EncodeToString(b)
			if got, err := OpenSlot(s.name, sealSlot(t, s.name, changed), s.right); got != nil || !errors.Is(err, ErrCredentials) && !errors.Is(err, image.ErrCorrupt) {
				t.Fatalf("%s: byte %d of what is sealed flipped: %v", kind, i, err)
			}
		}
		// Another salt makes another key.
		changed := *slot
		changed.Salt = strings.Repeat("00", 16)
		if _, err := OpenSlot(s.name, sealSlot(t, s.name, changed), s.right); kind != SlotAge && !errors.Is(err, ErrCredentials) {
			t.Errorf("%s: another salt: %v", kind, err)
		}
		// What it says of itself is signed: none of it can be changed, not even
		// by who holds all keys but the administrator's.
		for what, change := range map[string]func(*Slot){
			"label": func(s *Slot) { s.Label = "another" }, "rights": func(s *Slot) { s.WriteOnly = true }, "nothing": func(*Slot) {},
		} {
			changed := *slot
			change(&changed)
			if got, err := OpenSlot(s.name, sealSlot(t, s.name, changed), s.right); !errors.Is(err, ErrForged) || got != nil {
				t.Errorf("%s: another %s, unsigned: %v, want forged", kind, what, err)
			}
			object, _, err := mustWriter(t, d, true).Seal(KindSlot, s.name, changed)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := OpenSlot(s.name, object, s.right); !errors.Is(err, ErrForged) || got != nil {
				t.Errorf("%s: another %s, signed by an agent: %v, want forged", kind, what, err)
			}
		}
	}
}

// sealSlot makes an object of a slot that lies, with a digest that is right.
func sealSlot(t testing.TB, name string, s Slot) []byte {
	t.Helper()
	object, _, err := (*Domain)(nil).Seal(KindSlot, name, s)
	if err != nil {
		t.Fatal(err)
	}
	return object
}

func TestAbsurdArgon2CostsAreRefusedBeforeMemoryIsSpent(t *testing.T) {
	const most = 128 << 10
	s := Slot{Type: SlotPassphrase, Salt: strings.Repeat("00", 16), Sealed: base64.StdEncoding.EncodeToString(make([]byte, 100))}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for what, a := range map[string]*Argon2id{
		"none": nil, "zero": {}, "too little memory": {3, 64<<10 - 1, 4}, "too much memory": {1, most + 1, 1}, "all memory": {1, 1<<32 - 1, 1},
		"no passes": {0, 64 << 10, 4}, "too many passes": {17, 64 << 10, 4}, "no threads": {3, 64 << 10, 0},
	} {
		s.Argon2id = a
		if _, err := OpenSlot("keys/1", sealSlot(t, "keys/1", s), &Credentials{Passphrase: []byte("x")}); !errors.Is(err, image.ErrCorrupt) {
			t.Errorf("%s: %v, want corrupt", what, err)
		}
	}
	runtime.ReadMemStats(&after)
	if spent := after.TotalAlloc - before.TotalAlloc; spent > 16<<20 {
		t.Errorf("%d bytes were spent on refusing", spent)
	}
	s.Argon2id = &Argon2id{1, most, 255} // the most that is taken
	if _, err := OpenSlot("keys/1", sealSlot(t, "keys/1", s), &Credentials{Passphrase: []byte("x")}); !errors.Is(err, ErrCredentials) {
		t.Errorf("the most that is taken: %v, want wrong password", err)
	}
}

func TestHostileSealedSlots(t *testing.T) {
	key := strings.Repeat("00", 32)
	file := &Credentials{KeyFile: make([]byte, MinKeyFile)}
	base := Slot{Type: SlotKeyFile, Salt: strings.Repeat("00", 16)}
	k, err := base.key(file.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	for what, text := range map[string]string{
		"nothing": "", "no JSON": "x", "no keys": "{}", "a short key": `{"id_key":"00","structure_key":"` + key + `"}`,
		"a data key that is none": `{"id_key":"` + key + `","structure_key":"` + key + `","data_public":"00"}`,
		"halves apart":            `{"id_key":"` + key + `","structure_key":"` + key + `","data_public":"` + strings.Repeat("11", 32) + `","data_private":"` + strings.Repeat("22", 32) + `"}`,
		"a private half alone":    `{"id_key":"` + key + `","structure_key":"` + key + `","data_public":"zz","data_private":"22"}`,
	} {
		s := base
		s.Sealed = base64.StdEncoding.EncodeToString(AEAD(k).Seal(nil, make([]byte, NonceSize), []byte(text), nil))
		if _, err := OpenSlot("keys/1", sealSlot(t, "keys/1", s), file); !errors.Is(err, image.ErrCorrupt) {
			t.Errorf("%s: %v, want corrupt", what, err)
		}
	}
	for what, change := range map[string]func(*Slot){
		"no base64": func(s *Slot) { s.Sealed = "%" }, "a short salt": func(s *Slot) { s.Salt = "00" }, "no salt": func(s *Slot) { s.Salt = "" },
	} {
		s := base
		change(&s)
		if _, err := OpenSlot("keys/1", sealSlot(t, "keys/1", s), file); !errors.Is(err, image.ErrCorrupt) {
			t.Errorf("%s: %v, want corrupt", what, err)
		}
	}
	s := Slot{Type: SlotAge, Sealed: base64.StdEncoding.EncodeToString([]byte("no age file"))}
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenSlot("keys/1", sealSlot(t, "keys/1", s), &Credentials{Identities: []age.Identity{id}}); !errors.Is(err, image.ErrCorrupt) {
		t.Errorf("no age file: %v, want corrupt", err)
	}
}

func TestIdentitiesAndRecipients(t *testing.T) {
	identity, recipient, err := NewRecovery()
	if err != nil {
		t.Fatal(err)
	}
	if list, err := ParseIdentities("# made today\r\n\n  " + identity + "  \n" + identity); err != nil || len(list) != 2 {
		t.Errorf("%d identities, %v, want 2", len(list), err)
	}
	if _, err := ParseRecipient(recipient); err != nil {
		t.Error(err)
	}
	// What is wrong is said without the secret.
	for _, text := range []string{identity[:len(identity)-1], "AGE-PLUGIN-SECRET", recipient, "secret"} {
		if _, err := ParseIdentities(text); err == nil || strings.Contains(err.Error(), text) {
			t.Errorf("identity %.12q…: %v", text, err)
		}
	}
	for _, text := range []string{identity, strings.ToLower(identity), "AGE-PLUGIN-YUBIKEY-1SECRET"} {
		if _, err := ParseRecipient(text); err == nil || strings.Contains(strings.ToLower(err.Error()), strings.ToLower(text)) {
			t.Errorf("recipient %.12q…: %v", text, err)
		}
	}
}
