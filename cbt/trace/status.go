package trace

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"platter/block"
)

// A Watched is a disk with a history.
type Watched struct {
	Disk        string `json:"disk"`         // path, or major:minor of one that is gone
	Size        int64  `json:"size"`         // bytes
	Unit        int64  `json:"unit"`         // bytes that one mark stands for
	Generations int    `json:"generations"`  // kept for consumers
	Memory      int64  `json:"memory_bytes"` // of the kernel, for the maps
	Consumers   int    `json:"consumers"`
	Marked      int64  `json:"marked_bytes"` // in the present generation
	Lost        string `json:"lost,omitempty"`
}

// A Status tells how the tracer fares.
type Status struct {
	// Missed is how often a program was not run because it was running
	// already. What was written before the last one is compared in full.
	Missed uint64 `json:"missed_events"`
	// Resizes tells whether a resize is noticed when it happens, and not only
	// by the next write.
	Resizes bool      `json:"sees_resizes"`
	Disks   []Watched `json:"disks"`
}

// Status tells what the tracer watches.
func (t *Tracer) Status() (s Status, err error) {
	if s.Missed, err = t.misses(); err != nil {
		return s, err
	}
	s.Resizes = t.resizes
	err = t.locked(func() error {
		keys, err := t.watched()
		slices.Sort(keys)
		for _, key := range keys {
			if err != nil {
				break
			}
			var w Watched
			if w, err = t.describe(key); err == nil {
				s.Disks = append(s.Disks, w)
			}
		}
		return err
	})
	return s, err
}

func (t *Tracer) describe(key uint32) (w Watched, err error) {
	h, err := t.history(key)
	if err != nil || len(h) == 0 {
		return w, err
	}
	defer h.Close()
	last := h.last()
	w = Watched{Disk: keyText(key), Size: int64(last.get(headSectors)) * 512, Unit: last.unit(), Generations: len(h)}
	d, err := diskOfKey(key)
	switch {
	case err != nil:
		w.Lost = "the disk is gone"
	case d.seq != last.get(bodySeq):
		w.Lost = "another disk has the number now"
	case d.sectors != last.get(headSectors):
		w.Lost = "the disk changed its size"
	default:
		w.Disk = "/dev/" + d.name
	}
	for _, g := range h {
		w.Memory += int64(len(g.mem))
		if w.Lost == "" {
			w.Lost = g.loss()
		}
	}
	needed, err := t.needed(key, last.get(bodyHistory))
	for _, n := range needed {
		w.Consumers += n
	}
	last.each(func(e block.Extent) bool { w.Marked += e.Length; return true })
	return w, err
}

func diskOfKey(key uint32) (disk, error) {
	dir, err := filepath.EvalSymlinks("/sys/dev/block/" + keyText(key))
	if err != nil {
		return disk{}, err
	}
	return readDisk(dir)
}

// Watch begins the history of the disk that a device is on, if there is none
// that goes on, and tells why, "" if it goes on.
func (t *Tracer) Watch(path string) (began string, err error) {
	p, err := lookUp(path)
	if err != nil {
		return "", err
	}
	err = t.locked(func() error {
		h, why, err := t.watch(p.disk)
		began = why
		return errors.Join(err, h.Close())
	})
	if err != nil {
		return "", fmt.Errorf("trace %s: %w", path, err)
	}
	return began, nil
}

// Sweep forgets the disks that are gone.
func (t *Tracer) Sweep() error {
	return t.locked(func() error {
		keys, err := t.watched()
		if err != nil {
			return err
		}
		for _, key := range keys {
			if _, err := diskOfKey(key); err == nil {
				continue
			}
			if err := errors.Join(t.disks.Delete(key), t.forget(key, func(uint64) bool { return true })); err != nil {
				return fmt.Errorf("forget disk %s: %w", keyText(key), err)
			}
		}
		return nil
	})
}
