package job

import (
	"context"
	"errors"
	"testing"
	"time"

	"platter/image"
	"platter/image/repo"
	"platter/image/segment"
	"platter/image/store"
)

// The structure of three images of ten million blocks, all different, is
// verified within memory. As the test of huge restores it runs only with
// PLATTER_TEST_HUGE=1.
func TestVerifyOfAHugeRepository(t *testing.T) {
	const bs, blocks, memory = 4 << 10, 10_000_000, 256 << 20
	ctx := context.Background()
	r := hugeRepository(t, bs)
	filler(t, r, blocks)
	for seq := range 3 {
		hugeImage(t, r, seq, blocks)
	}
	env := &Env{Repo: r, Memory: memory, Host: "host"}
	forgetPeak(t, memory)
	measure := func(what string) {
		start := time.Now()
		report, err := Verify(ctx, env, VerifyOptions{})
		if report == nil {
			t.Fatal(err)
		}
		peak := resident(t, "VmHWM")
		t.Logf("%s: %d pages of %d images in %.1f s, %d damages, %d MiB of memory at most",
			what, report.Pages, report.Images, time.Since(start).Seconds(), len(report.Damage), peak>>20)
		if peak > memory {
			t.Errorf("%s: took %d MiB of memory, want %d at most", what, peak>>20, memory>>20)
		}
		if (err != nil) != (what != "whole") || err != nil && !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", what, err)
		}
	}
	measure("whole")
	var first image.SegmentID
	_ = r.Segments(ctx, func(id image.SegmentID, _ int64, _ time.Time) error { first = id; return errors.New("one is enough") })
	if err := r.Store.Delete(ctx, segment.Name(first)); err != nil {
		t.Fatal(err)
	}
	measure("without one segment")
}

// hugeImage commits an image of the filler's blocks, begun at another block
// than the others' so that no two share a page.
func hugeImage(t *testing.T, r *repo.Repo, seq, blocks int) {
	t.Helper()
	ctx := context.Background()
	var ids []image.ID
	var at []image.Location
	if err := r.Segments(ctx, func(id image.SegmentID, _ int64, _ time.Time) error {
		f, err := r.Footer(ctx, id)
		if err != nil || f.Kind != segment.Data {
			return err
		}
		for n := range f.Records {
			ids = append(ids, f.Records[n].ID)
			at = append(at, image.Location{Segment: id, Record: uint32(n)})
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	buf, h, c := store.AllocAligned(8<<20), r.Hasher(), new(segment.Codec)
	var b *segment.Builder
	flush := func() error {
		object, f := b.Seal()
		b = nil
		return r.Store.Put(ctx, segment.Name(f.ID), object)
	}
	m := &image.Manifest{ID: image.ImageID{byte(seq + 1)}, Volume: "host/huge", BlockSize: r.Config.BlockSize, Size: int64(blocks) * int64(r.Config.BlockSize)}
	tree := image.NewTree(int64(blocks), func(_ int, p *image.Page) (image.ID, image.Location, error) {
		plain := p.Encode(nil)
		stored, flags, err := c.Encode(plain)
		if err == nil && b != nil && !b.Fits(len(stored)) {
			err = flush()
		}
		if err != nil {
			return image.ID{}, image.Location{}, err
		}
		if b == nil {
			b = r.NewSegment(buf, segment.Pages, [16]byte{9})
		}
		id := h.Page(plain[:image.PageSize])
		n := b.Add(segment.Record{ID: id, Plain: uint32(len(plain)), Flags: flags}, stored)
		return id, image.Location{Segment: b.ID(), Record: n}, nil
	})
	for n := 0; n < blocks; n += image.PageEntries {
		var p image.Page
		for i := range min(image.PageEntries, blocks-n) {
			k := (n + i + seq) % len(ids)
			p.Entries[i], p.Hints[i] = ids[k], at[k]
		}
		if err := tree.Leaf(&p); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if m.Root, m.RootAt, err = tree.Finish(); err == nil {
		err = flush()
	}
	if err == nil {
		_, err = r.Commit(ctx, m)
	}
	if err != nil {
		t.Fatal(err)
	}
}
