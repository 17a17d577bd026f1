package adapt

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"

	"platter/block"
	"platter/image/reader"
	"platter/internal/export/rescue/cpio"
)

// fileDisk is a file that is adapted itself.
type fileDisk struct {
	*os.File
	size int64
}

func (d fileDisk) Size() int64 { return d.size }
func (d fileDisk) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	return d.File.ReadAt(p, off)
}
func (d fileDisk) Flush(context.Context) error { return nil }
func (d fileDisk) Zero(ctx context.Context, off, length int64) error {
	return d.WriteAt(ctx, make([]byte, length), off)
}

func (d fileDisk) WriteAt(_ context.Context, p []byte, off int64) error {
	_, err := d.File.WriteAt(p, off)
	return err
}

func (d fileDisk) Stretches(_ context.Context, off, length int64, _ int) ([]reader.Stretch, error) {
	return []reader.Stretch{{Extent: block.Extent{Offset: off, Length: length}}}, nil
}

func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("NOT TESTED: %s is not installed", name)
	}
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "MTOOLS_SKIP_CHECK=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// able skips where filesystems cannot be mounted out of a file.
func able(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("NOT TESTED: mounting needs root")
	}
	for _, dev := range []string{"/dev/loop-control", "/dev/fuse"} {
		if _, err := os.Stat(dev); err != nil {
			t.Skipf("NOT TESTED: %v", err)
		}
	}
}

func sparse(t *testing.T, size int64) string {
	t.Helper()
	f := filepath.Join(t.TempDir(), "file")
	if err := errors.Join(os.WriteFile(f, nil, 0o600), os.Truncate(f, size)); err != nil {
		t.Fatal(err)
	}
	return f
}

func writeTree(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, body := range files {
		path := filepath.Join(dir, name)
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		if to, link := strings.CutPrefix(body, "-> "); link {
			err = errors.Join(err, os.Symlink(to, path))
		} else {
			err = errors.Join(err, os.WriteFile(path, []byte(body), 0o644))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

const release = "6.1.0-9-amd64"

// modules are a kernel's, as far as they matter: files with nothing in them that
// runs, and an index.
func modules() map[string]string {
	files := map[string]string{
		"modules.dep": "kernel/drivers/block/virtio_blk.ko:\nkernel/drivers/nvme/host/nvme.ko: kernel/drivers/nvme/host/nvme-core.ko\nkernel/drivers/nvme/host/nvme-core.ko:\n" +
			"kernel/drivers/ata/ahci.ko: kernel/drivers/ata/libata.ko\nkernel/drivers/ata/libata.ko:\nkernel/drivers/net/e1000.ko:\nkernel/fs/ext4/ext4.ko: kernel/lib/crc16.ko\nkernel/lib/crc16.ko:\nkernel/lib/crc-t10dif.ko:\n",
		"modules.softdep":   "softdep nvme-core pre: crc_t10dif\n",
		"modules.alias":     "alias pci:v*d*sv*sd*bc01sc08i02* nvme\n",
		"modules.alias.bin": "\xb0\x07\xf4\x57binary",
	}
	for line := range strings.Lines(files["modules.dep"]) {
		name, _, _ := strings.Cut(line, ":")
		files[name] = "module " + name
	}
	all := map[string]string{}
	for name, body := range files {
		all["usr/lib/modules/"+release+"/"+name] = body
	}
	return all
}

// packers compress an initial file system as systems do.
func packers() map[string]func(w io.Writer) io.WriteCloser {
	return map[string]func(w io.Writer) io.WriteCloser{
		"gzip": func(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) },
		"zstd": func(w io.Writer) io.WriteCloser { z, _ := zstd.NewWriter(w); return z },
		"lz4": func(w io.Writer) io.WriteCloser {
			z := lz4.NewWriter(w)
			_ = z.Apply(lz4.LegacyOption(true))
			return z
		},
	}
}

// hostOnly is an initial file system that knows one way to a disk, behind
// microcode.
func hostOnly(t *testing.T, pack func(io.Writer) io.WriteCloser) string {
	t.Helper()
	var b bytes.Buffer
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	must(cpio.Write(&b, []cpio.Entry{{Name: "kernel", Mode: cpio.Dir | 0o755}, {Name: "kernel/x86.bin", Mode: cpio.File | 0o644, Body: []byte("microcode")}}))
	for b.Len()%512 != 0 {
		b.WriteByte(0)
	}
	dir := "usr/lib/modules/" + release
	entries := []cpio.Entry{{Name: "lib", Mode: cpio.Link | 0o777, Body: []byte("usr/lib")}}
	for _, d := range []string{"conf", "conf/conf.d", "usr", "usr/lib", "usr/lib/modules", dir, dir + "/kernel", dir + "/kernel/drivers", dir + "/kernel/drivers/block"} {
		entries = append(entries, cpio.Entry{Name: d, Mode: cpio.Dir | 0o755})
	}
	random := make([]byte, 8192)
	for i := range random {
		random[i] = byte(i * i * 7)
	}
	entries = append(entries,
		cpio.Entry{Name: dir + "/kernel/drivers/block/virtio_blk.ko", Mode: cpio.File | 0o644, Body: random},
		cpio.Entry{Name: "conf/conf.d/resume", Mode: cpio.File | 0o644, Body: []byte("RESUME=/dev/sda3\n")})
	z := pack(&b)
	must(cpio.Write(z, entries))
	must(z.Close())
	return b.String()
}

// debian is a tree as Debian's installer leaves it, on a machine that called its
// disk sda.
func debian(t *testing.T, pack func(io.Writer) io.WriteCloser) map[string]string {
	files := modules()
	for name, body := range map[string]string{
		"lib":                                "-> usr/lib",
		"etc/fstab":                          "# / was on /dev/sda2 during installation\n/dev/sda2 / auto errors=remount-ro 0 1\nLABEL=ESP /boot/efi vfat umask=0077 0 1\n/dev/sda3 none swap sw 0 0\n/dev/sdb1 /srv ext4 defaults 0 2\n",
		"etc/default/grub":                   "GRUB_CMDLINE_LINUX=\"root=/dev/sda2 quiet\"\n",
		"etc/initramfs-tools/initramfs.conf": "MODULES=dep\n",
		"etc/machine-id":                     "00112233445566778899aabbccddeeff\n",
		"etc/udev/rules.d/70-persistent-net.rules": "SUBSYSTEM==\"net\", ATTR{address}==\"52:54:00:12:34:56\", NAME=\"eth0\"\n",
		"etc/network/interfaces":                   "auto eth0\niface eth0 inet dhcp\n\thwaddress ether 52:54:00:12:34:56\n",
		"boot/grub/grub.cfg":                       "menuentry Debian {\n\tlinux /boot/vmlinuz-" + release + " root=/dev/sda2 ro resume=/dev/sda3\n\tinitrd /boot/initrd.img-" + release + "\n}\n",
		"boot/initrd.img-" + release:               hostOnly(t, pack),
		"sbin/init":                                "",
	} {
		files[name] = body
	}
	return files
}

// A built disk has an ESP, a root and swap.
type built struct {
	*testing.T
	path string
	disk *block.Table
	dir  string
	kind string
}

// build makes a disk of a tree, with another for the ESP.
func build(t *testing.T, kind string, files, esp map[string]string) *built {
	t.Helper()
	able(t)
	root := map[string]int64{"ext4": 48 << 20, "xfs": 320 << 20, "btrfs": 128 << 20}[kind]
	path := sparse(t, 64<<20+root)
	tool(t, "sgdisk", "-n1:0:+34M", "-t1:ef00", fmt.Sprintf("-n2:0:+%dM", root>>20), "-n3:0:+8M", "-t3:8200", path)
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	table, _ := block.Probe(f, 64<<20+root, 512)
	tree := t.TempDir()
	writeTree(t, tree, files)
	for i, p := range table.Partitions {
		part := sparse(t, p.Length)
		switch i {
		case 0:
			tool(t, "mkfs.vfat", "-F", "32", "-n", "ESP", part)
			top := t.TempDir()
			writeTree(t, top, esp)
			list, _ := filepath.Glob(top + "/*")
			for _, name := range list {
				tool(t, "mcopy", "-s", "-i", part, name, "::/")
			}
		case 1:
			switch kind {
			case "ext4":
				tool(t, "mkfs.ext4", "-q", "-d", tree, part)
			case "xfs":
				tool(t, "mkfs.xfs", "-q", part)
				whileMounted(t, part, func(dir string) { tool(t, "cp", "-a", tree+"/.", dir) })
			case "btrfs":
				tool(t, "mkfs.btrfs", "-q", part)
				whileMounted(t, part, func(dir string) {
					tool(t, "btrfs", "-q", "subvolume", "create", dir+"/@rootfs")
					tool(t, "cp", "-a", tree+"/.", dir+"/@rootfs")
				})
			}
		case 2:
			tool(t, "mkswap", part)
		}
		tool(t, "dd", "if="+part, "of="+path, "bs=1M", fmt.Sprintf("seek=%dB", p.Offset), "conv=notrunc,sparse", "status=none")
	}
	return &built{t, path, table, tree, kind}
}

func whileMounted(t *testing.T, part string, f func(dir string)) {
	t.Helper()
	dir := t.TempDir()
	tool(t, "mount", "-o", "loop", part, dir)
	defer tool(t, "umount", dir)
	f(dir)
}

func (b *built) options() Options {
	return Options{Table: b.disk, Sector: 512, Disk: "sda", Hardware: true, Dir: b.TempDir(), Log: func(err error) { b.Error(err) }}
}

func (b *built) apply(opts Options) (*Report, error) {
	b.Helper()
	f, err := os.OpenFile(b.path, os.O_RDWR, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	st, _ := f.Stat()
	return Apply(b.Context(), fileDisk{f, st.Size()}, opts)
}

func (b *built) must(opts Options) *Report {
	b.Helper()
	r, err := b.apply(opts)
	if err != nil {
		b.Fatal(err)
	}
	return r
}

// part copies a partition out, checks it, and returns the file.
func (b *built) part(n int) string {
	b.Helper()
	out := filepath.Join(b.TempDir(), "part")
	p := b.disk.Partitions[n-1]
	tool(b.T, "dd", "if="+b.path, "of="+out, "bs=1M", fmt.Sprintf("skip=%dB", p.Offset), fmt.Sprintf("count=%dB", p.Length), "conv=sparse", "status=none")
	switch {
	case n == 1:
		tool(b.T, "fsck.vfat", "-n", out)
	case n == 2 && b.kind == "ext4":
		tool(b.T, "e2fsck", "-fn", out)
	case n == 2 && b.kind == "xfs":
		tool(b.T, "xfs_repair", "-n", "-f", out)
	case n == 2 && b.kind == "btrfs":
		tool(b.T, "btrfs", "check", out)
	}
	return out
}

// files reads files of the root.
func (b *built) files(f func(read func(name string) string)) {
	b.Helper()
	whileMounted(b.T, b.part(2), func(dir string) {
		if b.kind == "btrfs" {
			dir += "/@rootfs"
		}
		f(func(name string) string {
			body, err := os.ReadFile(filepath.Join(dir, name))
			if errors.Is(err, os.ErrNotExist) {
				return "none"
			} else if err != nil {
				b.Fatal(err)
			}
			return string(body)
		})
	})
}

func (b *built) id(n int) string {
	f, err := os.Open(b.path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	table, _ := block.Probe(f, 1<<40, 512)
	if table == nil {
		st, _ := f.Stat()
		table, _ = block.Probe(f, st.Size(), 512)
	}
	p := table.Partitions[n-1]
	return block.FilesystemID(f, p.Extent, p.Content)
}

func want(t *testing.T, what, got string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if no, found := strings.CutPrefix(p, "!"); found && strings.Contains(got, no) || !found && !strings.Contains(got, p) {
			t.Errorf("%s: want %q in it: %.2000q", what, p, got)
		}
	}
}

// A system finds its disk whatever it is called, and whatever it is behind.
func TestSystemStartsOnOtherHardware(t *testing.T) {
	for _, c := range []struct{ kind, pack string }{{"ext4", "gzip"}, {"xfs", "zstd"}, {"btrfs", "lz4"}} {
		t.Run(c.kind, func(t *testing.T) {
			files, ram := debian(t, packers()[c.pack]), "boot/initrd.img-"+release
			if c.kind == "btrfs" { // as with dracut
				files["etc/dracut.conf.d/local.conf"] = "compress=lz4\n"
				files["boot/initramfs-"+release+".img"] = files[ram]
				delete(files, ram)
				ram = "boot/initramfs-" + release + ".img"
			}
			b := build(t, c.kind, files, map[string]string{"EFI/debian/shimx64.efi": "the shim", "EFI/debian/grubx64.efi": "GRUB"})
			root, swap := b.id(2), b.id(3)
			opts := b.options()
			opts.ResetMachineID, opts.ResetNetwork = true, true
			r := b.must(opts)
			b.files(func(read func(string) string) {
				want(t, "fstab", read("etc/fstab"), "\nUUID="+root+" / auto", "\nUUID="+swap+" none swap", "LABEL=ESP /boot/efi", "/dev/sdb1 /srv", "# / was on /dev/sda2")
				want(t, "grub", read("etc/default/grub"), `"root=UUID=`+root+` quiet"`)
				want(t, "grub.cfg", read("boot/grub/grub.cfg"), " root=UUID="+root+" ro resume=UUID="+swap+"\n")
				want(t, "conf.d", read("etc/initramfs-tools/conf.d/zz-platter"), "MODULES=most\n")
				if got := read("etc/machine-id"); got != "" {
					t.Errorf("machine-id %q", got)
				}
				if got := read("etc/udev/rules.d/70-persistent-net.rules"); got != "none" {
					t.Errorf("rules %q", got)
				}
				want(t, "interfaces", read("etc/network/interfaces"), "iface eth0 inet dhcp\n", "!hwaddress")
				isAdapted(t, read(ram), swap)
				if got := read("etc/dracut.conf.d/zz-platter.conf"); strings.Contains(got, "hostonly=\"no\"\n") != (c.kind == "btrfs") {
					t.Errorf("dracut's settings: %q", got)
				}
			})
			esp := b.part(1)
			want(t, "fallback", tool(t, "mtype", "-i", esp, "::/EFI/BOOT/BOOTX64.EFI"), "the shim")
			want(t, "beside it", tool(t, "mtype", "-i", esp, "::/EFI/BOOT/grubx64.efi"), "GRUB")
			want(t, "what was left", strings.Join(r.Left, "\n"), "/dev/sdb1")
			for _, name := range []string{"/etc/fstab on partition 2: /dev/sda2 is UUID=" + root, "4 drivers", "/EFI/BOOT/BOOTX64.EFI on partition 1"} {
				want(t, "what was changed", strings.Join(r.Changes, "\n"), name)
			}
			// Done once more, there is nothing to do.
			if again := b.must(b.options()); len(again.Changes) != 0 && c.pack == "gzip" {
				t.Errorf("once more: %q", again.Changes)
			}
		})
	}
}

// isAdapted proves that an initial file system has the drivers in the end, and
// what it had, by a reader that is not this program's.
func isAdapted(t *testing.T, body, swap string) {
	t.Helper()
	r, err := readRamfs(t.Context(), strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	at := strings.LastIndex(body, "\x00\x1f\x8b\x08") + 1
	z, err := gzip.NewReader(strings.NewReader(body[at:]))
	if err != nil || at%4 != 0 {
		t.Fatalf("the archive behind: at %d, %v", at, err)
	}
	z.Multistream(false)
	dir := t.TempDir()
	cmd := exec.Command("cpio", "-id", "--quiet", "--no-absolute-filenames")
	cmd.Dir, cmd.Stdin = dir, z
	if _, err := exec.LookPath("cpio"); err != nil {
		t.Skip("NOT TESTED: cpio is not installed")
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cpio: %v: %s", err, out)
	}
	for name, want := range map[string]string{
		"kernel/drivers/nvme/host/nvme.ko":      "module kernel/drivers/nvme/host/nvme.ko",
		"kernel/drivers/nvme/host/nvme-core.ko": "module kernel/drivers/nvme/host/nvme-core.ko",
		"kernel/drivers/ata/libata.ko":          "module kernel/drivers/ata/libata.ko",
		"kernel/lib/crc-t10dif.ko":              "module kernel/lib/crc-t10dif.ko",
		"modules.alias.bin":                     "\xb0\x07\xf4\x57binary",
	} {
		got, err := os.ReadFile(filepath.Join(dir, "usr/lib/modules", release, name))
		if err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	for _, name := range []string{"usr/lib/modules/" + release + "/kernel/drivers/net/e1000.ko", "usr/lib/modules/" + release + "/kernel/drivers/block/virtio_blk.ko", "lib"} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			t.Errorf("%s is there, and should not", name)
		}
	}
	resume, _ := os.ReadFile(filepath.Join(dir, "conf/conf.d/resume"))
	if string(resume) != "RESUME=UUID="+swap+"\n" {
		t.Errorf("resume: %q", resume)
	}
	if r.release != release || len(r.names) < 10 {
		t.Errorf("release %q, %d names", r.release, len(r.names))
	}
}

// A disk with new identities has none of the old ones, and what named them names
// the new ones.
func TestNewIDsAreFollowed(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs", "btrfs"} {
		t.Run(kind, func(t *testing.T) {
			b := build(t, kind, debian(t, packers()["gzip"]), map[string]string{"EFI/debian/shimx64.efi": "the shim"})
			old := []string{b.id(1), b.id(2), b.id(3)}
			parts := map[string]string{}
			for _, p := range b.disk.Partitions {
				parts[strings.ToLower(p.ID)] = p.Content
			}
			part3 := strings.ToLower(b.disk.Partitions[2].ID)
			inside := func(files map[string]string) {
				p := b.disk.Partitions[1]
				loop := strings.TrimSpace(tool(t, "losetup", "-f", "--show", "-o", fmt.Sprint(p.Offset), "--sizelimit", fmt.Sprint(p.Length), b.path))
				dir := t.TempDir()
				tool(t, "mount", loop, dir)
				top := dir
				if kind == "btrfs" {
					top += "/@rootfs"
				}
				writeTree(t, top, files)
				tool(t, "umount", dir)
				tool(t, "losetup", "-d", loop)
			}
			inside(map[string]string{
				"etc/fstab":                         fmt.Sprintf("UUID=%s / auto defaults 0 1\nUUID=%s /boot/efi vfat defaults 0 1\nPARTUUID=%s none swap sw 0 0\n", old[1], old[0], part3),
				"etc/crypttab":                      "swap_crypt UUID=" + strings.ToUpper(old[2]) + " /dev/urandom swap\n",
				"boot/grub/grub.cfg":                "search --fs-uuid --set=root " + old[1] + "\nlinux /vmlinuz root=UUID=" + old[1] + " resume=UUID=" + old[2] + "\n",
				"etc/systemd/system/x.mount":        "After=dev-disk-by\\x2duuid-" + strings.ReplaceAll(old[1], "-", `\x2d`) + ".device\n",
				"etc/initramfs-tools/conf.d/resume": "RESUME=UUID=" + old[2] + "\n",
			})
			opts := b.options()
			opts.Hardware, opts.NewIDs = false, true
			r := b.must(opts)
			now := []string{b.id(1), b.id(2), b.id(3)}
			for i := range now {
				if now[i] == old[i] || now[i] == "" {
					t.Errorf("partition %d: %s is %s", i+1, old[i], now[i])
				}
			}
			f, _ := os.Open(b.path)
			defer f.Close()
			st, _ := f.Stat()
			table, _ := block.Probe(f, st.Size(), 512)
			if table == nil || table.ID == b.disk.ID {
				t.Fatalf("table %+v", table)
			}
			for i, p := range table.Partitions {
				if parts[strings.ToLower(p.ID)] != "" || p.Extent != b.disk.Partitions[i].Extent {
					t.Errorf("partition %+v", p)
				}
			}
			want(t, "sgdisk -v", tool(t, "sgdisk", "-v", b.path), "No problems found")
			b.disk = table
			part3 = strings.ToLower(table.Partitions[2].ID)
			b.files(func(read func(string) string) {
				want(t, "fstab", read("etc/fstab"), "UUID="+now[1]+" /", "UUID="+now[0]+" /boot/efi", "PARTUUID="+part3+" none")
				want(t, "crypttab", read("etc/crypttab"), "UUID="+strings.ToUpper(now[2])+" ")
				want(t, "grub.cfg", read("boot/grub/grub.cfg"), "--set=root "+now[1]+"\n", "root=UUID="+now[1]+" resume=UUID="+now[2])
				want(t, "unit", read("etc/systemd/system/x.mount"), strings.ReplaceAll(now[1], "-", `\x2d`)+".device")
				want(t, "resume", read("etc/initramfs-tools/conf.d/resume"), now[2])
			})
			b.part(1)
			if len(r.IDs) != 7 { // disk, three partitions, three filesystems
				t.Errorf("IDs: %+v", r.IDs)
			}
			for _, l := range r.Left {
				want(t, "left", l, "!which is no more")
			}
		})
	}
}

// A disk that a BIOS started gets a boot loader for UEFI, and the other way
// round; what it has of the other firmware's already is left alone.
func TestFirmwareChanges(t *testing.T) {
	files := debian(t, packers()["gzip"])
	files["usr/lib/shim/shimx64.efi.signed"], files["usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed"] = "signed shim", "signed GRUB"
	b := build(t, "ext4", files, nil)
	opts := b.options()
	opts.Firmware = "uefi"
	b.must(opts)
	esp := b.part(1)
	for name, body := range map[string]string{
		"::/EFI/BOOT/BOOTX64.EFI": "signed shim", "::/EFI/BOOT/grubx64.efi": "signed GRUB",
		"::/EFI/debian/grub.cfg": "search.fs_uuid " + b.id(2) + " root\nset prefix=($root)'/boot/grub'\n",
	} {
		want(t, name, tool(t, "mtype", "-i", esp, name), body)
	}
	if r := b.must(opts); len(r.Changes) > 0 {
		t.Errorf("once more: %q", r.Changes)
	}

	tree := t.TempDir()
	writeTree(t, tree, map[string]string{"usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed": "GRUB of this machine"})
	delete(files, "usr/lib/shim/shimx64.efi.signed")
	delete(files, "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed")
	b = build(t, "btrfs", files, nil)
	opts = b.options()
	opts.Firmware, opts.Tree = "uefi", t.TempDir()
	if _, err := b.apply(opts); !errors.Is(err, block.ErrRefused) || !strings.Contains(err.Error(), "grub-efi-amd64-signed") {
		t.Errorf("no boot loader anywhere: %v", err)
	}
	opts.Tree = tree
	b.must(opts)
	esp = b.part(1)
	want(t, "the fallback", tool(t, "mtype", "-i", esp, "::/EFI/BOOT/BOOTX64.EFI"), "GRUB of this machine")
	want(t, "its config", tool(t, "mtype", "-i", esp, "::/EFI/debian/grub.cfg"), "($root)'/@rootfs/boot/grub'")
}

// What is on the disk leads nowhere else.
func TestHostileLinksLeadNowhere(t *testing.T) {
	host := filepath.Join(t.TempDir(), "host")
	const text = "/dev/sda2 / auto defaults 0 1\n"
	if err := os.WriteFile(host, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	files := debian(t, packers()["gzip"])
	files["etc/crypttab"] = "-> " + host
	files["etc/default/grub"] = "-> ../../../../../../.." + host
	files["etc/dracut.conf"] = "-> /proc/self/environ"
	files["etc/lilo.conf"] = "-> lilo.conf"
	b := build(t, "ext4", files, nil)
	b.must(b.options())
	got, err := os.ReadFile(host)
	if err != nil || string(got) != text {
		t.Errorf("the host's file is %q, %v", got, err)
	}
}

// Each refusal names its reason, and what to do.
func TestRefusals(t *testing.T) {
	b := build(t, "ext4", map[string]string{"data": "no system"}, nil)
	if _, err := b.apply(b.options()); !errors.Is(err, block.ErrRefused) || !strings.Contains(err.Error(), "no Linux system") {
		t.Errorf("no system: %v", err)
	}
	files := debian(t, packers()["gzip"])
	delete(files, "boot/grub/grub.cfg")
	b = build(t, "ext4", files, nil)
	opts := b.options()
	for _, c := range []struct{ firmware, reason string }{{"uefi", "grub.cfg"}, {"bios", "no BIOS boot partition"}} {
		opts.Firmware = c.firmware
		if _, err := b.apply(opts); !errors.Is(err, block.ErrRefused) || !strings.Contains(err.Error(), c.reason) {
			t.Errorf("%s: %v", c.firmware, err)
		}
	}
}

// Archives that are none are errors, and nothing worse.
func TestHostileArchives(t *testing.T) {
	var b bytes.Buffer
	if err := cpio.Write(&b, []cpio.Entry{{Name: "etc/x", Mode: cpio.File | 0o644, Body: []byte("text")}}); err != nil {
		t.Fatal(err)
	}
	whole := b.Bytes()
	for n := range whole {
		bad := slices.Clone(whole)
		bad[n] ^= 0x41
		_, _ = readRamfs(t.Context(), bytes.NewReader(bad))
		if n > 0 && n < len(whole)-4 {
			if r, err := readRamfs(t.Context(), bytes.NewReader(whole[:n])); err == nil && n < 230 {
				t.Errorf("cut off at %d: %+v", n, r)
			}
		}
	}
	for _, text := range []string{"", "\x00\x00", "\x1f\x8b", "\x28\xb5\x2f\xfd\x00", "\x02\x21\x4c\x18\xff\xff\xff\xff", "BZh9", "MZ an EFI program", "070701" + strings.Repeat("f", 104)} {
		if r, err := readRamfs(t.Context(), strings.NewReader(text)); err == nil && len(text) > 2 {
			t.Errorf("%q: %+v", text, r)
		}
	}
}

// Names are words of their own, and identities no parts of others.
func TestNamesAreWords(t *testing.T) {
	for _, c := range []struct{ text, old, now, want string }{
		{"a 1234-ABCD b", "1234-ABCD", "5678-EF01", "a 5678-EF01 b"},
		{"9f001234-abcd-1234-abcd-000000000000", "1234-ABCD", "5678-EF01", "9f001234-abcd-1234-abcd-000000000000"},
		{"root=PARTUUID=deadbeef-02 x", "deadbeef-02", "0badcafe-02", "root=PARTUUID=0badcafe-02 x"},
		{"deadbeef-021", "deadbeef-02", "0badcafe-02", "deadbeef-021"},
	} {
		if got := string(replaceID([]byte(c.text), c.old, c.now)); got != c.want {
			t.Errorf("%q: %q, want %q", c.text, got, c.want)
		}
	}
	for name, disk := range map[string]string{"/dev/sda12": "sda", "/dev/nvme0n1p3": "nvme0n1", "/dev/mmcblk0p1": "mmcblk0", "/dev/sda": "", "/dev/nvme0n1": "", "/dev/mapper/vg-root": "", "/dev/disk/by-id/ata-X_1-part2": "disk/by-id/ata-X_1"} {
		if got, _ := splitName(name); got != disk {
			t.Errorf("%s: disk %q, want %q", name, got, disk)
		}
	}
}

// memory is a disk that is read.
type memory []byte

func (m memory) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	return bytes.NewReader(m).ReadAt(p, off)
}
