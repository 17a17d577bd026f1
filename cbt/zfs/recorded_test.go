package zfs_test

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"platter/block"
	"platter/block/command"
	"platter/vmtests/guest"
	"platter/vmtests/volumes"
)

// A recorded stream and what is known of the two snapshots: see testdata.
type recorded struct {
	name    string
	options []string // of zfs create
	size    int64
	send    []string // options of zfs send
	before  func(d *device)
	after   func(d *device)
}

type device struct {
	*os.File
	t    testing.TB
	path string
	pool *volumes.Pool
}

func (d *device) must(err error) {
	d.t.Helper()
	if err != nil {
		d.t.Fatal(err)
	}
}

// write puts bytes on the device that do not compress; fill ones that do.
func (d *device) write(off, length int64, seed byte) {
	p, x := make([]byte, length), uint32(seed)*2654435761+1
	for i := range p {
		x ^= x << 13
		x ^= x >> 17
		x ^= x << 5
		p[i] = byte(x >> 11)
	}
	_, err := d.WriteAt(p, off)
	d.must(err)
}

func (d *device) fill(off, length int64, b byte) {
	_, err := d.WriteAt(bytes.Repeat([]byte{b}, int(length)), off)
	d.must(err)
}

func (d *device) discard(off, length int64) {
	d.must(d.Sync())
	d.must(volumes.Discard(d.File, block.Extent{Offset: off, Length: length}))
}

func (d *device) resize(size int64) {
	d.must(errors.Join(d.Sync(), unix.IoctlSetInt(int(d.Fd()), unix.BLKFLSBUF, 0), d.pool.Resize(d.path, size)))
}

const k = 1 << 10

// changes are the same of most.
func changes(d *device) {
	d.write(0, 1, 2)
	d.write(24*k-1, 2, 3)
	d.write(100*k, 20*k, 4)
	d.fill(128*k, 8*k, 7)
	d.fill(160*k, 16*k, 0)
	d.discard(192*k, 32*k)
	d.write(248*k, 8*k, 5)
}

func recordings() []recorded {
	all := func(d *device) { d.write(0, 256*k, 1) }
	return []recorded{
		{"plain", []string{"compression=off"}, 256 * k, nil, all, changes},
		{"raw", []string{"compression=lz4"}, 256 * k, []string{"--raw"}, all, changes},
		{"encrypted", []string{"compression=lz4", "encryption=aes-256-gcm", "keyformat=raw", "keylocation=file:///tmp/key"}, 256 * k, []string{"--raw"}, all, changes},
		{"gaps", []string{"compression=lz4"}, 64 << 20, []string{"--raw"}, func(d *device) {
			d.write(0, 16*k, 1)
			d.write(40<<20, 8*k, 2)
		}, func(d *device) { d.write(20<<20, 8*k, 3); d.fill(41<<20, 8*k, 9) }},
		{"resized", []string{"compression=off"}, 256 * k, []string{"--raw"}, all, func(d *device) {
			d.resize(128 * k)
			d.resize(256 * k)
			d.write(8*k, 8*k, 6)
		}},
		{"nothing", []string{"compression=off"}, 256 * k, []string{"--raw"}, all, func(*device) {}},
	}
}

// A truth is what was seen of the two snapshots of a recorded stream.
type truth struct {
	Size      int64   `json:"size"`
	From      uint64  `json:"from"` // guids
	To        uint64  `json:"to"`
	Different []int64 `json:"different"` // blocks of volumes.ZBlock bytes
	Data      []int64 `json:"data"`      // blocks that are not zeros, in the later one
}

// TestRecord makes what is in testdata; see TestZFSStreams in vmtests.
func TestRecord(t *testing.T) {
	guest.Only(t)
	p := volumes.NewPool(t, "record", "/dev/vda")
	f, err := os.OpenFile("/dev/vdb", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	out := tar.NewWriter(f)
	for _, r := range recordings() {
		stream, seen := r.run(t, p)
		b, err := json.Marshal(seen)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range []struct {
			name string
			body []byte
		}{{r.name + ".zsend", stream}, {r.name + ".json", append(b, '\n')}} {
			if err := out.WriteHeader(&tar.Header{Name: file.name, Mode: 0o644, Size: int64(len(file.body))}); err != nil {
				t.Fatal(err)
			}
			if _, err := out.Write(file.body); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := errors.Join(out.Close(), f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

func (r recorded) run(t *testing.T, p *volumes.Pool) (stream []byte, seen truth) {
	if err := os.WriteFile("/tmp/key", bytes.Repeat([]byte{'k'}, 32), 0o600); err != nil {
		t.Fatal(err)
	}
	volume := p.Name + "/" + r.name
	args := []string{"create", "-s", "-b", fmt.Sprint(volumes.ZBlock), "-V", fmt.Sprint(r.size), "-o", "snapdev=visible"}
	for _, o := range r.options {
		args = append(args, "-o", o)
	}
	p.Run("zfs", append(args, volume)...)
	d := &device{t: t, path: p.Device(r.name), pool: p}
	for i, change := range []func(*device){r.before, r.after} {
		var err error
		d.File, err = os.OpenFile(d.path, os.O_RDWR, 0)
		d.must(err)
		change(d)
		d.must(errors.Join(d.Sync(), d.Close()))
		p.Run("zfs", "snapshot", fmt.Sprintf("%s@%d", volume, i))
	}
	was, now := read(t, p.Device(r.name+"@0")), read(t, p.Device(r.name+"@1"))
	seen.Size = int64(len(now))
	for i := range int64(len(now) / volumes.ZBlock) {
		b := now[i*volumes.ZBlock:][:volumes.ZBlock]
		if !bytes.Equal(was[i*volumes.ZBlock:][:volumes.ZBlock], b) {
			seen.Different = append(seen.Different, i)
		}
		if !bytes.Equal(b, make([]byte, volumes.ZBlock)) {
			seen.Data = append(seen.Data, i)
		}
	}
	for i, guid := range []*uint64{&seen.From, &seen.To} {
		n, err := strconv.ParseUint(p.Run("zfs", "get", "-H", "-p", "-o", "value", "guid", fmt.Sprintf("%s@%d", volume, i)), 10, 64)
		d.must(err)
		*guid = n
	}
	send := append(append([]string{"send"}, r.send...), "-i", "@0", volume+"@1")
	d.must(command.Read(t.Context(), func(r io.Reader) (err error) { stream, err = io.ReadAll(r); return err }, "zfs", send...))
	return stream, seen
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
