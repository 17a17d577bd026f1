package guest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"platter/internal/export/rescue/cpio"
)

// A Boot is one life of a guest, from power-on to power-off.
type Boot struct {
	Files map[string]string // what /test holds, by name: files of the host
	// Run is a shell script, started in /test. The guest ends when it does.
	Run string
	// System has the system on the first disk start, such as Debian makes. It
	// runs the script when it is up, in /run/test, which has the files.
	System bool
	Disks  []string // raw files of the host: /dev/vda, /dev/vdb, ...
	// NoDiscard makes the disks refuse discards, as many do.
	NoDiscard bool
	ZFS       bool // its modules and tools are there: OpenZFS
	Memory    int  // MiB; 1024 if zero
	CPUs      int  // 1 if zero
	// Line is called with each line that the script prints. When it returns
	// true the power is cut: nothing that the guest has in memory is written.
	// It may be nil.
	Line func(line string) (cut bool)
}

// ErrDied means that a guest ended without saying how its script did: the
// kernel panicked, or the time was up.
var ErrDied = errors.New("the guest died")

// Missing returns the package without which no guest starts; empty if it is
// there.
func Missing() string {
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		return "qemu-system-x86"
	}
	return ""
}

// Start runs a guest to its end and returns the exit status of its script, or
// -1 when the power was cut.
func (s *System) Start(ctx context.Context, b Boot) (status int, err error) {
	work, err := os.MkdirTemp("", "guest-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(work)
	ramfs := filepath.Join(work, "ramfs")
	if err := s.ramfs(ramfs, b); err != nil {
		return 0, fmt.Errorf("guest: %w", err)
	}
	console := filepath.Join(work, "console")
	status, err = run(ctx, b, s.arguments(b, ramfs, console))
	if err != nil {
		return 0, fmt.Errorf("%w%s", err, tail(console))
	}
	return status, nil
}

// ramfs writes the initial file system: the base and what the test adds.
func (s *System) ramfs(path string, b Boot) (err error) {
	entries := []cpio.Entry{{Name: "test/run", Mode: cpio.File | 0o755, Body: []byte("#!/bin/sh\n" + b.Run + "\n")}}
	if b.System {
		entries = append(entries, cpio.Entry{Name: "test/system", Mode: cpio.File | 0o644, Body: systemScript})
	}
	for name, path := range b.Files {
		e, err := cpio.FromFile("test/"+name, path, 0o755)
		if err != nil {
			return err
		}
		entries = append(entries, e)
	}
	out, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	archives := []string{s.base}
	if b.ZFS {
		archives = append(archives, s.zfs)
	}
	for _, archive := range archives {
		if err := appendFile(out, archive); err != nil {
			return err
		}
	}
	return cpio.Write(out, entries)
}

func appendFile(w io.Writer, path string) error {
	in, err := os.Open(path)
	if err != nil {
		return err
	}
	defer in.Close()
	_, err = io.Copy(w, in)
	return err
}

func (s *System) arguments(b Boot, ramfs, console string) []string {
	memory, cpus := b.Memory, b.CPUs
	if memory == 0 {
		memory = 1024
	}
	args := []string{
		// Emulated, so that it is the same on every host. "pc" starts faster
		// than "q35".
		"-machine", "pc", "-accel", "tcg,thread=multi", "-cpu", "max",
		"-m", strconv.Itoa(memory), "-smp", strconv.Itoa(max(1, cpus)),
		"-nodefaults", "-display", "none", "-no-reboot",
		"-kernel", s.kernel, "-initrd", ramfs,
		"-append", "console=ttyS0 quiet loglevel=4 panic=-1 oops=panic mitigations=off nokaslr tsc=reliable no_timer_check random.trust_cpu=on rcupdate.rcu_expedited=1",
		"-serial", "file:" + console, "-serial", "stdio",
	}
	options := ""
	if b.NoDiscard {
		options = ",discard=off,write-zeroes=off"
	}
	for i, disk := range b.Disks {
		args = append(args,
			"-drive", fmt.Sprintf("file=%s,if=none,id=d%d,format=raw,discard=unmap,cache=unsafe", strings.ReplaceAll(disk, ",", ",,"), i),
			"-device", fmt.Sprintf("virtio-blk-pci,drive=d%d,serial=guest%d%s", i, i, options))
	}
	return args
}

// run starts the machine and follows its words until it is off.
func run(ctx context.Context, b Boot, args []string) (int, error) {
	ctx, cut := context.WithCancel(ctx)
	defer cut()
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", args...)
	// The kernel kills the machine if this process dies without stopping it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = 5 * time.Second
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("start a guest: %w", err)
	}
	status, off := -1, false
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := strings.TrimRight(lines.Text(), "\r")
		if word, ok := strings.CutPrefix(line, "guest: exit "); ok {
			status, err = strconv.Atoi(word)
			off = err == nil
			continue
		}
		if b.Line != nil && line != "guest: up" && b.Line(line) {
			cut()
			cmd.Wait() // killed: its status says nothing
			return -1, nil
		}
	}
	err = errors.Join(lines.Err(), cmd.Wait())
	if !off {
		return 0, fmt.Errorf("%w: %w %s", ErrDied, errors.Join(context.Cause(ctx), err), bytes.TrimSpace(complaints.Bytes()))
	}
	return status, nil
}

// tail quotes the end of what the kernel said.
func tail(console string) string {
	b, err := os.ReadFile(console)
	if err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	var t strings.Builder
	for _, l := range lines[max(0, len(lines)-20):] {
		fmt.Fprintf(&t, "\nkernel: %s", strings.TrimRight(l, "\r"))
	}
	return t.String()
}
