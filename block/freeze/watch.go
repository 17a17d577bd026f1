package freeze

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Watch is the whole of this package's processes, and returns false in any other.
// A program calls it before it does anything else, and exits if it was.
func Watch() bool {
	if len(os.Args) != 3 {
		return false
	}
	var err error
	switch os.Args[1] {
	case watchCommand:
		if err = watch(os.Args[2]); err != nil {
			err = fmt.Errorf("platter: watch over a freeze: %w", err)
		}
	case drainCommand:
		err = drain(os.Args[2])
	default:
		return false
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	return true
}

func watch(limit string) error {
	ms, err := strconv.ParseInt(limit, 10, 64)
	if err != nil {
		return err
	}
	w := &watcher{limit: time.Duration(ms) * time.Millisecond, words: make(chan byte)}
	for fd := 3; unix.Fstat(fd, new(unix.Stat_t)) == nil && isDir(fd); fd++ {
		w.dirs = append(w.dirs, fd)
	}
	if err := settleIn(); err != nil {
		return err
	}
	go w.listen()
	w.answer(ready)
	w.run()
	return nil
}

// settleIn makes this process one that needs no disk, and that little can end.
func settleIn() error {
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0)
	debug.SetGCPercent(-1) // it has all the memory that it will ever need
	err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE)
	if err != nil && !errors.Is(err, unix.ENOMEM) && !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("lock into memory: %w", err)
	}
	return nil
}

func isDir(fd int) bool {
	var st unix.Stat_t
	return unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR
}

type watcher struct {
	limit time.Duration
	dirs  []int
	words chan byte // closed when the other process is gone
	word  [1]byte
}

func (w *watcher) listen() {
	defer close(w.words)
	var b [1]byte
	for {
		n, err := unix.Read(0, b[:])
		switch {
		case err == unix.EINTR:
		case n != 1:
			return
		default:
			w.words <- b[0]
		}
	}
}

func (w *watcher) answer(word byte) {
	w.word[0] = word
	_, _ = unix.Write(1, w.word[:]) // if nobody listens, the pipe from there ends too
}

// run heeds what the other process says until it is gone.
func (w *watcher) run() {
	never := make(chan time.Time)
	timer := time.NewTimer(time.Hour)
	var over <-chan time.Time = never
	late := false
	for {
		select {
		case word, ok := <-w.words:
			switch {
			case !ok:
				w.thaw()
				return
			case word == sayArm:
				timer.Reset(w.limit)
				over, late = timer.C, false
				w.answer(ready)
			case late:
				over = never
				w.answer(tooLate)
			default:
				over = never
				w.answer(inTime)
			}
		case <-over:
			// A freeze that is only beginning cannot be undone: look again,
			// for as long as the other process does not say that it is over.
			late = true
			w.thaw()
			timer.Reset(10 * time.Millisecond)
		}
	}
}

// thaw thaws all that is frozen, those that lie in others last.
func (w *watcher) thaw() {
	for i := len(w.dirs) - 1; i >= 0; i-- {
		for {
			_, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(w.dirs[i]), fiThaw, 0)
			if e != unix.EINTR {
				break
			}
		}
	}
}
