package freeze

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// drainCommand is the first argument of the process that drains a device.
const drainCommand = "drain-mapper"

// ErrNoMapper means that a device is none of the device mapper's.
var ErrNoMapper = errors.New("no device of the device mapper")

// Drain waits until all that was on its way to a device of the device mapper is
// there: the device is suspended, which holds back what comes, and let go at
// once. If that takes longer than limit it is let go all the same, with an
// error.
//
// The device may hold this very program: so it is a process of its own that
// does it, locked into memory, which goes on if this one is killed.
func Drain(path string, limit time.Duration) error {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return fmt.Errorf("drain %s: %w", path, err)
	}
	if _, err := os.Stat(fmt.Sprintf("/sys/dev/block/%d:%d/dm", unix.Major(st.Rdev), unix.Minor(st.Rdev))); err != nil {
		return fmt.Errorf("drain %s: %w", path, ErrNoMapper)
	}
	cmd := exec.Command("/proc/self/exe", drainCommand, strconv.FormatUint(st.Rdev, 10)+","+strconv.FormatInt(limit.Milliseconds(), 10))
	cmd.Args[0] = "platter"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("drain %s: %w: %s", path, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// A mapperCall is what the device mapper's ioctls take and give: struct dm_ioctl
// of version 4, without what may follow it.
type mapperCall struct {
	version              [3]uint32
	size, start, targets uint32
	open                 int32
	flags, event, _      uint32
	device               uint64
	name                 [128]byte
	uuid                 [129]byte
	_                    [7]byte
}

// Its ioctls, and flags.
const (
	dmSuspend = 0xc138fd06 // or resume
	dmStatus  = 0xc138fd07

	flagSuspend = 1 << 1
	flagWaiting = 1 << 6  // resume would put another table in place
	flagNoLock  = 1 << 10 // filesystems are let be
)

// drain is the whole of that process. What is the device's number and a time in
// milliseconds.
func drain(what string) error {
	number, ms, _ := strings.Cut(what, ",")
	device, err1 := strconv.ParseUint(number, 10, 64)
	limit, err2 := strconv.ParseInt(ms, 10, 64)
	control, err3 := os.OpenFile("/dev/mapper/control", os.O_RDWR, 0)
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	defer control.Close()
	if err := settleIn(); err != nil {
		return err
	}
	runtime.LockOSThread()
	call := func(request uintptr, flags uint32) (uint32, error) {
		c := mapperCall{version: [3]uint32{4, 0, 0}, flags: flags, device: device}
		c.size, c.start = uint32(unsafe.Sizeof(c)), uint32(unsafe.Sizeof(c))
		_, _, e := unix.Syscall(unix.SYS_IOCTL, control.Fd(), request, uintptr(unsafe.Pointer(&c)))
		if e != 0 {
			return c.flags, e
		}
		return c.flags, nil
	}
	// Once before it matters, so that all that is needed is in memory.
	flags, err := call(dmStatus, 0)
	if err != nil {
		return err
	}
	if flags&(flagSuspend|flagWaiting) != 0 {
		return errors.New("somebody is changing its table, or has suspended it: dmsetup info")
	}
	over, err := interrupt(time.Duration(limit) * time.Millisecond)
	if err != nil {
		return err
	}
	_, err = call(dmSuspend, flagSuspend|flagNoLock)
	_, resumed := call(dmSuspend, 0)
	for errors.Is(resumed, unix.EINTR) {
		_, resumed = call(dmSuspend, 0)
	}
	if over() && err != nil {
		err = fmt.Errorf("what is on its way did not land in %d ms: %w", limit, err)
	}
	return errors.Join(err, resumed)
}

// interrupt has the system call of this thread end after d, and again until over
// is called, which returns whether it did.
func interrupt(d time.Duration) (over func() bool, err error) {
	if err := endsCalls(unix.SIGUSR1); err != nil {
		return nil, err
	}
	thread, stop, done := unix.Gettid(), make(chan struct{}), make(chan bool)
	go func() {
		after, late := time.After(d), false
		for {
			select {
			case <-stop:
				done <- late
				return
			case <-after:
				late = true
				_ = unix.Tgkill(os.Getpid(), thread, unix.SIGUSR1)
				after = time.After(10 * time.Millisecond)
			}
		}
	}()
	return func() bool { close(stop); return <-done }, nil
}

// endsCalls has a signal end the system call that it comes in: what the runtime
// asks for is that the kernel begins the call again.
func endsCalls(s syscall.Signal) error {
	signal.Notify(make(chan os.Signal, 1), s)
	var action struct{ handler, flags, restorer, mask uint64 }
	change := func(to, from unsafe.Pointer) error {
		if _, _, e := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(s), uintptr(to), uintptr(from), unsafe.Sizeof(action.mask), 0, 0); e != 0 {
			return fmt.Errorf("let signal %v end a system call: %w", s, e)
		}
		return nil
	}
	if err := change(nil, unsafe.Pointer(&action)); err != nil {
		return err
	}
	const restart = 0x10000000
	action.flags &^= restart
	return change(unsafe.Pointer(&action), nil)
}
