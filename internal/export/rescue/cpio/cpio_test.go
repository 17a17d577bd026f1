package cpio

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

func TestArchiveEndsInATrailerAndIsPadded(t *testing.T) {
	var b bytes.Buffer
	for n := range 9 {
		b.Reset()
		if err := Write(&b, []Entry{{Name: "f", Mode: File | 0o644, Body: make([]byte, n)}}); err != nil {
			t.Fatal(err)
		}
		if b.Len()%4 != 0 || !bytes.Contains(b.Bytes(), []byte("TRAILER!!!\x00")) {
			t.Errorf("body of %d bytes: archive of %d bytes, want a multiple of 4 with a trailer", n, b.Len())
		}
	}
}

// GNU cpio is the second opinion where it is installed.
func TestCpioReadsTheArchive(t *testing.T) {
	if _, err := exec.LookPath("cpio"); err != nil {
		t.Skip("needs the package cpio")
	}
	var b bytes.Buffer
	err := Write(&b, []Entry{
		{Name: "d", Mode: Dir | 0o755},
		{Name: "d/file", Mode: File | 0o600, Body: []byte("hello")},
		{Name: "link", Mode: Link | 0o777, Body: []byte("d/file")},
	})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cmd := exec.Command("cpio", "-i", "--quiet", "--no-absolute-filenames")
	cmd.Dir, cmd.Stdin = dir, &b
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cpio: %v: %s", err, out)
	}
	got, err := os.ReadFile(filepath.Join(dir, "link"))
	if err != nil || string(got) != "hello" {
		t.Errorf("read by the link: %q, %v, want hello", got, err)
	}
}
