package job

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"platter/block"
	"platter/block/freespace"
	"platter/image"
)

// junked makes d a filesystem of ext4 that holds a few files, with junk where
// nothing is, and returns what its folder held.
func (d *tracked) junked(r *rand.Rand, size int) map[string][]byte {
	d.t.Helper()
	for _, tool := range []string{"mke2fs", "debugfs", "e2fsck"} {
		if _, err := exec.LookPath(tool); err != nil {
			d.t.Skip("SKIPPED: ", err)
		}
	}
	dir, files := d.t.TempDir(), map[string][]byte{}
	for _, name := range []string{"a", "b", "c"} {
		files[name] = make([]byte, 300_000+r.IntN(300_000))
		random(r, files[name])
		if err := os.WriteFile(filepath.Join(dir, name), files[name], 0o600); err != nil {
			d.t.Fatal(err)
		}
	}
	err := errors.Join(os.WriteFile(d.path, nil, 0o600), os.Truncate(d.path, int64(size)))
	if err != nil {
		d.t.Fatal(err)
	}
	d.tool("mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-d", dir, d.path)
	for _, e := range d.vacant() {
		p := make([]byte, e.Length)
		random(r, p)
		d.write(p, e.Offset)
	}
	d.log = nil
	return files
}

func (d *tracked) tool(name string, args ...string) {
	d.t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		d.t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
}

// vacant is what the filesystem on d says is free.
func (d *tracked) vacant() (list []block.Extent) {
	d.t.Helper()
	src, err := block.Open(d.path, block.OpenOptions{})
	if err != nil {
		d.t.Fatal(err)
	}
	defer src.Close()
	err = freespace.Walk(d.t.Context(), src, "ext4", block.Extent{Length: src.Info().Size}, func(e block.Extent) { list = append(list, e) })
	if err != nil {
		d.t.Fatal(err)
	}
	return list
}

// emptied is the device's content with zeros for what is free.
func (d *tracked) emptied() []byte {
	p := d.content()
	for _, e := range d.vacant() {
		clear(p[e.Offset:e.End()])
	}
	return p
}

// told has the tracker know of all that change does to the device.
func (d *tracked) told(change func()) {
	d.t.Helper()
	was := d.content()
	change()
	for off, now := 0, d.content(); off < len(now); off += 4096 {
		if !bytes.Equal(was[off:off+4096], now[off:off+4096]) {
			d.log = append(d.log, block.Extent{Offset: int64(off), Length: 4096})
		}
	}
}

// restored writes an image to a file.
func restored(t *testing.T, env *Env, m *image.Manifest) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "restored")
	if _, err := Restore(context.Background(), env, RestoreOptions{Image: m.ID.String(), Target: path}); err != nil {
		t.Fatal(err)
	}
	return path
}

// D59: what is free is neither read nor stored, and what is restored is whole;
// unless everything is wanted.
func TestBackupLeavesFreeSpaceOut(t *testing.T) {
	const size = 32 << 20
	r, env := seeded(t, 40), newEnv(t, 4<<10)
	d := newTracked(t, 0, r)
	files := d.junked(r, size)
	free := int64(0)
	for _, e := range d.vacant() {
		free += e.Length
	}
	m := d.backup(env, BackupOptions{})
	if m.Stats.Free != free || m.Stats.Read > size-free || m.Stats.New > 8<<20 || !m.LeftOut {
		t.Errorf("%d bytes are free: %+v, left out %v", free, m.Stats, m.LeftOut)
	}
	if len(m.Free) != 1 || m.Free[0].Bytes != free || m.Free[0].Why != "" || m.Free[0].Read == 0 || m.Free[0].Content != "ext4" {
		t.Errorf("free space %+v, want %d bytes", m.Free, free)
	}
	if !bytes.Equal(content(t, env, m), d.emptied()) {
		t.Error("the image is not the device without its free space")
	}
	path := restored(t, env, m)
	d.tool("e2fsck", "-fn", path)
	out := t.TempDir()
	d.tool("debugfs", "-R", "rdump / "+out, path)
	for name, want := range files {
		if got, err := os.ReadFile(filepath.Join(out, name)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("file %s is another one: %v", name, err)
		}
	}

	// All of it, from an image that has not all.
	all := d.backup(env, BackupOptions{AllBlocks: true})
	d.proveContent(env, all)
	if all.LeftOut || all.Stats.Free != 0 || all.Tracker.Name != "full" || all.Tracker.Why != "the image before left free space out" {
		t.Errorf("all blocks: %+v, %+v", all.Tracker, all.Stats)
	}
	// And back again: what is free stays as it is, as long as nobody writes there.
	m = d.backup(env, BackupOptions{Audit: AuditFull})
	if d.proveContent(env, m); m.Tracker.Name != "notes" || m.Missed() {
		t.Errorf("after an image of all blocks: %+v", m.Tracker)
	}
}

// D59, D52: a tracker cannot vouch for what was never in an image. Free space
// with junk in it raises no alarm, nor does junk that a file got without a
// write; what had changed in use does.
func TestAuditKnowsWhatWasLeftOut(t *testing.T) {
	const size = 32 << 20
	r, env := seeded(t, 41), newEnv(t, 4<<10)
	d := newTracked(t, 0, r)
	d.junked(r, size)
	first := d.backup(env, BackupOptions{})
	m := d.backup(env, BackupOptions{Audit: AuditFull})
	if m.Missed() || m.Tracker.Name != "notes" || !m.LeftOut || m.Root != first.Root {
		t.Errorf("nothing was written: %+v, left out %v, the root is the same: %v", m.Tracker, m.LeftOut, m.Root == first.Root)
	}

	// A file is given room, and nobody writes there.
	d.told(func() {
		d.tool("debugfs", "-w", "-R", "write /dev/null late", d.path)
		d.tool("debugfs", "-w", "-R", "fallocate late 0 199", d.path)
	})
	m = d.backup(env, BackupOptions{Audit: AuditFull})
	if m.Missed() || m.Tracker.Name != "notes" {
		t.Fatalf("a file got room: %+v, %+v", m.Tracker, m.Audit)
	}
	got, now := content(t, env, m), d.content()
	for _, e := range d.vacant() { // what became free may be as it was
		clear(got[e.Offset:e.End()])
		clear(now[e.Offset:e.End()])
	}
	if !bytes.Equal(got, now) {
		t.Error("the image is not the device")
	}
	if m.Stats.Read < 200*4096 {
		t.Errorf("read %d bytes, want those of the file", m.Stats.Read)
	}

	// What is in use, and changes behind the tracker's back, is an alarm.
	used := d.vacant()[0].Offset - 4096
	d.drop = func(int) bool { return true }
	d.write([]byte("unseen"), used+100)
	m = d.backup(env, BackupOptions{Audit: AuditFull})
	if !m.Missed() {
		t.Errorf("a write at %d was missed, and the audit says %+v", used+100, m.Audit)
	}
}

// D59: a filesystem that is not to be believed is read whole.
func TestBackupReadsUncertainFilesystems(t *testing.T) {
	r, env := seeded(t, 42), newEnv(t, 4<<10)
	d := newTracked(t, 0, r)
	d.junked(r, 16<<20)
	d.write([]byte{0xff}, 4096+40) // in the group descriptors, which have checksums
	m := d.backup(env, BackupOptions{})
	if m.Stats.Free != 0 || m.LeftOut || len(m.Free) != 1 || !strings.Contains(m.Free[0].Why, "checksum") {
		t.Errorf("got %+v, %+v", m.Stats, m.Free)
	}
	d.proveContent(env, m)
}

// D59: free space is a matter of each partition, and only of what lies alone.
func TestFilesystemsOfPartitions(t *testing.T) {
	part := func(n int, off, length int64, content string) block.Partition {
		return block.Partition{Number: n, Extent: block.Extent{Offset: off, Length: length}, Content: content}
	}
	d := block.Info{Size: 100, Table: &block.Table{Partitions: []block.Partition{
		part(1, 10, 10, "ext4"), part(2, 20, 10, "LVM2_member"), part(3, 30, 20, "xfs"), part(4, 45, 10, "swap"),
		part(5, 60, 50, "vfat"), part(6, 55, 5, "btrfs"),
	}}}
	var got []int
	for _, p := range filesystemsOf(d) {
		got = append(got, p.Number)
	}
	if want := []int{1, 6}; !slices.Equal(got, want) {
		t.Errorf("got partitions %v, want %v", got, want)
	}
	if e := within(block.Extent{Offset: 1000, Length: 9000}, 4096); e != (block.Extent{Offset: 4096, Length: 4096}) {
		t.Errorf("got %v", e)
	}
	if e := within(block.Extent{Offset: 1000, Length: 4000}, 4096); e.Length != 0 {
		t.Errorf("got %v", e)
	}
}
