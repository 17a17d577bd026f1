package job

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"platter/image"
	"platter/image/segment"
)

// A forger writes repositories that no backup makes, under the right keys: a
// restore runs as root, and what it reads may come from an enemy.
type forger struct {
	*testing.T
	env *Env
}

// record is something to store: content under an ID that may be a lie.
type forged struct {
	id    image.ID
	plain []byte
}

// segment stores records as they are and returns where.
func (f *forger) segment(kind segment.Kind, records ...forged) (at []image.Location) {
	f.Helper()
	return f.segmentOf(1<<20, kind, records...)
}

func (f *forger) segmentOf(size int, kind segment.Kind, records ...forged) (at []image.Location) {
	f.Helper()
	b := f.env.Repo.NewSegment(make([]byte, size), kind, [16]byte{1})
	for _, r := range records {
		payload, flags, err := new(segment.Codec).Encode(r.plain)
		if err != nil {
			f.Fatal(err)
		}
		n := b.Add(segment.Record{ID: r.id, Plain: uint32(len(r.plain)), Flags: flags}, payload)
		at = append(at, image.Location{Segment: b.ID(), Record: n})
	}
	data, footer := b.Seal()
	if err := f.env.Repo.Store.Put(context.Background(), segment.Name(footer.ID), data); err != nil {
		f.Fatal(err)
	}
	return at
}

// page stores a page with these entries and hints.
func (f *forger) page(entries []image.ID, hints []image.Location) (image.ID, image.Location) {
	f.Helper()
	var p image.Page
	copy(p.Entries[:], entries)
	copy(p.Hints[:], hints)
	id := f.env.Repo.Hasher().Page(p.Content(nil))
	return id, f.segment(segment.Pages, forged{id, p.Encode(nil)})[0]
}

// commit makes an image of this size and root.
func (f *forger) commit(size int64, root image.ID, at image.Location) *image.Manifest {
	f.Helper()
	m := &image.Manifest{ID: image.ImageID{1, byte(size)}, Volume: "host/disk", BlockSize: 4096, Size: size, Root: root, RootAt: at, Epoch: 0}
	if _, err := f.env.Repo.Commit(context.Background(), m); err != nil {
		f.Fatal(err)
	}
	return m
}

func TestHostileImagesRestoreToNothing(t *testing.T) {
	// D7, D9, D26, D30.
	a, b := twins(t)
	block := bytes.Repeat([]byte("block"), 1000)[:4096]
	for name, forge := range map[string]func(f *forger, h *image.Hasher) *image.Manifest{
		"a block under another's ID": func(f *forger, h *image.Hasher) *image.Manifest {
			at := f.segment(segment.Data, forged{image.ID{1}, block})
			root, rootAt := f.page([]image.ID{{1}}, at)
			return f.commit(4096, root, rootAt)
		},
		"a twin of the same xxhash64": func(f *forger, h *image.Hasher) *image.Manifest {
			at := f.segment(segment.Data, forged{h.Block(a), b})
			root, rootAt := f.page([]image.ID{h.Block(a)}, at)
			return f.commit(4096, root, rootAt)
		},
		"a block that is too short": func(f *forger, h *image.Hasher) *image.Manifest {
			at := f.segment(segment.Data, forged{h.Block(block[:4095]), block[:4095]})
			root, rootAt := f.page([]image.ID{h.Block(block[:4095])}, at)
			return f.commit(4096, root, rootAt)
		},
		"a last block that is too long": func(f *forger, h *image.Hasher) *image.Manifest {
			at := f.segment(segment.Data, forged{h.Block(block), block})
			root, rootAt := f.page([]image.ID{h.Block(block)}, at)
			return f.commit(100, root, rootAt)
		},
		"a block of 512 KiB": func(f *forger, h *image.Hasher) *image.Manifest {
			large := bytes.Repeat(block, 128)
			at := f.segment(segment.Data, forged{h.Block(large), large})
			root, rootAt := f.page([]image.ID{h.Block(large)}, at)
			return f.commit(4096, root, rootAt)
		},
		"a block in a page segment": func(f *forger, h *image.Hasher) *image.Manifest {
			at := f.segment(segment.Pages, forged{h.Block(block), block})
			root, rootAt := f.page([]image.ID{h.Block(block)}, at)
			return f.commit(4096, root, rootAt)
		},
		"a page as a block": func(f *forger, h *image.Hasher) *image.Manifest {
			leaf, leafAt := f.page([]image.ID{{1}}, nil)
			root, rootAt := f.page([]image.ID{leaf}, []image.Location{leafAt})
			return f.commit(4096, root, rootAt)
		},
		"disk content as a page": func(f *forger, h *image.Hasher) *image.Manifest {
			var p image.Page
			p.Entries[0] = h.Block(block)
			content := p.Content(nil)
			at := f.segment(segment.Data, forged{h.Block(content), content}, forged{h.Block(block), block})
			return f.commit(4096, h.Block(content), at[0])
		},
		"a page under another's ID": func(f *forger, h *image.Hasher) *image.Manifest {
			var p image.Page
			p.Entries[0] = h.Block(block)
			f.segment(segment.Data, forged{h.Block(block), block})
			at := f.segment(segment.Pages, forged{image.ID{2}, p.Encode(nil)})
			return f.commit(4096, image.ID{2}, at[0])
		},
		"a page that is cut": func(f *forger, h *image.Hasher) *image.Manifest {
			var p image.Page
			p.Entries[0] = h.Block(block)
			content := p.Content(nil)
			f.segment(segment.Data, forged{h.Block(block), block})
			at := f.segment(segment.Pages, forged{h.Page(content), content[:4096]})
			return f.commit(4096, h.Page(content), at[0])
		},
		"an entry past the end": func(f *forger, h *image.Hasher) *image.Manifest {
			at := f.segment(segment.Data, forged{h.Block(block), block})
			root, rootAt := f.page([]image.ID{h.Block(block), h.Block(block)}, []image.Location{at[0], at[0]})
			return f.commit(4096, root, rootAt)
		},
		"a map that is too low": func(f *forger, h *image.Hasher) *image.Manifest {
			at := f.segment(segment.Data, forged{h.Block(block), block})
			root, rootAt := f.page([]image.ID{h.Block(block)}, at)
			return f.commit(200*4096, root, rootAt)
		},
		"a map that is too high": func(f *forger, h *image.Hasher) *image.Manifest {
			at := f.segment(segment.Data, forged{h.Block(block), block})
			leaf, leafAt := f.page([]image.ID{h.Block(block)}, at)
			root, rootAt := f.page([]image.ID{leaf}, []image.Location{leafAt})
			return f.commit(100*4096, root, rootAt)
		},
		"the largest device there can be, of one block": func(f *forger, h *image.Hasher) *image.Manifest {
			at := f.segment(segment.Data, forged{h.Block(block), block})
			root, rootAt := f.page([]image.ID{h.Block(block)}, at)
			return f.commit(image.MaxSize, root, rootAt)
		},
		"a root that is nowhere": func(f *forger, h *image.Hasher) *image.Manifest {
			return f.commit(4096, image.ID{3}, image.Location{Segment: image.SegmentID{4}, Record: 1 << 31})
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := &forger{t, newEnv(t, 4096)}
			m := forge(f, f.env.Repo.Hasher())
			f.refused(m)
		})
	}
}

// refused wants no byte of an image, a verification that names it, a collection
// that deletes nothing of it, and a next backup that goes well.
func (f *forger) refused(m *image.Manifest) {
	f.Helper()
	ctx := context.Background()
	for _, env := range []*Env{{Repo: f.env.Repo, Memory: 8 << 20, Host: "host"}, f.env} {
		if env.Catalog != nil {
			if _, err := env.Catalog.Sync(ctx, env.Repo, nil); err != nil {
				f.Fatal(err)
			}
		}
		if m.Size < 1<<30 {
			target := filepath.Join(f.TempDir(), "target")
			_, err := Restore(ctx, env, RestoreOptions{Image: m.ID.String(), Target: target, Confirm: yes})
			if !errors.Is(err, ErrDamaged) {
				f.Errorf("restore: %v, want damage", err)
			}
			if got, err := os.ReadFile(target); err == nil && !image.IsZero(got) {
				f.Errorf("restore wrote %d bytes", len(bytes.Trim(got, "\x00")))
			}
		}
		report, err := Verify(ctx, env, VerifyOptions{ReadData: true})
		if !errors.Is(err, ErrDamaged) || len(report.Damage) == 0 {
			f.Errorf("verify: %v, want damage", err)
		}
	}
	clock(f.env)
	before := segments(f.T, f.env)
	report, err := Collect(ctx, f.env, CollectOptions{MaxDelete: 1})
	if err == nil && len(report.Deleted) > 0 {
		f.Logf("%d of %d segments collected", len(report.Deleted), before)
	}
	if err != nil && !known(err) {
		f.Errorf("collect: %v", err)
	}
	d := &disk{name: "disk", data: bytes.Repeat([]byte("something else, "), 3000)}
	next := mustBackup(f.T, f.env, d, BackupOptions{}).Image
	if got := content(f.T, f.env, next); !bytes.Equal(got, d.data) {
		f.Error("the next image differs")
	}
}

func TestHostileHintsCostALookup(t *testing.T) {
	// Hints that lead to themselves, to nothing, and to another block of the
	// same length.
	f := &forger{t, newEnv(t, 4096)}
	h := f.env.Repo.Hasher()
	want := append(bytes.Repeat([]byte("a"), 4096), bytes.Repeat([]byte("b"), 4096)...)
	ids := []image.ID{h.Block(want[:4096]), h.Block(want[4096:])}
	at := f.segment(segment.Data, forged{ids[0], want[:4096]}, forged{ids[1], want[4096:]})
	for name, hints := range map[string][]image.Location{
		"swapped": {at[1], at[0]},
		"nowhere": {{Segment: image.SegmentID{9}, Record: 1<<32 - 1}, {}},
		"beyond":  {{Segment: at[0].Segment, Record: 2}, {Segment: at[0].Segment, Record: 1<<32 - 1}},
	} {
		root, rootAt := f.page(ids, hints)
		m := &image.Manifest{ID: image.ImageID{2}, Volume: "host/" + name, BlockSize: 4096, Size: 8192, Root: root, RootAt: image.Location{Segment: rootAt.Segment, Record: 77}}
		if _, err := f.env.Repo.Commit(context.Background(), m); err != nil {
			t.Fatal(err)
		}
		if got := content(t, f.env, m); !bytes.Equal(got, want) {
			t.Errorf("%s: the image differs", name)
		}
	}
}
