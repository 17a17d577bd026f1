package lines

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

func add(t *testing.T, path, line string) {
	t.Helper()
	f, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Append([]byte(line)); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func texts(t *testing.T, path string) (list []string) {
	t.Helper()
	all, err := Read(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range all {
		list = append(list, string(line))
	}
	return list
}

func TestACutLineIsNeverSeenAndNeverJoined(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "file")
	add(t, path, "one")
	add(t, path, strings.Repeat("2", 200_000))
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{0, 1, 3, 4, 5, 70_000, 200_004, 200_005} {
		if err := os.WriteFile(path, whole[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		want := texts(t, path)
		add(t, path, "next")
		if got := texts(t, path); !slices.Equal(got, append(want, "next")) {
			t.Errorf("cut at %d: got %d lines %.30q, want %.30q and next", n, len(got), got, want)
		}
		if wantLines := bytes.Count(whole[:n], []byte("\n")); len(want) != wantLines {
			t.Errorf("cut at %d: %d lines, want %d", n, len(want), wantLines)
		}
	}
}

func TestFilesAreTheirOwnersAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "file")
	add(t, path, "one")
	f, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Replace([][]byte{[]byte("two")}); err != nil {
		t.Fatal(err)
	}
	if err := f.Append([]byte("three")); err != nil {
		t.Fatal(err)
	}
	if list, err := f.Lines(); err != nil || len(list) != 2 {
		t.Errorf("%q, %v", list, err)
	}
	if err := f.Append([]byte("a\nb")); err == nil {
		t.Error("two lines were taken for one")
	}
	f.Close()
	if got := texts(t, path); !slices.Equal(got, []string{"two", "three"}) {
		t.Errorf("got %q", got)
	}
	for _, p := range []string{path, filepath.Dir(path), path + lockSuffix} {
		info, err := os.Stat(p)
		if err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: %v, %v", p, info.Mode(), err)
		}
	}
}

func TestWritersWaitForEachOther(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	var all sync.WaitGroup
	for w := range 8 {
		all.Go(func() {
			for n := range 10 {
				f, err := Open(path)
				if err != nil {
					t.Error(err)
					return
				}
				if err := f.Append(fmt.Appendf(nil, "%d %d", w, n)); err != nil {
					t.Error(err)
				}
				if n == 5 { // one of them rewrites the file
					list, err := f.Lines()
					if err != nil {
						t.Error(err)
					}
					if err := f.Replace(list); err != nil {
						t.Error(err)
					}
				}
				f.Close()
			}
		})
	}
	all.Wait()
	got := texts(t, path)
	slices.Sort(got)
	if len(slices.Compact(got)) != 80 {
		t.Errorf("%d different lines, want 80", len(got))
	}
}

func TestAFullDiskLeavesTheLinesThere(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	add(t, path, "one")
	f, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	full, err := os.OpenFile("/dev/full", os.O_RDWR, 0)
	if err != nil {
		t.Skip("no /dev/full here")
	}
	defer full.Close()
	good := f.file
	f.file = full
	if err := f.Append([]byte("two")); err == nil || !strings.Contains(err.Error(), "no space") || !strings.Contains(err.Error(), path) {
		t.Errorf("got %v", err)
	}
	f.file = good
	if err := f.Append([]byte("three")); err != nil {
		t.Fatal(err)
	}
	if got := texts(t, path); !slices.Equal(got, []string{"one", "three"}) {
		t.Errorf("got %q", got)
	}
}
