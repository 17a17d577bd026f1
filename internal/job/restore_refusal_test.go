package job

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"platter/block"
	"platter/image/repo"
	"platter/image/store/dir"
	"platter/image/store/vfs"
)

// A refusal is a restore that must not write: its target, and why.
type refusal struct {
	name   string
	reason string // in the error
	is     error  // that the error wraps
	// target makes the target, and returns what must stay as it is: the target
	// itself, or the file below it.
	target func(t *testing.T) (path, watched string)
	image  string // "" for the disk's
	opts   RestoreOptions
}

// Whatever is refused is refused before the first write: what the target holds
// is the same, byte for byte, and so is when it was written to.
func TestRefusalsWriteNothing(t *testing.T) {
	sweep(t)
	env := envOf(t, onDiskRepo(t))
	disk := systemDisk(t, 512)
	diskImage(t, env, disk)
	volumeImage := func(name string, content []byte) {
		file := filepath.Join(t.TempDir(), "source")
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Backup(t.Context(), env, BackupOptions{Devices: []string{file}, Volume: name}); err != nil {
			t.Fatal(err)
		}
	}
	made := func(size int64, name string, args ...string) []byte {
		f := sparseFile(t, size)
		tool(t, name, append(args, f)...)
		return readFile(t, f)
	}
	volumeImage("smallblocks", made(32<<20, "mkfs.ext4", "-q", "-b", "1024"))
	volumeImage("xfs512", made(320<<20, "mkfs.xfs", "-q", "-s", "size=512"))
	volumeImage("plain", junk(t, 8<<20))
	crooked := made(24<<20, "sgdisk", "-a1", "-n1:2049:+8M")
	volumeImage("crooked", crooked)
	biosDisk := made(24<<20, "sgdisk", "-n1:0:+1M", "-t1:ef02", "-n2:0:0")
	copy(biosDisk, "boot code")
	volumeImage("bios", biosDisk)

	loopOf := func(size, sector int) func(t *testing.T) (string, string) {
		return func(t *testing.T) (string, string) {
			dev, file := loop(t, append(junk(t, 1<<20), make([]byte, size-1<<20)...), sector)
			return dev, file
		}
	}
	// used makes a device on which something is done.
	used := func(use func(t *testing.T, dev string)) func(t *testing.T) (string, string) {
		return func(t *testing.T) (string, string) {
			dev, file := loop(t, append([]byte(nil), disk...), 512)
			use(t, dev)
			return dev, file
		}
	}
	partition := func(t *testing.T, dev string, n int) string {
		tool(t, "partx", "-a", dev)
		t.Cleanup(func() { _ = exec.Command("partx", "-d", dev).Run() })
		return dev + "p" + string(rune('0'+n))
	}
	const size = 97 << 20
	for _, c := range []refusal{
		{name: "a mounted filesystem", reason: "is mounted at", target: func(t *testing.T) (string, string) {
			dev, file := loop(t, made(96<<20, "mkfs.ext4", "-q", "-b", "4096"), 512)
			mountDir(t, dev)
			return dev, file
		}},
		{name: "a disk with a mounted partition", reason: "is mounted read-only at", target: used(func(t *testing.T, dev string) { mountDir(t, partition(t, dev, 2), "-o", "ro,noload") })},
		{name: "a partition of it that is mounted", reason: "is mounted", image: "disk:p2", target: func(t *testing.T) (string, string) {
			dev, file := loop(t, append([]byte(nil), disk...), 512)
			p := partition(t, dev, 2)
			mountDir(t, p, "-o", "ro,noload")
			return p, file
		}},
		{name: "swap in use", reason: "is swap", target: func(t *testing.T) (string, string) {
			dev, file := loop(t, made(96<<20, "mkswap"), 512)
			swapOn(t, dev)
			return dev, file
		}},
		{name: "held by another program", reason: "is held by another program", target: used(func(t *testing.T, dev string) {
			fd, err := unix.Open(dev, unix.O_RDWR|unix.O_EXCL, 0)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { unix.Close(fd) })
		})},
		{name: "a device below a loop device", reason: "is attached to /dev/loop", target: used(func(t *testing.T, dev string) {
			above := strings.TrimSpace(tool(t, "losetup", "-f", "--show", dev))
			t.Cleanup(func() { _ = exec.Command("losetup", "-d", above).Run() })
		})},
		{name: "the file of a loop device", reason: "is attached to /dev/loop", target: func(t *testing.T) (string, string) {
			_, file := loop(t, junk(t, size), 512)
			return file, file
		}},
		{name: "too small for the partitions", reason: "is too small: partition 3 reaches", target: loopOf(60<<20, 512)},
		{name: "too small without a table", reason: "is too small", image: "plain", target: loopOf(8<<20-512, 512)},
		{name: "a partition into a smaller one", reason: "is too small", image: "disk:p2", target: loopOf(24<<20-512, 512)},
		{name: "read-only", reason: "is read-only", target: used(func(t *testing.T, dev string) {
			tool(t, "blockdev", "--setro", dev)
			t.Cleanup(func() { tool(t, "blockdev", "--setrw", dev) }) // the next to have the loop device would have it so
		})},
		{name: "a directory", reason: "is a directory", target: func(t *testing.T) (string, string) { return t.TempDir(), "" }},
		{name: "a character device", reason: "is a character device", target: func(*testing.T) (string, string) { return "/dev/null", "" }},
		{name: "a pipe", reason: "is a pipe", target: func(t *testing.T) (string, string) {
			p := filepath.Join(t.TempDir(), "pipe")
			if err := unix.Mkfifo(p, 0o600); err != nil {
				t.Fatal(err)
			}
			return p, ""
		}},
		{name: "a link to nothing", reason: "is a symbolic link to nothing", target: func(t *testing.T) (string, string) {
			p := filepath.Join(t.TempDir(), "link")
			if err := os.Symlink("/nowhere", p); err != nil {
				t.Fatal(err)
			}
			return p, ""
		}},
		{name: "a typing error below /dev", reason: "is no device that exists", target: func(*testing.T) (string, string) { return "/dev/sdzzz9", "" }},
		{name: "a file of the repository", reason: "lies inside the repository", target: func(t *testing.T) (string, string) {
			p := filepath.Join(env.Repo.Store.Location(), "config")
			return p, p
		}},
		{name: "ext4 with blocks of 1024 on sectors of 4096", reason: "which was made with blocks of 1024", image: "smallblocks", target: loopOf(size, 4096)},
		{name: "XFS for sectors of 512 on sectors of 4096", reason: "which was made for sectors of 512", image: "xfs512", target: loopOf(320<<20, 4096)},
		{name: "a partition that begins within a sector of the target", reason: "which is no multiple of that", image: "crooked", target: loopOf(size, 4096)},
		{name: "code for a BIOS on sectors of 4096", reason: "starts by a BIOS", image: "bios", target: loopOf(size, 4096)},
		{name: "not confirmed", reason: "not confirmed", is: ErrConfirm, target: loopOf(size, 512), opts: RestoreOptions{
			Confirm: func(*RestorePlan) (bool, error) { return false, nil },
		}},
		{name: "nobody to confirm", reason: "would destroy", is: ErrConfirm, target: loopOf(size, 512), opts: RestoreOptions{Confirm: func(*RestorePlan) (bool, error) { return false, ErrConfirm }}},
		{name: "an image that is not there", reason: "no volume, and no image", is: errAny, image: "nowhere", target: loopOf(size, 512)},
		{name: "a partition that is not there", reason: "it has no partition 9", is: ErrUsage, image: "disk:p9", target: loopOf(size, 512)},
		{name: "growing what nobody can enlarge", reason: "--grow cannot enlarge", is: ErrUsage, image: "plain", target: loopOf(size, 512), opts: RestoreOptions{Grow: true}},
		{name: "growing a file", reason: "--grow is for disks", is: ErrUsage, target: func(t *testing.T) (string, string) {
			f := sparseFile(t, 4096)
			return f, f
		}, opts: RestoreOptions{Grow: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			path, watched := c.target(t)
			before := fingerprint(t, watched)
			c.opts.Image, c.opts.Target = c.image, path
			if c.image == "" {
				c.opts.Image = "disk"
			}
			if c.opts.Confirm == nil {
				c.opts.Confirm = yes
			}
			_, err := Restore(t.Context(), env, c.opts)
			if c.is == nil {
				c.is = block.ErrRefused
			}
			if err == nil || c.is != errAny && !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.reason) && c.name != "nobody to confirm" {
				t.Errorf("got %v, want: %s", err, c.reason)
			}
			if watched != "" && !bytes.Equal(fingerprint(t, watched), before) {
				t.Error("something was written")
			}
		})
	}
}

// errAny stands for an error of no kind of its own.
var errAny = errors.New("any")

// onDiskRepo makes a repository in a directory, which targets may carry.
func onDiskRepo(t *testing.T) *repo.Repo {
	t.Helper()
	st, err := dir.Create(t.TempDir()+"/repo", vfs.OS())
	if err != nil {
		t.Fatal(err)
	}
	return newRepo(t, st, 64<<10)
}

func mountDir(t *testing.T, dev string, args ...string) {
	t.Helper()
	at := t.TempDir()
	tool(t, "mount", append(args, dev, at)...)
	t.Cleanup(func() { _ = exec.Command("umount", at).Run() })
}

func swapOn(t *testing.T, dev string) {
	t.Helper()
	if out, err := exec.Command("swapon", dev).CombinedOutput(); err != nil {
		t.Skipf("NOT TESTED: swapon: %v: %s", err, out)
	}
	t.Cleanup(func() { _ = exec.Command("swapoff", dev).Run() })
}

// fingerprint is all of a file, and when it was written to.
func fingerprint(t *testing.T, path string) []byte {
	t.Helper()
	if path == "" {
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		t.Fatal(err)
	}
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return append(sum.Sum(nil), fmt.Sprint(st.ModTime(), st.Sys().(*syscall.Stat_t).Blocks)...)
}

// The root of the map, or the table, that cannot be had ends a restore before
// the first write, and says that it is damage.
func TestRestoreOfADamagedRootWritesNothing(t *testing.T) {
	env := newEnv(t, 64<<10)
	diskImage(t, env, gptDisk(t, 24<<20))
	m, err := Find(t.Context(), env, "disk")
	if err != nil {
		t.Fatal(err)
	}
	f, err := env.Repo.Footer(t.Context(), m.RootAt.Segment)
	if err != nil {
		t.Fatal(err)
	}
	name := "segments/" + f.ID.String()[:2] + "/" + f.ID.String()
	for _, rec := range f.Records {
		flipByte(t, env, name, rec.Offset+4)
	}
	old := junk(t, 24<<20)
	dev, file := loop(t, old, 512)
	for _, inPlace := range []bool{false, true} {
		bare := &Env{Repo: env.Repo, Memory: 8 << 20, Host: "host"}
		_, err = Restore(t.Context(), bare, RestoreOptions{Image: "disk", Target: dev, InPlace: inPlace, Confirm: yes})
		if !errors.Is(err, ErrDamaged) {
			t.Errorf("got %v, want damage", err)
		}
		if !bytes.Equal(onDisk(t, dev, file), old) {
			t.Error("something was written")
		}
	}
}
