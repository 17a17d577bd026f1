package block

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// refused plans a restore, which must be refused with a reason that contains
// want, and checks that the target's bytes are what they were.
func refused(t *testing.T, s system, path string, opts TargetOptions, want string) {
	t.Helper()
	var before [32]byte
	st, err := os.Stat(path)
	content := err == nil && !st.IsDir() && st.Mode()&os.ModeCharDevice == 0
	if used, _ := InUse(path); len(written(used)) > 0 {
		content = false // its filesystem writes to it as it likes
	}
	if content {
		before = sum(t, path)
	}
	p, err := s.planTarget(path, opts)
	if err == nil {
		// What only shows when it is opened is refused then.
		var tg *Target
		if tg, err = p.Open(); err == nil {
			tg.Close()
		}
	}
	if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
		t.Errorf("%s: got %v, want it refused with %q", path, err, want)
	}
	if content && sum(t, path) != before {
		t.Errorf("%s: refused with %q, and written to", path, want)
	}
}

func TestTargetsThatDoNotFitAreRefused(t *testing.T) {
	small, _ := loopDisk(t, 1<<20, 512)
	for size, fits := range map[int64]bool{0: true, 1<<20 - 1: true, 1 << 20: true, 1<<20 + 1: false, 1 << 50: false} {
		if fits {
			if _, err := PlanTarget(small, TargetOptions{Size: size}); err != nil {
				t.Errorf("image of %d bytes: %v", size, err)
			}
			continue
		}
		refused(t, host(), small, TargetOptions{Size: size}, "too small")
	}
	large, _ := loopDisk(t, 1<<20, 4096)
	refused(t, host(), large, TargetOptions{SectorSize: 512}, "sectors of 4096 bytes")
	refused(t, host(), small, TargetOptions{SectorSize: 4096}, "sectors of 512 bytes")
	for _, sector := range []int{0, 4096} {
		if _, err := PlanTarget(large, TargetOptions{SectorSize: sector}); err != nil {
			t.Errorf("sector %d: %v", sector, err)
		}
	}
}

func TestTargetsThatAreNoDiskAreRefused(t *testing.T) {
	dir := t.TempDir()
	refused(t, host(), dir, TargetOptions{}, "a directory")
	refused(t, host(), "/dev/null", TargetOptions{}, "a character device")
	link := filepath.Join(dir, "link")
	if err := os.Symlink(filepath.Join(dir, "nothing"), link); err != nil {
		t.Fatal(err)
	}
	refused(t, host(), link, TargetOptions{}, "link to nothing")
	if _, err := PlanTarget(filepath.Join(dir, "no/such/folder"), TargetOptions{}); err == nil || !strings.Contains(err.Error(), "folder") {
		t.Errorf("missing folder: %v", err)
	}
	file := filepath.Join(dir, "readonly")
	writeFile(t, file, noise(1, 5120), 0)
	ro := attach(t, file, "-r")
	refused(t, host(), ro, TargetOptions{}, "read-only")
}

func TestTargetsInUseAreRefused(t *testing.T) {
	mounted, file := formatted(t, "ext4")
	dir := mountAt(t, mounted)
	refused(t, host(), mounted, TargetOptions{}, "umount "+dir)
	refused(t, host(), file, TargetOptions{InPlace: true}, "umount "+dir)
	run1(t, "mount", "-o", "remount,ro", dir)
	refused(t, host(), mounted, TargetOptions{}, "mounted read-only at "+dir)
	refused(t, host(), file, TargetOptions{}, "umount "+dir)

	swap, file := formatted(t, "swap")
	refused(t, host(), file, TargetOptions{}, "losetup -d "+swap)
	run1(t, "swapon", swap)
	t.Cleanup(func() { _ = exec.Command("swapoff", swap).Run() })
	refused(t, host(), swap, TargetOptions{}, "swapoff")
}

func TestTargetsThatOthersAreBuiltUponAreRefused(t *testing.T) {
	for want, attrs := range map[string][]string{
		"lvchange -an vg/lv":       {"dm-0", "dm/name", "vg-lv", "dm/uuid", "LVM-1"},
		"dmsetup remove luks":      {"dm-0", "dm/name", "luks", "dm/uuid", "CRYPT-1"},
		"mdadm --stop /dev/md0":    {"md0", "md/level", "raid5"},
		"is held by /dev/bcache0":  {"bcache0"},
		"dmsetup remove mpatha":    {"dm-0", "dm/name", "mpatha", "dm/uuid", "mpath-1"},
		"lvchange -an a/pool_tmet": {"dm-0", "dm/name", "a-pool_tmet", "dm/uuid", "LVM-2"},
	} {
		dev, _ := loopDisk(t, 1<<20, 512)
		writeFile(t, dev, noise(1, 1<<20), 0)
		f := newFake(t)
		var st unix.Stat_t
		if err := unix.Stat(dev, &st); err != nil {
			t.Fatal(err)
		}
		// The device is real, what the kernel says of it is made up.
		disk := f.addAs(st.Rdev, "sda", "stat", "1 2 3 4 5 6 7 8")
		part := f.add("sda/sda1")
		f.numbers[dev] = st.Rdev
		if _, err := f.planTarget(dev, TargetOptions{}); err != nil {
			t.Errorf("unused: %v", err)
		}
		f.stack(f.add(attrs[0], attrs[1:]...), part)
		refused(t, f.system, dev, TargetOptions{}, want)
		_ = disk
	}
}

func TestTargetComesIntoUseBetweenPlanAndOpen(t *testing.T) {
	dev, _ := formatted(t, "ext4")
	p, err := PlanTarget(dev, TargetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if p.Old != "ext4" {
		t.Errorf("the target holds %q", p.Old)
	}
	mountAt(t, dev, "-o", "ro")
	before := sum(t, dev)
	if _, err := p.Open(); !errors.Is(err, ErrRefused) {
		t.Errorf("Open = %v, want ErrRefused", err)
	}
	if sum(t, dev) != before {
		t.Error("written to")
	}
}

func TestTargetThatCarriesTheRepositoryIsRefused(t *testing.T) {
	t.Parallel()
	dev, file := loopDisk(t, 64<<20, 512)
	run1(t, "sgdisk", "-n1:0:+40M", "-n2:0:0", dev)
	partx(t, dev)
	run1(t, "mkfs.ext4", "-q", dev+"p1")
	dir := mountAt(t, dev+"p1")
	run1(t, "mount", "-o", "remount,ro", dir)
	repo := filepath.Join(dir, "backups/repo") // not there yet
	for path, want := range map[string]bool{dev: true, dev + "p1": true, file: true, dev + "p2": false, "/dev/null": false} {
		if got, err := Carries(path, repo); got != want || err != nil {
			t.Errorf("Carries(%s) = %v, %v, want %v", path, got, err, want)
		}
	}
	for _, opts := range []TargetOptions{{Repository: repo}, {Catalog: repo}, {Repository: t.TempDir(), Catalog: repo}} {
		for _, path := range []string{dev, dev + "p1", file} {
			refused(t, host(), path, opts, "carries the ")
		}
		if _, err := PlanTarget(dev+"p2", opts); err != nil {
			t.Errorf("the other partition: %v", err)
		}
	}
}

func TestTargetOnALoopFileInTheRepositorysFilesystem(t *testing.T) {
	dev, _ := formatted(t, "ext4")
	dir := mountAt(t, dev)
	repo := filepath.Join(dir, "repo")
	if err := os.MkdirAll(filepath.Join(repo, "segments"), 0o700); err != nil {
		t.Fatal(err)
	}
	beside := filepath.Join(dir, "disk")
	writeFile(t, beside, noise(1, 1<<20), 0)
	loop := attach(t, beside)
	opts := TargetOptions{Size: 1 << 20, Repository: repo, Catalog: filepath.Join(dir, "catalog")}
	if _, err := PlanTarget(loop, opts); err != nil {
		t.Errorf("a loop device beside the repository: %v", err)
	}
	if _, err := PlanTarget(filepath.Join(dir, "new"), opts); err != nil {
		t.Errorf("a file beside the repository: %v", err)
	}
	inside := filepath.Join(repo, "segments/x")
	refused(t, host(), inside, opts, "inside the repository")
	writeFile(t, inside, noise(2, 100), 0)
	refused(t, host(), inside, opts, "inside the repository")
	// Nor may a loop device's file hold the repository's filesystem, twice
	// over.
	run1(t, "mkfs.ext4", "-q", loop)
	inner := mountAt(t, loop)
	refused(t, host(), dev, TargetOptions{Repository: inner}, "carries the repository")
	refused(t, host(), beside, TargetOptions{Repository: inner}, "carries the repository")
	if _, err := PlanTarget(filepath.Join(t.TempDir(), "new"), TargetOptions{Repository: inner}); err != nil {
		t.Errorf("a file elsewhere: %v", err)
	}
}

func TestRepositoryOnBtrfs(t *testing.T) {
	mountable(t, "btrfs")
	dev, file := formatted(t, "btrfs")
	dir := mountAt(t, dev)
	refused(t, host(), dev, TargetOptions{Repository: dir}, "carries the repository")
	refused(t, host(), file, TargetOptions{Repository: dir}, "carries the repository")
}
