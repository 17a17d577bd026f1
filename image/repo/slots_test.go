package repo

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"platter/image"
	"platter/image/keys"
	"platter/image/store"
	"platter/image/store/faulty"
	"platter/image/store/mem"
)

var (
	oldPassword = &keys.Credentials{Passphrase: []byte("old")}
	newPassword = &keys.Credentials{Passphrase: []byte("new")}
	keyFile     = &keys.Credentials{KeyFile: []byte(strings.Repeat("k", keys.MinKeyFile))}
)

// newSealed makes an encrypted repository that a password and a key file open.
func newSealed(t testing.TB) (*Repo, *mem.Store) {
	t.Helper()
	st := mem.New()
	r, err := Init(t.Context(), st, InitOptions{Encryption: &Encryption{Passphrase: oldPassword.Passphrase, KeyFile: keyFile.KeyFile}})
	if err != nil {
		t.Fatal(err)
	}
	return r, st
}

// agentKeys are those of a new writer that only writes.
func agentKeys(t testing.TB, r *Repo) *keys.Domain {
	t.Helper()
	d, err := r.Keys.NewWriter(true)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func second[A any](_ A, err error) error        { return err }
func third[A, B any](_ A, _ B, err error) error { return err }

func opensWith(t testing.TB, st store.Store, c *keys.Credentials) bool {
	t.Helper()
	r, err := Unlock(t.Context(), st, c)
	if err != nil && !errors.Is(err, keys.ErrCredentials) {
		t.Fatal(err)
	}
	return err == nil && r.Keys.CanRead()
}

func slots(t testing.TB, r *Repo) []KeySlot {
	t.Helper()
	list, err := r.KeySlots(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func passwordSlot(password string) NewSlot {
	return func(d *keys.Domain) (string, []byte, error) { return d.PassphraseSlot([]byte(password), "") }
}

func TestEveryKindOfSlotOpensTheRepository(t *testing.T) {
	identity, recipient, err := keys.NewRecovery()
	if err != nil {
		t.Fatal(err)
	}
	recovery, err := keys.ParseIdentities("# a comment\n\n" + identity + "\n")
	if err != nil {
		t.Fatal(err)
	}
	other, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	st := mem.New()
	made, err := Init(t.Context(), st, InitOptions{Encryption: &Encryption{
		Passphrase: oldPassword.Passphrase, KeyFile: keyFile.KeyFile, Recipients: []string{other.Recipient().String()}, Recovery: recipient,
	}})
	if err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]*keys.Credentials{
		"password": oldPassword, "key file": keyFile, "recovery key": {Identities: recovery}, "recipient": {Identities: []age.Identity{other}},
		"two identities":          {Identities: append([]age.Identity{other}, recovery...)},
		"a wrong and a right one": {Passphrase: []byte("wrong"), KeyFile: keyFile.KeyFile},
	} {
		r, err := Unlock(t.Context(), st, c)
		if err != nil || r.Keys.Fingerprint() != made.Keys.Fingerprint() || !r.Keys.CanRead() || r.Identity() != made.Identity() {
			t.Errorf("%s: %v", what, err)
		}
	}
	list := slots(t, made)
	if len(list) != 4 || slices.ContainsFunc(list, func(s KeySlot) bool { return !s.Reads() }) {
		t.Errorf("%d slots: %+v, want 4 that read", len(list), list)
	}
}

func TestWriteOnlySlotsOpenWithoutTheDataKey(t *testing.T) {
	r, st := newSealed(t)
	if _, err := r.AddSlot(t.Context(), agentKeys(t, r), passwordSlot("agent"), &keys.Credentials{Passphrase: []byte("agent")}); err != nil {
		t.Fatal(err)
	}
	agent, err := Unlock(t.Context(), st, &keys.Credentials{Passphrase: []byte("agent")})
	if err != nil || agent.Keys.CanRead() || agent.Keys.Fingerprint() != r.Keys.Fingerprint() {
		t.Fatalf("opened %v, reads %v", err, agent.Keys.CanRead())
	}
	// With both at hand, the one that reads is taken, whichever is listed first.
	if !opensWith(t, st, &keys.Credentials{Passphrase: []byte("agent"), KeyFile: keyFile.KeyFile}) {
		t.Error("opened without the data key, which was at hand")
	}
	if _, err := agent.RemoveSlot(t.Context(), slots(t, r)[0].Name); !errors.Is(err, keys.ErrNoDataKey) {
		t.Errorf("an agent removes a slot: %v", err)
	}
	// An agent makes no slots, not even for itself: it could be for another.
	for what, err := range map[string]error{
		"add": second(agent.AddSlot(t.Context(), agent.Keys, passwordSlot("x"), nil)), "rotate": third(agent.Rotate(t.Context(), []byte("agent"), []byte("agent2"))),
	} {
		if !errors.Is(err, keys.ErrRights) {
			t.Errorf("an agent's %s: %v, want ErrRights", what, err)
		}
	}
	// A rotation leaves it as little as it had, and the same writer.
	if _, _, err := r.Rotate(t.Context(), []byte("agent"), []byte("agent2")); err != nil {
		t.Fatal(err)
	}
	rotated, err := Unlock(t.Context(), st, &keys.Credentials{Passphrase: []byte("agent2")})
	if err != nil || rotated.Keys.CanRead() || rotated.Keys.Writer() != agent.Keys.Writer() {
		t.Errorf("the rotated slot: %v, reads %v", err, rotated.Keys.CanRead())
	}
	// It does not count as a way in.
	for _, s := range slots(t, r) {
		if s.Type == keys.SlotKeyFile {
			if _, err := r.RemoveSlot(t.Context(), s.Name); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, s := range slots(t, r) {
		_, err := r.RemoveSlot(t.Context(), s.Name)
		if s.WriteOnly != (err == nil) || err != nil && !errors.Is(err, ErrLastKey) {
			t.Errorf("remove %s, write-only %v: %v", s.Name, s.WriteOnly, err)
		}
	}
	if !opensWith(t, st, oldPassword) {
		t.Error("locked out")
	}
}

// A rotation that dies before or after any of its operations leaves a
// repository that opens, and can be done again.
func TestRotationDiesAnywhereAndNothingIsLost(t *testing.T) {
	// D36.
	_, start := newSealed(t)
	begin := contents(t, start)
	for _, rule := range []faulty.Rule{
		{Kind: faulty.Put},
		{Kind: faulty.Put, After: true},
		{Kind: faulty.Get, Nth: 5}, // the new slot, read back
		{Kind: faulty.Delete},
		{Kind: faulty.Delete, After: true},
	} {
		under := mem.New()
		for name, object := range begin {
			under.Replace(name, []byte(object))
		}
		st := faulty.New(under)
		r, err := Unlock(t.Context(), st, keyFile)
		if err != nil {
			t.Fatal(err)
		}
		st.Fail(rule)
		if _, _, err = r.Rotate(t.Context(), oldPassword.Passphrase, newPassword.Passphrase); err == nil {
			t.Fatalf("%+v: no error", rule)
		}
		st.Heal()
		gone := false
		for name := range begin {
			_, err := under.Head(t.Context(), name)
			gone = gone || err != nil
		}
		if gone {
			if !rule.After || rule.Kind != faulty.Delete || !opensWith(t, st, newPassword) {
				t.Errorf("%+v: the old slot is gone", rule)
			}
			continue // done but for the answer
		}
		if _, _, err = r.Rotate(t.Context(), oldPassword.Passphrase, newPassword.Passphrase); err != nil {
			t.Fatalf("again, after %+v: %v", rule, err)
		}
		if list := slots(t, r); len(list) != 2 || begin[list[0].Name] != "" && begin[list[1].Name] != "" || !opensWith(t, st, newPassword) {
			t.Errorf("again, after %+v: %d slots, want the key file's and the new one", rule, len(list))
		}
	}
}

func TestNewSlotIsDurableBeforeTheOldOneGoes(t *testing.T) {
	_, under := newSealed(t)
	st := faulty.New(under)
	r, err := Unlock(t.Context(), st, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	st.Before(func(op faulty.Op) {
		if op.Kind == faulty.Delete && !opensWith(t, under, newPassword) {
			t.Error("the old slot goes before the new one opens")
		}
	})
	// A store that gives back other bytes keeps the old one.
	st.Fail(faulty.Rule{Kind: faulty.Get, Nth: 5, Damage: func(p []byte) []byte { return p[:len(p)-1] }})
	if _, _, err := r.Rotate(t.Context(), oldPassword.Passphrase, newPassword.Passphrase); !errors.Is(err, image.ErrCorrupt) {
		t.Errorf("other bytes came back: %v, want corrupt", err)
	}
	if !opensWith(t, under, oldPassword) {
		t.Error("the old password was given up for a slot that was not stored")
	}
	st.Heal()
	if _, removed, err := r.Rotate(t.Context(), oldPassword.Passphrase, newPassword.Passphrase); err != nil || len(removed) != 1 {
		t.Errorf("removed %v, %v", removed, err)
	}
}

func TestRotateTakesOnlyThePasswordsThatItShould(t *testing.T) {
	r, st := newSealed(t)
	before := contents(t, st)
	if _, _, err := r.Rotate(t.Context(), []byte("wrong"), newPassword.Passphrase); !errors.Is(err, keys.ErrCredentials) {
		t.Errorf("from a wrong password: %v", err)
	}
	for _, next := range []string{"old", ""} {
		if _, _, err := r.Rotate(t.Context(), oldPassword.Passphrase, []byte(next)); err == nil {
			t.Errorf("to %q: no error", next)
		}
	}
	if !maps.Equal(before, contents(t, st)) {
		t.Error("the store changed")
	}
}

func TestSlotsOfOthersAreNoWayIn(t *testing.T) {
	r, st := newSealed(t)
	// A dead init's, one of another repository, one that lies about its rights,
	// and one that is damaged.
	foreign, _ := newSealed(t)
	for name, object := range contents(t, foreign.Store) {
		if strings.HasPrefix(name, "keys/") {
			st.Replace(name, []byte(object))
		}
	}
	agent, err := r.AddSlot(t.Context(), agentKeys(t, r), passwordSlot("agent"), nil)
	if err != nil {
		t.Fatal(err)
	}
	rewrite(t, st, nil, keys.KindSlot, agent, func(m map[string]any) { delete(m, "write_only") }, nil)
	damaged := "keys/" + hex.EncodeToString(make([]byte, 16))
	st.Replace(damaged, []byte("damaged"))
	reading := 0
	for _, s := range slots(t, r) {
		if s.Reads() {
			reading++
		}
	}
	if n := len(slots(t, r)); n != 6 || reading != 2 {
		t.Errorf("%d slots of which %d read, want 6 and 2", n, reading)
	}
	for _, s := range slots(t, r) {
		_, err := r.RemoveSlot(t.Context(), s.Name)
		last := reading == 1 && s.Reads()
		if (err == nil) == last {
			t.Errorf("remove %s (%v): %v", s.Name, s.Problem, err)
		}
		if err == nil && s.Reads() {
			reading--
		}
	}
	if n := len(slots(t, r)); n != 1 {
		t.Errorf("%d slots left, want the last that reads", n)
	}
}

func TestAddedSlotsAreProved(t *testing.T) {
	r, st := newSealed(t)
	before := contents(t, st)
	for what, tt := range map[string]struct {
		slot  NewSlot
		proof *keys.Credentials
	}{
		"another password": {passwordSlot("new"), oldPassword},
		"no password":      {passwordSlot(""), nil},
		"other keys": {func(*keys.Domain) (string, []byte, error) {
			d, err := keys.NewEncrypted()
			if err != nil {
				return "", nil, err
			}
			return d.PassphraseSlot([]byte("new"), "")
		}, newPassword},
		"a short key file": {func(d *keys.Domain) (string, []byte, error) {
			return d.KeyFileSlot(make([]byte, keys.MinKeyFile-1), "")
		}, nil},
		"no recipient": {AgeSlot("age1nonsense", ""), nil},
		"a secret key": {AgeSlot("AGE-SECRET-KEY-1QQQQ", ""), nil},
	} {
		_, err := r.AddSlot(t.Context(), r.Keys, tt.slot, tt.proof)
		if err == nil || strings.Contains(err.Error(), "QQQ") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if !maps.Equal(before, contents(t, st)) {
		t.Error("the store changed")
	}
	plain, _ := newRepo(t)
	if _, err := plain.AddSlot(t.Context(), plain.Keys, passwordSlot("new"), newPassword); !errors.Is(err, ErrNotEncrypted) {
		t.Errorf("to a repository in clear: %v", err)
	}
	if _, err := plain.RemoveSlot(t.Context(), "keys/x"); !errors.Is(err, ErrNotEncrypted) {
		t.Errorf("from a repository in clear: %v", err)
	}
}

func TestSlotNames(t *testing.T) {
	slot := func(id string) KeySlot { return KeySlot{Slot: &keys.Slot{Name: "keys/" + id}} }
	a, b := "0123456789abcdef0123456789abcdef", "0123456789abcdef0123456789abcdee"
	list := []KeySlot{slot(a), slot(b), slot("fedcba98" + a[8:])}
	for text, want := range map[string]string{
		a: "keys/" + a, "keys/" + b: "keys/" + b, "fedcba98": list[2].Name, "FEDCBA98": list[2].Name,
		"fedcba9": "", "": "", "01234567": "", "keys/": "",
	} {
		if got, err := SlotName(list, text); got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v, want %q", text, got, err, want)
		}
	}
}

func TestSealedConfigCannotBeChanged(t *testing.T) {
	for what, change := range map[string]func(map[string]any){
		"block size": func(m map[string]any) { m["block_size"] = 4096 },
		"repository": func(m map[string]any) { m["repository"] = strings.Repeat("0", 32) },
		"auth":       func(m map[string]any) { delete(m, "auth") },
	} {
		_, st := newSealed(t)
		rewrite(t, st, nil, keys.KindConfig, "config", change, nil)
		if _, err := Unlock(t.Context(), st, keyFile); !errors.Is(err, image.ErrCorrupt) {
			t.Errorf("%s: %v, want corrupt", what, err)
		}
	}
}

// A repository in clear that takes the place of an encrypted one, under its ID
// and the fingerprint of its keys, is another one.
func TestPlainRepositoryInThePlaceOfASealedOne(t *testing.T) {
	// D37.
	sealed, _ := newSealed(t)
	plain, st := newRepo(t)
	rewrite(t, st, nil, keys.KindConfig, "config", func(m map[string]any) { m["repository"] = sealed.Config.Repository }, nil)
	if _, err := Unlock(t.Context(), st, oldPassword); !errors.Is(err, keys.ErrCredentials) || !errors.Is(err, ErrNotEncrypted) {
		t.Errorf("with a password at hand: %v", err)
	}
	r, err := Open(context.Background(), st)
	if err != nil || r.ID != sealed.ID || r.Identity() == sealed.Identity() || r.Identity() == plain.Identity() {
		t.Errorf("%v: identity %x, the encrypted one's %x", err, r.Identity(), sealed.Identity())
	}
	rewrite(t, st, nil, keys.KindConfig, "config", func(m map[string]any) { m["domain"] = sealed.Config.Domain }, nil)
	if _, err := Open(context.Background(), st); !errors.Is(err, image.ErrCorrupt) {
		t.Errorf("with the fingerprint of other keys: %v, want corrupt", err)
	}
}

// Whoever can write to the store can add slots under names before all others,
// each as dear as one may be. What was there before opens as ever, a password is
// not tried on all of them, and no new one is put where it would not be tried.
func TestSlotsWithoutEndLockNobodyOut(t *testing.T) {
	r, st := newSealed(t)
	st.Advance(time.Second)
	for n := range 40 {
		name := fmt.Sprintf("keys/%032x", n)
		object, _, err := (*keys.Domain)(nil).Seal(keys.KindSlot, name, keys.Slot{
			Type: keys.SlotPassphrase, Salt: strings.Repeat("00", 16), Sealed: base64.StdEncoding.EncodeToString(make([]byte, 100)),
			Argon2id: &keys.Argon2id{Time: 16, Memory: 128 << 10, Threads: 1},
		})
		if err != nil {
			t.Fatal(err)
		}
		st.Replace(name, object)
	}
	for what, c := range map[string]*keys.Credentials{"password": oldPassword, "key file": keyFile} {
		if !opensWith(t, st, c) {
			t.Errorf("the %s opens nothing", what)
		}
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	start := time.Now()
	_, err := Unlock(t.Context(), st, newPassword)
	runtime.ReadMemStats(&after)
	if !errors.Is(err, image.ErrCorrupt) || !strings.Contains(err.Error(), "too many password slots") {
		t.Errorf("got %v, want too many password slots", err)
	}
	// The right one takes 64 MiB, each of the others 128 MiB and 2 GiB of work,
	// one after the other.
	tried := (after.TotalAlloc-before.TotalAlloc+64<<20)>>27 - 1
	if tried < 1 || tried > 2 || after.Sys > before.Sys+200<<20 {
		t.Errorf("%d of the slots tried, want 1 or 2, with %d MiB", tried, (after.Sys-before.Sys)>>20)
	}
	t.Logf("%d of the slots tried in %v, with %d MiB", tried, time.Since(start), (after.Sys-before.Sys)>>20)
	objects := contents(t, st)
	_, added := r.AddSlot(t.Context(), r.Keys, passwordSlot("new"), newPassword)
	_, _, rotated := r.Rotate(t.Context(), oldPassword.Passphrase, newPassword.Passphrase)
	for what, err := range map[string]error{"a new password": added, "a changed one": rotated} {
		if err == nil || !strings.Contains(err.Error(), "remove some first") {
			t.Errorf("%s: %v, want that some are to be removed first", what, err)
		}
	}
	if !maps.Equal(objects, contents(t, st)) {
		t.Error("the store changed")
	}
	for _, s := range slots(t, r) {
		if s.Problem == nil {
			continue
		}
		if _, err := r.RemoveSlot(t.Context(), s.Name); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := r.Rotate(t.Context(), oldPassword.Passphrase, newPassword.Passphrase); err != nil || !opensWith(t, st, newPassword) {
		t.Errorf("without them the password is not changed: %v", err)
	}
}
