package volumes

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"platter/block"
	"platter/block/command"
	"platter/vmtests/guest"
)

// A Pool is a pool of ZFS.
type Pool struct {
	Name string
	t    testing.TB
	next atomic.Int64
}

// ZBlock is the size of the blocks of volumes, which their sizes are rounded to, in
// bytes.
const ZBlock = 8 << 10

// NewPool makes a pool on a disk of the guest. It ends with the test.
func NewPool(t testing.TB, name, disk string) *Pool {
	t.Helper()
	guest.Only(t)
	p := &Pool{Name: name, t: t}
	p.Run("sgdisk", "--zap-all", "--new", "1:2048:0", disk)
	p.Run("zpool", "create", "-f", "-O", "compression=off", name, disk+"1")
	t.Cleanup(func() { p.Run("zpool", "destroy", "-f", name) })
	return p
}

// Run runs a tool that must succeed and returns what it printed.
func (p *Pool) Run(name string, args ...string) string {
	p.t.Helper()
	out, err := command.Run(context.WithoutCancel(p.t.Context()), name, args...)
	if err != nil {
		p.t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// Volume makes a volume and returns the path of its device.
func (p *Pool) Volume(name string, size int64) string {
	p.t.Helper()
	p.Run("zfs", "create", "-s", "-b", fmt.Sprint(ZBlock), "-V", fmt.Sprint(roundBlock(size)), p.Name+"/"+name)
	return p.Device(name)
}

// Full makes a volume that has no holes.
func (p *Pool) Full(name string, size int64) string {
	p.t.Helper()
	path := p.Volume(name, size)
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.Write(make([]byte, roundBlock(size)))
		err = errors.Join(err, f.Sync(), f.Close())
	}
	if err != nil {
		p.t.Fatal(err)
	}
	return path
}

// Device waits for the device of a volume, or of a snapshot of one.
func (p *Pool) Device(name string) string {
	p.t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		all, _ := filepath.Glob("/dev/zd*")
		for _, path := range all {
			if block.Zvol(path) == p.Name+"/"+name {
				return path
			}
		}
	}
	p.t.Fatalf("%s/%s has no device", p.Name, name)
	return ""
}

// Remove removes a volume with its snapshots, held or not.
func (p *Pool) Remove(path string) {
	p.t.Helper()
	volume := block.Zvol(path)
	for name := range strings.FieldsSeq(p.Run("zfs", "list", "-H", "-d", "1", "-t", "snapshot", "-o", "name", volume)) {
		command.Run(context.WithoutCancel(p.t.Context()), "zfs", "release", "platter", name)
	}
	p.Run("zfs", "destroy", "-r", volume)
}

// Resize makes a volume another size, in whole blocks.
func (p *Pool) Resize(path string, size int64) error {
	_, err := command.Run(p.t.Context(), "zfs", "set", fmt.Sprintf("volsize=%d", roundBlock(size)), block.Zvol(path))
	return err
}

// Discard gives a part of a device back. The kernel knows no other way for volumes
// of ZFS, which take no zeros.
func Discard(f *os.File, e block.Extent) error {
	span := [2]uint64{uint64(e.Offset), uint64(e.Length)}
	if _, _, err := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.BLKDISCARD, uintptr(unsafe.Pointer(&span))); err != 0 {
		return fmt.Errorf("discard %v of %s: %w", e, f.Name(), err)
	}
	return nil
}

func (p *Pool) unused() string { return fmt.Sprintf("v%d", p.next.Add(1)) }

func roundBlock(n int64) int64 { return max(1, (n+ZBlock-1)/ZBlock) * ZBlock }
