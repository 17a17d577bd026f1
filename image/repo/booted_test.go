package repo

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"platter/image"
	"platter/image/store"
	"platter/image/store/mem"
)

// The last start of an image counts, whoever wrote when; its picture is there
// and no other's is given for it, and those of starts before go after a day.
func TestTheLastStartOfAnImageCounts(t *testing.T) {
	st := mem.New()
	r, err := Init(t.Context(), st, InitOptions{BlockSize: 4096})
	if err != nil {
		t.Fatal(err)
	}
	one, other := ManifestNameOf("0123456789abcdef0123456789abcdef", 1), ManifestNameOf("0123456789abcdef0123456789abcdef", 2)
	at := time.Date(2026, 5, 1, 3, 0, 0, 0, time.UTC)
	note := func(manifest string, at time.Time, verdict, png string) {
		t.Helper()
		if err := r.NoteBoot(t.Context(), manifest, Boot{Time: at, Verdict: verdict}, []byte(png)); err != nil {
			t.Fatal(err)
		}
	}
	note(one, at, "failed", "first")
	note(other, at, "unknown", "")
	note(one, at.Add(time.Hour), "booted", "second")
	note(one, at.Add(-time.Hour), "failed", "late news of an old start")
	checks, err := r.Checks(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	b := checks[one].Boot
	if b == nil || b.Verdict != "booted" {
		t.Fatalf("got %+v, want the start that was last", b)
	}
	png, err := r.Screen(t.Context(), one, b)
	if err != nil || string(png) != "second" {
		t.Errorf("the picture is %q, %v", png, err)
	}
	if _, err := r.Screen(t.Context(), other, b); !errors.Is(err, image.ErrCorrupt) {
		t.Errorf("a picture of another image: %v, want %v", err, image.ErrCorrupt)
	}
	if _, err := r.Screen(t.Context(), other, checks[other].Boot); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("no picture was kept: %v", err)
	}
	note(other, at, "unknown", string(bytes.Repeat([]byte("x"), MaxScreen+1)))
	if n := screens(t, st); n != 3 {
		t.Errorf("%d pictures within a day, want 3", n)
	}
	st.Advance(25 * time.Hour)
	note(other, at.Add(time.Hour), "booted", "")
	if n := screens(t, st); n != 1 {
		t.Errorf("%d pictures after a day, want the one that is named", n)
	}
	if _, err := r.Screen(t.Context(), one, b); err != nil {
		t.Error(err)
	}
}

func screens(t *testing.T, st *mem.Store) (n int) {
	t.Helper()
	if err := st.List(t.Context(), screenPrefix, func(store.Info) error { n++; return nil }); err != nil {
		t.Fatal(err)
	}
	return n
}
