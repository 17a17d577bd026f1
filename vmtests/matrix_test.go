package vmtests

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"platter/vmtests/debian"
	"platter/vmtests/disk"
	"platter/vmtests/loop"
	"platter/vmtests/qemu"
)

// A cell is a system, and a blank disk that its image is restored to.
type cell struct {
	loader disk.Loader
	root   string
	bus    string // of the disk; with "4Kn" it is an NVMe of such sectors
	size   string // of the disk: same, larger or just fits
	// refused is why the image cannot be on that disk; empty if it starts from it.
	refused string
	daily   bool // it is tried in campaigns too
}

// What roots are.
const (
	ext4  = "ext4"
	xfs   = "xfs"
	btrfs = "btrfs"
	lvm   = string(disk.LVM)
	luks  = string(disk.LUKS)
)

const (
	same   = "same"
	larger = "larger"
	fits   = "just fits"
)

// Reasons.
const (
	noBIOS = "starts by a BIOS"
	noXFS  = "is xfs, which was made for sectors of 512"
)

// matrix has each pair of a loader, a root, a bus and a size that can be together.
var matrix = []cell{
	{disk.GRUBForBIOS, ext4, "virtio", larger, "", false},
	{disk.GRUBForBIOS, ext4, "nvme", larger, "", false},
	{disk.GRUBForBIOS, xfs, "sata", same, "", false},
	{disk.GRUBForBIOS, btrfs, "virtio", fits, "", false},
	{disk.GRUBForBIOS, btrfs, "sata", fits, "", false},
	{disk.GRUBForBIOS, lvm, "virtio", same, "", false},
	{disk.GRUBForBIOS, lvm, "nvme", fits, "", true},
	{disk.GRUBForBIOS, luks, "sata", same, "", false},
	{disk.GRUBForBIOS, luks, "nvme", same, "", false},
	{disk.GRUBForBIOS, ext4, "4Kn", fits, noBIOS, false},
	{disk.GRUBForBIOS, lvm, "4Kn", larger, noBIOS, true},
	{disk.GRUBForUEFI, ext4, "4Kn", same, "", false},
	{disk.GRUBForUEFI, xfs, "nvme", fits, "", false},
	{disk.GRUBForUEFI, xfs, "4Kn", same, noXFS, false},
	{disk.GRUBForUEFI, btrfs, "4Kn", larger, "", false},
	{disk.GRUBForUEFI, lvm, "sata", larger, "", false},
	{disk.GRUBForUEFI, lvm, "nvme", larger, "", false},
	{disk.GRUBForUEFI, luks, "virtio", fits, "", false},
	{disk.SystemdBoot, ext4, "sata", fits, "", false},
	{disk.SystemdBoot, xfs, "virtio", larger, "", false},
	{disk.SystemdBoot, btrfs, "nvme", same, "", false},
	{disk.SystemdBoot, lvm, "4Kn", fits, "", false},
	{disk.SystemdBoot, lvm, "virtio", fits, "", false},
	{disk.SystemdBoot, luks, "4Kn", larger, "", false},
}

func (c *cell) String() string {
	return fmt.Sprintf("%s, %s, %s, %s", c.loader, c.root, c.bus, c.size)
}

// system is what the image is of.
func (c *cell) system() string { return fmt.Sprintf("%s, %s", c.loader, c.root) }

func (c *cell) firmware() qemu.Firmware {
	if c.loader == disk.GRUBForBIOS {
		return qemu.BIOS
	}
	return qemu.UEFI
}

// possible reports whether a system can start from a disk.
func (c *cell) possible() bool {
	return c.bus != "4Kn" || c.loader != disk.GRUBForBIOS && c.root != xfs
}

// Each pair that can be is in a cell that starts, and what cannot be is refused.
func TestMatrixHasEachPair(t *testing.T) {
	values := func(c *cell) [4]string { return [4]string{string(c.loader), c.root, c.bus, c.size} }
	had := map[string]bool{}
	pairs := func(c *cell, each func(pair string)) {
		v := values(c)
		for i := range v {
			for j := range i {
				each(v[j] + " with " + v[i])
			}
		}
	}
	for _, c := range matrix {
		if c.possible() != (c.refused == "") {
			t.Errorf("%s: refused %q", &c, c.refused)
		}
		if c.refused == "" {
			pairs(&c, func(pair string) { had[pair] = true })
		}
	}
	for _, l := range []disk.Loader{disk.GRUBForBIOS, disk.GRUBForUEFI, disk.SystemdBoot} {
		for _, r := range []string{ext4, xfs, btrfs, lvm, luks} {
			for _, b := range []string{"virtio", "sata", "nvme", "4Kn"} {
				for _, s := range []string{same, larger, fits} {
					c := &cell{loader: l, root: r, bus: b, size: s}
					if c.possible() {
						pairs(c, func(pair string) {
							if !had[pair] {
								t.Errorf("no cell has %s", pair)
								had[pair] = true
							}
						})
					}
				}
			}
		}
	}
	if len(matrix) < 24 {
		t.Errorf("%d cells, want at least 24", len(matrix))
	}
}

// Images of systems of all kinds are restored to blank disks of all kinds: each
// asks for a login there, or was refused before the first write. A campaign tries few.
func TestMatrix(t *testing.T) {
	all := os.Getenv("PLATTER_TEST_MATRIX") != ""
	if !all && !long() {
		t.Skip("starts machines: set PLATTER_TEST_MATRIX=1, as make matrix does")
	}
	needLoop(t)
	cells := matrix
	if !all {
		cells = nil
		for _, c := range matrix {
			if c.daily {
				cells = append(cells, c)
			}
		}
	}
	r, systems := newRepo(t), map[string]*disk.Disk{}
	table := "| starts by | root | disk | size | restored in | starts in | verdict |\n|---|---|---|---|---|---|---|\n"
	for _, c := range cells {
		if what := qemu.Missing(c.firmware()); what != "" {
			t.Skip("needs the package " + what)
		}
		if systems[c.system()] == nil {
			systems[c.system()] = c.build(t)
			r.backup(systems[c.system()].Path, volumeOf(&c))
			os.Remove(systems[c.system()].Path)
		}
		t.Run(c.String(), func(t *testing.T) {
			restored, started, verdict := c.try(t, r, systems[c.system()])
			table += fmt.Sprintf("| %s | %s | %s | %s | %.1f s | %.0f s | %s |\n", c.loader, c.root, c.bus, c.size, restored.Seconds(), started.Seconds(), verdict)
		})
	}
	t.Logf("%d cells, %d systems\n%s", len(cells), len(systems), table)
}

func volumeOf(c *cell) string {
	return "matrix/" + strings.NewReplacer(" ", "-", ",", "").Replace(strings.ToLower(c.system()))
}

// build makes the disk of a system.
func (c *cell) build(t *testing.T) *disk.Disk {
	t.Helper()
	cache, err := debian.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	s := disk.Spec{
		Path: filepath.Join(t.TempDir(), "system.raw"), Cache: cache, Kept: true, Hardware: true,
		Loaders: []disk.Loader{c.loader}, Root: c.root, Unused: 32 * mib,
		Files: map[string][]byte{"letters/one.txt": []byte("Dear reader,\n"), "zeros": make([]byte, mib)},
	}
	if c.root == lvm || c.root == luks {
		s.Root, s.Stack = ext4, disk.Stack(c.root)
	}
	d, err := disk.Build(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// try restores the image of a system to a blank disk, and starts that.
func (c *cell) try(t *testing.T, r *repo, d *disk.Disk) (restored, started time.Duration, verdict string) {
	t.Helper()
	m := qemu.Machine{Firmware: c.firmware(), CPUs: 2, Bus: c.bus}
	sector := 512
	if c.bus == "4Kn" {
		sector = 4096
		m.Bus, m.Sector = "nvme", sector
	}
	last := d.Parts[len(d.Parts)-1]
	const entries = 16 << 10 // of the backup table, which has a header too
	size := map[string]int64{same: d.Size, larger: 1 << 30, fits: last.Start + last.Size + entries + int64(sector)}[c.size]
	m.Disk = sparse(t, size)
	target := attach(t, m.Disk, loop.Options{SectorSize: sector})
	began := time.Now()
	_, status, complaint := r.try("restore", volumeOf(c), target.Path, "--yes")
	restored = time.Since(began)
	if c.refused != "" {
		if status != 14 || !strings.Contains(complaint, c.refused) {
			t.Errorf("exit status %d, want 14 and %q: %s", status, c.refused, complaint)
		}
		if n := written(t, m.Disk); n != 0 {
			t.Errorf("%d bytes of the disk are in use, want none", n)
		}
		return restored, 0, "refused: " + c.refused
	}
	if status != 0 {
		t.Fatalf("exit status %d: %s", status, complaint)
	}
	if err := disk.VerifyTable(t.Context(), target.Path); err != nil {
		t.Error(err)
	}
	if err := target.Flush(); err != nil {
		t.Fatal(err)
	}
	if c.root == luks {
		m.Typed = []qemu.Line{{After: "Enter passphrase", Text: disk.Passphrase}}
	}
	b, err := m.Login(t.Context(), 5*time.Minute)
	if err != nil {
		t.Error(err)
		return restored, b.Elapsed, "no login"
	}
	if !strings.Contains(b.Serial, "proof: 2 files as they should be") {
		t.Errorf("the machine does not vouch for its files:\n%s", b.Serial)
	}
	return restored, b.Elapsed, "login"
}

// written returns how many bytes of a file were ever written to.
func written(t *testing.T, file string) int64 {
	t.Helper()
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Blocks * 512
}
