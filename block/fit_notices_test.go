package block

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"strings"
	"testing"
)

// luks2 makes the beginning of a LUKS2 volume, by its on-disk format: a binary
// header of 4096 bytes, and behind it its metadata in JSON.
func luks2(meta string) func([]byte) {
	return func(b []byte) {
		copy(b, "LUKS\xba\xbe\x00\x02")
		binary.BigEndian.PutUint64(b[8:], 16<<10)
		copy(b[4096:16<<10], meta)
	}
}

func clevis(pin string) string {
	protected := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"dir","clevis":{"pin":"` + pin + `"}}`))
	return `{"tokens":{"0":{"type":"clevis","keyslots":["1"],"jwe":{"protected":"` + protected + `"}}}}`
}

// What will not be as before, though every byte is, the plan says.
func TestFitWarnsOfWhatOtherMachinesCannotOpen(t *testing.T) {
	t.Parallel()
	const size = 4 << 20
	for _, c := range []struct {
		name string
		put  func([]byte)
		want []string // a part of each notice
	}{
		{"LUKS", luks2(`{"tokens":{}}`), []string{"its passphrases open it"}},
		{"LUKS and systemd's token", luks2(`{"tokens":{"0":{"type":"systemd-tpm2","keyslots":["1"],"tpm2-blob":"x"}}}`), []string{"its passphrases open it", "sealed by a TPM (systemd-tpm2)"}},
		{"LUKS and clevis by TPM", luks2(clevis("tpm2")), []string{"its passphrases open it", "sealed by a TPM (clevis)"}},
		{"LUKS and clevis by a server", luks2(clevis("tang")), []string{"its passphrases open it"}},
		{"LUKS and clevis by several", luks2(clevis("sss")), []string{"its passphrases open it", "sealed by a TPM (clevis)"}},
		{"LUKS, damaged metadata", luks2(`{"tokens":{"0":{"type":"systemd-tpm2"`), []string{"its passphrases open it"}},
		{"LUKS of the first version", func(b []byte) { copy(b, "LUKS\xba\xbe\x00\x01") }, []string{"its passphrases open it"}},
		{"LVM", func(b []byte) {
			copy(b[512:], "LABELONE")
			b[512+8] = 1
			copy(b[512+24:], "LVM2 001")
		}, []string{"the original must not be attached to the same machine"}},
		{"RAID", func(b []byte) {
			sb := b[4096:] // version 1.2
			binary.LittleEndian.PutUint32(sb, mdMagic)
			binary.LittleEndian.PutUint32(sb[4:], 1)
			binary.LittleEndian.PutUint64(sb[128:], 8)
		}, []string{"restore all members of the same moment"}},
		{"ZFS", func(b []byte) {
			copy(b[16<<10:], "\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x24\x00\x00\x00\x20\x00\x00\x00\x07version")
			binary.LittleEndian.PutUint64(b[128<<10+7*1024:], 0x00bab10c)
		}, []string{"zpool import -f"}},
		{"BitLocker", func(b []byte) { copy(b[3:], "-FVE-FS-") }, []string{"asks for its recovery key"}},
	} {
		b := make([]byte, size)
		c.put(b)
		f := fitOf(t, c.name, b, FitTo{Size: size, Sector: 512})
		if f == nil {
			continue
		}
		if len(f.Notices) != len(c.want) {
			t.Errorf("%s: got %q, want %d notices", c.name, f.Notices, len(c.want))
			continue
		}
		for i, want := range c.want {
			if !strings.Contains(f.Notices[i], want) {
				t.Errorf("%s: got %q, want %q", c.name, f.Notices[i], want)
			}
		}
		if !f.Empty() {
			t.Errorf("%s: would be changed", c.name)
		}
	}
}

func fitOf(t *testing.T, name string, b []byte, to FitTo) *Fit {
	t.Helper()
	r := bytes.NewReader(b)
	table, content := Probe(r, int64(len(b)), 512)
	f, err := FitImage(r, int64(len(b)), table, content, to)
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return nil
	}
	return f
}
