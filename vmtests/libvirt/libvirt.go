// Package libvirt runs a domain of libvirt's for tests: a real QEMU, emulated,
// whose processor does not run.
package libvirt

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A Domain is one with qcow2 disks vda, vdb and so on.
type Domain struct {
	Name string
	t    testing.TB
	dir  string
}

// Start defines and starts a domain with so many disks of size bytes, and libvirt's
// daemons where none run. All ends with the test. The test is skipped where there is
// no libvirt.
func Start(t testing.TB, disks int, size int64) *Domain {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED, this needs root")
	}
	for _, name := range []string{"virsh", "libvirtd", "virtlogd", "qemu-img", "qemu-system-x86_64"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skip("SKIPPED, this needs the packages libvirt-daemon-system, libvirt-clients, qemu-utils and qemu-system-x86: ", err)
		}
	}
	daemons(t)
	// QEMU runs as another user, who must get there.
	dir, err := os.MkdirTemp("/var/tmp", "platter-domain-")
	if err != nil {
		t.Fatal(err)
	}
	d := &Domain{Name: filepath.Base(dir), t: t, dir: dir}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "<domain type='qemu'><name>%s</name><memory unit='MiB'>32</memory><os><type arch='x86_64' machine='pc'>hvm</type></os><devices>", d.Name)
	for i := range disks {
		name := fmt.Sprintf("vd%c", 'a'+i)
		path := filepath.Join(dir, name)
		if out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", path, fmt.Sprint(size)).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		fmt.Fprintf(&b, "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='%s'/><target dev='%s' bus='virtio'/></disk>", path, name)
	}
	b.WriteString("<controller type='usb' model='none'/><memballoon model='none'/></devices></domain>")
	file := filepath.Join(dir, "domain.xml")
	if err := os.WriteFile(file, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	d.Do("define", file)
	t.Cleanup(func() {
		_, _ = virsh("destroy", d.Name)
		if out, err := virsh("undefine", d.Name, "--checkpoints-metadata"); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	d.Boot()
	return d
}

func daemons(t testing.TB) {
	if _, err := virsh("version"); err == nil {
		return
	}
	for _, name := range []string{"virtlogd", "libvirtd"} {
		cmd := exec.Command(name)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Signal(syscall.SIGTERM)
			_ = cmd.Wait()
		})
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		out, err := virsh("version")
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Skip("SKIPPED, libvirtd does not run here: ", string(out))
		}
	}
}

func virsh(args ...string) ([]byte, error) {
	return exec.Command("virsh", append([]string{"--connect", "qemu:///system", "--quiet"}, args...)...).CombinedOutput()
}

// Do runs a command of virsh and returns what it printed.
func (d *Domain) Do(args ...string) string {
	d.t.Helper()
	out, err := virsh(args...)
	if err != nil {
		d.t.Fatalf("virsh %v: %v: %s", args, err, out)
	}
	return string(out)
}

// Boot starts the domain, whose processor stands.
func (d *Domain) Boot() { d.t.Helper(); d.Do("start", d.Name, "--paused") }

// Crash kills its QEMU, and waits until libvirt has seen it.
func (d *Domain) Crash() {
	d.t.Helper()
	pid, err := os.ReadFile("/run/libvirt/qemu/" + d.Name + ".pid")
	if err != nil {
		d.t.Fatal(err)
	}
	var n int
	if _, err := fmt.Fscan(bytes.NewReader(pid), &n); err != nil {
		d.t.Fatal(err)
	}
	if err := syscall.Kill(n, syscall.SIGKILL); err != nil {
		d.t.Fatal(err)
	}
	for strings.TrimSpace(d.Do("domstate", d.Name)) != "shut off" {
		time.Sleep(20 * time.Millisecond)
	}
}

// IO does to a disk, counted from 0, what a command of qemu-io says.
func (d *Domain) IO(disk int, command string) error {
	line := fmt.Sprintf("qemu-io -d /machine/peripheral/virtio-disk%d/virtio-backend \"%s\"", disk, command)
	out, err := virsh("qemu-monitor-command", d.Name, "--hmp", line)
	if err == nil && bytes.Contains(out, []byte("rror")) {
		err = errors.New("qemu-io")
	}
	if err != nil {
		return fmt.Errorf("%s: %w: %s", command, err, out)
	}
	return nil
}
