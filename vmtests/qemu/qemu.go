// Package qemu starts virtual machines and waits for what they say.
//
// A machine never outlives the call that started it, whatever goes wrong, and
// never writes to the disk it was given: its writes go to a temporary overlay.
package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Firmware is what starts a machine.
type Firmware string

// The firmwares a PC may have.
const (
	BIOS Firmware = "BIOS" // SeaBIOS
	UEFI Firmware = "UEFI" // OVMF
)

// Debian's ovmf package.
const (
	ovmfCode = "/usr/share/OVMF/OVMF_CODE_4M.fd"
	ovmfVars = "/usr/share/OVMF/OVMF_VARS_4M.fd"
)

// A Machine is a PC with a disk and a serial port.
type Machine struct {
	Disk     string // raw file or block device, not written to unless Write says so
	Firmware Firmware
	Memory   int // MiB; 512 if zero
	CPUs     int // 1 if zero

	Write  bool   // what the machine writes is on the disk afterwards
	Bus    string // of the disk: virtio, nvme or sata; virtio if empty
	Sector int    // logical and physical sector size of the disk in bytes, not with sata; 512 if zero
	Medium string // raw file of a USB stick that it starts from, not written to; none if empty
	// Reboots lets the machine reboot, where it stops otherwise. It starts from the
	// medium only while it finds nothing to start on the disk.
	Reboots bool
	// Typed is typed on the serial port, each line when the port has said what it
	// waits for.
	Typed []Line
	// Network reaches the host's loopback at 10.0.2.2, and nothing else.
	Network bool
	// Secure has UEFI start only what is signed by Microsoft.
	Secure bool
}

// A Line is typed once the serial port has said a text, after the line before.
type Line struct{ After, Text string }

// A Boot is what came of starting a machine.
type Boot struct {
	Elapsed time.Duration // from power-on to the login prompt
	Serial  string        // all that the serial port said, terminal codes removed
	Prompt  string        // the prompt, such as "host login:"
}

// Missing returns what must be installed before a machine of this firmware can
// start; empty if nothing is missing.
func Missing(f Firmware) string {
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		return "qemu-system-x86"
	}
	if _, err := os.Stat(ovmfCode); f == UEFI && err != nil {
		return "ovmf"
	}
	return ""
}

// Login starts the machine, waits at most limit for a login prompt on its
// serial port, and stops it. The Boot is returned with an error too, for what
// the serial port said.
func (m Machine) Login(ctx context.Context, limit time.Duration) (*Boot, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, limit,
		fmt.Errorf("no login prompt within %v", limit))
	defer cancel()
	start := time.Now()
	p, err := m.start(ctx)
	if err != nil {
		return &Boot{}, err
	}
	defer p.stop()
	prompt := ""
	if err = p.typed(ctx, m.Typed); err == nil {
		prompt, err = p.await(ctx, 1)
	}
	b := &Boot{Elapsed: time.Since(start), Prompt: prompt}
	if err == nil {
		// A prompt that answers is one: a program waits behind it.
		if _, err = p.in.Write([]byte("\r")); err == nil {
			_, err = p.await(ctx, 2)
		}
	}
	p.stop()
	b.Serial = plain(p.serial.Bytes())
	if err != nil {
		return b, fmt.Errorf("boot %s by %s: %w%s", m.Disk, m.Firmware, err, p.lastWords(b.Serial))
	}
	return b, nil
}

// Until starts the machine, waits at most limit until its serial port has said
// text, and stops it. What the port said is returned with an error too.
func (m Machine) Until(ctx context.Context, text string, limit time.Duration) (serial string, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("it did not say %q within %v", text, limit))
	defer cancel()
	p, err := m.start(ctx)
	if err != nil {
		return "", err
	}
	defer p.stop()
	if err = p.typed(ctx, m.Typed); err == nil {
		err = p.until(ctx, text, new(int))
	}
	p.stop()
	serial = plain(p.serial.Bytes())
	if err != nil {
		return serial, fmt.Errorf("%s by %s: %w%s", m.Disk, m.Firmware, err, p.lastWords(serial))
	}
	return serial, nil
}

func (m Machine) arguments() []string {
	args := []string{
		// Emulated: it works the same on every host, also inside a virtual
		// machine whose KVM is half there.
		"-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max",
		"-m", strconv.Itoa(or(m.Memory, 512)), "-smp", strconv.Itoa(or(m.CPUs, 1)),
		"-nodefaults", "-display", "none", "-serial", "stdio",
		"-drive", "file=" + escape(m.Disk) + ",if=none,id=disk,format=raw,snapshot=" + map[bool]string{true: "off", false: "on"}[m.Write],
		"-device", m.disk(),
	}
	first := 0
	if m.Reboots {
		first = 2
	} else {
		args = append(args, "-no-reboot")
	}
	if m.Medium != "" {
		args = append(args, "-device", "qemu-xhci", "-drive", "file="+escape(m.Medium)+",if=none,id=medium,format=raw,snapshot=on",
			"-device", fmt.Sprintf("usb-storage,drive=medium,bootindex=%d", first))
	}
	if m.Network {
		args = append(args, "-nic", "user,model=virtio-net-pci")
	} else {
		args = append(args, "-nic", "none")
	}
	if m.Secure {
		return append(args, "-machine", "smm=on", "-global", "driver=cfi.pflash01,property=secure,value=on",
			"-drive", "if=pflash,format=raw,readonly=on,file="+strings.Replace(ovmfCode, ".fd", ".secboot.fd", 1),
			"-drive", "if=pflash,format=raw,snapshot=on,file="+strings.Replace(ovmfVars, ".fd", ".ms.fd", 1))
	}
	if m.Firmware == UEFI {
		args = append(args,
			"-drive", "if=pflash,format=raw,readonly=on,file="+ovmfCode,
			"-drive", "if=pflash,format=raw,snapshot=on,file="+ovmfVars)
	}
	return args
}

func (m Machine) disk() string {
	device := map[string]string{"": "virtio-blk-pci", "virtio": "virtio-blk-pci", "nvme": "nvme,serial=b", "sata": "ide-hd,bus=ide.0"}[m.Bus] + ",drive=disk,bootindex=1"
	if m.Sector != 0 {
		device += fmt.Sprintf(",logical_block_size=%d,physical_block_size=%[1]d", m.Sector)
	}
	return device
}

// escape doubles commas, as QEMU's option lists want them.
func escape(path string) string { return strings.ReplaceAll(path, ",", ",,") }

func or(n, otherwise int) int {
	if n == 0 {
		return otherwise
	}
	return n
}

func (m Machine) start(ctx context.Context) (*process, error) {
	if what := Missing(m.Firmware); what != "" {
		return nil, fmt.Errorf("start a machine: install the package %s first", what)
	}
	p := &process{cmd: exec.CommandContext(ctx, "qemu-system-x86_64", m.arguments()...)}
	// The kernel kills the machine if this process dies without stopping it.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	p.cmd.WaitDelay = 5 * time.Second
	p.cmd.Stderr = &p.complaints
	in, err := p.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start a machine: %w", err)
	}
	p.in, p.chunks = in, make(chan []byte)
	p.done = make(chan struct{})
	go p.read(out)
	return p, nil
}

// errStopped means the machine ended by itself.
var errStopped = errors.New("the machine stopped before it asked for a login")

// lastWords quotes what helps to see why a boot failed.
func (p *process) lastWords(serial string) string {
	var b strings.Builder
	if s := bytes.TrimSpace(p.complaints.Bytes()); len(s) > 0 {
		fmt.Fprintf(&b, "\nqemu: %s", s)
	}
	lines := strings.Split(strings.TrimSpace(serial), "\n")
	for _, l := range lines[max(0, len(lines)-8):] {
		fmt.Fprintf(&b, "\nserial: %s", l)
	}
	return b.String()
}
