package block

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A mark tells whether a device was written to between two moments.
type mark struct {
	writes string    // the kernel's count of writes and discards to a device
	mtime  time.Time // of a file
}

// Check returns an error when the device is no longer what was opened.
func (s *source) Check() error {
	size, err := s.size()
	if err != nil {
		return fmt.Errorf("check %s: %w", s.path, explain(err))
	}
	if size != s.info.Size {
		return s.resized(size)
	}
	if s.info.Kind == KindFile {
		return nil
	}
	// A device that was pulled out keeps its descriptor and size for those
	// who have it open; sysfs shows that it is gone, or that another one
	// took its number.
	now, err := s.system.node(s.node.dev)
	if err != nil || now != s.node {
		return fmt.Errorf("check %s: %w: the device is gone", s.path, unix.ENODEV)
	}
	return nil
}

func (s *source) resized(now int64) error {
	return fmt.Errorf("check %s: %w: from %d to %d bytes", s.path, ErrResized, s.info.Size, now)
}

func (s *source) size() (int64, error) {
	if s.info.Kind != KindFile {
		return s.any().deviceSize()
	}
	st, err := s.buffered.stat()
	return st.Size, err
}

// Still returns nil if nothing has written to the device since it was opened.
func (s *source) Still() error {
	now, err := s.observe()
	if err != nil {
		return fmt.Errorf("check %s: %w", s.path, err)
	}
	switch {
	case now == s.mark:
		return nil
	case s.info.Kind == KindFile:
		return fmt.Errorf("check %s: the file was written to at %s, while it was read", s.path, now.mtime.Format(time.RFC3339))
	}
	return fmt.Errorf("check %s: the device was written to while it was read", s.path)
}

// observe takes the mark of this moment.
func (s *source) observe() (mark, error) {
	if s.info.Kind == KindFile {
		st, err := s.buffered.stat()
		return mark{mtime: time.Unix(st.Mtim.Unix())}, err
	}
	// Documented in the kernel's block/stat: fields 5 and 7 are writes and
	// sectors written, 12 and 14 discards and sectors discarded.
	f := strings.Fields(s.node.attr("stat"))
	if len(f) < 7 {
		return mark{}, errors.New("read the device's count of writes: none in sysfs")
	}
	m := mark{writes: f[4] + " " + f[6]}
	if len(f) >= 14 {
		m.writes += " " + f[11] + " " + f[13]
	}
	return m, nil
}
