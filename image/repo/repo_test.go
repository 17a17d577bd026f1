package repo

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/zeebo/blake3"

	"platter/image"
	"platter/image/keys"
	"platter/image/segment"
	"platter/image/store"
	"platter/image/store/mem"
)

// contents returns every object of a store.
func contents(t testing.TB, st store.Store) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := st.List(t.Context(), "", func(o store.Info) error {
		b, err := st.Get(t.Context(), o.Name, 1<<30)
		all[o.Name] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func newRepo(t testing.TB) (*Repo, *mem.Store) {
	t.Helper()
	st := mem.New()
	r, err := Init(t.Context(), st, InitOptions{BlockSize: 4096})
	if err != nil {
		t.Fatal(err)
	}
	return r, st
}

func TestInitThenOpen(t *testing.T) {
	for _, opts := range []InitOptions{{}, {BlockSize: MinBlockSize}, {BlockSize: MaxBlockSize}, {IDAlgorithm: image.IDAlgorithm8}} {
		st := mem.New()
		made, err := Init(t.Context(), st, opts)
		if err != nil {
			t.Fatal(err)
		}
		r, err := Open(t.Context(), st)
		if err != nil {
			t.Fatal(err)
		}
		want := opts.BlockSize
		if want == 0 {
			want = DefaultBlockSize
		}
		if r.ID != made.ID || r.Keys.Fingerprint() != made.Keys.Fingerprint() || r.Config.BlockSize != want || r.ID == [16]byte{} {
			t.Errorf("%+v: opened %+v", opts, r.Config)
		}
		if a, b := r.Hasher().Block([]byte("x")), made.Hasher().Block([]byte("x")); a != b || (a.Hash64() <= 0xff) != (opts.IDAlgorithm == image.IDAlgorithm8) {
			t.Errorf("%+v: block IDs %s and %s", opts, a, b)
		}
		if n := len(contents(t, st)); n != 2 {
			t.Errorf("%+v: init wrote %d objects, want 2", opts, n)
		}
	}
}

func TestInitRefusesBlockSizes(t *testing.T) {
	for _, bs := range []int{-1, 1, 4095, 4097, 2048, 12288, 8 << 20, MaxBlockSize + 1} {
		st := mem.New()
		if _, err := Init(t.Context(), st, InitOptions{BlockSize: bs}); err == nil {
			t.Errorf("block size %d was taken", bs)
		}
		if n := len(contents(t, st)); n != 0 {
			t.Errorf("block size %d: %d objects written", bs, n)
		}
	}
}

func TestInitLeavesARepositoryAsItIs(t *testing.T) {
	_, st := newRepo(t)
	before := contents(t, st)
	if _, err := Init(t.Context(), st, InitOptions{}); !errors.Is(err, ErrIsRepository) {
		t.Errorf("got %v, want ErrIsRepository", err)
	}
	if after := contents(t, st); !maps.Equal(before, after) {
		t.Errorf("objects changed: %v, were %v", slices.Sorted(maps.Keys(after)), slices.Sorted(maps.Keys(before)))
	}
	// A damaged config is one, too.
	st.Replace("config", []byte("damaged"))
	before = contents(t, st)
	if _, err := Init(t.Context(), st, InitOptions{}); !errors.Is(err, ErrIsRepository) || !maps.Equal(before, contents(t, st)) {
		t.Errorf("over a damaged config: %v", err)
	}
}

// hooked calls before ahead of each Put.
type hooked struct {
	store.Store
	before func(name string) error
}

func (h hooked) Put(ctx context.Context, name string, parts ...[]byte) error {
	if err := h.before(name); err != nil {
		return err
	}
	return h.Store.Put(ctx, name, parts...)
}

func TestInitLeavesWhatIsLeftOfARepository(t *testing.T) {
	for _, left := range []string{"segments/ab/" + strings.Repeat("ab", 16), "images/" + strings.Repeat("ab", 16) + "/0000000000000001"} {
		st := mem.New()
		if err := st.Put(t.Context(), left, []byte("left")); err != nil {
			t.Fatal(err)
		}
		if _, err := Init(t.Context(), st, InitOptions{}); !errors.Is(err, ErrRemains) || !strings.Contains(err.Error(), left) {
			t.Errorf("%s without a config: %v, want ErrRemains", left, err)
		}
		if n := len(contents(t, st)); n != 1 {
			t.Errorf("%d objects, want the one that was left", n)
		}
	}
}

func TestTwoInitsMakeOneRepository(t *testing.T) {
	st := mem.New()
	var winner *Repo
	slow := hooked{st, func(name string) error {
		if name != "config" {
			return nil
		}
		var err error
		winner, err = Init(t.Context(), st, InitOptions{})
		return err
	}}
	if _, err := Init(t.Context(), slow, InitOptions{}); !errors.Is(err, ErrIsRepository) {
		t.Errorf("the slower init: %v, want ErrIsRepository", err)
	}
	if r, err := Open(t.Context(), st); err != nil || r.ID != winner.ID || r.Keys.Fingerprint() != winner.Keys.Fingerprint() {
		t.Errorf("opened another repository than the quicker init made: %v", err)
	}
}

func TestSlotOfADeadInitIsPassedOver(t *testing.T) {
	dead := errors.New("dead")
	st := mem.New()
	for range 3 {
		if _, err := Init(t.Context(), hooked{st, func(name string) error {
			if name == "config" {
				return dead
			}
			return nil
		}}, InitOptions{}); !errors.Is(err, dead) {
			t.Fatal(err)
		}
		if _, err := Open(t.Context(), st); !errors.Is(err, ErrNoRepository) {
			t.Fatalf("before the config is there: %v, want ErrNoRepository", err)
		}
	}
	made, err := Init(t.Context(), st, InitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := Open(t.Context(), st); err != nil || r.Keys.Fingerprint() != made.Keys.Fingerprint() {
		t.Fatalf("opened with other keys: %v", err)
	}
	// A slot damaged beside the right one is no problem, without it it is.
	names := slices.DeleteFunc(slices.Sorted(maps.Keys(contents(t, st))), func(n string) bool { return !strings.HasPrefix(n, "keys/") })
	if len(names) != 4 {
		t.Fatalf("%d slots, want 4", len(names))
	}
	for _, name := range names {
		whole, err := st.Get(t.Context(), name, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		d, err := keys.OpenSlot(name, whole, nil)
		if err != nil {
			t.Fatal(err)
		}
		right := d.Fingerprint() == made.Keys.Fingerprint()
		st.Replace(name, append([]byte("X"), whole[1:]...))
		_, err = Open(t.Context(), st)
		if right && !errors.Is(err, image.ErrCorrupt) || !right && err != nil {
			t.Errorf("slot damaged (the right one: %v): %v", right, err)
		}
		st.Replace(name, whole)
	}
}

// rewrite changes an object's JSON, or its header, and makes its digest right.
func rewrite(t testing.TB, st *mem.Store, d *keys.Domain, kind, name string, change func(map[string]any), header func([]byte)) {
	t.Helper()
	b, err := st.Get(t.Context(), name, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	payload, _, err := d.Payload(kind, name, b)
	if err != nil {
		t.Fatal(err)
	}
	var fields map[string]any
	if err := json.Unmarshal(payload, &fields); err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(fields)
	}
	if b, _, err = d.Seal(kind, name, fields); err != nil {
		t.Fatal(err)
	}
	if header != nil {
		header(b)
		body := b[:len(b)-32]
		key := make([]byte, 32)
		blake3.DeriveKey("platter 2026 public object digest", nil, key)
		h, err := blake3.NewKeyed(key)
		if err != nil {
			t.Fatal(err)
		}
		h.Write(binary.LittleEndian.AppendUint32(nil, uint32(len(name))))
		h.Write([]byte(name))
		h.Write(body)
		copy(b[len(body):], h.Sum(nil))
	}
	st.Replace(name, b)
}

func TestOpenRefusesWhatItDoesNotKnow(t *testing.T) {
	set := func(field string, v any) func(map[string]any) { return func(m map[string]any) { m[field] = v } }
	for name, tt := range map[string]struct {
		change func(map[string]any)
		header func([]byte)
		want   error
	}{
		"nothing":             {nil, nil, nil},
		"unknown field":       {set("colour", "blue"), nil, nil},
		"format version":      {set("version", 2), nil, keys.ErrNewer},
		"no version":          {set("version", 0), nil, keys.ErrNewer},
		"feature":             {set("features", []string{"colour"}), nil, keys.ErrNewer},
		"compression":         {set("compression", "zstd"), nil, keys.ErrNewer},
		"encryption":          {set("encryption", "aes"), nil, keys.ErrNewer},
		"ID algorithm":        {set("id_algorithm", "md5"), nil, keys.ErrNewer},
		"object version":      {nil, func(b []byte) { b[8] = 2 }, keys.ErrNewer},
		"protection":          {nil, func(b []byte) { b[10] = 1 }, keys.ErrNewer},
		"block size 0":        {set("block_size", 0), nil, image.ErrCorrupt},
		"block size negative": {set("block_size", -4096), nil, image.ErrCorrupt},
		"block size 5000":     {set("block_size", 5000), nil, image.ErrCorrupt},
		"block size 1 GiB":    {set("block_size", 1<<30), nil, image.ErrCorrupt},
		"block size text":     {set("block_size", "4096"), nil, image.ErrCorrupt},
		"repository ID short": {set("repository", "00"), nil, image.ErrCorrupt},
		"repository ID odd":   {set("repository", "zz"), nil, image.ErrCorrupt},
		"another domain":      {set("domain", "00"), nil, image.ErrCorrupt},
	} {
		_, st := newRepo(t)
		rewrite(t, st, nil, keys.KindConfig, "config", tt.change, tt.header)
		before := contents(t, st)
		r, err := Open(t.Context(), st)
		switch {
		case !errors.Is(err, tt.want):
			t.Errorf("%s: got %v, want %v", name, err, tt.want)
		case err != nil && r != nil:
			t.Errorf("%s: a repository beside an error", name)
		}
		if !maps.Equal(before, contents(t, st)) {
			t.Errorf("%s: open changed the store", name)
		}
	}
}

func TestEveryFlipOfConfigAndSlotIsFound(t *testing.T) {
	_, st := newRepo(t)
	for name, whole := range contents(t, st) {
		for i := range len(whole) {
			b := []byte(whole)
			b[i] ^= 0x10
			st.Replace(name, b)
			if _, err := Open(t.Context(), st); !errors.Is(err, image.ErrCorrupt) {
				t.Fatalf("%s, byte %d: %v, want corrupt", name, i, err)
			}
			st.Replace(name, []byte(whole)[:i])
			if _, err := Open(t.Context(), st); !errors.Is(err, image.ErrCorrupt) {
				t.Fatalf("%s of %d bytes: %v, want corrupt", name, i, err)
			}
		}
		st.Replace(name, []byte(whole))
	}
	for name, whole := range contents(t, st) {
		if err := st.Delete(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(t.Context(), st); err == nil {
			t.Errorf("opened without %s", name)
		}
		st.Replace(name, []byte(whole))
	}
}

func TestSegmentsListsOnlySegments(t *testing.T) {
	r, st := newRepo(t)
	b := r.NewSegment(make([]byte, 8192), 1, [16]byte{1})
	data, f := b.Seal()
	st.Replace("segments/"+f.ID.String()[:2]+"/"+f.ID.String(), data)
	for _, name := range []string{
		"segments/x", "segments/00/" + strings.Repeat("0", 31), "segments/01/" + strings.Repeat("0", 32), "segments/00/" + strings.Repeat("z", 32),
		"segments/00/00/" + strings.Repeat("0", 32), "segments/00/x" + strings.Repeat("0", 32),
	} {
		st.Replace(name, data)
	}
	n := 0
	if err := r.Segments(t.Context(), func(id image.SegmentID, size int64, _ time.Time) error {
		n++
		if id != f.ID || size != 8192 {
			t.Errorf("listed %s of %d bytes", id, size)
		}
		return nil
	}); err != nil || n != 1 {
		t.Errorf("%d segments, %v; want 1", n, err)
	}
	if got, err := r.Footer(t.Context(), f.ID); err != nil || got.ID != f.ID || got.Run != [16]byte{1} {
		t.Errorf("footer %+v, %v", got, err)
	}
	if _, err := r.Footer(t.Context(), image.SegmentID{1}); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("footer of no segment: %v", err)
	}
}

func TestPagesReadBackFromASegment(t *testing.T) {
	r, st := newRepo(t)
	const pages = 700 // more than one window
	b := r.NewSegment(make([]byte, 4<<20), 2, [16]byte{1})
	var want []image.Page
	for i := range pages {
		var p image.Page
		for j := range p.Entries {
			sum := blake3.Sum256([]byte{byte(i), byte(i >> 8), byte(j)})
			p.Entries[j], p.Hints[j] = sum, image.Location{Segment: image.SegmentID{1}, Record: uint32(j)}
		}
		plain := p.Encode(nil)
		stored, flags, err := new(segment.Codec).Encode(plain)
		if err != nil {
			t.Fatal(err)
		}
		b.Add(recordOf(r.Hasher().Page(plain[:image.PageSize]), len(plain), flags), stored)
		want = append(want, p)
	}
	data, f := b.Seal()
	name := "segments/" + f.ID.String()[:2] + "/" + f.ID.String()
	st.Replace(name, bytes.Clone(data))
	n := 0
	err := r.Pages(t.Context(), f, func(record int, p *image.Page, id image.ID) error {
		if record != n || *p != want[n] || id != f.Records[n].ID {
			t.Fatalf("page %d differs", n)
		}
		n++
		return nil
	})
	if err != nil || n != pages {
		t.Fatalf("%d pages, %v", n, err)
	}
	if p, err := r.ReadPage(t.Context(), f, pages-1); err != nil || *p != want[pages-1] {
		t.Errorf("the last page: %v", err)
	}
	// Any flip in the last record is found.
	at := f.Records[pages-1].Offset
	for i := range 200 {
		damaged := bytes.Clone(data)
		damaged[at+int64(i)] ^= 1
		st.Replace(name, damaged)
		if _, err := r.ReadPage(t.Context(), f, pages-1); !errors.Is(err, image.ErrCorrupt) {
			t.Fatalf("flip at %d of a page: %v, want corrupt", i, err)
		}
	}
}

func recordOf(id image.ID, plain int, flags uint8) segment.Record {
	return segment.Record{ID: id, Plain: uint32(plain), Flags: flags}
}
