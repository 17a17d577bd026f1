package snapshot

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"platter/block"
)

// Prefix begins the name, or is a tag, of everything that Platter leaves on a
// machine's volumes and filesystems.
const Prefix = "platter"

// Tag names the consumer in 16 hex digits, for names and tags of snapshots:
// volume names have characters that those may not have.
func (c Consumer) Tag() string {
	sum := sha256.Sum256([]byte(c.Repository + "\x00" + c.Volume))
	return hex.EncodeToString(sum[:8])
}

// NewID returns 16 random hex digits for a new snapshot.
func NewID() string {
	var b [8]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// ThisProcess names this process among all that this machine ever runs: 8 hex
// digits of the boot, the namespace of process IDs, the ID, and its start.
func ThisProcess() string {
	start, _ := processStart(os.Getpid())
	return fmt.Sprintf("%s-%d-%d-%d", boot(), namespace(), os.Getpid(), start)
}

// Running reports whether the process of that name is there. What is no name
// of a process, and what runs in another namespace, counts as running: nothing
// is removed on a guess.
func Running(run string) bool {
	words := strings.Split(run, "-")
	if len(words) != 4 || boot() == "" {
		return true
	}
	ns, err1 := strconv.ParseUint(words[1], 10, 64)
	pid, err2 := strconv.Atoi(words[2])
	start, err3 := strconv.ParseUint(words[3], 10, 64)
	if errors.Join(err1, err2, err3) != nil {
		return true
	}
	if words[0] != boot() {
		return false
	}
	if ns != namespace() {
		return true
	}
	now, err := processStart(pid)
	if errors.Is(err, os.ErrNotExist) {
		return false
	}
	return err != nil || now == start
}

// namespace returns the number of the namespace that process IDs are of.
func namespace() uint64 {
	var st unix.Stat_t
	if unix.Stat("/proc/self/ns/pid", &st) != nil {
		return 0
	}
	return st.Ino
}

// boot returns 8 hex digits of this boot's random ID.
func boot() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil || len(b) < 8 {
		return ""
	}
	return string(b[:8])
}

// processStart returns when a process began, in the kernel's ticks since boot:
// field 22 of its stat, the 20th after the name in parentheses.
func processStart(pid int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(fields) < 20 {
		return 0, fmt.Errorf("read /proc/%d/stat: %d fields", pid, len(fields))
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

// Clean removes what nobody needs any more of a device's snapshots: those of
// the consumer but the one whose ID is base, kept or not, and those of others
// that were not kept. What a running process took is left alone. It returns
// what it removed.
//
// base is the snapshot that the volume's newest image was made from, or "".
// That one is left even if it was not marked as kept: the run may have died
// just before it could.
func Clean(ctx context.Context, p Provider, d block.Device, c Consumer, base string) ([]Snapshot, error) {
	all, err := p.Snapshots(ctx, d)
	if err != nil {
		return nil, fmt.Errorf("list %s snapshots of %s: %w", p.Name(), d.Path, err)
	}
	var removed []Snapshot
	var problems []error
	for _, s := range all {
		mine := s.Tag == c.Tag()
		if mine && s.ID == base || !mine && s.Kept || !s.Kept && Running(s.Run) {
			continue
		}
		if err := p.Remove(ctx, s); err != nil {
			problems = append(problems, fmt.Errorf("remove %s: %w", s.Name, err))
			continue
		}
		removed = append(removed, s)
	}
	return removed, errors.Join(problems...)
}
