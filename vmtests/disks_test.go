package vmtests

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"platter/vmtests/disk"
	"platter/vmtests/loop"
)

const mib = 1 << 20

// A shape is a kind of disk: how it is made and how it changes.
type shape struct {
	name   string
	size   int64 // bytes
	sector int   // bytes; 0 for a plain file, which may have any size
	fill   func(t *testing.T, path string)
	change func(t *testing.T, path string)
}

// noise writes seeded random bytes over part of a disk.
func noise(t *testing.T, path string, seed uint64, offset, length int64) {
	t.Helper()
	b := make([]byte, length)
	r := rand.New(rand.NewPCG(seed, uint64(offset)))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	write(t, path, b, offset)
}

func write(t *testing.T, path string, b []byte, offset int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(b, offset)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

// logicalTable is an MBR with two primary partitions and two logical ones.
const logicalTable = `label: dos
start=2048, size=16384, type=83
start=18432, size=8192, type=82
start=26624, size=38000, type=5
start=28672, size=8192, type=83
start=40960, size=8192, type=83
`

func shapes() []shape {
	nothing := func(*testing.T, string) {}
	return []shape{
		{name: "no bytes", size: 0, fill: nothing, change: nothing},
		{
			name: "one byte", size: 1,
			fill:   func(t *testing.T, p string) { write(t, p, []byte{7}, 0) },
			change: func(t *testing.T, p string) { write(t, p, []byte{8}, 0) },
		},
		{
			name: "odd size", size: 5*mib + 12_345,
			fill:   func(t *testing.T, p string) { noise(t, p, 1, 0, 5*mib+12_345) },
			change: func(t *testing.T, p string) { noise(t, p, 2, 5*mib+12_000, 345) },
		},
		{
			name: "random", size: 16 * mib, sector: 512,
			fill:   func(t *testing.T, p string) { noise(t, p, 3, 0, 16*mib) },
			change: func(t *testing.T, p string) { noise(t, p, 4, 3*mib, 1*mib) },
		},
		{
			name: "all zeros", size: 32 * mib, sector: 512, fill: nothing,
			change: func(t *testing.T, p string) { noise(t, p, 5, 17*mib, 512) },
		},
		{
			name: "data that turns to zeros", size: 16 * mib, sector: 512,
			fill:   func(t *testing.T, p string) { noise(t, p, 6, 4*mib, 8*mib) },
			change: func(t *testing.T, p string) { write(t, p, make([]byte, 8*mib), 4*mib) },
		},
		{
			name: "MBR with logical partitions", size: 33 * mib, sector: 512,
			fill: func(t *testing.T, p string) {
				sh(t, logicalTable, "sfdisk", "-q", "--no-reread", p)
				noise(t, p, 7, 14*mib, 2*mib)
			},
			change: func(t *testing.T, p string) { noise(t, p, 8, 20*mib, mib) },
		},
		{
			name: "GPT on sectors of 4096 bytes", size: 64 * mib, sector: 4096,
			fill: func(t *testing.T, p string) {
				sh(t, "", "sgdisk", "-n", "1:256:+16M", "-t", "1:8300", "-n", "2:0:+16M", "-t", "2:8200", p)
				noise(t, p, 9, 2*mib, 4*mib)
			},
			change: func(t *testing.T, p string) { noise(t, p, 10, 40*mib, mib) },
		},
	}
}

// Each shape of disk is imaged on two days; both images come back exactly, on
// a disk that was empty and on one that held something else.
func TestEveryShapeOfDiskComesBack(t *testing.T) {
	for _, s := range shapes() {
		t.Run(s.name, func(t *testing.T) {
			if s.sector != 0 {
				needLoop(t)
			}
			file := sparse(t, s.size)
			device := func(file string) string {
				if s.sector == 0 {
					return file
				}
				return attach(t, file, loop.Options{SectorSize: s.sector}).Path
			}
			r, source := newRepo(t), device(file)
			s.fill(t, source)
			first := r.backup(source, "test/disk")
			was := filepath.Join(t.TempDir(), "first.raw")
			sh(t, "", "cp", "--sparse=always", source, was)
			again := r.backup(source, "test/disk")
			if n := again.Image.Stats.New; n != 0 {
				t.Errorf("an unchanged disk: %d new bytes stored, want 0", n)
			}
			s.change(t, source)
			r.backup(source, "test/disk")

			used := sparse(t, s.size)
			noise(t, used, 99, 0, s.size)
			target := device(used)
			for _, restored := range []struct{ image, want string }{{first.Image.ID, was}, {"test/disk", source}} {
				r.run("restore", restored.image, target, "--yes")
				if err := disk.Equal(t.Context(), restored.want, target, 0, s.size); err != nil {
					t.Error(err)
				}
			}
			fresh := filepath.Join(t.TempDir(), "fresh.raw")
			r.run("restore", "test/disk", fresh)
			if err := disk.Equal(t.Context(), source, fresh, 0, s.size); err != nil {
				t.Error(err)
			}
			if info, err := os.Stat(fresh); err != nil || info.Size() != s.size {
				t.Errorf("restored file: %v bytes (%v), want %d", info.Size(), err, s.size)
			}
			r.run("verify", "--read-data")
		})
	}
}

// A disk with every kind of file system is restored to a larger disk and is
// faultless there; --in-place turns it back with few writes.
func TestFileSystemsOnALargerDisk(t *testing.T) {
	needLoop(t)
	for _, data := range []string{"xfs", "btrfs"} {
		t.Run(data, func(t *testing.T) {
			d := build(t, data)
			dev := attach(t, d.Path, loop.Options{})
			r := newRepo(t)
			first := r.backup(dev.Path, "test/server")
			changes := []disk.Change{
				{Part: disk.Root, Path: "srv/new", Body: []byte("new\n")},
				{Part: disk.ESP, Path: "note.txt", Body: []byte("note\n")},
			}
			if disk.CanMount(data) {
				changes = append(changes, disk.Change{Part: disk.Data, Path: "letters/one.txt", Body: []byte("rewritten\n")})
			}
			if err := d.Change(t.Context(), dev, changes); err != nil {
				t.Fatal(err)
			}
			second := r.backup(dev.Path, "test/server")
			if n := second.Image.Stats.New; n == 0 || n > first.Image.Stats.New/4 {
				t.Errorf("few files changed: %d new bytes, want some, and far fewer than the first %d", n, first.Image.Stats.New)
			}

			larger := attach(t, sparse(t, 1<<30), loop.Options{})
			r.run("restore", "test/server", larger.Path, "--yes")
			if err := d.Verify(t.Context(), larger.Path); err != nil {
				t.Error(err)
			}
			r.run("restore", first.Image.ID, larger.Path, "--in-place", "--yes")
			if err := d.Verify(t.Context(), larger.Path); err != nil {
				t.Error(err)
			}
		})
	}
}

// What would be destroyed by mistake is refused before the first write.
func TestRestoreRefusesATargetInUse(t *testing.T) {
	needLoop(t)
	d := build(t, "xfs")
	r := newRepo(t)
	r.backup(d.Path, "test/server")
	target := attach(t, d.Path, loop.Options{})
	root := d.Part(disk.Root)
	err := loop.Mount(t.Context(), target.Partition(root.Number), func(string) error {
		for _, path := range []string{target.Path, target.Partition(root.Number)} {
			if _, status, complaint := r.try("restore", "test/server", path, "--yes"); status != 14 {
				return fmt.Errorf("restore to %s, which is mounted: exit status %d, want 14: %s", path, status, complaint)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	small := attach(t, sparse(t, 100*mib), loop.Options{})
	if _, status, complaint := r.try("restore", "test/server", small.Path, "--yes"); status != 14 {
		t.Errorf("restore to a disk that is too small: exit status %d, want 14: %s", status, complaint)
	}
	coarse := attach(t, sparse(t, 1<<30), loop.Options{SectorSize: 4096})
	if _, status, complaint := r.try("restore", "test/server", coarse.Path, "--yes"); status != 14 {
		t.Errorf("restore to a disk of other sectors: exit status %d, want 14: %s", status, complaint)
	}
}

// A mounted disk is not still: it is imaged as of one moment where the kernel
// lets its writes be traced; elsewhere it is refused, or fuzzy if asked for.
func TestBackupOfAMountedDisk(t *testing.T) {
	needLoop(t)
	d := build(t, "xfs")
	dev := attach(t, d.Path, loop.Options{})
	r, exact := newRepo(t), false
	err := loop.Mount(t.Context(), dev.Partition(d.Part(disk.Root).Number), func(string) error {
		_, status, complaint := r.try("backup", dev.Path, "--volume", "test/server")
		switch status {
		case 0:
			exact = true
			if images := r.run("images"); !strings.Contains(images, `"fuzzy":false`) {
				return fmt.Errorf("backup of a mounted disk: exit status 0, and images says %s", images)
			}
			return nil
		case 1:
			if _, status, complaint := r.try("backup", dev.Path, "--live", "--volume", "test/server"); status != 3 {
				return fmt.Errorf("backup --live: exit status %d, want 3: %s", status, complaint)
			}
			return nil
		}
		return fmt.Errorf("backup of a mounted disk: exit status %d, want 0, or 1 without a tracer: %s", status, complaint)
	})
	if err != nil {
		t.Fatal(err)
	}
	if !exact {
		return
	}
	restored := sparse(t, 1<<30)
	r.run("restore", "test/server", restored, "--yes")
	if err := d.Verify(t.Context(), restored); err != nil {
		t.Error(err)
	}
}
