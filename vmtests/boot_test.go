package vmtests

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"platter/vmtests/debian"
	"platter/vmtests/disk"
	"platter/vmtests/loop"
	"platter/vmtests/qemu"
)

// build makes a small disk that boots.
func build(t *testing.T, data string) *disk.Disk {
	t.Helper()
	cache, err := debian.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	d, err := disk.Build(t.Context(), disk.Spec{
		Path: filepath.Join(t.TempDir(), "server.raw"), Cache: cache, Data: data,
		Files: map[string][]byte{"letters/one.txt": []byte("Dear reader,\n"), "zeros": make([]byte, mib)},
	})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// long reports whether the suites run at full length.
func long() bool { return os.Getenv("PLATTER_TEST_LONG") != "" }

// A restored disk starts, on the firmware of old machines and of new ones, and
// its files are what they were. The everyday run starts one machine.
func TestRestoredDiskBoots(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a machine")
	}
	d := build(t, "xfs")
	r := newRepo(t)
	r.backup(d.Path, "test/server")
	// A larger disk where there are loop devices; a file ends at the image's size.
	restored := sparse(t, 1<<30)
	target := restored
	if loop.Unavailable(t.Context()) == "" {
		target = attach(t, restored, loop.Options{}).Path
	}
	r.run("restore", "test/server", target, "--yes")
	if err := d.Verify(t.Context(), target); err != nil {
		t.Error(err)
	}
	// The image itself starts too, by the other firmware, with nothing restored.
	if what := qemu.Missing(qemu.BIOS); what != "" {
		t.Skip("needs the package " + what)
	}
	r.run("boot", "test/server", "--firmware", "bios", "--emulate", "--timeout", "3m")
	firmwares := []qemu.Firmware{qemu.UEFI}
	if long() {
		firmwares = append(firmwares, qemu.BIOS)
	}
	for _, fw := range firmwares {
		if what := qemu.Missing(fw); what != "" {
			t.Skip("needs the package " + what)
		}
		b, err := qemu.Machine{Disk: restored, Firmware: fw, CPUs: 2}.Login(t.Context(), 3*time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %s after %v", fw, b.Prompt, b.Elapsed)
		if !strings.Contains(b.Serial, "proof: 2 files as they should be") {
			t.Errorf("%s: the guest does not vouch for its files:\n%s", fw, b.Serial)
		}
	}
}
