package adapt

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path"
	"regexp"
	"strconv"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"

	"platter/block/command"
	"platter/internal/export/rescue/cpio"
)

// A ramfs is what an initial file system has: archives one behind the other, of
// which the kernel lets a later one replace files of those before.
type ramfs struct {
	names   map[string]uint32 // modes by name
	texts   []cpio.Entry      // small files that may name disks
	release string            // of the kernel whose modules are in it; "" for none
	modules string            // folder of them
}

// Limits of what is read of an archive.
const (
	maxNames    = 500_000
	maxName     = 4096
	maxRamText  = 64 << 10
	maxRamTexts = 16 << 20
	maxUnpacked = 8 << 30
)

// readRamfs reads the archives of an initial file system.
func readRamfs(ctx context.Context, r io.Reader) (*ramfs, error) {
	fs := &ramfs{names: map[string]uint32{}}
	in := bufio.NewReaderSize(r, 1<<16)
	for n := 0; ; n++ {
		if err := skipZeros(in); err == io.EOF && n > 0 {
			return fs, nil
		} else if err != nil {
			return nil, err
		}
		head, _ := in.Peek(6)
		if string(head) == "070701" || string(head) == "070702" {
			if err := fs.archive(ctx, in); err != nil {
				return nil, err
			}
			continue
		}
		more, err := fs.packed(ctx, in, head)
		if err != nil {
			return nil, err
		}
		if !more {
			return fs, nil
		}
	}
}

func skipZeros(in *bufio.Reader) error {
	for {
		b, err := in.ReadByte()
		if err != nil {
			return err
		}
		if b != 0 {
			return in.UnreadByte()
		}
	}
}

// packed reads archives that are compressed. more says that in goes on behind
// them; where it cannot be known where they end, what is behind is not seen.
func (r *ramfs) packed(ctx context.Context, in *bufio.Reader, head []byte) (more bool, err error) {
	starts := func(magic string) bool { return strings.HasPrefix(string(head), magic) }
	var from io.Reader
	switch {
	case starts("\x1f\x8b"):
		z, err := gzip.NewReader(in)
		if err != nil {
			return false, err
		}
		z.Multistream(false)
		if err := r.archives(ctx, z); err != nil {
			return false, err
		}
		_, err = io.Copy(io.Discard, io.LimitReader(z, maxUnpacked))
		return true, err
	case starts("\x28\xb5\x2f\xfd"):
		z, err := zstd.NewReader(in, zstd.WithDecoderMaxMemory(1<<29), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return false, err
		}
		defer z.Close()
		from = z
	case starts("\x02\x21\x4c\x18"):
		from = lz4.NewReader(in)
	case starts("BZh"):
		from = bzip2.NewReader(in)
	case starts("\xfd7zXZ"), starts("\x5d\x00\x00"):
		return false, r.byTool(ctx, in, "xz", "xz-utils")
	case starts("\x89LZO"):
		return false, r.byTool(ctx, in, "lzop", "lzop")
	default:
		return false, fmt.Errorf("it begins with % x, which is no archive and no compression that is known here", head)
	}
	return false, r.archives(ctx, from)
}

func (r *ramfs) byTool(ctx context.Context, in io.Reader, tool, pkg string) error {
	program, err := command.Find(tool)
	if err != nil {
		return refuse("an initramfs is packed by "+tool+", which is not installed", "install Debian's package "+pkg)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "-dc")
	cmd.Stdin = in
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	err = r.archives(ctx, out)
	cancel()
	_ = cmd.Wait() // it was killed, or complains of what is behind its own
	return err
}

// archives reads what was unpacked, up to what is none.
func (r *ramfs) archives(ctx context.Context, from io.Reader) error {
	in := bufio.NewReaderSize(io.LimitReader(from, maxUnpacked), 1<<16)
	for n := 0; ; n++ {
		err := skipZeros(in)
		if n > 0 && err != nil {
			return ctx.Err() // its end, or what is behind it
		}
		if err == nil {
			err = r.archive(ctx, in)
		}
		if err != nil {
			return err
		}
	}
}

// archive reads one archive, with its trailer.
func (r *ramfs) archive(ctx context.Context, in *bufio.Reader) error {
	total := 0
	for _, e := range r.texts {
		total += len(e.Body)
	}
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		head := make([]byte, 110)
		if _, err := io.ReadFull(in, head); err != nil {
			return fmt.Errorf("archive: %w", err)
		}
		field := func(n int) int64 {
			v, err := strconv.ParseUint(string(head[6+8*n:14+8*n]), 16, 32)
			if err != nil {
				return -1
			}
			return int64(v)
		}
		mode, size, length := field(1), field(6), field(11)
		if string(head[:5]) != "07070" || mode < 0 || size < 0 || length < 1 || length > maxName {
			return errors.New("archive: a header that is none")
		}
		name := make([]byte, length+pad(110+length))
		if _, err := io.ReadFull(in, name); err != nil {
			return fmt.Errorf("archive: %w", err)
		}
		real := strings.TrimPrefix(path.Clean("/"+strings.TrimRight(string(name[:length]), "\x00")), "/")
		if real == "TRAILER!!!" {
			return nil
		}
		if len(r.names) >= maxNames {
			return fmt.Errorf("archive: more than %d names", maxNames)
		}
		r.met(real, uint32(mode))
		rest := size + pad(size)
		if mode&0o170000 == cpio.File && size > 0 && size <= maxRamText && int64(total)+size <= maxRamTexts && mayName(real) {
			body := make([]byte, size)
			if _, err := io.ReadFull(in, body); err != nil {
				return fmt.Errorf("archive: %w", err)
			}
			if rest -= size; isText(body) {
				r.text(cpio.Entry{Name: real, Mode: uint32(mode), Body: body})
				total += len(body)
			}
		}
		if _, err := io.CopyN(io.Discard, in, rest); err != nil {
			return fmt.Errorf("archive: %w", err)
		}
	}
}

func pad(n int64) int64 { return -n & 3 }

// mayName reports whether a file may name disks: settings, and what dracut
// makes of those of the machine.
func mayName(name string) bool {
	for _, dir := range []string{"etc/", "conf/", "cryptroot/", "var/lib/dracut/", "lib/dracut/hooks/", "usr/lib/dracut/hooks/"} {
		if strings.HasPrefix(name, dir) {
			return true
		}
	}
	return false
}

var modulesFolder = regexp.MustCompile(`^((?:usr/)?lib/modules/([^/]+))/kernel/`)

func (r *ramfs) met(name string, mode uint32) {
	r.names[name] = mode
	if m := modulesFolder.FindStringSubmatch(name); m != nil && r.release == "" {
		r.modules, r.release = m[1], m[2]
	}
}

// text keeps a file; a later one replaces one before.
func (r *ramfs) text(e cpio.Entry) {
	for i := range r.texts {
		if r.texts[i].Name == e.Name {
			r.texts[i] = e
			return
		}
	}
	r.texts = append(r.texts, e)
}

// folders returns entries for the folders of names that the archives lack: one
// that there is already may be a link, which an entry would replace.
func (r *ramfs) folders(entries []cpio.Entry) (list []cpio.Entry) {
	var add func(dir string)
	add = func(dir string) {
		if _, there := r.names[dir]; there || dir == "." || dir == "/" {
			return
		}
		add(path.Dir(dir))
		r.names[dir] = cpio.Dir | 0o755
		list = append(list, cpio.Entry{Name: dir, Mode: cpio.Dir | 0o755})
	}
	for _, e := range entries {
		add(path.Dir(e.Name))
	}
	return list
}

// packing makes an archive that can be put behind others.
func packing(entries []cpio.Entry, packed bool) ([]byte, error) {
	var b bytes.Buffer
	b.Write(make([]byte, 4)) // some kernels' LZ4 wants to see an end
	if !packed {
		err := cpio.Write(&b, entries)
		return b.Bytes(), err
	}
	z, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	if err == nil {
		err = errors.Join(cpio.Write(z, entries), z.Close())
	}
	for b.Len()%4 != 0 {
		b.WriteByte(0)
	}
	return b.Bytes(), err
}
