package block

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Open opens the target for writing. It checks again that it is what was
// planned and that nobody uses it, and only then creates the file, or cuts an
// existing one to nothing and extends it to the image's size.
func (p *TargetPlan) Open() (*Target, error) {
	t := &Target{path: p.Info.Path, info: p.Info, file: p.File, create: p.Create, dir: filepath.Dir(p.path)}
	err := p.open(t)
	if err == nil {
		err = p.checkSame(t)
	}
	if err == nil && p.File {
		err = p.prepareFile(t)
	}
	if err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}

func (p *TargetPlan) open(t *Target) error {
	flags := os.O_RDWR | unix.O_NOFOLLOW
	switch {
	case p.Create:
		flags |= os.O_CREATE | os.O_EXCL
	case !p.File:
		flags |= unix.O_EXCL // nobody mounts it while it is written
	}
	h, err := openHandle(p.path, flags|unix.O_DIRECT, 0o600)
	// Whoever lists devices claims each for a moment; see claimed.
	for try := 0; errors.Is(err, unix.EBUSY) && try < 3; try++ {
		time.Sleep(10 * time.Millisecond)
		h, err = openHandle(p.path, flags|unix.O_DIRECT, 0o600)
	}
	if errors.Is(err, unix.EINVAL) {
		// The file may have been created before O_DIRECT was refused.
		if p.Create {
			flags &^= os.O_EXCL
		}
		h, err = openHandle(p.path, flags, 0o600)
		t.buffered = h
	} else {
		t.direct = h
	}
	switch {
	case errors.Is(err, unix.EBUSY):
		return refuse(p.Info.Path, "is in use: another program or the kernel holds it", "see 'platter devices', and stop what uses it")
	case errors.Is(err, fs.ErrExist):
		return fmt.Errorf("create %s: %w: it was not there a moment ago", p.Info.Path, fs.ErrExist)
	case err != nil:
		return fmt.Errorf("open %s for writing: %w", p.Info.Path, explain(err))
	}
	if p.File && t.direct != nil {
		if t.buffered, err = openHandle(p.path, os.O_RDWR|unix.O_NOFOLLOW, 0); err != nil {
			return fmt.Errorf("open %s for writing: %w", p.Info.Path, explain(err))
		}
	}
	return nil
}

// checkSame looks at the open descriptor, and at usages once more.
func (p *TargetPlan) checkSame(t *Target) error {
	st, err := t.any().stat()
	if err != nil {
		return fmt.Errorf("stat %s: %w", p.Info.Path, err)
	}
	if p.Create {
		p.stat = st
		return p.sameFile(t, st)
	}
	if st.Dev != p.stat.Dev || st.Ino != p.stat.Ino || st.Rdev != p.stat.Rdev {
		return refuse(p.Info.Path, "is not the one that was planned for", "start again")
	}
	if p.File {
		// In this order: afterwards the locks are our own.
		if err := p.checkPlace(); err != nil {
			return err
		}
		return p.sameFile(t, st)
	}
	size, err := t.any().deviceSize()
	if err != nil {
		return fmt.Errorf("ask %s for its size: %w", p.Info.Path, err)
	}
	now, err := p.system.node(p.stat.Rdev)
	if err != nil || size != p.Info.Size || now != p.node {
		return refuse(p.Info.Path, "is another device than the one that was planned for", "start again")
	}
	return p.checkHeld()
}

// sameFile checks that both descriptors are the same file, and locks it
// against another restore.
func (p *TargetPlan) sameFile(t *Target, st unix.Stat_t) error {
	other, err := t.buffered.stat()
	if err != nil {
		return fmt.Errorf("stat %s: %w", p.Info.Path, err)
	}
	if other.Dev != st.Dev || other.Ino != st.Ino || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return refuse(p.Info.Path, "was replaced while it was opened", "start again")
	}
	// A lock of the file, as another restore takes it; a filesystem without
	// locks is no reason to stop.
	if t.any().lock(unix.LOCK_EX) == unix.EWOULDBLOCK {
		return refuse(p.Info.Path, "is locked by another program", "wait for it")
	}
	if !t.buffered.keepFromVM() {
		return refuse(p.Info.Path, "is a disk of a virtual machine", "shut it down first")
	}
	return nil
}

func (p *TargetPlan) prepareFile(t *Target) error {
	if !p.opts.InPlace {
		if err := t.SetSize(0); err != nil {
			return err
		}
	}
	return t.SetSize(p.opts.Size)
}
