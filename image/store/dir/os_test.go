package dir_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"platter/image/store"
	"platter/image/store/dir"
	"platter/image/store/storetest"
	"platter/image/store/vfs"
)

func create(t testing.TB, path string) *dir.Store {
	t.Helper()
	s, err := dir.Create(path, vfs.OS())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

func TestOpenWantsADirectory(t *testing.T) {
	tmp := t.TempDir()
	if _, err := dir.Open(tmp+"/missing", vfs.OS()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing: got %v, want ErrNotExist", err)
	}
	if err := os.WriteFile(tmp+"/file", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, open := range map[string]func(string, vfs.FS) (*dir.Store, error){"open": dir.Open, "create": dir.Create} {
		if _, err := open(tmp+"/file", vfs.OS()); !errors.Is(err, syscall.ENOTDIR) {
			t.Errorf("%s a file: got %v, want ENOTDIR", name, err)
		}
	}
	if err := os.Symlink(tmp, tmp+"/link"); err != nil {
		t.Fatal(err)
	}
	s, err := dir.Open(tmp+"/link", vfs.OS())
	if err != nil {
		t.Fatalf("through a link: %v", err)
	}
	if err := s.Put(t.Context(), "a/b", []byte("x")); err != nil {
		t.Errorf("through a link: %v", err)
	}
	if _, err := os.Stat(tmp + "/a/b"); err != nil {
		t.Error(err)
	}
}

func TestCreateKeepsWhatIsThere(t *testing.T) {
	path := t.TempDir() + "/x/y"
	if err := create(t, path).Put(t.Context(), "a", []byte("a")); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o750); err != nil {
		t.Fatal(err)
	}
	got, err := create(t, path).Get(t.Context(), "a", 10)
	if err != nil || string(got) != "a" {
		t.Errorf("got %q, %v", got, err)
	}
	if st, _ := os.Stat(path); st.Mode().Perm() != 0o750 {
		t.Errorf("mode changed to %v", st.Mode())
	}
}

func TestSymlinksRefused(t *testing.T) {
	outside, root := t.TempDir(), t.TempDir()
	if err := os.WriteFile(outside+"/secret", []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := create(t, root)
	if err := errors.Join(os.Symlink(outside+"/secret", root+"/file"), os.Symlink(outside, root+"/dir")); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	for _, name := range []string{"file", "dir/secret"} {
		if got, err := s.Get(ctx, name, 100); err == nil {
			t.Errorf("get %s: got %q", name, got)
		}
		if err := s.ReadAt(ctx, name, make([]byte, 1), 0); err == nil {
			t.Errorf("read %s: no error", name)
		}
		if _, err := s.Head(ctx, name); err == nil {
			t.Errorf("head %s: no error", name)
		}
		if err := s.Delete(ctx, name); err == nil {
			t.Errorf("delete %s: no error", name)
		}
	}
	if err := s.Put(ctx, "dir/new", []byte("x")); err == nil {
		t.Errorf("put through a link: no error")
	}
	for _, prefix := range []string{"", "dir/"} {
		if err := s.List(ctx, prefix, func(store.Info) error { return nil }); err == nil {
			t.Errorf("list %q: no error", prefix)
		}
	}
	if list, err := os.ReadDir(outside); err != nil || len(list) != 1 {
		t.Errorf("the directory behind the link was changed: %v, %v", list, err)
	}
}

func TestForeignFilesPassedOver(t *testing.T) {
	root := t.TempDir()
	s := create(t, root)
	if err := s.Put(t.Context(), "a/b", nil); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{".hidden", "README.txt", "a/.tmp-1234", "a/Notes"} {
		if err := os.WriteFile(filepath.Join(root, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(root+"/lost+found/a", 0o700); err != nil {
		t.Fatal(err)
	}
	if got := list(t, s); len(got) != 1 || got[0] != "a/b" {
		t.Errorf("listed %q, want a/b", got)
	}
}

func TestRemoveTempsByAge(t *testing.T) {
	root := t.TempDir()
	s := create(t, root)
	if err := s.Put(t.Context(), "a/b/c", nil); err != nil {
		t.Fatal(err)
	}
	for name, age := range map[string]time.Duration{
		".tmp-old": 25 * time.Hour, "a/b/.tmp-old": 25 * time.Hour, "a/b/.tmp-new": 23 * time.Hour, "a/b/.other": 25 * time.Hour,
	} {
		path, at := filepath.Join(root, name), time.Now().Add(-age)
		if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Chtimes(path, at, at)); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []int{2, 0} {
		if n, err := s.RemoveTemps(t.Context(), 24*time.Hour); n != want || err != nil {
			t.Errorf("removed %d, %v, want %d", n, err, want)
		}
	}
	for name, there := range map[string]bool{".tmp-old": false, "a/b/.tmp-old": false, "a/b/.tmp-new": true, "a/b/.other": true, "a/b/c": true} {
		if _, err := os.Stat(filepath.Join(root, name)); (err == nil) != there {
			t.Errorf("%s is there: %v, want %v", name, err == nil, there)
		}
	}
}

func TestFilesStayWithinBounds(t *testing.T) {
	s := create(t, t.TempDir())
	const objects = 200
	for i := range objects {
		if err := s.Put(t.Context(), fmt.Sprint(i), []byte{byte(i)}); err != nil {
			t.Fatal(err)
		}
	}
	before := openFiles(t)
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range 2 * objects {
				p, n := make([]byte, 1), (i*7+w*50)%objects
				if err := s.ReadAt(t.Context(), fmt.Sprint(n), p, 0); err != nil || p[0] != byte(n) {
					t.Errorf("read %d: %v, %v", n, p, err)
				}
			}
		})
	}
	wg.Wait()
	if got := openFiles(t) - before; got > 64 {
		t.Errorf("%d files left open, want at most 64", got)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if got := openFiles(t) - before; got > 0 {
		t.Errorf("%d files left open after Close", got)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// A disk that is really full: the store says so, leaves nothing behind, can
// still tell the time and delete, and goes on when there is space.
func TestReallyFullDisk(t *testing.T) {
	root := smallDisk(t, 24)
	s := create(t, root+"/repo")
	ctx, size := t.Context(), 3<<20
	names, err := fillUp(t, s, size)
	if !errors.Is(err, store.ErrFull) || !strings.Contains(err.Error(), root) {
		t.Fatalf("put on a full disk: got %v, want ErrFull naming %s", err, root)
	}
	if err := s.Put(ctx, "small/one", storetest.Bytes(1, size)[1:]); !errors.Is(err, store.ErrFull) {
		t.Errorf("buffered put on a full disk: got %v, want ErrFull", err)
	}
	if n, err := s.RemoveTemps(ctx, -time.Hour); n != 0 || err != nil {
		t.Errorf("%d unfinished objects left, %v", n, err)
	}
	if _, err := s.Now(ctx); err != nil {
		t.Errorf("clock: %v", err)
	}
	for i, name := range names {
		got, err := s.Get(ctx, name, 1<<30)
		if err != nil || !bytes.Equal(got, storetest.Bytes(uint64(i), size)) {
			t.Errorf("%s is not what was put: %v", name, err)
		}
	}
	if err := s.Delete(ctx, names[0]); err != nil {
		t.Fatalf("delete on a full disk: %v", err)
	}
	if err := s.Put(ctx, "again", storetest.Bytes(0, size)); err != nil {
		t.Errorf("put once there is space: %v", err)
	}
}

func fillUp(t *testing.T, s *dir.Store, size int) (names []string, err error) {
	for i := range 100 {
		name := fmt.Sprintf("full/%d", i)
		if err := s.Put(t.Context(), name, storetest.Bytes(uint64(i), size)); err != nil {
			return names, err
		}
		names = append(names, name)
	}
	return names, nil
}

// smallDisk mounts an ext4 of so many MiB and returns where.
func smallDisk(t *testing.T, mib int64) string {
	t.Helper()
	tmp := t.TempDir()
	image, at := tmp+"/disk.img", tmp+"/mnt"
	err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, mib<<20), os.Mkdir(at, 0o700))
	if err != nil {
		t.Fatal(err)
	}
	run := func(name string, args ...string) error {
		out, err := exec.Command(name, args...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s: %w: %s", name, err, out)
		}
		return nil
	}
	if err := run("mkfs.ext4", "-q", "-O", "^has_journal", image); err != nil {
		t.Skipf("SKIP: %v", err)
	}
	if err := run("mount", "-o", "loop", image, at); err != nil {
		t.Skipf("SKIP: %v (needs root and loop devices)", err)
	}
	t.Cleanup(func() {
		if err := run("umount", at); err != nil { // detaches the loop device too
			t.Error(err)
		}
	})
	return at
}

func BenchmarkPut64MiB(b *testing.B) {
	s, p := create(b, b.TempDir()), storetest.Bytes(1, 64<<20)
	b.SetBytes(int64(len(p)))
	i := 0
	for b.Loop() {
		name := fmt.Sprintf("segments/%d", i)
		if err := s.Put(b.Context(), name, p); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if i++; i > 8 {
			if err := s.Delete(b.Context(), fmt.Sprintf("segments/%d", i-8)); err != nil {
				b.Fatal(err)
			}
		}
		b.StartTimer()
	}
}

func BenchmarkPutSmall(b *testing.B) {
	s, p, i := create(b, b.TempDir()), storetest.Bytes(1, 1000), 0
	for b.Loop() {
		if err := s.Put(b.Context(), fmt.Sprintf("leases/%d", i), p); err != nil {
			b.Fatal(err)
		}
		i++
	}
}

func BenchmarkReadAt1MiB(b *testing.B) {
	s := create(b, b.TempDir())
	const size = 64 << 20
	for i := range 4 {
		if err := s.Put(b.Context(), fmt.Sprint(i), storetest.Bytes(1, size)); err != nil {
			b.Fatal(err)
		}
	}
	for _, bm := range []struct {
		name       string
		skew, size int
	}{{"aligned", 0, 1 << 20}, {"unaligned", 100, 1 << 20}, {"64KiB", 100, 64 << 10}} {
		b.Run(bm.name, func(b *testing.B) {
			p, i := store.AllocAligned(bm.size), 0
			b.SetBytes(int64(len(p)))
			for b.Loop() {
				off := int64(i/4*len(p)%(size-2*len(p)) + bm.skew)
				if err := s.ReadAt(b.Context(), fmt.Sprint(i%4), p, off); err != nil {
					b.Fatal(err)
				}
				i++
			}
		})
	}
}
