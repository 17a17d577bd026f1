package qemu

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestPromptIsTheLastThingSaid(t *testing.T) {
	tests := []struct {
		serial string
		n      int
		want   string
	}{
		{"", 1, ""},
		{"mini login: ", 1, "mini login:"},
		{"hello\nmini login:", 1, "mini login:"},
		{"mini login: \nmini login: ", 2, "mini login:"},
		{"mini login: ", 2, ""},
		{"mini login: root", 1, ""},
		{"mini login: \nkernel panic", 1, ""},
		{"systemd: waiting for login: ", 1, ""},
		{"login: ", 1, ""},
		{"Last login: Mon", 1, ""},
	}
	for _, test := range tests {
		if got, _ := prompt(test.serial, test.n); got != test.want {
			t.Errorf("prompt(%q, %d) = %q, want %q", test.serial, test.n, got, test.want)
		}
	}
}

func TestPlainRemovesTerminalCodes(t *testing.T) {
	got := plain([]byte("\x1b[2J\x1b[01;01H\x1b[=3h\x1b[0m\x1b(Bmini\r\n\x1b[?7hlogin: "))
	if want := "mini\nlogin: "; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// A disk of zeros never boots: the wait must end, with the machine gone.
func TestLoginGivesUpOnADiskThatDoesNotBoot(t *testing.T) {
	if what := Missing(BIOS); what != "" {
		t.Skipf("needs the package %s", what)
	}
	disk := filepath.Join(t.TempDir(), "zeros.raw")
	if err := os.WriteFile(disk, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	_, err := Machine{Disk: disk, Firmware: BIOS, Memory: 64}.Login(t.Context(), 2*time.Second)
	if err == nil || !strings.Contains(err.Error(), "no login prompt within 2s") {
		t.Errorf("got error %v, want one that tells of the limit", err)
	}
	if d := time.Since(start); d > 30*time.Second {
		t.Errorf("gave up after %v, want about 2s", d)
	}
}

func TestLoginHeedsItsContext(t *testing.T) {
	if what := Missing(BIOS); what != "" {
		t.Skipf("needs the package %s", what)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := (Machine{Disk: "/dev/null", Firmware: BIOS}).Login(ctx, time.Minute); !errors.Is(err, context.Canceled) {
		t.Errorf("got error %v, want %v", err, context.Canceled)
	}
}
