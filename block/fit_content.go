package block

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"platter/block/fat"
)

// contents looks at what the image's partitions hold: whether that can be on
// the target's sectors, and what is to be known of it.
func (f *fitter) contents() error {
	parts := []Partition{{Extent: Extent{0, f.size}, Content: f.content}}
	if f.table != nil {
		parts = f.table.inUse()
	}
	for _, p := range parts[:min(len(parts), maxProbed)] {
		if p.Content == "" {
			continue
		}
		d := &head{r: f.image, e: p.Extent, b: make([]byte, probeSize)}
		n, err := readFull(f.image, d.b[:min(p.Length, probeSize)], p.Offset)
		if err != nil {
			return err
		}
		d.b = d.b[:n]
		if err := f.suits(&p, d); err != nil {
			return err
		}
		f.Notices = append(f.Notices, f.notices(&p, d)...)
	}
	return nil
}

// nameOf is how a partition is called in messages.
func nameOf(p *Partition) string {
	if p.Number == 0 {
		return "the image"
	}
	return fmt.Sprintf("partition %d", p.Number)
}

// suits refuses what cannot be on the target's sectors, and plans what has to
// be made anew for them.
func (f *fitter) suits(p *Partition, d *head) error {
	if p.Content == "vfat" {
		return f.suitsFAT(p, d)
	}
	unit, what := countsIn(p.Content, d)
	if f.sector <= 512 || unit == 0 || unit >= f.sector {
		return nil
	}
	return &misfit{
		fmt.Sprintf("has sectors of %d bytes, and %s is %s, which %s of %d", f.sector, nameOf(p), p.Content, what, unit),
		"choose a target with sectors of 512 bytes, or restore to a file",
	}
}

// countsIn returns the unit that a content is read and written in, in bytes: it
// cannot be on larger sectors. 0 is any.
func countsIn(content string, d *head) (unit int64, what string) {
	switch content {
	case "ext2", "ext3", "ext4":
		return 1024 << d.u32(1024+24), "was made with blocks"
	case "xfs":
		return int64(d.be16(102)), "was made for sectors"
	case "btrfs":
		return int64(d.u32(65536 + 144)), "was made for sectors"
	case "f2fs":
		return 1 << min(12, d.u32(1024+8)), "was made for sectors"
	case "ntfs", "BitLocker":
		return int64(d.u16(11)), "was made for sectors"
	case "exfat":
		return 1 << min(12, d.bytes(108, 1)[0]), "was made for sectors"
	case "iso9660":
		return 2048, "has blocks"
	case "zfs_member":
		return ashift(d), "was made for sectors"
	}
	return 0, ""
}

// ashift returns the unit of a ZFS pool by its label's packed pairs: a name, a
// type, a count, and the number, all big-endian. 512 where it is not found.
func ashift(d *head) int64 {
	pairs := d.far(16<<10, 112<<10).b
	at := bytes.Index(pairs, []byte("\x00\x00\x00\x06ashift\x00\x00"))
	if at < 0 || at+28 > len(pairs) {
		return 512
	}
	return 1 << min(16, binary.BigEndian.Uint64(pairs[at+20:]))
}

// suitsFAT plans to lay out anew what a FAT filesystem counts in sectors.
// Firmware reads it by the disk's own.
func (f *fitter) suitsFAT(p *Partition, d *head) error {
	unit := int64(d.u16(11))
	if unit == f.sector || unit > f.sector && !f.converts() {
		return nil
	}
	length := p.Length / f.sector * f.sector
	l, err := fat.Plan(f.image, p.Offset, length, int(f.sector))
	if errors.Is(err, fat.ErrUnfit) {
		return &misfit{
			fmt.Sprintf("has sectors of %d bytes, and %s is %v", f.sector, nameOf(p), err),
			"choose a target with sectors of " + fmt.Sprint(unit) + " bytes, or restore to a file",
		}
	}
	if err != nil {
		return err
	}
	f.rebuilt = append(f.rebuilt, l)
	f.changed("lay the FAT filesystem of %s out anew for sectors of %d bytes, instead of %d", nameOf(p), f.sector, unit)
	return nil
}

// notices say what will not be as before, though every byte is.
func (f *fitter) notices(p *Partition, d *head) (notices []string) {
	say := func(format string, args ...any) {
		notices = append(notices, nameOf(p)+" "+fmt.Sprintf(format, args...))
	}
	switch p.Content {
	case "crypto_LUKS":
		say("is encrypted by LUKS: its headers are restored with it, so its passphrases open it")
		for _, t := range luksTokens(d) {
			say("has a key sealed by %s: it opens on the machine that sealed it, and only if that starts as before; have a passphrase or a recovery key at hand", t)
		}
	case "LVM2_member":
		say("is a physical volume of LVM: its volume group keeps its name and UUID, so the original must not be attached to the same machine")
	case "linux_raid_member":
		say("is a member of a RAID array: restore all members of the same moment (a set), or the array is degraded or refuses to start")
	case "zfs_member":
		say("is a member of a ZFS pool: restore all members of the same moment (a set), and import with zpool import -f")
	case "BitLocker":
		say("is encrypted by BitLocker: on another machine it asks for its recovery key")
	}
	if f.sector > 512 && f.converts() && slices.Contains([]string{"crypto_LUKS", "LVM2_member", "linux_raid_member"}, p.Content) {
		say("is not looked into: filesystems in it that count in sectors of less than %d bytes cannot be mounted there", f.sector)
	}
	return notices
}

// luksTokens names what can open a LUKS2 volume only on its machine: its
// metadata, in JSON behind the first header, lists them.
func luksTokens(d *head) (list []string) {
	if d.be16(6) != 2 {
		return nil
	}
	const header, most = 4096, 4 << 20
	size := int64(binary.BigEndian.Uint64(d.bytes(8, 8)))
	if size <= header || size > most {
		return nil
	}
	text := d.far(header, int(size-header)).b
	if end := bytes.IndexByte(text, 0); end >= 0 {
		text = text[:end]
	}
	var meta struct {
		Tokens map[string]struct {
			Type string `json:"type"`
			JWE  struct {
				Protected string `json:"protected"`
			} `json:"jwe"`
		} `json:"tokens"`
	}
	if json.Unmarshal(text, &meta) != nil {
		return nil
	}
	for _, t := range meta.Tokens {
		switch {
		case t.Type == "systemd-tpm2":
			list = append(list, "a TPM (systemd-tpm2)")
		case t.Type == "clevis" && clevisTPM(t.JWE.Protected):
			list = append(list, "a TPM (clevis)")
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// clevisTPM reports whether clevis opens a volume by a TPM, or may.
func clevisTPM(protected string) bool {
	b, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(protected, "="))
	if err != nil || len(b) == 0 {
		return true
	}
	var head struct {
		Clevis struct {
			Pin string `json:"pin"`
		} `json:"clevis"`
	}
	return json.Unmarshal(b, &head) != nil || head.Clevis.Pin != "tang"
}
