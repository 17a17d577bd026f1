package fat

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("NOT TESTED: %s is not installed", name)
	}
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// filled makes a filesystem with files of many sizes, folders and long names,
// and returns what is in it.
func filled(t *testing.T, size int64, args ...string) (file string, want map[string][]byte) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "fat")
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, size)); err != nil {
		t.Fatal(err)
	}
	run(t, "mkfs.vfat", append(args, "-n", "ESP", "-i", "1234abcd", file)...)
	rng := rand.New(rand.NewPCG(uint64(size), 1))
	want = map[string][]byte{}
	for i, n := range []int{0, 1, 511, 512, 4095, 4096, 4097, 70_000, 300_000} {
		dir := []string{"", "EFI/BOOT", "EFI/debian", "loader/a folder with a long name"}[i%4]
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		want[filepath.Join(dir, fmt.Sprintf("a file of %d bytes.efi", n))] = b
	}
	for i := range 150 { // the folder takes several clusters
		name := fmt.Sprintf("loader/entry-%d-of-many.conf", i)
		want[name] = []byte(name)
	}
	tree := t.TempDir()
	for name, b := range want {
		if err := errors.Join(os.MkdirAll(filepath.Join(tree, filepath.Dir(name)), 0o700), os.WriteFile(filepath.Join(tree, name), b, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	entries, err := filepath.Glob(filepath.Join(tree, "*"))
	if err != nil {
		t.Fatal(err)
	}
	run(t, "mcopy", append(append([]string{"-s", "-i", file}, entries...), "::/")...)
	// Room in between, so that what comes next lies in pieces.
	put(t, file, "gap", make([]byte, 30_000))
	put(t, file, "EFI/after", []byte("after"))
	run(t, "mdel", "-i", file, "::/gap")
	put(t, file, "EFI/in pieces", bytes.Repeat([]byte("pieces"), 20_000))
	want["EFI/after"], want["EFI/in pieces"] = []byte("after"), bytes.Repeat([]byte("pieces"), 20_000)
	return file, want
}

func put(t *testing.T, file, name string, b []byte) {
	t.Helper()
	from := filepath.Join(t.TempDir(), "from")
	if err := os.WriteFile(from, b, 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "mcopy", "-i", file, from, "::/"+name)
}

func TestLaidOutAnewItHoldsTheSameFiles(t *testing.T) {
	for _, c := range []struct {
		size   int64
		args   []string
		sector int
		bits   int64
	}{
		{8 << 20, []string{"-F", "12", "-s", "8"}, 4096, 12},
		{33 << 20, []string{"-F", "32", "-s", "1"}, 4096, 16},
		{64<<20 + 512, []string{"-F", "16"}, 4096, 16},
		{100 << 20, []string{"-F", "32", "-s", "1"}, 4096, 16},
		{300 << 20, []string{"-F", "32"}, 4096, 32},
		{300 << 20, []string{"-F", "32", "-S", "4096", "-s", "1"}, 512, 32},
		{40 << 20, []string{"-F", "16", "-S", "4096", "-s", "1"}, 512, 16},
		{260 << 20, []string{"-F", "32", "-s", "1"}, 4096, 32}, // few clusters more than FAT32 must have
		{15 << 20, []string{"-F", "16", "-s", "2"}, 4096, 12},
	} {
		t.Run(fmt.Sprint(c), func(t *testing.T) {
			if testing.Short() && c.size > 100<<20 {
				t.Skip("short")
			}
			file, want := filled(t, c.size, c.args...)
			old, err := os.Open(file)
			if err != nil {
				t.Fatal(err)
			}
			defer old.Close()
			l, err := Plan(old, 0, c.size, c.sector)
			if err != nil || l.Bits != c.bits {
				t.Fatalf("FAT%d, %v, want FAT%d", l.Bits, err, c.bits)
			}
			file = filepath.Join(t.TempDir(), "new")
			f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE, 0o600)
			if err == nil {
				err = errors.Join(f.Truncate(c.size), l.Write(t.Context(), old, f), f.Close())
			}
			if err != nil {
				t.Fatal(err)
			}
			t.Log(run(t, "fsck.vfat", "-n", "-v", file))
			holds(t, file, want)
			if out := run(t, "blkid", "-p", "-o", "full", file); !bytes.Contains([]byte(out), []byte(`UUID="1234-ABCD"`)) || !bytes.Contains([]byte(out), []byte(`LABEL="ESP"`)) {
				t.Errorf("label or ID is another: %s", out)
			}
		})
	}
}

// holds copies all out, and compares.
func holds(t *testing.T, file string, want map[string][]byte) {
	t.Helper()
	dir := t.TempDir()
	run(t, "mcopy", "-s", "-n", "-i", file, "::/", dir)
	n := 0
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		n++
		name, _ := filepath.Rel(dir, path)
		got, err := os.ReadFile(path)
		if !bytes.Equal(got, want[name]) {
			t.Errorf("%s: %d bytes are not what was written", name, len(got))
		}
		return err
	})
	if err != nil || n != len(want) {
		t.Errorf("%d files, %v, want %d", n, err, len(want))
	}
}

// Whatever is read, planning ends, and writing stays inside.
func TestHostileFilesystemsAreRefusedOrConverted(t *testing.T) {
	file, _ := filled(t, 8<<20, "-F", "12", "-s", "8")
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(7, 7))
	rounds := 400
	switch {
	case testing.Short():
		rounds = 40
	case os.Getenv("PLATTER_TEST_LONG") != "":
		rounds = 10_000
	}
	for n := range rounds {
		b := bytes.Clone(good)
		for range 1 + rng.IntN(4) {
			at := rng.IntN(90)
			if rng.IntN(2) == 0 {
				at = rng.IntN(200 << 10)
			}
			b[at] = byte(rng.Uint32())
		}
		l, err := Plan(bytes.NewReader(b), 0, int64(len(b)), 4096)
		if err != nil {
			continue
		}
		w := &fence{size: int64(len(b))}
		if err := l.Write(t.Context(), bytes.NewReader(b), w); err != nil || w.out {
			t.Fatalf("round %d: %v, wrote outside: %v", n, err, w.out)
		}
	}
}

type fence struct {
	size int64
	out  bool
}

func (f *fence) WriteAt(p []byte, off int64) (int, error) {
	f.out = f.out || off < 0 || off+int64(len(p)) > f.size
	return len(p), nil
}

func TestWhatDoesNotFitIsRefused(t *testing.T) {
	file := filepath.Join(t.TempDir(), "fat")
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, 4<<20)); err != nil {
		t.Fatal(err)
	}
	run(t, "mkfs.vfat", "-F", "12", "-s", "2", "-r", "2048", file)
	var small []string // one cluster of 4096 each: more than there are
	dir := t.TempDir()
	for i := range 1100 {
		small = append(small, filepath.Join(dir, fmt.Sprintf("s%d", i)))
		if err := os.WriteFile(small[i], []byte("small"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	run(t, "mcopy", append(append([]string{"-i", file}, small...), "::/")...)
	old, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Plan(bytes.NewReader(old), 0, 4<<20, 4096); !errors.Is(err, ErrUnfit) {
		t.Errorf("got %v, want %v", err, ErrUnfit)
	}
}
