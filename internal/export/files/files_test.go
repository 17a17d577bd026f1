package files

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"platter/block"
	"platter/internal/export/files/tree"
)

// memory is a disk in memory.
type memory []byte

func (m memory) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	return bytes.NewReader(m).ReadAt(p, off)
}

func (m memory) open(content string) (*Filesystem, error) {
	return Open(context.Background(), m, block.Extent{Length: int64(len(m))}, content)
}

func mkfs(t testing.TB, size int64, args ...string) (disk string) {
	t.Helper()
	if _, err := exec.LookPath(args[0]); err != nil {
		t.Skip("SKIPPED: ", err)
	}
	disk = filepath.Join(t.TempDir(), "disk")
	err := errors.Join(os.WriteFile(disk, nil, 0o600), os.Truncate(disk, size))
	if err != nil {
		t.Fatal(err)
	}
	run(t, append(args, disk)...)
	return disk
}

func run(t testing.TB, args ...string) {
	t.Helper()
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", args, err, out)
	}
}

func read(t testing.TB, path string) memory {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// small is a filesystem of ext4 with a few files of each kind.
func small(t testing.TB) memory {
	t.Helper()
	dir := t.TempDir()
	err := os.MkdirAll(filepath.Join(dir, "folder/inner"), 0o755)
	for name, n := range map[string]int{"aa": 1, "folder/bb": 5000, "folder/inner/cc": 100} {
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, name), bytes.Repeat([]byte(name), n), 0o644))
	}
	err = errors.Join(err, os.Symlink("aa", filepath.Join(dir, "li")), os.Link(filepath.Join(dir, "aa"), filepath.Join(dir, "folder/aa")))
	if err != nil {
		t.Fatal(err)
	}
	return read(t, mkfs(t, 1<<20, "mke2fs", "-q", "-t", "ext4", "-b", "1024", "-O", "^has_journal,^metadata_csum", "-d", dir))
}

// entry finds the place of a name in a folder of ext4.
func (m memory) entry(t *testing.T, name string) int {
	t.Helper()
	for at := 6; at < len(m)-len(name); at++ {
		if m[at] == byte(len(name)) && m[at+1] < 8 && string(m[at+2:at+2+len(name)]) == name {
			return at - 6
		}
	}
	t.Fatalf("no folder has %q", name)
	return 0
}

func TestNoNameLeadsOut(t *testing.T) {
	for _, name := range []string{"..", "./", "a/", "/a", "\x00a", "."} {
		disk := small(t)
		at := disk.entry(t, "aa")
		disk[at+6] = byte(len(name))
		copy(disk[at+8:], name)
		f, err := disk.open("ext4")
		if err != nil {
			t.Fatal(err)
		}
		outer := t.TempDir()
		dir := filepath.Join(outer, "to")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		r, err := Copy(t.Context(), f.Root, "", dir, 1<<20)
		if err != nil {
			t.Errorf("%q: %v", name, err)
		}
		hidden := name == "." || name == ".."
		if r.Missing != 1 && !hidden || r.Missing != 0 && hidden || r.Folders != 3 {
			t.Errorf("%q: %+v", name, r)
		}
		if list, err := os.ReadDir(outer); err != nil || len(list) != 1 {
			t.Errorf("%q: %v, %v", name, list, err)
		}
	}
}

func TestFolderInItselfIsLeftOut(t *testing.T) {
	disk := small(t)
	root := disk.entry(t, "folder")
	inner := disk.entry(t, "inner")
	copy(disk[inner:inner+4], disk[root:root+4])
	f, err := disk.open("ext4")
	if err != nil {
		t.Fatal(err)
	}
	r, err := Copy(t.Context(), f.Root, "", t.TempDir(), 1<<20)
	if err != nil || r.Missing != 1 || !strings.Contains(r.Failed[0], "twice") {
		t.Errorf("%v, %+v", err, r)
	}
}

func TestWhatIsThereIsKept(t *testing.T) {
	f, err := small(t).open("ext4")
	if err != nil {
		t.Fatal(err)
	}
	dir, elsewhere := t.TempDir(), t.TempDir()
	err = errors.Join(os.Symlink(elsewhere, filepath.Join(dir, "folder")), os.Symlink(filepath.Join(elsewhere, "new"), filepath.Join(dir, "aa")),
		os.WriteFile(filepath.Join(dir, "li"), []byte("mine"), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	r, err := Copy(t.Context(), f.Root, "", dir, 1<<20)
	if err != nil || r.Missing != 3 || !errors.Is(r.Err, fs.ErrExist) {
		t.Errorf("%v, %+v", err, r)
	}
	if list, err := os.ReadDir(elsewhere); err != nil || len(list) > 0 {
		t.Errorf("a symbolic link was followed: %v, %v", list, err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "li")); string(b) != "mine" {
		t.Errorf("a file was overwritten: %q, %v", b, err)
	}
}

func TestMemoryIsBounded(t *testing.T) {
	f, err := small(t).open("ext4")
	if err != nil {
		t.Fatal(err)
	}
	err = List(t.Context(), f.Root, "", true, 500, func(Line) error { return nil })
	if err == nil || !strings.Contains(err.Error(), "--memory") {
		t.Errorf("%v", err)
	}
}

func TestLinksLeadNowhereElse(t *testing.T) {
	dir := t.TempDir()
	err := errors.Join(os.MkdirAll(filepath.Join(dir, "usr/bin"), 0o755), os.WriteFile(filepath.Join(dir, "usr/bin/sh"), []byte("shell"), 0o755),
		os.Symlink("usr/bin", filepath.Join(dir, "bin")), os.Symlink("/bin/sh", filepath.Join(dir, "usr/absolute")),
		os.Symlink("../../../../bin/sh", filepath.Join(dir, "usr/up")), os.Symlink("loop", filepath.Join(dir, "loop")))
	if err != nil {
		t.Fatal(err)
	}
	f, err := read(t, mkfs(t, 2<<20, "mke2fs", "-q", "-t", "ext4", "-d", dir)).open("ext4")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/bin/sh", "usr/absolute", "/usr/up", "/usr/../usr/./bin//sh", "/../bin/../../usr/bin/sh"} {
		found, err := Find(t.Context(), f.Root, path, true)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		var b bytes.Buffer
		if _, err := Print(t.Context(), found[len(found)-1], &b); err != nil || b.String() != "shell" {
			t.Errorf("%s: %q, %v", path, b.String(), err)
		}
	}
	for _, path := range []string{"/loop", "/loop/x", "/usr/none", "/usr/bin/sh/x"} {
		if _, err := Find(t.Context(), f.Root, path, true); err == nil {
			t.Errorf("%s: found", path)
		}
	}
}

// TestDamagedFilesystemsEnd flips bytes of a filesystem and copies all of it:
// whatever comes, it ends, and stays in its folder.
func TestDamagedFilesystemsEnd(t *testing.T) {
	good := map[string]memory{"ext4": small(t), "vfat": fatDisk(t, "12", 1<<20)}
	seed := uint64(time.Now().UnixNano())
	random := rand.New(rand.NewPCG(seed, 0))
	for content, disk := range good {
		used := notZero(disk)
		for range 100 {
			bad := bytes.Clone(disk)
			for range 1 + random.IntN(8) {
				at := used[random.IntN(len(used))]
				switch random.IntN(3) {
				case 0:
					bad[at] ^= 1 << random.IntN(8)
				case 1:
					bad[at] = byte(random.Uint32())
				default:
					binary.LittleEndian.PutUint32(bad[at&^3:], random.Uint32())
				}
			}
			outer := t.TempDir()
			dir := filepath.Join(outer, "to")
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			f, err := memory(bad).open(content)
			if err != nil {
				continue
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			_, err = Copy(ctx, f.Root, "", dir, 1<<20)
			if _, tarErr := Tar(ctx, f.Root, "", limited{n: 64 << 20}, 1<<20); errors.Is(errors.Join(err, tarErr), context.DeadlineExceeded) {
				t.Fatalf("seed %d: %s: no end", seed, content)
			}
			cancel()
			if list, err := os.ReadDir(outer); err != nil || len(list) != 1 {
				t.Fatalf("seed %d: %v, %v", seed, list, err)
			}
			_ = os.RemoveAll(outer)
		}
	}
}

// limited takes no more than n bytes: sizes are what the disk claims.
type limited struct{ n int }

func (l limited) Write(p []byte) (int, error) {
	if len(p) > l.n {
		return 0, io.ErrShortWrite
	}
	return len(p), nil
}

// notZero are the places of a disk that are not zero.
func notZero(disk memory) (list []int) {
	for i, b := range disk {
		if b != 0 && i < len(disk)-4 {
			list = append(list, i)
		}
	}
	return list
}

// fatDisk is a filesystem of FAT with long and short names, fragments and a full
// cluster of names.
func fatDisk(t testing.TB, bits string, size int64) memory {
	t.Helper()
	disk := mkfs(t, size, "mkfs.vfat", "-F", bits, "-s", "1")
	dir := fatFiles(t)
	if _, err := exec.LookPath("mcopy"); err != nil {
		t.Skip("SKIPPED: ", err)
	}
	t.Setenv("MTOOLS_SKIP_CHECK", "1")
	t.Setenv("TZ", "UTC")
	run(t, "mcopy", "-i", disk, filepath.Join(dir, "hole"), "::first")
	run(t, "mcopy", "-i", disk, filepath.Join(dir, "hole"), "::second")
	run(t, "mdel", "-i", disk, "::first")
	list, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	run(t, append(append([]string{"mcopy", "-s", "-m", "-i", disk}, list...), "::")...)
	run(t, "mdel", "-i", disk, "::second")
	return read(t, disk)
}

func fatFiles(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	err := os.MkdirAll(filepath.Join(dir, "EFI/a folder with a long name/x"), 0o755)
	write := func(name string, n int) {
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, name), bytes.Repeat([]byte(name), n), 0o644))
	}
	write("hole", 1000)
	write("UPPER.TXT", 1)
	write("lower.txt", 1)
	write("Mixed Case and a name that takes several entries.conf", 700)
	write("empty", 0)
	write("grün ☃", 3)
	for i := range 40 {
		write("EFI/a folder with a long name/a file with a longer name"+strings.Repeat("n", i), 5)
	}
	write("EFI/a folder with a long name/x/big", 20000)
	when := time.Date(2024, 2, 29, 13, 14, 16, 0, time.UTC)
	err = errors.Join(err, os.Chtimes(filepath.Join(dir, "hole"), when, when))
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestFATIsWhatMtoolsWrote(t *testing.T) {
	for bits, size := range map[string]int64{"12": 1 << 20, "16": 16 << 20, "32": 40 << 20} {
		f, err := fatDisk(t, bits, size).open("vfat")
		if err != nil {
			t.Fatal(err)
		}
		dir, want := t.TempDir(), fatFiles(t)
		if r, err := Copy(t.Context(), f.Root, "", dir, 1<<20); err != nil || r.Missing > 0 {
			t.Errorf("FAT%s: %v, %+v", bits, err, r)
		}
		run(t, "diff", "-r", want, dir)
		st, err := os.Stat(filepath.Join(dir, "hole"))
		if err != nil || !st.ModTime().Equal(time.Date(2024, 2, 29, 13, 14, 16, 0, time.UTC)) {
			t.Errorf("FAT%s: time %v, %v", bits, st.ModTime(), err)
		}
	}
}

func TestJournalNeedsTheKernel(t *testing.T) {
	disk := small(t)
	disk[1024+96] |= 4
	if _, err := disk.open("ext4"); !errors.Is(err, tree.ErrNeedsKernel) {
		t.Errorf("%v", err)
	}
	if _, err := disk.open("xfs"); !errors.Is(err, tree.ErrNeedsKernel) {
		t.Errorf("%v", err)
	}
}
