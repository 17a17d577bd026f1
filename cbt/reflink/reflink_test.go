package reflink

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"platter/block"
	"platter/block/snapshot"
	"platter/block/snapshot/reflink"
	"platter/cbt"
	"platter/cbt/cbttest"
	"platter/vmtests/loop"
)

// filesystems are those that share extents, and how they are made.
func filesystems() map[string][]string {
	return map[string][]string{
		"xfs":   {"mkfs.xfs", "-q"},
		"btrfs": {"mkfs.btrfs", "-q"},
	}
}

const fsSize = 400 << 20

// A crashed run is one of another boot.
const dead = "00000000-1-1-1"

// open is how a run opens the tracker of a file.
func open(ctx context.Context, path, consumer string, batch uint32) (*tracker, error) {
	d, err := block.Look(path)
	if err != nil {
		return nil, err
	}
	c := snapshot.Consumer{Repository: consumer, Volume: "host/disk"}
	v, err := reflink.New().Take(ctx, d, snapshot.Options{Consumer: c, Run: dead})
	if err != nil {
		return nil, err
	}
	t, err := New().Open(ctx, v, c)
	if err != nil {
		return nil, err
	}
	t.(*tracker).batch = batch
	return t.(*tracker), nil
}

// A session of the suite ends with the tracker, and its view with it.
type session struct {
	*tracker
	open map[*session]bool
}

func (s *session) Close() error {
	delete(s.open, s)
	return s.view.Close()
}

// crash leaves everything as a process that dies does.
func crash(open map[*session]bool) error {
	var errs []error
	for s := range open {
		errs = append(errs, s.view.Source.Close())
	}
	clear(open)
	return errors.Join(errs...)
}

func TestReflinkPassesTheSuite(t *testing.T) {
	for name, mkfs := range filesystems() {
		t.Run(name, func(t *testing.T) {
			dir := loop.Filesystem(t, fsSize, mkfs...)
			cbttest.Run(t, func(t testing.TB, size int64) cbttest.Fixture {
				path := filepath.Join(dir, snapshot.NewID(), "disk")
				if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
					t.Fatal(err)
				}
				sessions := make(map[*session]bool)
				t.Cleanup(func() { crash(sessions) })
				return cbttest.Fixture{
					Device: cbttest.FileAt(t, path, size),
					Open: func(ctx context.Context, consumer string) (cbt.Tracker, error) {
						// Few extents at a time, so that the borders between
						// batches are met.
						tr, err := open(ctx, path, consumer, 3)
						s := &session{tr, sessions}
						sessions[s] = err == nil
						return s, err
					},
					Crash: func() error { return crash(sessions) },
					Grain: 4096,
				}
			})
		})
	}
}

// What the place of an extent does not tell is never called unchanged.
func TestSameTrustsPlainExtentsOnly(t *testing.T) {
	at := func(physical int64, flags uint32) reflink.Piece {
		return reflink.Piece{Extent: block.Extent{Offset: 0, Length: 4096}, Physical: physical, Flags: flags}
	}
	for _, c := range []struct {
		what string
		a, b reflink.Piece
		want bool
	}{
		{"one place", at(8192, 0), at(8192, 0x2000|0x1|0x1000), true},
		{"two places", at(8192, 0), at(12288, 0), false},
		{"zeros twice", at(0, reflink.Unwritten), at(8192, reflink.Unwritten|0x2000), true},
		{"written meanwhile", at(8192, reflink.Unwritten), at(8192, 0), false},
		{"zeroed meanwhile", at(8192, 0), at(8192, reflink.Unwritten), false},
		{"place unknown", at(0, 0x2), at(0, 0x2), false},
		{"not allocated yet", at(0, 0x4|0x2), at(0, 0x4|0x2), false},
		{"not allocated yet, over unwritten", at(0, 0x4|reflink.Unwritten), at(0, 0x4|reflink.Unwritten), false},
		{"compressed", at(8192, 0x8), at(8192, 0x8), false},
		{"encrypted", at(8192, 0x80), at(8192, 0x80), false},
		{"not aligned", at(8192, 0x100), at(8192, 0x100), false},
		{"inline", at(8192, 0x200), at(8192, 0x200), false},
		{"packed", at(8192, 0x400), at(8192, 0x400), false},
		{"of tomorrow", at(8192, 0x10000), at(8192, 0x10000), false},
	} {
		if got := same(c.a, c.b); got != c.want {
			t.Errorf("%s: got %v, want %v", c.what, got, c.want)
		}
	}
}

// A base that anybody wrote to is none.
func TestReflinkRefusesAChangedBase(t *testing.T) {
	path := filepath.Join(loop.Filesystem(t, fsSize, "mkfs.xfs", "-q"), "disk")
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	first, err := open(t.Context(), path, "a", reflink.BatchExtents)
	if err != nil {
		t.Fatal(err)
	}
	defer first.view.Close()
	g, err := first.Mark(t.Context())
	if err == nil {
		err = first.Commit(t.Context(), g)
	}
	if err != nil {
		t.Fatal(err)
	}
	second, err := open(t.Context(), path, "a", reflink.BatchExtents)
	if err != nil {
		t.Fatal(err)
	}
	defer second.view.Close()
	if set, err := second.Changed(t.Context(), g); err != nil || set.Bytes() != 0 {
		t.Fatalf("nothing was written, and the tracker says %v, %v", set, err)
	}
	// The times of files go by the tick of a clock.
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, first.view.Path(), []unix.Timespec{{Sec: 1}, {Sec: 1}}, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := second.Changed(t.Context(), g); !errors.Is(err, cbt.ErrHistoryLost) {
		t.Errorf("the base was changed, and the tracker says %v", err)
	}
}

// Compressed extents all seem to begin where the first of their bytes lies: a
// file may use any part of one. They are read, whatever their place is.
func TestReflinkReadsCompressedExtents(t *testing.T) {
	dir := loop.Filesystem(t, fsSize, "mkfs.btrfs", "-q")
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT, "compress-force=zstd"); err != nil {
		t.Skip("SKIPPED: ", err)
	}
	path := filepath.Join(dir, "disk")
	text := make([]byte, 1<<20)
	for i := range text {
		text[i] = byte(i / 700)
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	first, err := open(t.Context(), path, "a", reflink.BatchExtents)
	if err != nil {
		t.Fatal(err)
	}
	defer first.view.Close()
	g, err := first.Mark(t.Context())
	if err == nil {
		err = first.Commit(t.Context(), g)
	}
	if err != nil {
		t.Fatal(err)
	}
	// Within one extent, so that its place stays the same to the eye.
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	err = unix.IoctlFileCloneRange(int(f.Fd()), &unix.FileCloneRange{Src_fd: int64(f.Fd()), Src_offset: 65536, Src_length: 65536, Dest_offset: 0})
	if err != nil {
		t.Fatal(err)
	}
	second, err := open(t.Context(), path, "a", reflink.BatchExtents)
	if err != nil {
		t.Fatal(err)
	}
	defer second.view.Close()
	set, err := second.Changed(t.Context(), g)
	if err != nil || !set.Contains(block.Extent{Length: 65536}) {
		t.Errorf("the first 64 KiB were replaced by the next, and the tracker says %v, %v", set, err)
	}
}
