package trace

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
)

// maxGenerations bounds the memory that the history of a disk takes: older
// generations are put together, so that consumers get more than they need.
const maxGenerations = 12

const consumerKeyBytes = 36

// A consumerKey names a consumer and the disk that it images.
type consumerKey struct {
	Consumer [32]byte
	Disk     uint32
}

// A consumerRecord says since when a consumer needs the history.
type consumerRecord struct{ Number, History uint64 }

func keyOf(consumer string, disk uint32) consumerKey {
	return consumerKey{sha256.Sum256([]byte(consumer)), disk}
}

func (k consumerKey) MarshalBinary() ([]byte, error) {
	return binary.NativeEndian.AppendUint32(slices.Clone(k.Consumer[:]), k.Disk), nil
}

func (k *consumerKey) UnmarshalBinary(b []byte) error {
	if len(b) != consumerKeyBytes {
		return fmt.Errorf("consumer's key of %d bytes", len(b))
	}
	copy(k.Consumer[:], b)
	k.Disk = binary.NativeEndian.Uint32(b[32:])
	return nil
}

// A history is the generations of one disk, the oldest first; the programs
// write to the last.
type history []*generation

func (h history) last() *generation { return h[len(h)-1] }

// Close unmaps all generations.
func (h history) Close() error {
	var errs []error
	for _, g := range h {
		errs = append(errs, g.Close())
	}
	return errors.Join(errs...)
}

// locked keeps other processes from changing histories while f runs.
func (t *Tracer) locked(f func() error) (err error) {
	held, err := lock(t.dir)
	if err != nil {
		return err
	}
	defer held.Close()
	if _, err := os.Stat(t.pin("about")); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("it was stopped: %w", ErrStopped)
	}
	return f()
}

// history returns a disk's history, empty if the tracer does not watch it. It
// removes what a process that died while it began a generation left behind,
// and what is left of a history that ended. The caller holds the lock.
func (t *Tracer) history(key uint32) (h history, err error) {
	present, err := t.present(key)
	if err != nil || present == nil {
		return nil, errors.Join(err, t.forget(key, func(uint64) bool { return true }))
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.Close())
			h = nil
		}
	}()
	h = history{present}
	numbers, err := t.numbers(key)
	if err != nil {
		return h, err
	}
	slices.SortFunc(numbers, func(a, b uint64) int { return int(min(1, max(-1, int64(b-a)))) })
	for _, n := range numbers {
		if n == present.number() {
			continue
		}
		g, err := t.load(key, n)
		if err != nil {
			return h, err
		}
		if n > present.number() || g.get(bodyHistory) != present.get(bodyHistory) {
			err := errors.Join(g.Close(), os.Remove(t.generationPin(key, n)))
			if err != nil {
				return h, fmt.Errorf("remove generation %d of disk %s: %w", n, keyText(key), err)
			}
			continue
		}
		h = slices.Insert(h, 0, g)
	}
	return h, nil
}

// present returns the generation that the programs write to, or nil.
func (t *Tracer) present(key uint32) (*generation, error) {
	var id ebpf.MapID
	err := t.disks.Lookup(key, &id)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look up disk %s: %w", keyText(key), err)
	}
	m, err := ebpf.NewMapFromID(id)
	if err != nil {
		return nil, fmt.Errorf("open the present generation of disk %s: %w", keyText(key), err)
	}
	return mapped(m)
}

func (t *Tracer) generationPin(key uint32, n uint64) string {
	return t.pin(fmt.Sprintf("generation_%d_%d", key, n))
}

// numbers returns the numbers of a disk's pinned generations.
func (t *Tracer) numbers(key uint32) ([]uint64, error) {
	names, err := t.pinned(fmt.Sprintf("generation_%d_", key))
	var numbers []uint64
	for _, name := range names {
		if n, err := strconv.ParseUint(name, 10, 64); err == nil {
			numbers = append(numbers, n)
		}
	}
	return numbers, err
}

func (t *Tracer) load(key uint32, n uint64) (*generation, error) {
	m, err := ebpf.LoadPinnedMap(t.generationPin(key, n), nil)
	if err != nil {
		return nil, fmt.Errorf("open generation %d of disk %s: %w", n, keyText(key), err)
	}
	return mapped(m)
}

// watched returns the keys of the disks with a history.
func (t *Tracer) watched() ([]uint32, error) {
	var keys []uint32
	var key uint32
	var id ebpf.MapID
	for all := t.disks.Iterate(); ; {
		if !all.Next(&key, &id) {
			return keys, all.Err()
		}
		keys = append(keys, key)
	}
}

// forget removes the pins of a disk's generations by number.
func (t *Tracer) forget(key uint32, which func(uint64) bool) error {
	numbers, err := t.numbers(key)
	if err != nil {
		return err
	}
	for _, n := range numbers {
		if which(n) {
			if err := os.Remove(t.generationPin(key, n)); err != nil {
				return fmt.Errorf("remove generation %d of disk %s: %w", n, keyText(key), err)
			}
		}
	}
	return nil
}

// watch returns the history of a disk, and begins one if there is none that
// goes on. began says why, "" if it goes on. The caller holds the lock.
func (t *Tracer) watch(d disk) (h history, began string, err error) {
	h, err = t.history(d.key)
	if err != nil {
		return nil, "", err
	}
	var after *generation
	switch {
	case len(h) == 0:
		began = "the tracer did not watch the disk before"
	case h.last().get(bodySeq) != d.seq:
		began = "another disk has the number now"
	case h.last().get(headSectors) != d.sectors || h.last().get(headResized) > 0:
		began = "the disk changed its size"
	default:
		return h, "", nil
	}
	if len(h) > 0 {
		after = h.last()
	}
	g, err := t.begin(d, after, randomWord())
	if err != nil {
		return nil, "", errors.Join(err, h.Close())
	}
	err = t.forget(d.key, func(n uint64) bool { return n != g.number() })
	return history{g}, began, errors.Join(err, h.Close())
}

// begin makes a generation the present one of its disk. When it returns, no
// program writes to the one before.
func (t *Tracer) begin(d disk, after *generation, historyID uint64) (*generation, error) {
	misses, err := t.misses()
	if err != nil {
		return nil, err
	}
	g, err := newGeneration(d)
	if err != nil {
		return nil, err
	}
	n := uint64(1)
	if after != nil {
		n = after.number() + 1
		for _, later := range must(t.numbers(d.key)) {
			n = max(n, later+1)
		}
	}
	g.words[headNumber], g.words[headNonce], g.words[headMisses], g.words[bodyHistory] = n, randomWord(), misses, historyID
	g.words[bodyLast] = g.words[headNonce]
	if after != nil {
		g.words[bodyBefore] = after.words[bodyLast]
	}
	if err := g.m.Pin(t.generationPin(d.key, n)); err != nil {
		return nil, errors.Join(fmt.Errorf("pin generation %d of %s: %w", n, d.name, err), g.Close())
	}
	// This waits until every program that still uses the map before is done.
	if err := t.disks.Put(d.key, uint32(g.m.FD())); err != nil {
		err = fmt.Errorf("begin generation %d of %s: %w", n, d.name, err)
		return nil, errors.Join(err, os.Remove(t.generationPin(d.key, n)), g.Close())
	}
	return g, nil
}

func must(numbers []uint64, _ error) []uint64 { return numbers }

// needed returns the numbers that the consumers of a disk's history have
// images of, and how many consumers have each.
func (t *Tracer) needed(key uint32, historyID uint64) (map[uint64]int, error) {
	needed := map[uint64]int{}
	var k consumerKey
	var r consumerRecord
	all := t.consumers.Iterate()
	for all.Next(&k, &r) {
		if k.Disk == key && r.History == historyID {
			needed[r.Number]++
		}
	}
	return needed, all.Err()
}

// prune drops generations that no consumer needs and puts together the oldest
// where there are too many. The caller holds the lock.
func (t *Tracer) prune(key uint32, h history) error {
	needed, err := t.needed(key, h.last().get(bodyHistory))
	if err != nil {
		return fmt.Errorf("list the tracer's consumers: %w", err)
	}
	oldest := h.last().number()
	for n := range needed {
		oldest = min(oldest, n)
	}
	kept := slices.DeleteFunc(slices.Clone(h), func(g *generation) bool { return g.number() < oldest })
	if err := t.forget(key, func(n uint64) bool { return n < oldest }); err != nil {
		return err
	}
	for i := 0; len(kept) > maxGenerations && i+1 < len(kept)-1; {
		if needed[kept[i+1].number()] > 0 {
			i++
			continue
		}
		if err := t.join(key, kept[i], kept[i+1]); err != nil {
			return err
		}
		kept = slices.Delete(kept, i, i+1)
	}
	return nil
}

// join puts a generation into the next one, which takes its number. Cut short,
// both are there, or the next one under both names.
func (t *Tracer) join(key uint32, before, next *generation) error {
	from, to := t.generationPin(key, next.number()), t.generationPin(key, before.number())
	next.swallow(before)
	if err := os.Rename(from, to); err != nil {
		return fmt.Errorf("put %s and %s together: %w", strings.TrimPrefix(from, t.dir), strings.TrimPrefix(to, t.dir), err)
	}
	return nil
}
