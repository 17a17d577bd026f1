package qemu

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"platter/block/qmp"
)

// A Live machine is a real QEMU with a disk, or several, whose processor does not run: what
// the machine would write is written for it, by its own disk.
type Live struct {
	Socket string // of QMP, for the program under test
	t      testing.TB
	dir    string
	cmd    *exec.Cmd
	qmp    *qmp.Client // another one
	said   bytes.Buffer
}

// Disk is the name of the first disk of a Live machine.
const Disk = "disk0"

// StartLive starts a machine whose disk is a file of a format, raw or qcow2; more
// are its disk1 and so on. It ends with the test, at the latest. The test is
// skipped where there is no QEMU.
func StartLive(t testing.TB, path, format string, more ...string) *Live {
	t.Helper()
	if what := Missing(BIOS); what != "" {
		t.Skip("SKIPPED, this needs the package ", what)
	}
	dir, err := os.MkdirTemp("", "live") // t.TempDir may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	l := &Live{t: t, dir: dir, Socket: filepath.Join(dir, "qmp")}
	t.Cleanup(func() {
		l.Kill()
		os.RemoveAll(dir)
	})
	args := []string{
		"-machine", "pc", "-accel", "tcg", "-S", "-m", "16", "-nodefaults", "-display", "none", "-name", "live",
		"-uuid", "6f9619ff-8b86-d011-b42d-00cf4fc964ff",
		"-qmp", "unix:" + l.Socket + ",server=on,wait=off", "-qmp", "unix:" + l.Socket + "2,server=on,wait=off",
	}
	for i, path := range append([]string{path}, more...) {
		args = append(args,
			"-blockdev", fmt.Sprintf("driver=%s,node-name=node%d,discard=unmap,file.driver=file,file.discard=unmap,file.filename=%s", format, i, escape(path)),
			"-device", fmt.Sprintf("virtio-blk-pci,drive=node%d,id=disk%d", i, i))
	}
	l.cmd = exec.CommandContext(context.WithoutCancel(t.Context()), "qemu-system-x86_64", args...)
	l.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	l.cmd.Stderr = &l.said
	if err := start(t, l.cmd); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if l.qmp, err = qmp.Dial(context.WithoutCancel(t.Context()), l.Socket+"2"); err == nil {
			return l
		}
		if time.Now().After(deadline) {
			t.Fatalf("QEMU does not answer: %v %s", err, l.said.Bytes())
		}
	}
}

// start starts a process from a thread that lasts as long as the test: with the
// thread, where threads come and go, the process would end too.
func start(t testing.TB, cmd *exec.Cmd) error {
	started, over := make(chan error), make(chan struct{})
	t.Cleanup(func() { close(over) })
	go func() {
		runtime.LockOSThread()
		started <- cmd.Start()
		<-over
	}()
	return <-started
}

// Do carries out a command of QMP.
func (l *Live) Do(command string, arguments, result any) error {
	return l.qmp.Do(context.WithoutCancel(l.t.Context()), command, arguments, result)
}

// IO does to the disk what a command of qemu-io says, such as "write 0 4k".
func (l *Live) IO(command string) error { return l.IOOf(Disk, command) }

// IOOf is IO with the disk of a name.
func (l *Live) IOOf(disk, command string) error {
	var said string
	line := map[string]string{"command-line": fmt.Sprintf("qemu-io -d /machine/peripheral/%s/virtio-backend \"%s\"", disk, command)}
	if err := l.Do("human-monitor-command", line, &said); err != nil {
		return err
	}
	if said = strings.TrimSpace(said); strings.Contains(said, "rror") || strings.Contains(said, "failed") || strings.Contains(said, "nvalid") {
		return fmt.Errorf("qemu-io %s: %s", command, said)
	}
	return nil
}

// Quit ends the machine in order: bitmaps that last are stored.
func (l *Live) Quit() {
	l.t.Helper()
	if err := l.Do("quit", nil, nil); err != nil {
		l.t.Fatal(err)
	}
	if err := l.cmd.Wait(); err != nil {
		l.t.Fatalf("QEMU: %v %s", err, l.said.Bytes())
	}
	l.qmp.Close()
}

// Kill ends it as a crash does.
func (l *Live) Kill() {
	if l.qmp != nil {
		l.qmp.Close()
	}
	if l.cmd.ProcessState == nil && l.cmd.Process != nil {
		l.cmd.Process.Kill()
		l.cmd.Wait()
	}
	if l.t.Failed() {
		l.t.Logf("QEMU: %v %s", l.cmd.ProcessState, l.said.Bytes())
	}
}
