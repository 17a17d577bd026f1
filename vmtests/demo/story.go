package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"platter/vmtests/debian"
	"platter/vmtests/disk"
	"platter/vmtests/loop"
	"platter/vmtests/qemu"
)

const (
	mib       = 1 << 20
	interrupt = syscall.SIGINT
	// largerSize is the size of the new disk.
	largerSize = 1 << 30
	bootLimit  = 2 * time.Minute
)

// A story is one run of the demo and what it found.
type story struct {
	tell    *teller
	dir     string
	platter platter

	noLoop string // why there are no loop devices; empty if there are
	disk   *disk.Disk
	device *loop.Device // of the disk; nil without loop devices
	old    string       // a copy of the disk as it was first
	larger string       // the new disk, a file

	first, second, clone *backup
	restored             [2]*restore
	boots                map[qemu.Firmware]*qemu.Boot
}

// source is what is imaged.
func (s *story) source() string {
	if s.device != nil {
		return s.device.Path
	}
	return s.disk.Path
}

// play tells the whole story. Whatever it set up is taken down at its end.
func (s *story) play(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, s.detach()) }()
	s.noLoop = loop.Unavailable(ctx)
	larger := "Restore the newer image onto a larger disk"
	if s.noLoop != "" {
		larger = "Restore the newer image"
	}
	for _, step := range []struct {
		title string
		do    func(context.Context) error
	}{
		{"Build a small server's disk", s.build},
		{"Make a repository", s.init},
		{"Image the disk", s.imageFirst},
		{"A day goes by: files change", s.change},
		{"Image it again", s.imageSecond},
		{"Restore the older image", s.restoreOlder},
		{"Image that copy as another machine's disk", s.imageClone},
		{larger, s.restoreNewer},
		{"Start the restored disk on a BIOS", s.boot(qemu.BIOS)},
		{"Start the restored disk on UEFI", s.boot(qemu.UEFI)},
		{"Prove every stored byte", s.verify},
	} {
		s.tell.begin(step.title)
		if err := step.do(ctx); err != nil {
			return err
		}
		s.tell.end()
	}
	return nil
}

func (s *story) detach() error {
	if s.device == nil {
		return nil
	}
	d := s.device
	s.device = nil
	return d.Detach()
}

// files are those of the data partition: pictures that do not compress, some
// of them twice, and letters that do.
func files() map[string][]byte {
	r := rand.NewChaCha8([32]byte{'d', 'e', 'm', 'o'})
	all := map[string][]byte{}
	for i := range 12 {
		picture := make([]byte, 2*mib)
		r.Read(picture)
		all[fmt.Sprintf("pictures/%02d.jpg", i)] = picture
		if i < 4 {
			all[fmt.Sprintf("albums/summer/%02d.jpg", i)] = picture
		}
	}
	for i := range 24 {
		all[fmt.Sprintf("letters/%02d.txt", i)] = letter(i, 256<<10)
	}
	return all
}

func letter(n, size int) []byte {
	words := strings.Fields("dear all the disks were imaged last night and every block that did not change was left alone kind regards")
	r := rand.New(rand.NewPCG(1, uint64(n)))
	var b strings.Builder
	for b.Len() < size {
		b.WriteString(words[r.IntN(len(words))])
		b.WriteByte(" \n"[r.IntN(8)/7])
	}
	return []byte(b.String()[:size])
}

func (s *story) build(ctx context.Context) error {
	cache, err := debian.CacheDir()
	if err != nil {
		return err
	}
	s.disk, err = disk.Build(ctx, disk.Spec{Path: filepath.Join(s.dir, "server.raw"), Cache: cache, Data: "xfs", Files: files()})
	if err != nil {
		return err
	}
	var parts []string
	for _, p := range s.disk.Parts {
		if p.Content != "" {
			parts = append(parts, p.Content+" "+size(p.Size))
		}
	}
	s.tell.line("%s, GPT: boot code, %s", size(s.disk.Size), strings.Join(parts, ", "))
	s.tell.line("Debian's kernel, GRUB and systemd-boot: it starts on BIOS and on UEFI")
	if s.noLoop != "" {
		s.tell.line("no loop devices here, so plain files stand in for disks (%s)", firstLine(s.noLoop))
		return nil
	}
	s.device, err = loop.Attach(ctx, s.disk.Path, loop.Options{})
	if err == nil {
		s.tell.line("attached as %s, a block device with %d partitions", s.device.Path, len(s.disk.Parts))
	}
	return err
}

func (s *story) init(ctx context.Context) error {
	if err := s.platter.run(ctx, nil, "init", "--no-encryption"); err != nil {
		return err
	}
	s.tell.line("a folder: config, segments, images; no server, no database")
	return nil
}

const server, clone = "demo/server", "demo/clone"

func (s *story) imageFirst(ctx context.Context) (err error) {
	// The copy is what the restored disk is compared with later.
	s.old = filepath.Join(s.dir, "as-it-was.raw")
	if out, err := exec.CommandContext(ctx, "cp", "--sparse=always", s.disk.Path, s.old).CombinedOutput(); err != nil {
		return fmt.Errorf("copy the disk: %w: %s", err, out)
	}
	s.first, err = s.platter.backup(ctx, s.source(), server)
	if err == nil {
		s.tell.backup(s.first)
	}
	return err
}

// change edits what can be edited here, and lets the guest prove it later.
func (s *story) change(ctx context.Context) error {
	all := files()
	proof := map[string][]byte{}
	picture := make([]byte, 6*mib)
	rand.NewChaCha8([32]byte{'n', 'e', 'w'}).Read(picture)
	changes := []disk.Change{
		{Part: disk.ESP, Path: "note.txt", Body: []byte("changed on the second day\n")},
		{Part: disk.Root, Path: "var/log/service.log", Body: letter(100, 3*mib)},
		{Part: disk.Root, Path: "srv/report.pdf", Body: picture},
	}
	if s.device != nil && disk.CanMount("xfs") {
		changes = append(changes,
			disk.Change{Part: disk.Data, Path: "letters/07.txt", Body: letter(200, 300<<10)},
			disk.Change{Part: disk.Data, Path: "pictures/new.jpg", Body: picture[:mib]},
			disk.Change{Part: disk.Data, Path: "pictures/11.jpg"})
	}
	for path, body := range all {
		proof["/data/"+path] = body
	}
	for _, c := range changes {
		switch at := map[string]string{disk.ESP: "/boot/efi/", disk.Root: "/", disk.Data: "/data/"}[c.Part] + c.Path; {
		case c.Body == nil:
			delete(proof, at)
			s.tell.row(c.Part, "removed %s", c.Path)
		default:
			_, was := all[c.Path]
			proof[at] = c.Body
			s.tell.row(c.Part, "%s %s, %s", map[bool]string{true: "rewrote", false: "added"}[was && c.Part == disk.Data], c.Path, size(int64(len(c.Body))))
		}
	}
	changes = append(changes, disk.Change{Part: disk.Root, Path: disk.Proof, Body: disk.ProofOf(proof)})
	return s.disk.Change(ctx, s.device, changes)
}

func (s *story) imageSecond(ctx context.Context) (err error) {
	s.second, err = s.platter.backup(ctx, s.source(), server)
	if err == nil {
		s.tell.backup(s.second)
	}
	return err
}

func (s *story) restoreOlder(ctx context.Context) error {
	target := filepath.Join(s.dir, "older.raw")
	r, err := s.platter.restore(ctx, s.first.Image.ID, target)
	if err != nil {
		return err
	}
	s.restored[0] = r
	s.tell.restore(r, "a new, sparse file")
	return s.check("cmp", "every byte equals the disk as it was before the change",
		disk.Equal(ctx, s.old, target, 0, s.disk.Size))
}

func (s *story) imageClone(ctx context.Context) (err error) {
	s.clone, err = s.platter.backup(ctx, filepath.Join(s.dir, "older.raw"), clone)
	if err == nil {
		s.tell.backup(s.clone)
	}
	return err
}

// gptSize is what the partition table takes at either end of a disk: it is not
// the same on a larger disk.
const gptSize = 34 * 512

func (s *story) restoreNewer(ctx context.Context) (err error) {
	s.larger = filepath.Join(s.dir, "restored.raw")
	if s.device == nil { // a file ends where the image ends
		return s.proveNewer(ctx, s.larger, "a new, sparse file", 0)
	}
	f, err := os.Create(s.larger)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(largerSize), f.Close()); err != nil {
		return err
	}
	d, err := loop.Attach(ctx, s.larger, loop.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Detach()) }()
	return s.proveNewer(ctx, d.Path, d.Path+" of "+size(largerSize), gptSize)
}

// proveNewer restores the newer image and checks all of it but the partition
// table's bytes at either end, which a larger disk changes.
func (s *story) proveNewer(ctx context.Context, target, what string, table int64) error {
	r, err := s.platter.restore(ctx, server, target)
	if err != nil {
		return err
	}
	s.restored[1] = r
	s.tell.restore(r, what)
	proof := "every byte equals the disk as it is now"
	if table > 0 {
		proof += ", but for the table, which moved"
	}
	if err := s.check("cmp", proof, disk.Equal(ctx, s.source(), target, table, s.disk.Size-table)); err != nil {
		return err
	}
	if err := s.check("sgdisk -v", "no problems found: both partition tables are where they should be", disk.VerifyTable(ctx, target)); err != nil {
		return err
	}
	for _, p := range s.disk.Parts {
		name, ok := map[string]string{"vfat": "fsck.vfat -n", "ext4": "e2fsck -fn", "xfs": "xfs_repair -n"}[p.Content]
		if !ok {
			continue
		}
		if err := s.check(name, p.Name+" is clean", s.disk.VerifyPart(ctx, target, p)); err != nil {
			return err
		}
	}
	return nil
}

func (s *story) check(name, what string, err error) error {
	if err == nil {
		s.tell.check(name, "%s", what)
	}
	return err
}

func (s *story) boot(fw qemu.Firmware) func(context.Context) error {
	return func(ctx context.Context) error {
		b, err := qemu.Machine{Disk: s.larger, Firmware: fw, CPUs: 2}.Login(ctx, bootLimit)
		if err != nil {
			return err
		}
		if s.boots == nil {
			s.boots = map[qemu.Firmware]*qemu.Boot{}
		}
		s.boots[fw] = b
		for line := range strings.Lines(b.Serial) {
			if strings.HasPrefix(line, "proof: ") {
				s.tell.check("sha256sum", "in the guest: %s", strings.TrimSpace(strings.TrimPrefix(line, "proof: ")))
			}
		}
		if strings.Contains(b.Serial, "proof: FAILED") {
			return fmt.Errorf("the guest found files that are not as they should be:\n%s", b.Serial)
		}
		s.tell.check("QEMU", "\"%s\" after %.1f s, emulated", b.Prompt, b.Elapsed.Seconds())
		return nil
	}
}

func (s *story) verify(ctx context.Context) error {
	var v struct {
		Images    int   `json:"images"`
		Blocks    int64 `json:"blocks"`
		BytesRead int64 `json:"bytes_read"`
	}
	if err := s.platter.run(ctx, &v, "verify", "--read-data"); err != nil {
		return err
	}
	s.tell.check("verify", "%d images, %d blocks, %s read: no damage", v.Images, v.Blocks, size(v.BytesRead))
	return nil
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}
