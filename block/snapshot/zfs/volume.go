package zfs

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"platter/block"
	"platter/block/command"
	"platter/block/snapshot"
)

// A Volume is a ZFS volume, or a snapshot of one, as ZFS describes it.
type Volume struct {
	Name      string // POOL/NAME, of a snapshot POOL/NAME@SNAPSHOT
	GUID      uint64
	Created   uint64 // the pool's transaction group that made it
	Size      int64  // bytes
	BlockSize int64  // bytes

	taken         time.Time
	held          bool
	consumer, run string // user properties of a snapshot of ours
	snapdev       string // what its volume's was, if it was changed
}

// User properties of snapshots. A volume has none.
const (
	userConsumer = snapshot.Prefix + ":consumer"
	userRun      = snapshot.Prefix + ":run"
	userSnapdev  = snapshot.Prefix + ":snapdev"
)

// columns are what is asked of zfs list.
const columns = "name,guid,createtxg,creation,volsize,volblocksize,userrefs," + userConsumer + "," + userRun + "," + userSnapdev

// list describes a volume, which comes first, and with snapshots these too.
func list(ctx context.Context, name string, snapshots bool) ([]*Volume, error) {
	kinds, depth := "volume", "0"
	if snapshots {
		kinds, depth = "volume,snapshot", "1"
	}
	out, err := command.Run(ctx, "zfs", "list", "-H", "-p", "-t", kinds, "-d", depth, "-s", "createtxg", "-o", columns, name)
	if err != nil {
		return nil, err
	}
	return parse(string(out), name)
}

func parse(said, name string) ([]*Volume, error) {
	all := []*Volume{nil}
	for line := range strings.Lines(said) {
		v, err := volume(strings.Split(strings.TrimSuffix(line, "\n"), "\t"))
		if err != nil {
			return nil, fmt.Errorf("read what zfs list says of %s: %q: %w", name, line, err)
		}
		switch {
		case v.Name == name:
			all[0] = v
		case strings.HasPrefix(v.Name, name+"@"):
			all = append(all, v)
		}
	}
	if all[0] == nil {
		return nil, fmt.Errorf("zfs list does not say anything of %s", name)
	}
	for _, s := range all[1:] {
		s.BlockSize = all[0].BlockSize // not listed of snapshots
	}
	return all, nil
}

// volume reads one line of columns; what there is none of is "-".
func volume(f []string) (v *Volume, err error) {
	if want := strings.Count(columns, ",") + 1; len(f) != want {
		return nil, fmt.Errorf("%d columns, want %d", len(f), want)
	}
	for i, s := range f {
		if s == "-" {
			f[i] = ""
		}
	}
	number := func(s string) (n uint64) {
		if s != "" && err == nil {
			n, err = strconv.ParseUint(s, 10, 64)
		}
		return n
	}
	v = &Volume{
		Name: f[0], GUID: number(f[1]), Created: number(f[2]), taken: time.Unix(int64(number(f[3])), 0),
		Size: int64(number(f[4])), BlockSize: int64(number(f[5])), held: number(f[6]) > 0,
		consumer: f[7], run: f[8], snapdev: f[9],
	}
	if err == nil && (v.Name == "" || v.GUID == 0 || v.Created == 0 || v.Size < 0 || v.BlockSize < 0) {
		err = fmt.Errorf("no name, guid or size")
	}
	return v, err
}

// name returns what ZFS calls the volume that a device is.
func name(d block.Device) (string, error) {
	name := ""
	if d.Kind == block.KindZvol {
		name = block.Zvol(d.Path)
	}
	switch {
	case name == "" && d.Disk != "" && block.Zvol(d.Disk) != "":
		return "", fmt.Errorf("%s is a part of the volume %s: image that: %w", d.Path, block.Zvol(d.Disk), snapshot.ErrUnfit)
	case name == "":
		return "", fmt.Errorf("%s is no volume of ZFS: %w", d.Path, snapshot.ErrUnfit)
	case strings.Contains(name, "@"):
		return "", fmt.Errorf("%s is a snapshot itself: %w", name, snapshot.ErrUnfit)
	}
	return name, nil
}

// unfit says why there can be no snapshot of a volume, "" if there can.
func unfit(ctx context.Context, volume string) string {
	pool, _, _ := strings.Cut(volume, "/")
	out, err := command.Run(ctx, "zpool", "list", "-H", "-p", "-o", "health,capacity,readonly", pool)
	if err != nil {
		return err.Error()
	}
	return poolUnfit(pool, strings.Fields(string(out)))
}

// maxFull is how many percent of a pool may be in use: a kept snapshot holds on
// to what its volume overwrites.
const maxFull = 90

func poolUnfit(pool string, f []string) string {
	if len(f) != 3 {
		return fmt.Sprintf("zpool list says %q of pool %s", f, pool)
	}
	full, err := strconv.Atoi(strings.TrimSuffix(f[1], "%"))
	switch {
	case f[0] != "ONLINE" && f[0] != "DEGRADED":
		return fmt.Sprintf("the pool %s is %s: zpool status %s says why", pool, f[0], pool)
	case f[2] != "off":
		return fmt.Sprintf("the pool %s is imported read-only", pool)
	case err != nil:
		return fmt.Sprintf("zpool list says that pool %s is %q full", pool, f[1])
	case full >= maxFull:
		return fmt.Sprintf("the pool %s is %d %% full, and a snapshot holds on to what is overwritten: add a disk (zpool add) or free some space", pool, full)
	}
	return ""
}

// A shown says how snapshots of a volume were shown as devices before.
type shown struct{ value, source string }

// mark is what a snapshot notes of it; "" if nothing is changed.
func (s shown) mark() string {
	switch {
	case s.value == "visible":
		return ""
	case s.source == "local" || s.source == "received":
		return s.source + "=" + s.value
	}
	return "inherited"
}

func snapdev(ctx context.Context, volume string) (shown, error) {
	out, err := command.Run(ctx, "zfs", "get", "-H", "-p", "-o", "value,source", "snapdev", volume)
	if err != nil {
		return shown{}, err
	}
	f := strings.Split(strings.TrimSpace(string(out)), "\t")
	if len(f) != 2 {
		return shown{}, fmt.Errorf("zfs get says %q of snapdev of %s", out, volume)
	}
	return shown{f[0], f[1]}, nil
}

// hide sets snapdev to what it was, by a mark. The kernel removes all devices of
// snapshots that nobody has open.
func hide(ctx context.Context, volume, mark string) error {
	args := []string{"inherit", "snapdev", volume}
	if strings.HasPrefix(mark, "received=") {
		args = []string{"inherit", "-S", "snapdev", volume}
	} else if value, ok := strings.CutPrefix(mark, "local="); ok {
		args = []string{"set", "snapdev=" + value, volume}
	}
	_, err := command.Run(ctx, "zfs", args...)
	return err
}

// device waits for the device of a snapshot. Where udev runs there is a link to
// it, in its time; everywhere the kernel tells each device's name.
func device(ctx context.Context, snapshot string) (string, error) {
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		all, err := filepath.Glob("/sys/block/zd*")
		if err != nil {
			return "", err
		}
		for _, dir := range all {
			if path := "/dev/" + filepath.Base(dir); block.Zvol(path) == snapshot {
				return path, nil
			}
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return "", fmt.Errorf("wait for the device of snapshot %s: %w", snapshot, context.Cause(ctx))
		}
	}
}

// HolesAreSent reports whether this kernel's zfs send lists every hole, and not
// only those that it takes for new. That was wrong more than once, so that by
// default it does.
func HolesAreSent() bool {
	for _, name := range []string{"send_holes_without_birth_time", "ignore_hole_birth"} {
		b, err := os.ReadFile("/sys/module/zfs/parameters/" + name)
		if err == nil && strings.TrimSpace(string(b)) == "0" {
			return false
		}
	}
	return true
}
