package job

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"platter/block"
	"platter/image"
)

// mounted shows an image in a directory until the function returned is called.
func mounted(t *testing.T, env *Env, opts OfferOptions) (dir string, stop func()) {
	t.Helper()
	if _, err := os.Stat("/dev/fuse"); err != nil || os.Geteuid() != 0 {
		t.Skipf("mounting takes root and FUSE: %v", err)
	}
	dir = t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	ready, done := make(chan MountOffer, 1), make(chan error, 1)
	go func() {
		done <- Mount(ctx, env, MountOptions{OfferOptions: opts, Dir: dir, Ready: func(o MountOffer) { ready <- o }})
	}()
	select {
	case <-ready:
	case err := <-done:
		t.Fatal(err)
	}
	return dir, func() {
		t.Helper()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// filesystemDisk is a disk with one partition, an ext4 that holds one file.
func filesystemDisk(t *testing.T) *disk {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "letter"), bytes.Repeat([]byte("dear reader\n"), 20000), 0o640); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "disk")
	for _, c := range [][]string{
		{"truncate", "-s", "32M", file},
		{"sfdisk", "-q", "--label", "gpt", file},
		{"mke2fs", "-q", "-t", "ext4", "-d", dir, "-E", "offset=1048576", file, "30M"},
	} {
		cmd := exec.CommandContext(t.Context(), c[0], c[1:]...)
		cmd.Stdin = bytes.NewBufferString("start=2048, size=61440, type=linux\n")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", c, err, out)
		}
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	d := &disk{name: "disk", data: data}
	d.table, _ = block.Probe(bytes.NewReader(data), int64(len(data)), 512)
	return d
}

func TestMountedImageIsTheDisk(t *testing.T) {
	env := newEnv(t, 64<<10)
	d := filesystemDisk(t)
	m := mustBackup(t, env, d, BackupOptions{}).Image
	dir, stop := mounted(t, env, OfferOptions{Image: m.ID.String()})
	defer stop()
	whole, err := os.ReadFile(filepath.Join(dir, "disk.raw"))
	if err != nil || !bytes.Equal(whole, d.data) {
		t.Errorf("disk.raw: %d bytes, %v", len(whole), err)
	}
	part, err := os.ReadFile(filepath.Join(dir, "partition-1.raw"))
	if err != nil || !bytes.Equal(part, d.data[1<<20:31<<20]) {
		t.Errorf("partition-1.raw: %d bytes, %v", len(part), err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "info.json"))
	var info image.Manifest
	if err := errors.Join(err, json.Unmarshal(text, &info)); err != nil || info.ID != m.ID {
		t.Errorf("info.json: %v, image %s", err, info.ID)
	}
	for _, name := range []string{"disk.raw", "info.json"} {
		if st, err := os.Stat(filepath.Join(dir, name)); err != nil || st.Mode() != 0o400 {
			t.Errorf("mode of %s: %v, %v", name, st.Mode(), err)
		}
		if _, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY, 0); err == nil {
			t.Errorf("%s opened for writing", name)
		}
	}
	holes(t, filepath.Join(dir, "disk.raw"), d.data)

	at := t.TempDir()
	if out, err := exec.CommandContext(t.Context(), "mount", "-o", "ro,loop", filepath.Join(dir, "partition-1.raw"), at).CombinedOutput(); err != nil {
		t.Fatalf("mount the partition: %v\n%s", err, out)
	}
	defer func() {
		if err := unix.Unmount(at, 0); err != nil {
			t.Error(err)
		}
	}()
	letter, err := os.ReadFile(filepath.Join(at, "letter"))
	if err != nil || !bytes.Equal(letter, bytes.Repeat([]byte("dear reader\n"), 20000)) {
		t.Errorf("the file of the file system: %d bytes, %v", len(letter), err)
	}
}

// holes checks that what lseek calls a hole is zero, and that there are some.
func holes(t *testing.T, path string, want []byte) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var zero int64
	for at := int64(0); at < int64(len(want)); {
		data, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			data = int64(len(want))
		} else if err != nil {
			t.Fatal(err)
		}
		if !image.IsZero(want[at:data]) {
			t.Fatalf("bytes %d to %d are a hole", at, data)
		}
		zero += data - at
		if data == int64(len(want)) {
			break
		}
		if at, err = unix.Seek(int(f.Fd()), data, unix.SEEK_HOLE); err != nil || at <= data {
			t.Fatalf("data at %d ends at %d: %v", data, at, err)
		}
	}
	if zero == 0 {
		t.Error("no holes")
	}
}

func TestMountedOverlayTakesWrites(t *testing.T) {
	env := newEnv(t, 64<<10)
	d := filesystemDisk(t)
	before := bytes.Clone(d.data)
	m := mustBackup(t, env, d, BackupOptions{}).Image
	over := filepath.Join(t.TempDir(), "over")
	for round := range 2 {
		dir, stop := mounted(t, env, OfferOptions{Image: m.ID.String(), Overlay: over})
		at := t.TempDir()
		if out, err := exec.CommandContext(t.Context(), "mount", "-o", "loop", filepath.Join(dir, "partition-1.raw"), at).CombinedOutput(); err != nil {
			t.Fatalf("mount the partition: %v\n%s", err, out)
		}
		answer := filepath.Join(at, "answer")
		if text, err := os.ReadFile(answer); round == 1 && string(text) != "dear writer" {
			t.Errorf("what was written before: %q, %v", text, err)
		}
		err := os.WriteFile(answer, []byte("dear writer"), 0o600)
		if err := errors.Join(err, unix.Unmount(at, 0)); err != nil {
			t.Error(err)
		}
		stop()
	}
	if got := content(t, env, m); !bytes.Equal(got, before) {
		t.Error("the image was written to")
	}
}

func TestMountIsRefused(t *testing.T) {
	env := newEnv(t, 64<<10)
	m := mustBackup(t, env, &disk{name: "disk", data: make([]byte, 1<<20)}, BackupOptions{}).Image
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, at := range []string{dir, filepath.Join(dir, "file"), filepath.Join(dir, "none")} {
		if err := Mount(t.Context(), env, MountOptions{OfferOptions: OfferOptions{Image: m.ID.String()}, Dir: at}); err == nil {
			t.Errorf("mounted on %s", at)
		}
	}
}
