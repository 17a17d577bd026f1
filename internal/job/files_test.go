package job

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"platter/image"
	"platter/internal/export/files"
	loops "platter/vmtests/loop"
)

// needs skips a test where it cannot run.
func needs(t *testing.T, tools ...string) {
	t.Helper()
	if why := loops.Unavailable(t.Context()); why != "" {
		t.Skip("SKIPPED, this needs loop devices: ", why)
	}
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip("SKIPPED: ", err)
		}
	}
}

func command(t *testing.T, dir string, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
	cmd.Dir = dir
	var complaint strings.Builder
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v: %s", args, err, complaint.String())
	}
	return out
}

func done(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// awkward fills a folder of a mounted filesystem with all that a file can be.
// Of long attributes only those go in that the filesystem has room for.
func awkward(t *testing.T, dir string, longXattr int) {
	t.Helper()
	at := func(name string) string { return filepath.Join(dir, name) }
	write := func(name string, n int) {
		done(t, os.WriteFile(at(name), bytes.Repeat([]byte(name+"\n"), n), 0o640))
	}
	for _, d := range []string{"many", "deep/er/est", "sticky", "acl"} {
		done(t, os.MkdirAll(at(d), 0o755))
	}
	for i := range 1500 {
		done(t, os.WriteFile(at(fmt.Sprintf("many/a name of some length, to fill blocks %04d", i)), fmt.Append(nil, i), 0o600))
	}
	write("file", 100000)
	write("one", 1)
	write("ten", 10)
	write("forty", 40)
	write("empty", 0)
	write("a b\tc", 1)
	write("bad \xff\xfe name", 1)
	write("zwölf Boxkämpfer", 1)
	write("line\nbreak", 1)
	write(strings.Repeat("n", 255), 1)
	write("deep/er/est/bottom", 3)

	f, err := os.Create(at("sparse"))
	done(t, err)
	for _, off := range []int64{5 << 20, 20 << 20, 20<<20 + 12345} {
		_, err = f.WriteAt(bytes.Repeat([]byte{7}, 10000), off)
		done(t, err)
	}
	done(t, f.Truncate(48<<20), f.Close())
	f, err = os.Create(at("pieces"))
	done(t, err)
	for i := range int64(700) {
		_, err = f.WriteAt(fmt.Appendf(nil, "piece %d", i), i*2*4096)
		done(t, err)
	}
	done(t, f.Close())
	f, err = os.Create(at("reserved"))
	done(t, err)
	if err := unix.Fallocate(int(f.Fd()), 0, 0, 1<<20); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		t.Fatal(err)
	}
	_, err = f.WriteAt([]byte("in the middle"), 500000)
	done(t, err, f.Truncate(1<<20), f.Close())

	done(t, os.Link(at("file"), at("deep/hard")), os.Link(at("file"), at("deep/er/hard")))
	for _, n := range []int{1, 59, 60, 61, 900} {
		done(t, os.Symlink(strings.Repeat("s", n), at(fmt.Sprintf("link%d", n))))
	}
	done(t, os.Symlink("/etc/passwd", at("absolute")), os.Symlink("../../../..", at("up")))
	done(t, unix.Mknod(at("char"), unix.S_IFCHR|0o620, int(unix.Mkdev(5, 1))),
		unix.Mknod(at("block"), unix.S_IFBLK|0o660, int(unix.Mkdev(259, 70000))),
		unix.Mkfifo(at("fifo"), 0o644), os.Link(at("fifo"), at("deep/fifo")))
	done(t, os.Lchown(at("one"), 70000, 3999999999), os.Lchown(at("link1"), 12, 13), os.Lchown(at("fifo"), 1, 2))
	done(t, unix.Chmod(at("one"), 0o6755), unix.Chmod(at("sticky"), 0o3777), unix.Chmod(at("ten"), 0))
	done(t, unix.Setxattr(at("one"), "security.capability", append([]byte{1, 0, 0, 2, 0, 0x20}, make([]byte, 14)...), 0),
		unix.Lsetxattr(at("link1"), "security.selinux", []byte("system_u:object_r:etc_t:s0\x00"), 0),
		unix.Setxattr(at("empty"), "user.none", nil, 0),
		unix.Setxattr(at("deep"), "trusted.note", []byte("a\x00b"), 0),
		unix.Setxattr(at("file"), "user.long", bytes.Repeat([]byte("v"), longXattr), 0))
	command(t, dir, "setfacl", "-m", "u:1000:rw,g:2000:r,m:rw", "one", "file")
	command(t, dir, "setfacl", "-d", "-m", "u:1001:rwx,o:-", "acl")
	for name, when := range map[string]time.Time{
		"ten": time.Date(1965, 3, 4, 5, 6, 7, 891011, time.UTC), "forty": time.Date(2039, 1, 2, 3, 4, 5, 678, time.UTC), "deep/er": time.Unix(1e9, 0),
	} {
		done(t, os.Chtimes(at(name), when, when))
	}
}

// archive is all that tar knows of a folder, a line for each file.
func archive(t *testing.T, dir, name string) string {
	t.Helper()
	b := command(t, dir, "tar", "--create", "--sort=name", "--numeric-owner", "--format=posix",
		"--pax-option=delete=atime,delete=ctime", "--xattrs", "--xattrs-include=*", "--acls", "--selinux", name)
	var list strings.Builder
	for r := tar.NewReader(bytes.NewReader(b)); ; {
		h, err := r.Next()
		if err == io.EOF {
			return list.String()
		}
		done(t, err)
		sum := sha256.New()
		_, err = io.Copy(sum, r)
		done(t, err)
		maps.DeleteFunc(h.PAXRecords, func(key, _ string) bool { return strings.Contains(key, "trusted.SGI_ACL_") })
		fmt.Fprintf(&list, "%c %o %d:%d %d %d,%d %s %q -> %q %q %x\n", h.Typeflag, h.Mode, h.Uid, h.Gid, h.Size, h.Devmajor, h.Devminor,
			h.ModTime.UTC().Format(time.RFC3339Nano), h.Name, h.Linkname, h.PAXRecords, sum.Sum(nil))
	}
}

// attributes is all that getfattr knows of a folder.
func attributes(t *testing.T, dir, name string) string {
	t.Helper()
	list := strings.Split(string(command(t, dir, "getfattr", "-R", "-h", "-d", "-m", "-", "-e", "hex", name)), "\n\n")
	for i, of := range list { // XFS shows ACLs twice
		list[i] = regexp.MustCompile(`(?m)\n?^trusted\.SGI_ACL_.*$`).ReplaceAllString(of, "")
	}
	slices.Sort(list)
	return strings.Join(list, "\n\n")
}

// truth is what the kernel says of the folder "tree" of a filesystem.
type truth struct {
	tar    string
	xattrs string
}

// filesystemImage makes a filesystem in a file, with awkward files in it, and
// an image of it.
func filesystemImage(t *testing.T, size int64, longXattr int, mkfs ...string) (*Env, *image.Manifest, truth) {
	t.Helper()
	needs(t, mkfs[0], "getfattr", "setfacl")
	file := filepath.Join(t.TempDir(), "disk")
	done(t, os.WriteFile(file, nil, 0o600), os.Truncate(file, size))
	command(t, ".", append(mkfs, file)...)
	dev, err := loops.Attach(t.Context(), file, loops.Options{})
	done(t, err)
	var want truth
	err = loops.Mount(t.Context(), dev.Path, func(dir string) error {
		done(t, os.Mkdir(filepath.Join(dir, "tree"), 0o751))
		awkward(t, filepath.Join(dir, "tree"), longXattr)
		return nil
	})
	done(t, err)
	err = loops.Mount(t.Context(), dev.Path, func(dir string) error { // as it is on the disk, not in memory
		want.tar, want.xattrs = archive(t, dir, "tree"), attributes(t, dir, "tree")
		return nil
	})
	done(t, err, dev.Detach())
	env := newEnv(t, 64<<10)
	r, err := Backup(t.Context(), env, BackupOptions{Devices: []string{file}, Volume: "files/disk"})
	done(t, err)
	return env, r[0].Image, want
}

func (w truth) check(t *testing.T, dir string) {
	t.Helper()
	if d := cmp.Diff(strings.Split(w.xattrs, "\n\n"), strings.Split(attributes(t, dir, "tree"), "\n\n")); d != "" {
		t.Errorf("attributes, - want + got:\n%s", d)
	}
	if d := cmp.Diff(strings.Split(w.tar, "\n"), strings.Split(archive(t, dir, "tree"), "\n")); d != "" {
		t.Errorf("tar, - want + got:\n%s", d)
	}
}

func TestFilesAreWhatTheKernelReads(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED: takes seconds")
	}
	most := 2
	if os.Getenv("PLATTER_TEST_LONG") != "" {
		most = 8
	}
	back := loops.Filesystem(t, 1<<30, "mkfs.btrfs", "-q") // where long attributes fit
	for _, c := range []struct {
		mkfs   string
		size   int64
		xattr  int
		kernel bool
	}{
		{"mkfs.ext4 -q -b 1024 -O inline_data,ea_inode,^resize_inode,meta_bg", 96 << 20, 12000, false},
		{"mkfs.xfs -q", 320 << 20, 12000, true},
		{"mkfs.ext4 -q -b 4096", 96 << 20, 3000, false}, // from here on, only in campaigns
		{"mkfs.ext4 -q -b 4096 -O bigalloc,64bit -I 512", 128 << 20, 3000, false},
		{"mkfs.ext3 -q -b 1024", 96 << 20, 900, false},
		{"mkfs.ext2 -q -b 4096 -I 256", 96 << 20, 3000, false},
		{"mkfs.ext4 -q -b 4096", 96 << 20, 3000, true},
		{"mkfs.btrfs -q", 256 << 20, 3000, true},
	}[:most] {
		t.Run(fmt.Sprintf("%s/%v", c.mkfs, c.kernel), func(t *testing.T) {
			env, m, want := filesystemImage(t, c.size, c.xattr, strings.Fields(c.mkfs)...)
			spec := m.ID.String() + ":/tree"
			to := filepath.Join(back, t.Name(), "to")
			r, err := Files(t.Context(), env, FilesOptions{Spec: spec, To: to, Kernel: c.kernel})
			if err != nil || r.Missing > 0 {
				t.Fatalf("%v, report %+v", err, r)
			}
			want.check(t, to)
			st := func(name string) int64 {
				var st unix.Stat_t
				done(t, unix.Stat(filepath.Join(to, "tree", name), &st))
				return st.Blocks * 512
			}
			if n := st("sparse"); n > 1<<20 {
				t.Errorf("the sparse file takes %d bytes", n)
			}
			var tar bytes.Buffer
			r, err = Files(t.Context(), env, FilesOptions{Spec: spec, Tar: &tar, Kernel: c.kernel})
			if err != nil || r.Missing > 0 {
				t.Fatalf("%v, report %+v", err, r)
			}
			to += "-tar"
			done(t, os.Mkdir(to, 0o700))
			cmd := exec.CommandContext(t.Context(), "tar", "-x", "-p", "--numeric-owner", "--same-owner", "--xattrs", "--xattrs-include=*", "-C", to)
			cmd.Stdin = &tar
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("tar: %v\n%s", err, out)
			}
			want.check(t, to)
			if n := st("sparse"); n > 1<<20 {
				t.Errorf("the sparse file from the archive takes %d bytes", n)
			}
			var lines []files.Line
			_, err = Files(t.Context(), env, FilesOptions{Spec: spec + "/deep/..", Kernel: c.kernel, Deep: true, List: func(l files.Line) error {
				lines = append(lines, l)
				return nil
			}})
			if err != nil || len(lines) != strings.Count(string(command(t, to, "find", "tree", "-mindepth", "1", "-printf", "x\n")), "x") {
				t.Errorf("%d lines, %v", len(lines), err)
			}
			var text bytes.Buffer
			if _, err = Files(t.Context(), env, FilesOptions{Spec: spec + "/deep/er/../hard", Kernel: c.kernel, Cat: &text}); err != nil || text.Len() != 500000 {
				t.Errorf("printed %d bytes, %v", text.Len(), err)
			}
		})
	}
}
