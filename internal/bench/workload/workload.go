// Package workload makes the disks that benchmarks read: a Debian server on
// the first and on the second night, and a huge disk that is nearly empty.
//
// Contents are seeded and the same on every machine. The places of files on
// the disk are the running kernel's choice and the system tree is that of
// Debian's archive on the day, so figures of two machines compare as ratios
// to a peer, never as sizes to the byte.
package workload

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

const (
	kib = 1 << 10
	mib = 1 << 20
	gib = 1 << 30
)

// version is part of the stamp that marks a finished workload. It changes with
// anything that changes the disks.
const version = "1"

// DiskSize is the size of the server's disk in bytes.
const DiskSize = 8 * gib

const (
	sectorSize = 512
	espStart   = 2048 * sectorSize
	espSize    = 128 * mib
	rootStart  = espStart + espSize
	rootSize   = 7 * gib
)

// A Disks names the two nights of the server's disk: raw, sparse files.
type Disks struct {
	First, Second string
}

// Make returns the disks in dir, making first what is missing of them: about
// ten minutes of work and 12 GiB of space. It needs root, loop devices and
// ext4 in the kernel. say gets a line for each step.
func Make(ctx context.Context, dir string, say func(string)) (Disks, error) {
	d := Disks{First: filepath.Join(dir, "v1.raw"), Second: filepath.Join(dir, "v2.raw")}
	stamp := filepath.Join(dir, "workload.stamp")
	if b, err := os.ReadFile(stamp); err == nil && strings.TrimSpace(string(b)) == version {
		return d, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return d, err
	}
	tree, err := systemTree(ctx, dir, say)
	if err != nil {
		return d, err
	}
	say("first night: partitions, filesystems, system, data")
	if err := firstNight(ctx, d.First, tree); err != nil {
		return d, fmt.Errorf("make %s: %w", d.First, err)
	}
	say("second night: copy, then a day's changes")
	if err := secondNight(ctx, d); err != nil {
		return d, fmt.Errorf("make %s: %w", d.Second, err)
	}
	return d, os.WriteFile(stamp, []byte(version+"\n"), 0o644)
}

// packages make a tree of about 1.7 GiB: kernel, compilers, databases, a web
// server, a Java runtime and many small files.
const packages = "linux-image-cloud-amd64,systemd-sysv,openssh-server,build-essential,clang-14," +
	"default-jre-headless,postgresql,mariadb-server,nginx,php-fpm,python3-numpy,git,vim"

// systemTree returns a tar of a Debian system, made once and kept.
func systemTree(ctx context.Context, dir string, say func(string)) (string, error) {
	tree := filepath.Join(dir, "tree.tar")
	if _, err := os.Stat(tree); err == nil {
		return tree, nil
	}
	say("system tree from Debian's packages (a few minutes, once)")
	part := filepath.Join(dir, "tree.part.tar")
	cmd := exec.CommandContext(ctx, "mmdebstrap", "--mode=root", "--variant=important", "--format=tar",
		"--include="+packages, `--aptopt=APT::Install-Recommends "false"`,
		"--dpkgopt=path-exclude=/usr/share/doc/*", "bookworm", part)
	cmd.Env = append(os.Environ(), "SOURCE_DATE_EPOCH=1767225600")
	if err := run(cmd); err != nil {
		return "", err
	}
	return tree, os.Rename(part, tree)
}

func firstNight(ctx context.Context, disk, tree string) error {
	if err := os.RemoveAll(disk); err != nil {
		return err
	}
	if err := sparseFile(disk, DiskSize); err != nil {
		return err
	}
	err := command(ctx, "sgdisk", "-o", "-U", "6d1a2c00-0000-4000-8000-000000000001",
		"-n", fmt.Sprintf("1:%d:+%dM", espStart/sectorSize, espSize/mib), "-t", "1:EF00", "-u", "1:6d1a2c00-0000-4000-8000-000000000002",
		"-n", fmt.Sprintf("2:%d:+%dM", rootStart/sectorSize, rootSize/mib), "-t", "2:8300", "-u", "2:6d1a2c00-0000-4000-8000-000000000003", disk)
	if err != nil {
		return err
	}
	err = withLoop(ctx, disk, espStart, espSize, func(dev string) error {
		return command(ctx, "mkfs.vfat", "-i", "20260101", "-n", "ESP", dev)
	})
	if err != nil {
		return err
	}
	return withLoop(ctx, disk, rootStart, rootSize, func(dev string) error {
		// Everything is laid down now: a kernel thread that went on zeroing
		// inode tables after the mount would make each run another disk.
		err := command(ctx, "mkfs.ext4", "-q", "-L", "root", "-U", "6d1a2c00-0000-4000-8000-00000000000a",
			"-E", "hash_seed=6d1a2c00-0000-4000-8000-00000000000b,lazy_itable_init=0,lazy_journal_init=0,nodiscard", dev)
		if err != nil {
			return err
		}
		return withMount(ctx, dev, func(root string) error {
			if err := command(ctx, "tar", "-C", root, "--numeric-owner", "-xf", tree); err != nil {
				return err
			}
			return fill(root)
		})
	})
}

func secondNight(ctx context.Context, d Disks) error {
	if err := command(ctx, "cp", "--sparse=always", d.First, d.Second); err != nil {
		return err
	}
	return withLoop(ctx, d.Second, rootStart, rootSize, func(dev string) error {
		return withMount(ctx, dev, mutate)
	})
}
