package job

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"

	"platter/block"
	"platter/image"
	"platter/image/store/faulty"
)

func TestBackupKeepsEveryNight(t *testing.T) {
	for _, bs := range []int{4 << 10, 64 << 10} {
		for _, size := range []int{0, 1, 511, bs - 1, bs, bs + 1, 127*bs + 5, 128 * bs, 128*bs + 1, 300*bs + 12345} {
			t.Run(fmt.Sprintf("blocks of %d, %d bytes", bs, size), func(t *testing.T) {
				if size > 4<<20 && bs > 4<<10 && testing.Short() {
					t.Skip("short")
				}
				r := seeded(t, uint64(size))
				env := newEnv(t, bs)
				d := &disk{name: "disk", data: make([]byte, size), holes: size%2 == 0}
				var nights [][]byte
				var images []*image.Manifest
				for night := range 4 {
					if night == 0 {
						d.fill(r, bs)
					}
					for range night {
						if size > 0 {
							random(r, d.data[r.IntN(size):][:1])
						}
					}
					images = append(images, mustBackup(t, env, d, BackupOptions{}).Image)
					nights = append(nights, bytes.Clone(d.data))
				}
				for i, m := range images {
					if got := content(t, env, m); !bytes.Equal(got, nights[i]) {
						t.Errorf("image %d differs from night %d", i, i)
					}
				}
			})
		}
	}
}

func TestBackupOfUnchangedDeviceStoresNothing(t *testing.T) {
	const bs = 4 << 10
	env := newEnv(t, bs)
	d := &disk{name: "disk", data: make([]byte, 1000*bs)}
	d.fill(seeded(t, 1), bs)
	first := mustBackup(t, env, d, BackupOptions{})
	second := mustBackup(t, env, d, BackupOptions{})
	if second.Segments != 0 || second.Image.Stats.New != 0 || second.Image.Root != first.Image.Root {
		t.Errorf("second run stored %d segments, %d new bytes, root %s; first root %s", second.Segments, second.Image.Stats.New, second.Image.Root, first.Image.Root)
	}
	s := second.Image.Stats
	if s.Zero+s.Unchanged != int64(len(d.data)) {
		t.Errorf("zero %d + unchanged %d, want %d", s.Zero, s.Unchanged, len(d.data))
	}
	other := &disk{name: "other", data: d.data}
	third := mustBackup(t, env, other, BackupOptions{})
	if third.Image.Stats.New != 0 || third.Segments != 0 {
		t.Errorf("the same disk under another name stored %d new bytes in %d segments", third.Image.Stats.New, third.Segments)
	}
}

func TestBackupTellsBlocksOfOneHashApart(t *testing.T) {
	// Two different blocks with one xxhash64, at two offsets and at one offset
	// on two nights.
	a, b := twins(t)
	env := newEnv(t, len(a))
	d := &disk{name: "disk", data: append(append(bytes.Clone(a), b...), a...)}
	first := mustBackup(t, env, d, BackupOptions{}).Image
	night1 := bytes.Clone(d.data)
	copy(d.data, b)
	second := mustBackup(t, env, d, BackupOptions{}).Image
	if got := content(t, env, first); !bytes.Equal(got, night1) {
		t.Error("first night differs")
	}
	if got := content(t, env, second); !bytes.Equal(got, d.data) {
		t.Error("second night differs")
	}
}

func TestBackupHolesAreNotRead(t *testing.T) {
	const bs = 4 << 10
	env := newEnv(t, bs)
	d := &disk{name: "disk", data: make([]byte, 128*128*bs+7), holes: true}
	random(seeded(t, 3), d.data[5<<20:6<<20])
	m := mustBackup(t, env, d, BackupOptions{}).Image
	if d.read.Load() != 1<<20 {
		t.Errorf("read %d bytes, want %d", d.read.Load(), 1<<20)
	}
	if !bytes.Equal(content(t, env, m), d.data) {
		t.Error("image differs")
	}
	// What was data becomes a hole: that is a change.
	clear(d.data[5<<20 : 5<<20+500000])
	m = mustBackup(t, env, d, BackupOptions{}).Image
	if !bytes.Equal(content(t, env, m), d.data) {
		t.Error("image after punching a hole differs")
	}
}

func TestBackupReadErrors(t *testing.T) {
	const bs = 4 << 10
	env := newEnv(t, bs)
	d := &disk{name: "disk", data: make([]byte, 500*bs)}
	random(seeded(t, 4), d.data)
	d.bad = []block.Extent{{Offset: 100*bs + 512, Length: 1024}}
	var bad *block.ReadError
	if _, err := Backup(context.Background(), env, BackupOptions{Sources: []block.Source{d}}); !errors.As(err, &bad) {
		t.Fatalf("got %v, want a read error", err)
	}
	m := mustBackup(t, env, d, BackupOptions{AllowUnreadable: true}).Image
	if len(m.Unreadable) != 1 || m.Unreadable[0] != d.bad[0] {
		t.Errorf("unreadable %v, want %v", m.Unreadable, d.bad)
	}
	want := bytes.Clone(d.data)
	clear(want[d.bad[0].Offset:d.bad[0].End()])
	if !bytes.Equal(content(t, env, m), want) {
		t.Error("image differs outside the unreadable range")
	}
}

func TestBackupFailsWhenTheDeviceChangesItsSize(t *testing.T) {
	env := newEnv(t, 4<<10)
	d := &disk{name: "disk", data: make([]byte, 1<<20), check: block.ErrResized}
	if _, err := Backup(context.Background(), env, BackupOptions{Sources: []block.Source{d}}); !errors.Is(err, block.ErrResized) {
		t.Fatalf("got %v, want ErrResized", err)
	}
	if images := countImages(t, env); images != 0 {
		t.Errorf("%d images, want none", images)
	}
}

func TestBackupResumesFromSealedSegments(t *testing.T) {
	const bs = 64 << 10
	env := newEnv(t, bs)
	d := &disk{name: "disk", data: make([]byte, 64<<20)}
	random(seeded(t, 5), d.data)
	ctx, cancel := context.WithCancel(context.Background())
	d.hook = func(off int64) {
		if off > 48<<20 {
			cancel()
		}
	}
	if _, err := Backup(ctx, env, BackupOptions{Sources: []block.Source{d}}); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v, want an interrupt", err)
	}
	d.hook = nil
	m := mustBackup(t, env, d, BackupOptions{}).Image
	if m.Stats.Known < 32<<20 {
		t.Errorf("the second run found %d bytes stored, want most of the first 48 MiB", m.Stats.Known)
	}
	if !bytes.Equal(content(t, env, m), d.data) {
		t.Error("image differs")
	}
}

func countImages(t *testing.T, env *Env) (n int) {
	t.Helper()
	err := env.Repo.Manifests(context.Background(), func(string) error { n++; return nil })
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestBackupThatCannotBeginLeavesNoLease(t *testing.T) {
	env := newEnv(t, 4<<10)
	faults := faulty.New(env.Repo.Store)
	env.Repo.Store = faults
	faults.Fail(faulty.Rule{Kind: faulty.List, Prefix: "segments/", Err: errors.New("no listing today")})
	if _, err := Backup(context.Background(), env, BackupOptions{Sources: []block.Source{&disk{name: "disk", data: make([]byte, 1<<20)}}}); err == nil {
		t.Fatal("a backup began without a listing")
	}
	live, _, err := env.Repo.Leases(context.Background())
	if err != nil || len(live) != 0 {
		t.Errorf("leases %v, %v; want none", live, err)
	}
}
