package job

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"platter/block"
)

// linuxDisk is systemDisk with an ext4 that holds a system, which has names of
// devices in its fstab.
func linuxDisk(t *testing.T) []byte {
	t.Helper()
	disk := systemDisk(t, 512)
	table, _ := block.Probe(bytes.NewReader(disk), int64(len(disk)), 512)
	tree := t.TempDir()
	for name, body := range map[string]string{"etc/fstab": "/dev/sda2 / ext4 defaults 0 1\n/dev/sda3 none swap sw 0 0\n", "sbin/init": "", "data": strings.Repeat("data ", 400_000)} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(tree, name)), 0o755), os.WriteFile(filepath.Join(tree, name), []byte(body), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	root := sparseFile(t, table.Partitions[1].Length)
	tool(t, "mkfs.ext4", "-q", "-b", "4096", "-d", tree, root)
	copy(disk[table.Partitions[1].Offset:], readFile(t, root))
	return disk
}

// needFUSE skips where an image cannot be mounted.
func needFUSE(t *testing.T) {
	t.Helper()
	for _, dev := range []string{"/dev/fuse", "/dev/loop-control"} {
		if _, err := os.Stat(dev); err != nil {
			t.Skipf("NOT TESTED: %v", err)
		}
	}
	if os.Getuid() != 0 {
		t.Skip("NOT TESTED: mounting needs root")
	}
}

// A restore that adapts leaves a sound disk on which what names the root and swap
// is changed, whatever the target's size and sectors, and nothing else is.
func TestRestoreAdapts(t *testing.T) {
	needFUSE(t)
	disk := linuxDisk(t)
	env := newEnv(t, 64<<10)
	diskImage(t, env, disk)
	for _, c := range []struct {
		size, sector int
		file, newIDs bool
	}{{96 << 20, 512, true, false}, {96 << 20, 512, false, true}, {160 << 20, 4096, false, true}, {160 << 20, 512, false, false}} {
		opts := RestoreOptions{Image: "disk", Adapt: AdaptOptions{Hardware: true, NewIDs: c.newIDs}}
		var dev, file string
		if c.file {
			file = filepath.Join(t.TempDir(), "restored")
			dev = file
		} else {
			dev, file = loop(t, append(junk(t, 1<<20), make([]byte, c.size-1<<20)...), c.sector)
		}
		opts.Target = dev
		r := mustRestore(t, env, opts)
		if !r.ReadBack || r.Plan.Adapted == nil || len(r.Plan.Adapted.Changes) == 0 {
			t.Errorf("%+v: %+v", c, r.Plan.Adapted)
		}
		if out := sgdisk(t, "-v", dev); !strings.Contains(out, "No problems found") {
			t.Errorf("%+v: sgdisk -v: %s", c, out)
		}
		root, swap := partitionOf(t, dev, 2), partitionOf(t, dev, 3)
		part := filepath.Join(t.TempDir(), "root")
		var all []byte
		if c.file {
			all = readFile(t, file)
		} else {
			all = onDisk(t, dev, file)
		}
		if err := os.WriteFile(part, all[root.Offset:root.End()], 0o600); err != nil {
			t.Fatal(err)
		}
		tool(t, "e2fsck", "-fn", part)
		now := block.FilesystemID(bytes.NewReader(all), root.Extent, "ext4")
		was := block.FilesystemID(bytes.NewReader(disk), block.Extent{Offset: root.Offset, Length: root.Length}, "ext4")
		if (now == was) == c.newIDs {
			t.Errorf("%+v: the root was %s and is %s", c, was, now)
		}
		want := "UUID=" + now + " / ext4 defaults 0 1\nUUID=" + block.FilesystemID(bytes.NewReader(all), swap.Extent, "swap") + " none swap sw 0 0\n"
		if got := tool(t, "debugfs", "-R", "cat /etc/fstab", part); !strings.HasSuffix(got, want) {
			t.Errorf("%+v: fstab %q, want %q", c, got, want)
		}
		if got := tool(t, "debugfs", "-R", "cat /data", part); !strings.HasSuffix(got, strings.Repeat("data ", 400_000)) {
			t.Errorf("%+v: the data is another", c)
		}
		esp := partitionOf(t, dev, 1)
		if err := os.WriteFile(part, all[esp.Offset:esp.End()], 0o600); err != nil {
			t.Fatal(err)
		}
		tool(t, "fsck.vfat", "-n", part)
	}
}

// What cannot be adapted is refused, or is no use of the command, before the first
// write.
func TestAdaptRefusalsWriteNothing(t *testing.T) {
	needFUSE(t)
	env := newEnv(t, 64<<10)
	diskImage(t, env, systemDisk(t, 512))
	content := junk(t, 96<<20)
	for _, c := range []struct {
		opts   RestoreOptions
		is     error
		reason string
	}{
		{RestoreOptions{Image: "disk", Adapt: AdaptOptions{Hardware: true}}, block.ErrRefused, "no Linux system"},
		{RestoreOptions{Image: "disk:p2", Adapt: AdaptOptions{Hardware: true}}, ErrUsage, "one partition"},
		{RestoreOptions{Image: "disk", InPlace: true, Adapt: AdaptOptions{NewIDs: true}}, ErrUsage, "--in-place"},
		{RestoreOptions{Image: "disk", Adapt: AdaptOptions{Reset: []string{"password"}}}, ErrUsage, "--reset password"},
		{RestoreOptions{Image: "disk", Adapt: AdaptOptions{Firmware: "uefi"}}, ErrUsage, "--firmware goes with --adapt"},
	} {
		dev, file := loop(t, content, 512)
		c.opts.Target, c.opts.Confirm = dev, yes
		_, err := Restore(t.Context(), env, c.opts)
		if !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.reason) {
			t.Errorf("%+v: %v", c.opts.Adapt, err)
		}
		if !bytes.Equal(onDisk(t, dev, file), content) {
			t.Errorf("%+v: the target was written to", c.opts.Adapt)
		}
	}
}
