package repo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/zeebo/blake3"

	"platter/image"
	"platter/image/keys"
	"platter/image/store"
)

// Errors of work on key slots.
var (
	// ErrNotEncrypted means that a repository which anybody can read was to be
	// opened with a password or key, or to get one.
	ErrNotEncrypted = errors.New("the repository is not encrypted")
	// ErrLastKey means that nothing would open the repository any more.
	ErrLastKey = errors.New("nothing else opens the repository for reading")
)

// Encryption says who can open a new repository: whoever has one of these.
type Encryption struct {
	Passphrase []byte
	KeyFile    []byte
	Recipients []string // of age, as text
	Recovery   string   // one more, labelled as the recovery key
}

func newDomain(e *Encryption) (*keys.Domain, error) {
	if e == nil {
		return keys.New(), nil
	}
	return keys.NewEncrypted()
}

// putSlots writes the key slots of a new repository.
func putSlots(ctx context.Context, st store.Store, d *keys.Domain, e *Encryption) error {
	slots := 0
	put := func(name string, object []byte, err error) error {
		if err == nil {
			err = st.Put(ctx, name, object)
		}
		if err != nil {
			return fmt.Errorf("write key slot: %w", err)
		}
		slots++
		return nil
	}
	if e == nil {
		return put(d.ClearSlot())
	}
	if len(e.Passphrase) > 0 {
		if err := put(d.PassphraseSlot(e.Passphrase, "")); err != nil {
			return err
		}
	}
	if len(e.KeyFile) > 0 {
		if err := put(d.KeyFileSlot(e.KeyFile, "")); err != nil {
			return err
		}
	}
	for _, text := range e.Recipients {
		if err := put(recipientSlot(d, text, "")); err != nil {
			return err
		}
	}
	if e.Recovery != "" {
		if err := put(recipientSlot(d, e.Recovery, "recovery key")); err != nil {
			return err
		}
	}
	if slots == 0 {
		return errors.New("encryption without a passphrase, key file or recipient")
	}
	return nil
}

func recipientSlot(d *keys.Domain, text, label string) (string, []byte, error) {
	recipient, err := keys.ParseRecipient(text)
	if err != nil {
		return "", nil, err
	}
	return d.AgeSlot(recipient, text, label)
}

// maxSlotCost is how much work with a password may be, by what one new slot
// costs, some 0.15 s of a processor: whoever writes to the store could add slots
// without end.
const maxSlotCost = 24

// openKeys tries every slot until one opens and holds the keys of the config,
// with the data key if any slot gives that. A slot that a dead init left
// behind holds others. Those that came later are tried later, so that whoever
// adds some without end leaves the others their turn.
func openKeys(ctx context.Context, st store.Store, config *Config, c *keys.Credentials) (*keys.Domain, error) {
	sealed := config.Encryption != noEncryption
	if !sealed && !c.Empty() {
		return nil, fmt.Errorf("%w: %w, and a password or key was given: is it the one you mean?", keys.ErrCredentials, ErrNotEncrypted)
	}
	var found *keys.Domain
	var problem error
	spent := 0
	err := Slots(ctx, st, func(name string, object []byte, err error) {
		if found != nil && found.CanRead() {
			return
		}
		var d *keys.Domain
		if err == nil && len(c.Password()) > 0 {
			if spent += keys.SlotCost(name, object); spent > maxSlotCost {
				err = fmt.Errorf("%s: not tried, for there are too many password slots before it: %w", name, image.ErrCorrupt)
			}
		}
		if err == nil {
			d, err = keys.OpenSlot(name, object, c)
		}
		switch {
		case err == nil && d.Fingerprint() == config.Domain && d.Encrypted() == sealed:
			if found == nil || d.CanRead() {
				found = d
			}
		case err != nil && (problem == nil || errors.Is(problem, keys.ErrCredentials)):
			problem = err
		}
	})
	if err != nil || found != nil {
		return found, err
	}
	if sealed && (problem == nil || errors.Is(problem, keys.ErrCredentials)) {
		return nil, keys.ErrCredentials
	}
	if problem == nil {
		problem = fmt.Errorf("no key slot holds the keys %s: %w", config.Domain, image.ErrCorrupt)
	}
	return nil, problem
}

// Slots calls f for every key slot, in the order in which they came into the
// store; err tells of one that cannot be read.
func Slots(ctx context.Context, st store.Store, f func(name string, object []byte, err error)) error {
	var list []store.Info
	err := st.List(ctx, slotPrefix, func(o store.Info) error {
		list = append(list, o)
		return nil
	})
	if err != nil {
		return fmt.Errorf("list key slots: %w", err)
	}
	slices.SortStableFunc(list, func(a, b store.Info) int { return a.Modified.Compare(b.Modified) })
	for _, o := range list {
		object, err := Object(ctx, st, keys.KindSlot, o.Name)
		if ctx.Err() != nil {
			return fmt.Errorf("list key slots: %w", ctx.Err())
		}
		f(o.Name, object, err)
	}
	return nil
}

// A KeySlot is a key slot as the repository lists it.
type KeySlot struct {
	*keys.Slot       // only its Name, when it cannot be read
	Problem    error // why it opens nothing: damaged, or not of this repository
	object     []byte
}

// Reads reports whether the slot opens the repository for restores.
func (s KeySlot) Reads() bool { return s.Problem == nil && !s.WriteOnly }

var errForeignSlot = errors.New("not of this repository's keys")

// made returns why a slot does not count: who wrote it did not have the right.
// It is so of one that a dead init left, and of one that was put among the
// others to seem a way in, or to have somebody write as another.
func (r *Repo) made(name string, object []byte) error {
	_, _, err := r.Keys.Payload(keys.KindSlot, name, object)
	if err == nil && !r.Keys.Encrypted() {
		var d *keys.Domain
		if d, err = keys.OpenSlot(name, object, nil); err == nil && d.Fingerprint() != r.Config.Domain {
			err = errForeignSlot
		}
	}
	if errors.Is(err, keys.ErrForged) {
		err = errForeignSlot
	}
	return err
}

// KeySlots returns all key slots, oldest first, damaged ones last.
func (r *Repo) KeySlots(ctx context.Context) ([]KeySlot, error) {
	var list []KeySlot
	err := Slots(ctx, r.Store, func(name string, object []byte, err error) {
		var s *keys.Slot
		if err == nil {
			s, err = keys.ReadSlot(name, object)
		}
		switch {
		case err != nil:
			s = &keys.Slot{Name: name}
		default:
			err = r.made(name, object)
		}
		list = append(list, KeySlot{s, err, object})
	})
	slices.SortStableFunc(list, func(a, b KeySlot) int {
		if (a.Problem != nil) != (b.Problem != nil) {
			if a.Problem != nil {
				return 1
			}
			return -1
		}
		return a.Created.Compare(b.Created)
	})
	return list, err
}

// A NewSlot makes a slot of keys, as the methods of keys.Domain do.
type NewSlot func(*keys.Domain) (name string, object []byte, err error)

// AddSlot stores one more way to open the repository. When it returns the slot
// is durable. proof opens it, and is tried before it is stored; nil where the
// secret is not at hand. It returns the slot's name.
func (r *Repo) AddSlot(ctx context.Context, d *keys.Domain, slot NewSlot, proof *keys.Credentials) (string, error) {
	if !r.Keys.Encrypted() {
		return "", fmt.Errorf("add key: %s: %w", r.Store.Location(), ErrNotEncrypted)
	}
	name, object, err := slot(d.MadeBy(r.Keys))
	if err != nil {
		return "", fmt.Errorf("add key: %w", err)
	}
	if err := r.tried(ctx, name, object); err != nil {
		return "", fmt.Errorf("add key: %w", err)
	}
	if proof != nil {
		opened, err := keys.OpenSlot(name, object, proof)
		if err != nil || opened.Fingerprint() != r.Config.Domain || opened.CanRead() != d.CanRead() {
			return "", fmt.Errorf("add key: the new slot does not open: %w", err)
		}
	}
	if err := r.Store.Put(ctx, name, object); err != nil {
		return "", fmt.Errorf("add key: %w", err)
	}
	stored, err := Object(ctx, r.Store, keys.KindSlot, name)
	if err == nil && !bytes.Equal(stored, object) {
		err = fmt.Errorf("%s: other bytes came back: %w", name, image.ErrCorrupt)
	}
	if err != nil {
		return "", fmt.Errorf("add key: read it back: %w", err)
	}
	return name, nil
}

// tried returns an error for a new slot that a password would not be tried on,
// for all those that it is tried on before.
func (r *Repo) tried(ctx context.Context, name string, object []byte) error {
	cost := keys.SlotCost(name, object)
	if cost == 0 {
		return nil
	}
	err := Slots(ctx, r.Store, func(name string, object []byte, err error) {
		if err == nil {
			cost += keys.SlotCost(name, object)
		}
	})
	if err == nil && cost > maxSlotCost {
		err = errors.New("with one more password slot there would be too many to try: remove some first, those that are not of this repository's keys among them")
	}
	return err
}

// AgeSlot makes slots for an age recipient.
func AgeSlot(recipient, label string) NewSlot {
	return func(d *keys.Domain) (string, []byte, error) { return recipientSlot(d, recipient, label) }
}

// RemoveSlot removes a slot by its whole name, and returns what opens the
// repository now. It returns ErrLastKey, and removes nothing, when nothing
// else would open it for reading.
func (r *Repo) RemoveSlot(ctx context.Context, name string) ([]KeySlot, error) {
	if !r.Keys.Encrypted() {
		return nil, fmt.Errorf("remove key: %s: %w", r.Store.Location(), ErrNotEncrypted)
	}
	if !r.Keys.CanRead() {
		return nil, fmt.Errorf("remove key: %w", keys.ErrNoDataKey)
	}
	list, err := r.KeySlots(ctx)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(list, func(s KeySlot) bool { return s.Name == name })
	if i < 0 {
		return nil, fmt.Errorf("remove key: %s: %w", name, store.ErrNotFound)
	}
	left := slices.Delete(slices.Clone(list), i, i+1)
	if !slices.ContainsFunc(left, KeySlot.Reads) {
		return left, fmt.Errorf("remove key %s: %w", name, ErrLastKey)
	}
	if err := r.Store.Delete(ctx, name); err != nil {
		return nil, fmt.Errorf("remove key: %w", err)
	}
	return left, nil
}

// Rotate lets one passphrase take the place of another: first the new one's
// slot becomes durable, then the old one's is removed. Cut short, both open
// the repository, and Rotate can be called again. It returns keys.ErrCredentials
// when old opens nothing.
func (r *Repo) Rotate(ctx context.Context, old, next []byte) (added string, removed []string, err error) {
	if bytes.Equal(old, next) {
		return "", nil, errors.New("rotate key: the new password is the old one")
	}
	list, err := r.KeySlots(ctx)
	if err != nil {
		return "", nil, err
	}
	var d *keys.Domain
	label := ""
	for _, s := range list {
		if opened := r.opens(s, old); opened != nil {
			removed = append(removed, s.Name)
			if d == nil || opened.CanRead() {
				d, label = opened, s.Label
			}
		}
	}
	if d == nil {
		return "", nil, fmt.Errorf("rotate key: %w: no slot is opened by the old password", keys.ErrCredentials)
	}
	// A rotation that was cut short left the new slot.
	for _, s := range list {
		if slices.Contains(removed, s.Name) {
			continue
		}
		if opened := r.opens(s, next); opened != nil && opened.CanRead() == d.CanRead() {
			added = s.Name
		}
	}
	if added == "" {
		slot := func(d *keys.Domain) (string, []byte, error) { return d.PassphraseSlot(next, label) }
		if added, err = r.AddSlot(ctx, d, slot, &keys.Credentials{Passphrase: next}); err != nil {
			return "", nil, err
		}
	}
	for _, name := range removed {
		if err := r.Store.Delete(ctx, name); err != nil && !errors.Is(err, store.ErrNotFound) {
			return added, nil, fmt.Errorf("rotate key: the new password is in place, the old one too: %w", err)
		}
	}
	return added, removed, nil
}

// opens returns the keys that a passphrase opens a slot to, or nil.
func (r *Repo) opens(s KeySlot, passphrase []byte) *keys.Domain {
	if s.Problem != nil || s.Type != keys.SlotPassphrase {
		return nil
	}
	d, err := keys.OpenSlot(s.Name, s.object, &keys.Credentials{Passphrase: passphrase})
	if err != nil || d.Fingerprint() != r.Config.Domain {
		return nil
	}
	return d
}

// SlotName returns the name of the slot that an operator means: the hex digits
// of its name, or at least 8 of the first.
func SlotName(list []KeySlot, text string) (string, error) {
	text = strings.TrimPrefix(strings.ToLower(text), slotPrefix)
	var found []string
	for _, s := range list {
		if id := strings.TrimPrefix(s.Name, slotPrefix); id == text || len(text) >= 8 && strings.HasPrefix(id, text) {
			found = append(found, s.Name)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return "", fmt.Errorf("key %q: %w", text, store.ErrNotFound)
	}
	return "", fmt.Errorf("key %q: several are called so: %s", text, strings.Join(found, ", "))
}

// Identity tells this repository with these keys from all others: from one,
// too, that took its place under the same ID with other keys or in clear.
func (r *Repo) Identity() (id [16]byte) {
	blake3.DeriveKey("platter 2026 repository identity", []byte(r.Config.Repository+r.Config.Domain), id[:])
	return id
}
