package keys

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"

	"platter/image"
)

// slotClear is the type of a slot that holds the keys in clear.
const slotClear = "clear"

type slot struct {
	Type      string `json:"type"`
	ID        string `json:"id_key,omitempty"`
	Structure string `json:"structure_key,omitempty"`
}

// ClearSlot returns the name and bytes of a slot that holds d in clear, for a
// repository that is not encrypted.
func (d *Domain) ClearSlot() (name string, object []byte, err error) {
	var id [16]byte
	rand.Read(id[:])
	name = "keys/" + hex.EncodeToString(id[:])
	object, _, err = d.Seal(KindSlot, name, slot{slotClear, hex.EncodeToString(d.ID[:]), hex.EncodeToString(d.Structure[:])})
	return name, object, err
}

// OpenSlot returns the Domain that a slot holds.
func OpenSlot(name string, object []byte) (*Domain, error) {
	var s slot
	if _, err := (*Domain)(nil).Open(KindSlot, name, object, &s); err != nil {
		return nil, err
	}
	if s.Type != slotClear {
		return nil, fmt.Errorf("%s: key slot of type %q: %w", name, s.Type, ErrNewer)
	}
	d := new(Domain)
	for _, f := range []struct {
		dst  []byte
		text string
	}{{d.ID[:], s.ID}, {d.Structure[:], s.Structure}} {
		b, err := hex.DecodeString(f.text)
		if err != nil || len(b) != len(f.dst) {
			return nil, fmt.Errorf("%s: a key of %d hex digits, want %d: %w", name, len(f.text), 2*len(f.dst), image.ErrCorrupt)
		}
		copy(f.dst, b)
	}
	return d, nil
}
