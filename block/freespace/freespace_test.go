package freespace

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"platter/block"
	"platter/vmtests/loop"
)

const mib = 1 << 20

// A variant is a filesystem as one may be made. Those that are not short are
// for long runs.
type variant struct {
	name, content string
	size          int64
	mkfs          []string
	mount         []string // how, where not by mount alone
	check         []string // the tool that finds fault with it
	short         bool
}

func variants() []variant {
	ext := func(name string, size int64, short bool, args ...string) variant {
		return variant{name, "ext4", size, append([]string{"mke2fs", "-q", "-F"}, args...), nil, []string{"e2fsck", "-fn"}, short}
	}
	xfs := func(name string, short bool, args ...string) variant {
		return variant{name, "xfs", 400 * mib, append([]string{"mkfs.xfs", "-q", "-f"}, args...), nil, []string{"xfs_repair", "-n"}, short}
	}
	btrfs := func(name string, short bool, args ...string) variant {
		return variant{name, "btrfs", 400 * mib, append([]string{"mkfs.btrfs", "-q", "-f"}, args...), nil, []string{"btrfs", "check", "--readonly"}, short}
	}
	fat := func(name string, size int64, short bool, args ...string) variant {
		return variant{name, "vfat", size, append([]string{"mkfs.vfat"}, args...), []string{"mcopy"}, []string{"fsck.vfat", "-n"}, short}
	}
	return []variant{
		ext("ext4", 600*mib, true, "-t", "ext4"),
		ext("ext4, 1 KiB blocks, meta_bg", 200*mib, true, "-t", "ext4", "-b", "1024", "-O", "meta_bg,^resize_inode"),
		ext("ext4, bigalloc", 600*mib, true, "-t", "ext4", "-O", "bigalloc", "-C", "65536"),
		ext("ext2", 200*mib, true, "-t", "ext2", "-b", "1024"),
		ext("ext2, first revision", 60*mib, false, "-t", "ext2", "-r", "0"),
		ext("ext3", 600*mib, false, "-t", "ext3"),
		ext("ext4, uninit_bg", 600*mib, true, "-t", "ext4", "-O", "^metadata_csum,uninit_bg"),
		ext("ext4, uninit_bg, no flex_bg, 1 KiB", 200*mib, false, "-t", "ext4", "-b", "1024", "-O", "^metadata_csum,uninit_bg,^flex_bg,^64bit"),
		ext("ext4, no flex_bg", 600*mib, false, "-t", "ext4", "-O", "^flex_bg"),
		ext("ext4, no 64bit", 600*mib, false, "-t", "ext4", "-O", "^64bit"),
		ext("ext4, no 64bit, 2 KiB", 300*mib, false, "-t", "ext4", "-b", "2048", "-O", "^64bit"),
		ext("ext4, meta_bg, 4 KiB", 4096*mib, false, "-t", "ext4", "-O", "meta_bg,^resize_inode"),
		ext("ext4, sparse_super2", 600*mib, false, "-t", "ext4", "-O", "sparse_super2,^resize_inode"),
		ext("ext4, bigalloc, 1 KiB", 200*mib, false, "-t", "ext4", "-b", "1024", "-O", "bigalloc", "-C", "16384"),
		ext("ext4, no metadata_csum", 200*mib, false, "-t", "ext4", "-O", "^metadata_csum"),
		ext("ext4, metadata_csum_seed", 200*mib, false, "-t", "ext4", "-O", "metadata_csum_seed"),
		ext("ext4, no journal", 200*mib, false, "-t", "ext4", "-O", "^has_journal"),
		ext("ext4, lazy tables", 600*mib, false, "-t", "ext4", "-E", "lazy_itable_init=1"),
		xfs("xfs", true),
		xfs("xfs, version 4", true, "-m", "crc=0,finobt=0", "-n", "ftype=1"),
		xfs("xfs, 1 KiB blocks", false, "-b", "size=1024"),
		xfs("xfs, 4 KiB sectors", false, "-s", "size=4096"),
		xfs("xfs, log in stripes", false, "-l", "su=65536"),
		xfs("xfs, many groups", false, "-d", "agcount=5"),
		xfs("xfs, no reflink", false, "-m", "reflink=0,rmapbt=0"),
		xfs("xfs, rmapbt", false, "-m", "rmapbt=1"),
		btrfs("btrfs", true),
		btrfs("btrfs, xxhash, single", false, "--csum", "xxhash", "-m", "single"),
		btrfs("btrfs, sha256", false, "--csum", "sha256"),
		btrfs("btrfs, blake2, 4 KiB nodes", false, "--csum", "blake2", "-n", "4096"),
		btrfs("btrfs, mixed", false, "--mixed"),
		btrfs("btrfs, dup data", false, "-d", "dup"),
		btrfs("btrfs, no free space tree", false, "-R", "^free-space-tree"),
		fat("fat32", 300*mib, true, "-F", "32", "-s", "1"),
		fat("fat16", 100*mib, false, "-F", "16"),
		fat("fat12", 4*mib, true, "-F", "12"),
		{"ntfs", "ntfs", 100 * mib, []string{"mkntfs", "-q", "-f", "-F"}, []string{"ntfs-3g"}, []string{"ntfsfix", "-n"}, true},
		{"ntfs, 64 KiB clusters", "ntfs", 200 * mib, []string{"mkntfs", "-q", "-f", "-F", "-c", "65536"}, []string{"ntfs-3g"}, []string{"ntfsfix", "-n"}, false},
	}
}

func long() bool { return os.Getenv("PLATTER_TEST_LONG") != "" }

func run(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
}

// needs skips where a tool or loop devices are not there.
func (v variant) needs(t *testing.T) {
	if !v.short && !long() {
		t.Skip("for long runs")
	}
	if why := loop.Unavailable(t.Context()); why != "" {
		t.Skip("SKIPPED, this needs loop devices: ", why)
	}
	if _, err := os.Stat("/dev/shm"); err == nil {
		t.Setenv("TMPDIR", "/dev/shm") // no disk is waited for
	}
	for _, tool := range append([]string{v.mkfs[0], v.check[0]}, v.mount...) {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip("SKIPPED: ", err)
		}
	}
}

// make makes the filesystem in a file.
func (v variant) make(t *testing.T) string {
	path := filepath.Join(t.TempDir(), "disk")
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, v.size)); err != nil {
		t.Fatal(err)
	}
	run(t, v.mkfs[0], append(v.mkfs[1:], path)...)
	return path
}

// mounted calls f where the filesystem is mounted. What has no driver on this
// kernel skips the test.
func (v variant) mounted(t *testing.T, path string, f func(dir string)) {
	t.Helper()
	dir := t.TempDir()
	mount := exec.Command("mount", "-o", "loop", path, dir)
	if v.mount != nil {
		mount = exec.Command(v.mount[0], path, dir)
	}
	if out, err := mount.CombinedOutput(); err != nil {
		t.Skipf("SKIPPED: this kernel has no %s: %v: %s", v.name, err, out)
	}
	defer func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	}()
	f(dir)
}

// fill writes files of all sizes, holes and all, and deletes many of them.
func fill(t *testing.T, dir string, r *rand.Rand, room int64) {
	t.Helper()
	var names []string
	for n := 0; room > 0; n++ {
		p := make([]byte, min(room, []int64{100, 5000, 70_000, 1_500_000}[n%4]+r.Int64N(3000)))
		for i := range p {
			p[i] = byte(r.Uint32())
		}
		name := filepath.Join(dir, fmt.Sprintf("d%d", n%7), fmt.Sprintf("file %d", n))
		err := os.MkdirAll(filepath.Dir(name), 0o700)
		if err == nil {
			err = os.WriteFile(name, p, 0o600)
		}
		if err == nil && n%9 == 0 {
			f, _ := os.OpenFile(name, os.O_RDWR, 0)
			_, err = f.WriteAt(p[:100], int64(len(p))+100_000) // a hole before it
			_ = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, int64(len(p))+200_000, 300_000)
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
		names, room = append(names, name), room-int64(len(p))
		if len(names)%20 == 0 {
			syncAt(t, dir)
		}
	}
	for i, name := range names {
		if i%3 != 0 {
			if err := os.Remove(name); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// filled fills the filesystem and returns what is in it, and how many bytes it
// says are free. FAT is written by mtools: it needs no driver.
func (v variant) filled(t *testing.T, path string, r *rand.Rand, room int64) (want map[string][32]byte, says int64) {
	t.Helper()
	if v.content != "vfat" {
		v.mounted(t, path, func(dir string) {
			fill(t, dir, r, room)
			syncAt(t, dir)
			want = sums(t, dir)
			var stat unix.Statfs_t
			if err := unix.Statfs(dir, &stat); err != nil {
				t.Fatal(err)
			}
			says = int64(stat.Bfree) * stat.Bsize
		})
		return want, says
	}
	dir := t.TempDir()
	fill(t, dir, r, room)
	for n := range 7 {
		if err := os.MkdirAll(filepath.Join(dir, fmt.Sprintf("d%d", n)), 0o700); err != nil {
			t.Fatal(err)
		}
		run(t, "mcopy", "-s", "-i", path, filepath.Join(dir, fmt.Sprintf("d%d", n)), "::")
	}
	for n := range 3 {
		run(t, "mdeltree", "-i", path, fmt.Sprintf("::d%d", 2*n))
	}
	want = v.files(t, path)
	says = v.size
	for name := range want {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		says -= info.Size()
	}
	return want, says
}

// files returns the digest of each file of the filesystem.
func (v variant) files(t *testing.T, path string) (got map[string][32]byte) {
	t.Helper()
	if v.content == "vfat" {
		dir := t.TempDir()
		run(t, "mcopy", "-s", "-i", path, "::*", dir)
		return sums(t, dir)
	}
	v.mounted(t, path, func(dir string) { got = sums(t, dir) })
	return got
}

// syncAt writes one filesystem back, and not all of the machine.
func syncAt(t *testing.T, dir string) {
	t.Helper()
	d, err := os.Open(dir)
	if err == nil {
		err = errors.Join(unix.Syncfs(int(d.Fd())), d.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// sums returns the digest of each file.
func sums(t *testing.T, dir string) map[string][32]byte {
	t.Helper()
	all := map[string][32]byte{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		p, err := os.ReadFile(path)
		all[strings.TrimPrefix(path, dir)] = sha256.Sum256(p)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// walkFile returns what is free in a file.
func walkFile(ctx context.Context, path, content string) (list []block.Extent, err error) {
	src, err := block.Open(path, block.OpenOptions{})
	if err != nil {
		return nil, err
	}
	defer src.Close()
	err = Walk(ctx, src, content, block.Extent{Length: src.Info().Size}, func(e block.Extent) { list = append(list, e) })
	return list, err
}

func total(list []block.Extent) (n int64) {
	for _, e := range list {
		n += e.Length
	}
	return n
}

// scribble writes junk where nothing should be: all of it in long runs, else
// at the ends of each extent and here and there within.
func scribble(t *testing.T, path string, list []block.Extent) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	junk := bytes.Repeat([]byte("not to be seen. "), 64<<10/16)
	const spot = 512
	for _, e := range list {
		for off := e.Offset; off < e.End(); off += int64(len(junk)) {
			n := min(int64(len(junk)), e.End()-off)
			p := junk[:n]
			if !long() {
				p = junk[:min(n, spot)]
				if _, err := f.WriteAt(p, off+n-int64(len(p))); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := f.WriteAt(p, off); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// D59: what is free can be overwritten, and the filesystem is whole: its tool
// finds nothing wrong, and every file is what it was. And it is all there is:
// as much as the filesystem itself says.
func TestFreeBytesHoldNothing(t *testing.T) {
	for _, v := range variants() {
		t.Run(v.name, func(t *testing.T) {
			v.needs(t)
			path := v.make(t)
			want, says := v.filled(t, path, rand.New(rand.NewPCG(1, 2)), min(v.size/4, 24*mib))
			free, err := walkFile(t.Context(), path, v.content)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d of %d bytes free in %d extents; statfs says %d", total(free), v.size, len(free), says)
			if total(free) < says*9/10-4*mib || total(free) > v.size {
				t.Errorf("%d bytes are free, and the filesystem says %d", total(free), says)
			}
			scribble(t, path, free)
			run(t, v.check[0], append(v.check[1:], path)...)
			got := v.files(t, path)
			if len(got) != len(want) || len(want) == 0 {
				t.Errorf("%d files, want %d", len(got), len(want))
			}
			for name, sum := range want {
				if got[name] != sum {
					t.Errorf("%s is another file", name)
				}
			}
		})
	}
}

// A memory is a device of bytes.
type memory struct {
	data []byte
}

func (m *memory) Info() block.Info {
	return block.Info{Path: "/mem", Size: int64(len(m.data))}
}

func (m *memory) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	return copy(p, m.data[off:]), nil
}
func (m *memory) Data(int64) (block.Extent, error) { return block.Extent{}, io.EOF }
func (m *memory) Check() error                     { return nil }
func (m *memory) Close() error                     { return nil }

// D59: whatever is wrong with its records, a filesystem never has bytes called
// free that are in use: there is an error, or no more is free than was. Where
// bitmaps have no checksum, that is so for one bit. NTFS has nothing to check.
func TestDamagedRecordsFreeNothing(t *testing.T) {
	rounds := 100
	if long() {
		rounds = 2_000
	}
	for _, v := range variants() {
		if v.content == "ntfs" || v.name == "xfs, version 4" || v.size > 600*mib {
			continue
		}
		t.Run(v.name, func(t *testing.T) {
			v.needs(t)
			path := v.make(t)
			v.filled(t, path, rand.New(rand.NewPCG(3, 4)), min(v.size/4, 4*mib))
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			whole := watch(v, data)
			if whole.err != nil {
				t.Fatal(whole.err)
			}
			isFree := make([]bool, len(data)/512)
			for _, e := range whole.free {
				for at := e.Offset; at < e.End(); at += 512 {
					isFree[at/512] = true
				}
			}
			r := rand.New(rand.NewPCG(5, 6))
			refused := 0
			for range rounds {
				undo := whole.damage(r, data, v.summed())
				now := watch(v, data)
				if now.err != nil {
					refused++
				} else {
					for _, e := range now.free {
						for at := e.Offset; at < e.End(); at += 512 {
							if !isFree[at/512] {
								t.Fatalf("byte %d is called free, after %s", at, undo.what)
							}
						}
					}
				}
				undo.do()
			}
			t.Logf("%d of %d refused", refused, rounds)
			if refused < rounds/5 {
				t.Errorf("only %d of %d refused", refused, rounds)
			}
		})
	}
}

// watched is what was read of a filesystem, and what came of it.
type watched struct {
	memory
	read []int64 // sectors
	free []block.Extent
	err  error
}

// watch walks a filesystem and notes which sectors its records are in: of each
// window that was read, those that are not all one byte.
func watch(v variant, data []byte) *watched {
	w := &watched{memory: memory{data}}
	// Through small windows, so that hardly more than records is read.
	small := &volume{
		ctx: context.Background(), src: w, e: block.Extent{Length: int64(len(data))}, unit: 4096,
		free: func(e block.Extent) { w.free = append(w.free, e) },
	}
	w.err = small.walk(readers()[v.content])
	return w
}

func (w *watched) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	for at := off; at < off+int64(len(p)); at += 512 {
		if s := w.data[at : at+512]; bytes.Count(s, s[:1]) != len(s) {
			w.read = append(w.read, at)
		}
	}
	return w.memory.ReadAt(ctx, p, off)
}

// summed reports whether the variant's records have checksums, or copies.
func (v variant) summed() bool {
	for _, without := range []string{"ext2", "ext3", "uninit_bg", "no metadata_csum"} {
		if strings.Contains(v.name, without) {
			return false
		}
	}
	return true
}

type undo struct {
	what string
	do   func()
}

// damage changes one of the sectors that were read: a bit, and with all also a
// byte, a few, or all of it.
func (w *watched) damage(r *rand.Rand, data []byte, all bool) undo {
	at := w.read[r.IntN(len(w.read))]
	was := bytes.Clone(data[at : at+512])
	s := data[at : at+512]
	what := fmt.Sprintf("damage to the sector at %d", at)
	kinds := 1
	if all {
		kinds = 4
	}
	switch r.IntN(kinds) {
	case 0:
		i := r.IntN(4096)
		s[i/8] ^= 1 << (i % 8)
		what += fmt.Sprintf(", bit %d", i)
	case 1:
		i := r.IntN(512)
		s[i] = byte(r.Uint32())
		what += fmt.Sprintf(", byte %d", i)
	case 2:
		for range 4 {
			s[r.IntN(512)] = byte(r.Uint32())
		}
	case 3:
		for i := range s {
			s[i] = byte(r.Uint32())
		}
	}
	return undo{what, func() { copy(data[at:], was) }}
}

// D59: a filesystem that is in use, or was left in use, is not believed, but
// for one that stands still, as in a snapshot.
func TestUncleanFilesystemsAreNotBelieved(t *testing.T) {
	for _, v := range variants() {
		if v.mount != nil {
			continue
		}
		t.Run(v.name, func(t *testing.T) {
			v.needs(t)
			path := v.make(t)
			torn, still := path+".torn", path+".still"
			var want map[string][32]byte
			v.mounted(t, path, func(dir string) {
				fill(t, dir, rand.New(rand.NewPCG(1, 2)), min(v.size/4, 8*mib))
				syncAt(t, dir)
				name := filepath.Join(dir, "late")
				f, err := os.Create(name)
				if err == nil {
					_, err = f.Write(make([]byte, 100_000))
				}
				if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
					t.Fatal(err)
				}
				run(t, "cp", "--sparse=always", path, torn)
				want = sums(t, dir)
				if err := exec.Command("fsfreeze", "-f", dir).Run(); err == nil {
					run(t, "cp", "--sparse=always", path, still)
					run(t, "fsfreeze", "-u", dir)
				}
			})
			if list, err := walkFile(t.Context(), torn, v.content); !errors.Is(err, ErrUnsure) {
				t.Errorf("%d bytes of a filesystem in use are free: %v", total(list), err)
			}
			if _, err := os.Stat(still); err != nil || strings.HasPrefix(v.name, "ext2") || strings.Contains(v.name, "no journal") {
				return // cannot be frozen, or is not clean then
			}
			free, err := walkFile(t.Context(), still, v.content)
			if err != nil || total(free) < v.size/4 {
				t.Fatalf("%d bytes of a filesystem that stood still are free: %v", total(free), err)
			}
			scribble(t, still, free)
			v.mounted(t, still, func(dir string) {
				got := sums(t, dir)
				for name, sum := range want {
					if got[name] != sum {
						t.Errorf("%s is another file", name)
					}
				}
			})
			run(t, v.check[0], append(v.check[1:], still)...)
		})
	}
}

func TestSwapIsFreeButForItsHead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "swap")
	if err := os.WriteFile(path, make([]byte, 1<<20+100), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := exec.LookPath("mkswap"); err != nil {
		t.Skip("SKIPPED: ", err)
	}
	run(t, "mkswap", "-q", path)
	free, err := walkFile(t.Context(), path, "swap")
	if want := (block.Extent{Offset: 4096, Length: 1<<20 - 4096}); err != nil || len(free) != 1 || free[0] != want {
		t.Errorf("got %v, %v; want %v", free, err, want)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err == nil {
		_, err = f.WriteAt([]byte("S1SUSPEND\x00"), 4086)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	if free, err := walkFile(t.Context(), path, "swap"); !errors.Is(err, ErrUnsure) {
		t.Errorf("a sleeping machine lies in it, and %v is free: %v", free, err)
	}
}

func TestWhatIsUnknownIsUnsure(t *testing.T) {
	m := &memory{make([]byte, mib)}
	for _, content := range []string{"", "f2fs", "ext4", "xfs", "btrfs", "vfat", "ntfs", "swap"} {
		for _, length := range []int64{0, 511, 4096, mib, 2 * mib} {
			err := Walk(t.Context(), m, content, block.Extent{Length: length}, func(e block.Extent) { t.Errorf("%v of zeros is free", e) })
			if !errors.Is(err, ErrUnsure) {
				t.Errorf("%q in %d bytes of zeros: %v", content, length, err)
			}
		}
	}
}

// FuzzWalk throws junk at all readers.
func FuzzWalk(f *testing.F) {
	f.Add([]byte("XFSB"), "xfs")
	f.Fuzz(func(t *testing.T, data []byte, content string) {
		list := int64(0)
		m := &memory{data}
		_ = Walk(t.Context(), m, content, block.Extent{Length: int64(len(data))}, func(e block.Extent) {
			if list += e.Length; e.Offset < 0 || e.Length <= 0 || e.End() > int64(len(data)) {
				t.Errorf("%v of %d bytes", e, len(data))
			}
		})
	})
}
