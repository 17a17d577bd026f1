package job

import (
	"bytes"
	"errors"
	"image/png"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"platter/internal/export/boot"
)

// bootSector is an MBR whose code says text, by the BIOS, and stands still.
func bootSector(text string) []byte {
	code := []byte{
		0x31, 0xc0, // xor ax, ax
		0x8e, 0xd8, // mov ds, ax
		0x31, 0xdb, // xor bx, bx
		0xbe, 0x17, 0x7c, // mov si, text
		0xac,       // next: lodsb
		0x84, 0xc0, // test al, al
		0x74, 0x06, // jz stop
		0xb4, 0x0e, // mov ah, teletype
		0xcd, 0x10, // int video
		0xeb, 0xf5, // jmp next
		0xf4,       // stop: hlt
		0xeb, 0xfd, // jmp stop
	}
	sector := make([]byte, 512)
	copy(sector, append(code, strings.ReplaceAll(text, "\n", "\r\n")...))
	sector[510], sector[511] = 0x55, 0xaa
	return sector
}

func TestBootJudgesWhatTheScreenSays(t *testing.T) {
	if testing.Short() {
		t.Skip("starts machines")
	}
	if what := boot.Missing(boot.BIOS); what != "" {
		t.Skip("needs the package " + what)
	}
	env := newEnv(t, 64<<10)
	picture := filepath.Join(t.TempDir(), "screen.png")
	for name, c := range map[string]struct {
		sector []byte
		want   boot.Verdict
		say    string
		limit  time.Duration
	}{
		"prompt":  {bootSector("Debian GNU/Linux 12 web1 tty1\n\nweb1 login: "), boot.Booted, "web1 login:", time.Minute},
		"panic":   {bootSector("Kernel panic - not syncing: no init found\n"), boot.Failed, "panic", time.Minute},
		"silence": {bootSector("Starting the system, as ever...\n"), boot.Unknown, "no login prompt", 8 * time.Second},
		"nothing": {make([]byte, 512), boot.Failed, "nothing to start", time.Minute},
	} {
		d := &disk{name: name, data: append(c.sector, make([]byte, 1<<20-512)...)}
		m := mustBackup(t, env, d, BackupOptions{Volume: "test/" + name}).Image
		r, err := Boot(t.Context(), env, BootOptions{
			Image: m.ID.String(), Bus: "sata", Memory: 128 << 20, Limit: c.limit, Picture: picture, Emulate: true,
		})
		if r == nil || (err != nil) != errors.Is(err, ErrNotBooted) || (err == nil) != (c.want == boot.Booted) {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if r.Verdict != c.want || !strings.Contains(r.Reason, c.say) {
			t.Errorf("%s: %s, %q; want %s, %q\nscreen: %s", name, r.Verdict, r.Reason, c.want, c.say, r.Screen)
		}
		b, err := os.ReadFile(picture)
		if err != nil {
			t.Fatal(err)
		}
		if p, err := png.Decode(bytes.NewReader(b)); err != nil || p.Bounds().Dx() < 640 {
			t.Errorf("%s: the picture: %v", name, err)
		}
		// The repository keeps both.
		kept := must(ReadNotes(t.Context(), env)).Of(m).Check
		if kept == nil || kept.Boot == nil || kept.Boot.Verdict != string(c.want) || kept.Boot.Reason != r.Reason || kept.Boot.Firmware != "bios" || kept.Boot.Bus != "sata" || kept.Boot.KVM || kept.Boot.Elapsed != r.Elapsed {
			t.Errorf("%s: kept is %+v", name, kept)
		} else if s, err := Screen(t.Context(), env, m); err != nil || !bytes.Equal(s, b) {
			t.Errorf("%s: the picture that is kept: %v", name, err)
		}
	}
}
