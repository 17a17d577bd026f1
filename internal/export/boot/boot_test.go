package boot

import (
	"strings"
	"testing"
)

func TestVerdictsAreSaidNotGuessed(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		want Verdict
	}{
		"a login prompt":               {"Debian GNU/Linux 12 web1 ttyS0\n\nweb1 login: ", Booted},
		"a prompt above an empty line": {"web1 login:\n\n", Booted},
		"a message about logins":       {"systemd[1]: Started getty, login: prompts will follow\n", Unknown},
		"a screen that stands still":   {"[    1.2] Freeing unused kernel memory\n[  OK  ] Reached target Basic System.\n", Unknown},
		"nothing":                      {"", Unknown},
		"a panic":                      {"[    2.1] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)\n", Failed},
		"a rescue prompt":              {"error: no such device: 1234.\nEntering rescue mode...\ngrub rescue> ", Failed},
		"a GRUB shell":                 {"   Minimal BASH-like line editing is supported. For the first word\ngrub> ", Failed},
		"a firmware without a disk":    {"Booting from Hard Disk...\nNo bootable device.\n", Failed},
		"a UEFI without a disk":        {"BdsDxe: No bootable option or device was found.\n", Failed},
		"a UEFI shell":                 {"UEFI Interactive Shell v2.2\nShell> ", Failed},
		"an initramfs shell":           {"ALERT!  UUID=12 does not exist.  Dropping to a shell!\n\n(initramfs) ", Failed},
		"an emergency shell":           {"You are in emergency mode. After logging in, type \"journalctl -xb\"\nGive root password for maintenance\n", Failed},
		"a prompt after a complaint":   {"error: no such device: 1.\nDebian GNU/Linux 12 web1 tty1\n\nweb1 login: ", Booted},
		"a panic after a prompt":       {"web1 login: \n[   50] Kernel panic - not syncing: Attempted to kill init!\n", Failed},
	} {
		if got, reason := judge(plain([]byte(c.text))); got != c.want || got != Unknown && reason == "" {
			t.Errorf("%s: %q, %q; want %q", name, got, reason, c.want)
		}
	}
}

func TestCellsOfTheTextScreen(t *testing.T) {
	window := make([]byte, textSize)
	put := func(line int, text string) {
		for i := range text {
			window[2*(line*textColumns+i)], window[2*(line*textColumns+i)+1] = text[i], 7
		}
	}
	put(0, "Debian GNU/Linux 12 web1 tty1")
	put(2, "web1 login: ")
	put(40, "\x01scrolled")
	want := "Debian GNU/Linux 12 web1 tty1\nweb1 login:\n scrolled"
	if got := cells(window); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if !strings.Contains(cells(window), "login:") {
		t.Error("no prompt")
	}
}
