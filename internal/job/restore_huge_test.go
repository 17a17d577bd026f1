package job

import (
	"bytes"
	"context"
	"encoding/binary"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"

	"platter/image"
	"platter/image/repo"
	"platter/image/segment"
	"platter/image/store"
)

// A cold restore of 1 GiB out of a repository of ten million blocks reads the
// segments it needs, and no others, within its memory. The repository takes
// some GiB in the temporary folder and a few minutes to make, so the test runs
// only with PLATTER_TEST_HUGE=1.
func TestColdRestoreFromAHugeRepository(t *testing.T) {
	const bs, blocks, memory = 4 << 10, 10_000_000, 256 << 20
	r := hugeRepository(t, bs)
	filler(t, r, blocks)
	env := envOf(t, r)
	env.Memory = memory
	d := &disk{name: "disk", data: make([]byte, 1<<30)}
	for off := 0; off < len(d.data); off += bs {
		binary.LittleEndian.PutUint64(d.data[off+off/bs%4000:], uint64(off)*0x9E3779B97F4A7C15+1)
	}
	mustBackup(t, env, d, BackupOptions{})
	before := segmentsOf(t, r)

	forgetPeak(t, memory)
	base := resident(t, "VmRSS")
	bare := &Env{Repo: r, Memory: memory, Host: "host"}
	path := filepath.Join(t.TempDir(), "restored")
	start := time.Now()
	report := mustRestore(t, bare, RestoreOptions{Image: "disk", Target: path})
	took := time.Since(start)
	peak := resident(t, "VmHWM") - base
	t.Logf("1 GiB of %d blocks in %d segments: %.1f s, %d segments touched, %d MiB of memory at most",
		blocks, before, took.Seconds(), report.Segments, peak>>20)
	if need := 1<<30/maxSegment + 2; report.Segments > need {
		t.Errorf("touched %d segments, want %d at most", report.Segments, need)
	}
	if peak > memory {
		t.Errorf("took %d MiB of memory, want %d at most", peak>>20, memory>>20)
	}
	if !bytes.Equal(readFile(t, path), d.data) {
		t.Error("the file is not the image")
	}
}

// filler stores segments of 1024 records each whose payloads nobody reads.
func filler(t *testing.T, r *repo.Repo, blocks int) {
	t.Helper()
	const perSegment = 1024
	payload := []byte("filler")
	buf := store.AllocAligned(segment.MinBuffer(perSegment * 128))
	for n := 0; n < blocks; {
		b := r.NewSegment(buf, segment.Data, [16]byte{7})
		for range perSegment {
			id := image.ID{1}
			binary.BigEndian.PutUint64(id[8:], uint64(n)*0x9E3779B97F4A7C15)
			b.Add(segment.Record{ID: id, Plain: 4096, Flags: segment.FlagLZ4}, payload)
			n++
		}
		object, f := b.Seal()
		if err := r.Store.Put(context.Background(), segment.Name(f.ID), object); err != nil {
			t.Fatal(err)
		}
	}
}

func segmentsOf(t *testing.T, r *repo.Repo) (n int) {
	t.Helper()
	err := r.Segments(context.Background(), func(image.SegmentID, int64, time.Time) error { n++; return nil })
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// resident returns a figure of this process in bytes.
func resident(t *testing.T, field string) int64 {
	t.Helper()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(field + `:\s+(\d+) kB`).FindSubmatch(b)
	if m == nil {
		t.Fatalf("no %s in /proc/self/status", field)
	}
	n, err := strconv.ParseInt(string(m[1]), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n << 10
}
