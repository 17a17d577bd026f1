package block

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

func opened(t *testing.T, path string) *source {
	t.Helper()
	src, err := Open(path, OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { src.Close() })
	return src.(*source)
}

func TestMomentOfAFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if name, ok := opened(t, path).Moment(); ok {
		t.Errorf("a file written to just now: %s", name)
	}
	later := time.Now().Add(2 * settled)
	first, ok := opened(t, path).fileMoment(later)
	if again, same := opened(t, path).fileMoment(later); !ok || !same || again != first {
		t.Errorf("got %q, %v, then %q, %v", first, ok, again, same)
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte{1}, 5000); err != nil {
		t.Fatal(err)
	}
	// That its times are set back does not hide it.
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(path, old, old); err != nil {
		t.Fatal(err)
	}
	if second, _ := opened(t, path).fileMoment(later); second == first {
		t.Errorf("written to, and still %q", first)
	}
	if name, ok := opened(t, path).Moment(); ok {
		t.Errorf("a file changed just now: %s", name)
	}
}

func TestMomentOfADevice(t *testing.T) {
	dev, _ := loopDisk(t, 4<<20, 512)
	first, ok := opened(t, dev).Moment()
	if again, same := opened(t, dev).Moment(); !ok || !same || again != first {
		t.Fatalf("got %q, %v, then %q, %v", first, ok, again, same)
	}
	f, err := os.OpenFile(dev, os.O_WRONLY|os.O_SYNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(make([]byte, 4096), 8192); err != nil {
		t.Fatal(err)
	}
	if second, _ := opened(t, dev).Moment(); second == first {
		t.Errorf("written to, and still %q", first)
	}
}
