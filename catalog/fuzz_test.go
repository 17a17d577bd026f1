package catalog

import (
	"bytes"
	"os"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

func FuzzHead(f *testing.F) {
	good := head{repository: [16]byte{1}, blockSize: 65536, instance: [16]byte{2}, index: "index-00000001"}.encode()
	f.Add(good)
	f.Add(good[:len(good)-1])
	f.Add([]byte(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseHead(b)
		if err == nil && !bytes.Equal(h.encode(), b) {
			t.Errorf("%q is read as %q", b, h.encode())
		}
	})
}

func FuzzEntries(f *testing.F) {
	footer := testFooter(1, 1, 2, 3)
	info := infoOf(footer, 7)
	f.Add(segmentKey(footer.ID), info.encode())
	f.Add(numberKey(tagRecords, 7, 0), listValue(footer, 0))
	f.Add([]byte{tagTotals}, totals{next: 1}.encode())
	f.Add(damageKey(at(1, 2)), make([]byte, 32))
	f.Add(appendBlockKey(nil, 1, 2, 3), []byte(nil))
	f.Fuzz(func(t *testing.T, key, value []byte) {
		if s, err := parseInfo(key, value); err == nil && !bytes.Equal(s.encode(), value) {
			t.Errorf("segment %x is read as %x", value, s.encode())
		}
		if s, err := parseTotals(value); err == nil && !bytes.Equal(s.encode(), value) {
			t.Errorf("totals %x are read as %x", value, s.encode())
		}
		if r, err := parseList(key, value); err == nil {
			for i := range r.ids {
				if place := r.find(&r.ids[i], hashID(&r.ids[i])); place < 0 || r.ids[place] != r.ids[i] {
					t.Errorf("ID %d of %d is found at %d", i, len(r.ids), place)
				}
			}
		}
		if hash, number, record, err := parseBlockKey(key); err == nil && key[0] == tagBlock && !bytes.Equal(appendBlockKey(nil, hash, number, record), key) {
			t.Errorf("block %x is read as another", key)
		}
		if at, id, err := parseDamage(key, value); err == nil && key[0] == tagDamage && (!bytes.Equal(damageKey(at), key) || !bytes.Equal(id[:], value)) {
			t.Errorf("damage %x is read as another", key)
		}
	})
}

func FuzzFilter(f *testing.F) {
	d := &directory{fs: vfs.NewMem(), root: "/"}
	ff := filterFile{dir: d}
	good := newFilter(1, 1<<20)
	good.add(5)
	if err := ff.save(good, 3); err != nil {
		f.Fatal(err)
	}
	seed, err := d.get(d.path(filterName))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add(seed[:filterHeader])
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := d.put(filterName, b); err != nil {
			t.Fatal(err)
		}
		got, err := ff.load(3, 1<<20)
		if err == nil {
			got.add(9)
			if !got.has(9) {
				t.Error("a key is lost")
			}
		}
		if err != nil && os.IsNotExist(err) {
			t.Error(err)
		}
	})
}
