package running

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"platter/vmtests/guest"
)

const (
	root   = "/dev/vda" // that the machine runs from
	spare  = "/dev/vdb"
	ledger = "/var/lib/ledger"
)

// The disk that the machine runs from, with a program that writes to it all the
// time, is imaged as of one moment to a repository of the same machine: its
// filesystem needs no repair, and what the program had made durable by then is there.
func TestTheDiskThatTheMachineRunsFrom(t *testing.T) {
	guest.Only(t)
	run(t, "mkfs.ext4", "-q", spare)
	out := t.TempDir()
	if err := unix.Mount(spare, out, "ext4", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(out, unix.MNT_DETACH) })
	t.Setenv("PLATTER_REPOSITORY", filepath.Join(out, "repository"))
	run(t, "./platter", "init", "--no-encryption", "-q")
	run(t, "./platter", "tracker", "run", root)
	t.Cleanup(func() { exec.Command("./platter", "tracker", "stop").Run() })

	stop, done := begin(t)
	defer stop()
	for n, tracker := range []string{"full", "trace"} {
		before := done.Load()
		b := backup(t)
		after := done.Load()
		t.Logf("image %d: %d bytes read, filesystems stood still for %v", n, b.Image.Stats.Read, time.Duration(b.Frozen))
		if b.Image.Fuzzy || b.Image.Tracker.Name != tracker || b.Frozen <= 0 {
			t.Errorf("image %d: %+v", n, b)
		}
		restored := filepath.Join(out, "restored")
		run(t, "./platter", "restore", "--yes", "-q", b.Image.ID, restored)
		// A frozen filesystem needs no repair.
		run(t, "e2fsck", "-fn", restored)
		files := filepath.Join(out, "files")
		if err := os.Mkdir(files, 0o755); err != nil {
			t.Fatal(err)
		}
		run(t, "debugfs", "-R", "rdump "+ledger+" "+files, restored)
		last, err := read(filepath.Join(files, filepath.Base(ledger)))
		if err != nil {
			t.Errorf("image %d: %v", n, err)
		}
		if last < before || last > after+1 {
			t.Errorf("image %d: %d entries were done when it began, %d when it had ended, and it has %d", n, before, after, last)
		}
		if err := errors.Join(os.RemoveAll(files), os.Remove(restored)); err != nil {
			t.Fatal(err)
		}
	}
}

// run runs a program that must succeed.
func run(t *testing.T, name string, args ...string) []byte {
	t.Helper()
	var complaint bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out, complaint.Bytes())
	}
	return out
}

// A report is what a backup tells.
type report struct {
	Type   string `json:"message_type"`
	Frozen int64  `json:"frozen_ns"`
	Image  struct {
		ID      string
		Fuzzy   bool
		Stats   struct{ Read int64 }
		Tracker struct{ Name, Why string }
	}
}

func backup(t *testing.T) (r report) {
	t.Helper()
	for line := range bytes.Lines(run(t, "./platter", "backup", root, "--volume", "guest/root", "--json", "-q")) {
		if err := json.Unmarshal(line, &r); err != nil {
			t.Fatal(err)
		}
		if r.Type == "summary" {
			return r
		}
	}
	t.Fatal("no summary")
	return r
}

// A ledger is a log of entries, and beside it a file that says how many of them
// count: an entry is durable before it counts.
const entry = 5000 // bytes: not whole sectors

// begin keeps a ledger until it is stopped. done is how many entries count.
func begin(t *testing.T) (stop func(), done *atomic.Int64) {
	t.Helper()
	if err := os.MkdirAll(ledger, 0o755); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(ledger, "log"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done = new(atomic.Int64)
	var g errgroup.Group
	g.Go(func() error {
		defer log.Close()
		for n := int64(0); ctx.Err() == nil; n++ {
			_, err := log.Write(encode(n))
			if err = errors.Join(err, log.Sync()); err != nil {
				return err
			}
			if err := count(n + 1); err != nil {
				return err
			}
			done.Store(n + 1)
		}
		return nil
	})
	return func() {
		cancel()
		if err := g.Wait(); err != nil {
			t.Error(err)
		}
	}, done
}

// count replaces the file that says how many entries count.
func count(n int64) error {
	next := filepath.Join(ledger, "next")
	f, err := os.Create(next)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(f, n)
	return errors.Join(err, f.Sync(), f.Close(), os.Rename(next, filepath.Join(ledger, "count")))
}

// encode is an entry: its number, what follows from that, and a checksum.
func encode(n int64) []byte {
	b := make([]byte, entry)
	binary.LittleEndian.PutUint64(b, uint64(n))
	for i := 8; i < entry-4; i++ {
		b[i] = byte(n + int64(i))
	}
	binary.LittleEndian.PutUint32(b[entry-4:], crc32.ChecksumIEEE(b[:entry-4]))
	return b
}

// read returns how many entries of a ledger count, all of which must be right.
func read(dir string) (n int64, err error) {
	text, err := os.ReadFile(filepath.Join(dir, "count"))
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	if _, err := fmt.Sscan(string(text), &n); err != nil {
		return 0, fmt.Errorf("count of a ledger: %w", err)
	}
	log, err := os.ReadFile(filepath.Join(dir, "log"))
	if err != nil {
		return 0, err
	}
	for i := range n {
		if at := i * entry; int64(len(log)) < at+entry || !bytes.Equal(log[at:at+entry], encode(i)) {
			return n, fmt.Errorf("entry %d of %d is not what was written", i, n)
		}
	}
	return n, nil
}
