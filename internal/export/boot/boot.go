// Package boot starts a disk in an emulated machine and tells whether a system
// came up on it.
//
// The machine has no network and never writes to the disk itself: that is the
// caller's overlay, offered over NBD. What counts as up is a login prompt, on
// the serial port or on the text screen. A screen that merely stands still is
// not: panics, rescue shells and firmware that finds nothing are known by what
// they say, and whatever says neither is not proven.
package boot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Firmware is what starts a machine.
type Firmware string

// The firmwares a PC may have.
const (
	BIOS Firmware = "bios" // SeaBIOS
	UEFI Firmware = "uefi" // OVMF
)

// Debian's ovmf package.
const (
	ovmfCode = "/usr/share/OVMF/OVMF_CODE_4M.fd"
	ovmfVars = "/usr/share/OVMF/OVMF_VARS_4M.fd"
)

// Options describe the machine.
type Options struct {
	Socket   string // NBD server on a unix socket: the disk
	Firmware Firmware
	Bus      string // of the disk: virtio, sata or nvme
	Memory   int    // MiB
	CPUs     int
	Sector   int           // logical sector size of the disk in bytes, 512 or 4096
	Limit    time.Duration // how long to wait for a prompt
	Emulate  bool          // do without KVM also where it is there
}

// A Verdict is what came of a start.
type Verdict string

// The verdicts.
const (
	Booted  Verdict = "booted"  // it asks for a login
	Failed  Verdict = "failed"  // it said so itself
	Unknown Verdict = "unknown" // neither, within the limit
)

// A Result tells of one start.
type Result struct {
	Verdict Verdict       `json:"verdict"`
	Reason  string        `json:"reason"` // the prompt, or the words that were judged
	Where   string        `json:"where,omitempty"`
	Elapsed time.Duration `json:"elapsed_ns"` // from power-on to the verdict
	KVM     bool          `json:"kvm"`
	Serial  string        `json:"serial"` // the end of what the serial port said
	Screen  string        `json:"screen"` // the text screen at the end, where there is one
	Picture []byte        `json:"-"`      // the last screen as a PNG; nil if the machine had stopped
}

// Missing returns the Debian package that must be installed before a machine
// of this firmware can start; empty if nothing is missing.
func Missing(f Firmware) string {
	if _, err := exec.LookPath(program); err != nil {
		return "qemu-system-x86"
	}
	if _, err := os.Stat(ovmfCode); f == UEFI && err != nil {
		return "ovmf"
	}
	return ""
}

const program = "qemu-system-x86_64"

// look is how often the machine is looked at.
const look = 500 * time.Millisecond

// Try starts the machine, watches it until it is judged or the limit is over,
// and stops it. An error means that there was no machine to be judged.
func Try(ctx context.Context, opts Options) (*Result, error) {
	if what := Missing(opts.Firmware); what != "" {
		return nil, fmt.Errorf("start a machine: install Debian's package %s first", what)
	}
	dir, err := os.MkdirTemp("", "platter-boot-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	m, err := start(ctx, &opts, dir)
	if err != nil {
		return nil, fmt.Errorf("start a machine: %w", err)
	}
	defer m.stop()
	r, err := m.watch(ctx, &opts)
	if err != nil {
		return nil, fmt.Errorf("watch a machine start: %w", err)
	}
	r.KVM = m.kvm
	if r.Picture, err = m.picture(ctx, filepath.Join(dir, "screen.png")); err != nil {
		return nil, fmt.Errorf("take a picture of the screen: %w", err)
	}
	return r, nil
}

func arguments(opts *Options, dir string) []string {
	args := []string{
		"-cpu", "max", "-m", strconv.Itoa(opts.Memory), "-smp", strconv.Itoa(opts.CPUs),
		"-nodefaults", "-display", "none", "-no-reboot", "-nic", "none",
		"-qmp", "unix:" + filepath.Join(dir, "qmp") + ",server=on,wait=off",
		"-serial", "stdio",
		"-blockdev", "driver=nbd,node-name=disk,server.type=unix,server.path=" + strings.ReplaceAll(opts.Socket, ",", ",,"),
	}
	if opts.Bus == "sata" {
		args = append(args, "-device", "ahci,id=sata")
	}
	args = append(args, "-device", diskDevice(opts))
	for _, a := range opts.accelerators() {
		args = append(args, "-accel", a)
	}
	if opts.Firmware == UEFI {
		return append(args, "-machine", "q35", "-device", "VGA",
			"-drive", "if=pflash,format=raw,readonly=on,file="+ovmfCode,
			"-drive", "if=pflash,format=raw,snapshot=on,file="+ovmfVars)
	}
	// Without a PCI display Linux stays in text mode, which can be read.
	return append(args, "-machine", "pc", "-device", "isa-vga")
}

// accelerators are those to try, in order.
func (o *Options) accelerators() []string {
	if o.Emulate {
		return []string{"tcg,thread=multi"}
	}
	return []string{"kvm", "tcg,thread=multi"}
}

func diskDevice(opts *Options) string {
	device := map[string]string{"": "virtio-blk-pci", "virtio": "virtio-blk-pci", "sata": "ide-hd,bus=sata.0", "nvme": "nvme,serial=platter"}[opts.Bus]
	device += ",drive=disk,bootindex=0"
	if opts.Sector == 4096 {
		device += ",logical_block_size=4096,physical_block_size=4096"
	}
	return device
}

// A machine is one that runs.
type machine struct {
	cmd        *exec.Cmd
	monitor    *monitor
	began      time.Time
	kvm        bool
	complaints bytes.Buffer // QEMU's own, whole once it has ended
	ended      chan struct{}

	mu     sync.Mutex
	serial bytes.Buffer
}

func start(ctx context.Context, opts *Options, dir string) (*machine, error) {
	m := &machine{began: time.Now(), ended: make(chan struct{})}
	m.cmd = exec.CommandContext(ctx, program, arguments(opts, dir)...)
	// The kernel kills the machine if this process dies without stopping it.
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	m.cmd.WaitDelay = 5 * time.Second
	m.cmd.Stdout, m.cmd.Stderr = m, &m.complaints
	if err := m.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(m.ended)
		_ = m.cmd.Wait() // killed, mostly: its status says nothing
	}()
	var err error
	if m.monitor, err = connect(ctx, filepath.Join(dir, "qmp"), m.ended); err != nil {
		m.stop()
		return nil, fmt.Errorf("%w: %s", err, bytes.TrimSpace(m.complaints.Bytes()))
	}
	var kvm struct{ Enabled bool }
	if err := m.monitor.do(ctx, "query-kvm", nil, &kvm); err != nil {
		m.stop()
		return nil, err
	}
	m.kvm = kvm.Enabled
	return m, nil
}

// Write takes what the serial port says.
func (m *machine) Write(p []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.serial.Write(p)
}

func (m *machine) stop() {
	_ = m.cmd.Process.Kill() // it may have ended by itself
	<-m.ended
	if m.monitor != nil {
		m.monitor.close()
	}
}

// kept is how much of the serial port's words a result holds, in bytes.
const kept = 16 << 10

// watch judges the machine again and again. A failure must be seen twice, a
// look apart: what is said in passing is no verdict.
func (m *machine) watch(ctx context.Context, opts *Options) (*Result, error) {
	limit := time.NewTimer(opts.Limit)
	defer limit.Stop()
	tick := time.NewTicker(look)
	defer tick.Stop()
	var before Result
	for {
		over := false
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-m.ended:
			over = true
		case <-limit.C:
			over = true
		case <-tick.C:
		}
		r, err := m.judge(ctx, opts)
		if err != nil {
			return nil, err
		}
		if r.Verdict == Booted || r.Verdict == Failed && (over || before.Reason == r.Reason) {
			return r, nil
		}
		if over {
			r.Verdict, r.Reason = Unknown, "no login prompt within "+opts.Limit.String()
			select {
			case <-m.ended:
				r.Verdict, r.Reason = Failed, "the machine stopped by itself"
			default:
			}
			return r, nil
		}
		before = *r
	}
}

// judge looks at the machine once.
func (m *machine) judge(ctx context.Context, opts *Options) (*Result, error) {
	r := &Result{Elapsed: time.Since(m.began).Round(time.Millisecond)}
	m.mu.Lock()
	r.Serial = plain(m.serial.Bytes())
	m.mu.Unlock()
	if opts.Firmware == BIOS {
		text, err := m.screen(ctx)
		if err != nil && !m.gone() {
			return nil, err
		}
		r.Screen = text
	}
	for _, place := range []struct{ where, text string }{{"serial port", r.Serial}, {"screen", r.Screen}} {
		if v, reason := judge(place.text); v != Unknown {
			r.Verdict, r.Reason, r.Where = v, reason, place.where
			break
		}
	}
	r.Serial = strings.TrimSpace(r.Serial[max(0, len(r.Serial)-kept):])
	return r, nil
}

func (m *machine) gone() bool {
	select {
	case <-m.ended:
		return true
	default:
		return false
	}
}

// The text window of a VGA: cells of a character and its colours. Linux
// scrolls by moving the visible part through it.
const (
	textWindow  = 0xb8000
	textSize    = 32 << 10
	textColumns = 80
)

// screen returns the text that stands in the window, line by line, without
// empty lines.
func (m *machine) screen(ctx context.Context) (string, error) {
	f, err := os.CreateTemp("", "platter-screen-")
	if err != nil {
		return "", err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if err := m.monitor.do(ctx, "pmemsave", map[string]any{"val": textWindow, "size": textSize, "filename": f.Name()}, nil); err != nil {
		return "", err
	}
	window := make([]byte, textSize)
	if n, err := f.ReadAt(window, 0); n < textSize {
		return "", errors.Join(err, fmt.Errorf("%d bytes of the text screen", n))
	}
	return cells(window), nil
}

func cells(window []byte) string {
	var lines []string
	for ; len(window) >= 2*textColumns; window = window[2*textColumns:] {
		line := make([]byte, textColumns)
		for i := range line {
			if line[i] = window[2*i]; line[i] < ' ' || line[i] > '~' {
				line[i] = ' '
			}
		}
		if text := strings.TrimRight(string(line), " "); text != "" {
			lines = append(lines, text)
		}
	}
	return strings.Join(lines, "\n")
}

// picture returns a PNG of the screen, by way of a file; nil of a machine that
// has stopped.
func (m *machine) picture(ctx context.Context, path string) ([]byte, error) {
	err := m.monitor.do(ctx, "screendump", map[string]any{"filename": path, "format": "png"}, nil)
	if m.gone() {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return os.ReadFile(path)
}
