// Package rescue makes a medium that starts a bare machine and gives it its
// disk back: one file, which goes on a USB stick or is a disk as it is.
//
// It starts on a BIOS by GRUB, and on UEFI by the shim that is signed for Secure
// Boot, GRUB and a kernel that Debian signs. All of it is in one file system that
// every computer can read: there its owner may put answers. The same files make
// the same bytes.
package rescue

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"platter/block/command"
	"platter/internal/export/rescue/apt"
	"platter/internal/export/rescue/grub"
)

// Options say what goes on a medium, and where.
type Options struct {
	File    string // that is made; it must not exist
	Program string // path of platter, one static file
	Answers []byte // for a restore that asks nothing; none if nil
	// Tree holds the files of Debian's packages as they lie in a system; "/" is
	// this machine's own. Empty means that apt fetches them.
	Tree  string
	Cache string // folder for what is fetched
}

// A Report tells what was made. Sizes are bytes.
type Report struct {
	File      string `json:"file"`
	Size      int64  `json:"size"`
	Kernel    string `json:"kernel"`    // as uname -r says
	Modules   int    `json:"modules"`   // drivers
	Initramfs int64  `json:"initramfs"` // as packed
	SHA256    string `json:"sha256"`
	Answers   bool   `json:"answers"` // it restores without asking
}

// Folder on the medium, and the file in it that holds answers.
const (
	folder      = "platter"
	AnswersName = folder + "/answers"
)

// answersRoom is what answers may take that are put on the medium later.
const answersRoom = 1 << 20

// Build makes a medium.
func Build(ctx context.Context, opts Options) (*Report, error) {
	r, err := build(ctx, &opts)
	if err != nil {
		return nil, fmt.Errorf("make rescue medium %s: %w", opts.File, err)
	}
	return r, nil
}

func build(ctx context.Context, opts *Options) (*Report, error) {
	if _, err := os.Lstat(opts.File); err == nil {
		return nil, os.ErrExist
	}
	if _, err := ParseAnswers(opts.Answers); err != nil {
		return nil, err
	}
	tree := opts.Tree
	if tree == "" {
		var err error
		if tree, err = fetch(ctx, opts.Cache); err != nil {
			return nil, err
		}
	}
	image, release, err := kernelOf(tree)
	if err != nil {
		return nil, err
	}
	ramfs, modules, err := initramfs(tree, release, opts.Program)
	if err != nil {
		return nil, err
	}
	disk, err := medium(ctx, tree, image, ramfs, opts.Answers)
	if err != nil {
		return nil, err
	}
	if err := write(opts.File, disk); err != nil {
		return nil, err
	}
	return &Report{
		File: opts.File, Size: int64(len(disk)), Kernel: release, Modules: modules, Initramfs: int64(len(ramfs)),
		SHA256: fmt.Sprintf("%x", sha256.Sum256(disk)), Answers: len(opts.Answers) > 0,
	}, nil
}

// fetch returns a folder with the newest files of Debian's packages, which is
// kept in cache until there are newer ones.
func fetch(ctx context.Context, cache string) (string, error) {
	kernel, err := apt.KernelPackage(ctx, "linux-image-amd64")
	if err != nil {
		return "", err
	}
	all := append([]string{kernel}, packages...)
	files, err := apt.Newest(ctx, all)
	if err != nil {
		return "", err
	}
	key := sha256.Sum256([]byte(strings.Join(files, "\n")))
	return apt.Unpack(ctx, cache, fmt.Sprintf("rescue-%x", key[:8]), all, nil)
}

// medium lays out the disk.
func medium(ctx context.Context, tree, kernel string, ramfs, answers []byte) ([]byte, error) {
	config, err := scripts.ReadFile("files/grub.cfg")
	if err != nil {
		return nil, err
	}
	files := []file{
		{folder + "/vmlinuz", nil},
		{folder + "/initrd.img", ramfs},
		// Debian's GRUB looks for its config in EFI/debian, ours in platter.
		{"EFI/debian/grub.cfg", config},
		{folder + "/grub.cfg", config},
	}
	if len(answers) > 0 {
		files = append(files, file{AnswersName, answers})
	}
	if files[0].body, err = os.ReadFile(kernel); err != nil {
		return nil, err
	}
	for _, f := range [][2]string{
		{"EFI/BOOT/BOOTX64.EFI", "usr/lib/shim/shimx64.efi.signed"},
		{"EFI/BOOT/GRUBX64.EFI", "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed"},
		{"EFI/BOOT/MMX64.EFI", "usr/lib/shim/mmx64.efi.signed"},
	} {
		body, err := os.ReadFile(filepath.Join(tree, f[1]))
		if err != nil {
			return nil, err
		}
		files = append(files, file{f[0], body})
	}
	digest := sha256.New()
	for _, f := range files {
		fmt.Fprintf(digest, "%s %d\n", f.path, len(f.body))
		digest.Write(f.body)
	}
	id := [16]byte(digest.Sum(nil))
	volume, err := formatFAT("PLATTER", uint32(id[0])<<24|uint32(id[1])<<16|uint32(id[2])<<8|uint32(id[3]), files, answersRoom)
	if err != nil {
		return nil, err
	}
	disk := make([]byte, espStart*sectorSize+len(volume)+(tableSize+1)*sectorSize)
	copy(disk[espStart*sectorSize:], volume)
	core, err := bootCode(ctx, tree)
	if err != nil {
		return nil, err
	}
	copy(disk, core.Sector(disk[:sectorSize]))
	copy(disk[codeStart*sectorSize:], core.Core)
	partition(disk, id)
	return disk, nil
}

// startConfig is built into GRUB for a BIOS.
const startConfig = "search.file /platter/vmlinuz root\nset prefix=($root)/platter\nconfigfile /platter/grub.cfg\n"

// bootCode makes GRUB for a BIOS.
func bootCode(ctx context.Context, tree string) (*grub.Code, error) {
	parts := filepath.Join(tree, "usr/lib/grub/i386-pc")
	boot, err := os.ReadFile(filepath.Join(parts, "boot.img"))
	if err != nil {
		return nil, err
	}
	work, err := os.MkdirTemp("", "platter-rescue-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(work)
	config, core := filepath.Join(work, "start.cfg"), filepath.Join(work, "core.img")
	if err := os.WriteFile(config, []byte(startConfig), 0o600); err != nil {
		return nil, err
	}
	_, err = command.Run(ctx, "grub-mkimage", "-O", "i386-pc", "-d", parts, "-o", core, "-p", "/platter", "-c", config,
		"biosdisk", "part_gpt", "fat", "search_fs_file", "configfile", "normal", "linux", "serial", "terminal", "echo", "test", "boot")
	if errors.Is(err, command.ErrMissing) {
		return nil, fmt.Errorf("%w: it is in Debian's package grub-common", err)
	}
	if err != nil {
		return nil, err
	}
	image, err := os.ReadFile(core)
	if err != nil {
		return nil, err
	}
	return grub.Place(boot, image, codeStart, codeEnd+1-codeStart)
}

// write makes the file, whole or not at all. Answers may hold secrets: it is its
// owner's alone.
func write(path string, disk []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(disk)
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		err = errors.Join(err, os.Remove(path))
	}
	return err
}
