package disk

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"platter/vmtests/debian"
	"platter/vmtests/loop"
	"platter/vmtests/qemu"
)

// cache is the folder that the Makefile and CI fill too.
func cache(t *testing.T) string {
	t.Helper()
	dir, err := debian.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

var letters = map[string][]byte{"letters/one.txt": []byte("Dear reader,\n"), "two.bin": make([]byte, 100_000)}

func newDisk(t *testing.T, data string) *Disk {
	t.Helper()
	d, err := Build(t.Context(), Spec{Path: filepath.Join(t.TempDir(), "disk.raw"), Cache: cache(t), Data: data, Files: letters})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// boot starts a copy of the disk and returns what it said.
func boot(t *testing.T, path string, fw qemu.Firmware) string {
	t.Helper()
	b, err := qemu.Machine{Disk: path, Firmware: fw}.Login(t.Context(), 3*time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if b.Prompt != HostName+" login:" {
		t.Errorf("prompt %q, want that of %s", b.Prompt, HostName)
	}
	t.Logf("%s: %s after %v", fw, b.Prompt, b.Elapsed)
	return b.Serial
}

func TestDiskBootsByBothFirmwares(t *testing.T) {
	if testing.Short() {
		t.Skip("boots two machines")
	}
	for data, fw := range map[string]qemu.Firmware{"xfs": qemu.BIOS, "btrfs": qemu.UEFI} {
		d := newDisk(t, data)
		if err := d.Verify(t.Context(), d.Path); err != nil {
			t.Error(err)
		}
		serial := boot(t, d.Path, fw)
		for _, want := range []string{"mounted: data", "mounted: ESP", "swap: on", "proof: 2 files as they should be"} {
			if !strings.Contains(serial, want) {
				t.Errorf("%s by %s: serial port lacks %q:\n%s", data, fw, want, serial)
			}
		}
	}
}

func TestChangeWritesIntoTheFile(t *testing.T) {
	d := newDisk(t, "xfs")
	changes := []Change{
		{Root, "srv/new", []byte("new\n")},
		{Root, "etc/issue", []byte("replaced\n")},
		{Root, "etc/hostname", nil},
		{ESP, "note.txt", []byte("on the ESP\n")},
	}
	if err := d.Change(t.Context(), nil, changes); err != nil {
		t.Fatal(err)
	}
	if err := d.Verify(t.Context(), d.Path); err != nil {
		t.Error(err)
	}
	if err := d.Change(t.Context(), nil, []Change{{Data, "x", []byte("x")}}); err == nil {
		t.Error("changing XFS inside a file succeeded, want an error")
	}
}

func TestChangeByLoopDevice(t *testing.T) {
	if why := loop.Unavailable(t.Context()); why != "" {
		t.Skip("no loop devices: " + why)
	}
	d := newDisk(t, "xfs")
	dev, err := loop.Attach(t.Context(), d.Path, loop.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := dev.Detach(); err != nil {
			t.Error(err)
		}
	}()
	changes := []Change{{Root, "srv/new", []byte("new\n")}, {Root, "etc/hostname", nil}, {ESP, "note.txt", []byte("on the ESP\n")}}
	if CanMount("xfs") {
		changes = append(changes, Change{Data, "letters/one.txt", []byte("Dear other reader,\n")})
	}
	if err := d.Change(t.Context(), dev, changes); err != nil {
		t.Fatal(err)
	}
	if err := d.Verify(t.Context(), dev.Path); err != nil {
		t.Error(err)
	}
}
