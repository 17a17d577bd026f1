package disk

import (
	"context"
	"fmt"
	"strings"

	"platter/vmtests/guest"
)

// group is the volume group of a disk that has one.
const group = "vg0"

// stackRoom is what volumes take beside what is in them, in bytes: the headers of
// LVM and LUKS.
const stackRoom = 20 * mib

// volumePackages hold lvm and cryptsetup, and the libraries that these are linked
// with.
var volumePackages = []string{
	"lvm2", "cryptsetup-bin", "libaio1", "libargon2-1", "libblkid1", "libc6", "libcap2", "libcryptsetup12", "libdevmapper-event1.02.1",
	"libdevmapper1.02.1", "libedit2", "libbsd0", "libmd0", "libgcc-s1", "libgcrypt20", "libgpg-error0", "libjson-c5", "liblz4-1", "liblzma5",
	"libpcre2-8-0", "libpopt0", "libreadline8", "libselinux1", "libssl3", "libsystemd0", "libtinfo6", "libudev1", "libuuid1", "libzstd1",
}

var volumeModules = []string{"dm-mod", "dm-crypt", "ecb", "xts"}

// lvmConfig is for a machine without udev.
const lvmConfig = `devices {
	use_devicesfile = 0
	obtain_device_list_from_udev = 0
	external_device_info_source = "none"
}
global {
	use_lvmlockd = 0
	use_lvmpolld = 0
}
activation {
	udev_sync = 0
	udev_rules = 0
	monitoring = 0
}
backup {
	backup = 0
	archive = 0
}
`

// makeVolume is run in a guest whose disks are the one that is built and what its
// root holds.
const makeVolume = `set -e
part=/dev/vda$PART to=/dev/$GROUP/root
pvcreate -q "$part"
vgcreate -q -s 1m "$GROUP" "$part"
lvcreate -q --yes -W n -l 100%FREE -n root "$GROUP"
if [ -n "$PASSPHRASE" ]; then
	# Few rounds: the machine that opens it is emulated.
	printf %s "$PASSPHRASE" | cryptsetup luksFormat -q --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --key-file - "$to"
	printf %s "$PASSPHRASE" | cryptsetup open --key-file - "$to" root
	to=/dev/mapper/root
fi
dd if=/dev/vdb of="$to" bs=1M conv=fsync
[ -z "$PASSPHRASE" ] || cryptsetup close root
vgchange -q -an "$GROUP"
`

// stack makes a partition a physical volume whose only volume holds what the file
// at path does.
func (b *builder) stack(ctx context.Context, p Part, path string) error {
	s, err := guest.Fetch(ctx, b.Cache)
	if err != nil {
		return err
	}
	passphrase := ""
	if b.Stack == LUKS {
		passphrase = Passphrase
	}
	var said strings.Builder
	status, err := s.Start(ctx, guest.Boot{
		Run:   fmt.Sprintf("PART=%d GROUP=%s PASSPHRASE='%s'\n%s", p.Number, group, passphrase, makeVolume),
		Disks: []string{b.Disk.Path, path},
		Line:  func(line string) bool { said.WriteString(line + "\n"); return false },
	})
	if err != nil || status != 0 {
		return fmt.Errorf("make a volume: status %d, %w: %s", status, err, said.String())
	}
	// What was zeros is a hole again.
	return run(ctx, "fallocate", "--dig-holes", b.Disk.Path)
}
