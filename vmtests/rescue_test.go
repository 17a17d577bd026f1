package vmtests

import (
	"path/filepath"
	"testing"
	"time"

	"platter/vmtests/qemu"
)

// The medium comes up with its menu by whatever starts it.
func TestRescueMediumInGuests(t *testing.T) {
	if !vm() {
		t.Skip("SKIPPED, starts three machines: make vm")
	}
	medium := filepath.Join(t.TempDir(), "medium")
	newRepo(t).run("rescue", medium)
	for name, m := range map[string]qemu.Machine{
		"BIOS":        {Firmware: qemu.BIOS},
		"UEFI":        {Firmware: qemu.UEFI, Bus: "nvme"},
		"Secure Boot": {Firmware: qemu.UEFI, Secure: true, Bus: "sata"},
	} {
		t.Run(name, func(t *testing.T) {
			m.Disk, m.Medium, m.Memory, m.CPUs = sparse(t, mib), medium, 1024, 2
			began := time.Now()
			// Each number of the menu can be typed, and the shell answers.
			m.Typed = []qemu.Line{{After: "number [1]: ", Text: "4"}, {After: "# ", Text: "echo $((40+2)) disks"}}
			if serial, err := m.Until(t.Context(), "42 disks", 10*time.Minute); err != nil {
				t.Fatalf("%v\n%s", err, serial)
			}
			t.Logf("a shell after %v", time.Since(began))
		})
	}
}
