package repo

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A Machine is what leases and dates depend on of where a process runs.
type Machine interface {
	// Now is by the machine's wall clock, which may be wrong.
	Now() time.Time
	// Uptime never jumps, and goes on while the machine sleeps.
	Uptime() time.Duration
	// Tick sends about every d, though not while the machine sleeps, until
	// stop is called. Ticks that nobody waits for are dropped.
	Tick(d time.Duration) (ticks <-chan time.Time, stop func())
	// Process returns a lease that names this process, and nothing else.
	Process() Lease
	// Gone reports whether the process of a lease ran on this boot of this
	// machine and runs no more.
	Gone(l *Lease) bool
}

// thisMachine is the one that the program runs on.
type thisMachine struct{}

// ThisMachine returns the one that the program runs on.
func ThisMachine() Machine { return thisMachine{} }

func (thisMachine) Now() time.Time { return time.Now() }

func (thisMachine) Uptime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		panic(err) // only for a clock that the kernel does not have: 2.6.39
	}
	return time.Duration(t.Nano())
}

func (thisMachine) Tick(d time.Duration) (<-chan time.Time, func()) {
	t := time.NewTicker(d)
	return t.C, t.Stop
}

func (thisMachine) Process() Lease {
	l := Lease{PID: os.Getpid()}
	l.Host, _ = os.Hostname()
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	l.Boot = strings.TrimSpace(string(boot))
	// PIDs mean nothing in another PID namespace: name ours too.
	if ns, err := os.Readlink("/proc/self/ns/pid"); err == nil {
		l.Boot += " " + ns
	}
	l.Birth, _ = processBirth(l.PID)
	return l
}

func (m thisMachine) Gone(l *Lease) bool {
	me := m.Process()
	if l.Host != me.Host || l.Boot != me.Boot || me.Boot == "" {
		return false
	}
	birth, err := processBirth(l.PID)
	if errors.Is(err, os.ErrNotExist) {
		// Processes of others may be hidden in /proc (hidepid), not from kill.
		return errors.Is(unix.Kill(l.PID, 0), unix.ESRCH)
	}
	return err == nil && birth != l.Birth
}

// processBirth returns when a process started, in clock ticks since boot:
// field 22 of /proc/PID/stat (proc(5)), counted after the name's bracket.
func processBirth(pid int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(fields) < 20 {
		return 0, fmt.Errorf("/proc/%d/stat: %d fields", pid, len(fields))
	}
	return strconv.ParseUint(fields[19], 10, 64)
}
