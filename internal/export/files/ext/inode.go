package ext

import (
	"context"
	"time"

	"golang.org/x/sys/unix"

	"platter/internal/export/files/tree"
)

// Flags of an inode.
const (
	flagEncrypted = 0x800
	flagExtents   = 0x80000
	flagInline    = 0x10000000
)

// inode is one node. Its bytes:
//
//	 0:2    mode             104:108  block of extended attributes
//	 2:4    uid, low         108:112  size, high
//	 4:8    size, low        118:120  block of attributes, high
//	 8:12   time of access   120:124  uid and gid, high
//	16:20   of the last write
//	24:26   gid, low         128:130  length of what follows
//	26:28   links            136:140  last write: nanoseconds, epoch
//	32:36   flags            140:144  access: nanoseconds, epoch
//	40:100  place of the data
type inode struct {
	fs     *FS
	number uint64
	b      le
}

func (in *inode) flags() uint32 { return in.b.u32(32) }
func (in *inode) kind() uint32  { return in.b.u16(0) & unix.S_IFMT }
func (in *inode) place() le     { return in.b[40:100] }

func (in *inode) size() int64 {
	return int64(uint64(in.b.u32(4))|uint64(in.b.u32(108))<<32) & (1<<63 - 1)
}

// extra is how many bytes behind the first 128 are fields.
func (in *inode) extra() int {
	if len(in.b) <= 128 {
		return 0
	}
	return min(int(in.b.u16(128)), len(in.b)-128)
}

// Stat returns what the inode says of itself.
func (in *inode) Stat() tree.Stat {
	s := tree.Stat{
		ID: tree.ID{in.number}, Mode: in.b.u16(0), Links: in.b.u16(26), Size: in.size(),
		UID: in.b.u16(2) | in.b.u16(120)<<16, GID: in.b.u16(24) | in.b.u16(122)<<16,
		Access: in.time(8, 140), Modify: in.time(16, 136),
	}
	if k := in.kind(); k == unix.S_IFBLK || k == unix.S_IFCHR {
		s.Size = 0
		if v := in.place().u32(0); v != 0 {
			s.Major, s.Minor = v>>8&0xff, v&0xff
		} else {
			v := in.place().u32(4)
			s.Major, s.Minor = v>>8&0xfff, v&0xff|v>>12&0xfff00
		}
	}
	return s
}

// time reads seconds, and what inodes of more than 128 bytes know beyond.
func (in *inode) time(at, extraAt int) time.Time {
	sec, nsec := int64(int32(in.b.u32(at))), int64(0)
	if 128+in.extra() >= extraAt+4 {
		extra := in.b.u32(extraAt)
		sec += int64(extra&3) << 32
		nsec = int64(extra >> 2)
	}
	return time.Unix(sec, nsec)
}

// Target reads a symbolic link, of which short ones lie in the inode.
func (in *inode) Target(context.Context) (string, error) {
	size := in.size()
	if size > unix.PathMax {
		return "", tree.Damaged("inode %d is a symbolic link of %d bytes", in.number, size)
	}
	if in.flags()&flagEncrypted != 0 {
		return "", tree.NeedsKernel("inode %d is encrypted", in.number)
	}
	if size < 60 && in.flags()&(flagExtents|flagInline) == 0 {
		return string(in.place()[:size]), nil
	}
	b := make([]byte, size)
	c, err := in.content()
	if err != nil {
		return "", err
	}
	return string(b), tree.ReadFull(c, b, 0)
}

// Entries reads a folder block by block; indexes look like empty blocks.
func (in *inode) Entries(ctx context.Context, f func(tree.Entry) error) error {
	if in.kind() != unix.S_IFDIR {
		return tree.Damaged("inode %d is no folder", in.number)
	}
	if in.flags()&flagEncrypted != 0 {
		return tree.NeedsKernel("folder %d is encrypted", in.number)
	}
	if in.flags()&flagInline != 0 {
		b, err := in.inline()
		if err != nil {
			return err
		}
		// The first four bytes are the parent; behind the inode's own 60 bytes
		// another list begins.
		if err := in.list(b[4:60], f); err != nil {
			return err
		}
		return in.list(b[60:], f)
	}
	c, err := in.content()
	if err != nil {
		return err
	}
	buf := make([]byte, in.fs.blockSize)
	for off := int64(0); ; off += in.fs.blockSize {
		if err := ctx.Err(); err != nil {
			return err
		}
		e, err := c.Data(off)
		if err != nil {
			return ignoreEOF(err)
		}
		off = e.Offset / in.fs.blockSize * in.fs.blockSize
		if off+in.fs.blockSize > in.size() {
			return tree.Damaged("folder %d is %d bytes long", in.number, in.size())
		}
		if err := tree.ReadFull(c, buf, off); err != nil {
			return err
		}
		if err := in.list(buf, f); err != nil {
			return err
		}
	}
}

// list reads one block of names, each as
//
//	0:4  inode
//	4:6  length of the record, 0 and 65535 for 65536
//	6:7  length of the name
//	8:   name
func (in *inode) list(b le, f func(tree.Entry) error) error {
	for at := 0; at+8 <= len(b); {
		length, name := int(b.u16(at+4)), int(b[at+6])
		if len(b) == maxBlock && (length == 0 || length == maxBlock-1) {
			length = maxBlock
		}
		if length < 8 || length > len(b)-at || name > length-8 {
			return tree.Damaged("folder %d has a name of %d bytes in a record of %d", in.number, name, length)
		}
		e := tree.Entry{Name: string(b[at+8 : at+8+name]), Ref: uint64(b.u32(at))}
		at += length
		if e.Ref == 0 || e.Name == "." || e.Name == ".." {
			continue
		}
		if err := f(e); err != nil {
			return err
		}
	}
	return nil
}
