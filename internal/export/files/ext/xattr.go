package ext

import (
	"context"
	"encoding/binary"

	"platter/internal/export/files/tree"
)

// xattrMagic begins extended attributes, in an inode and in a block.
const xattrMagic = 0xea020000

// maxXattr is how long the kernel lets a value be, in bytes.
const maxXattr = 65536

// Numbers of the spaces that names are in.
const (
	spaceAccess  = 2
	spaceDefault = 3
	spaceSystem  = 7
)

func space(n byte) (string, bool) {
	switch n {
	case 1:
		return "user.", true
	case spaceAccess:
		return "system.posix_acl_access", true
	case spaceDefault:
		return "system.posix_acl_default", true
	case 4:
		return "trusted.", true
	case 6:
		return "security.", true
	case spaceSystem:
		return "system.", true
	case 8:
		return "system.richacl", true
	}
	return "", false
}

// raw is an attribute as it is stored.
type raw struct {
	space byte
	name  string
	value []byte
}

// Xattrs returns the extended attributes, ACLs as the kernel shows them.
func (in *inode) Xattrs(context.Context) ([]tree.Xattr, error) {
	var list []tree.Xattr
	err := in.attributes(func(a raw) error {
		if a.space == spaceSystem && a.name == "data" {
			return nil // content of the file
		}
		prefix, ok := space(a.space)
		if !ok {
			return tree.NeedsKernel("inode %d has attributes of the unknown kind %d", in.number, a.space)
		}
		if a.space == spaceAccess || a.space == spaceDefault {
			var err error
			if a.value, err = acl(a.value); err != nil {
				return err
			}
		}
		list = append(list, tree.Xattr{Name: prefix + a.name, Value: a.value})
		return nil
	})
	return list, err
}

// inline returns what an inode holds of its own content: 60 bytes, and what an
// attribute has beyond.
func (in *inode) inline() ([]byte, error) {
	b := append([]byte(nil), in.place()...)
	err := in.attributes(func(a raw) error {
		if a.space == spaceSystem && a.name == "data" {
			b = append(b, a.value...)
		}
		return nil
	})
	return b, err
}

// attributes calls f for each attribute: those in the inode, then those in a
// block.
func (in *inode) attributes(f func(raw) error) error {
	if at := 128 + in.extra(); at+4 <= len(in.b) && in.extra() > 0 && in.b.u32(at) == xattrMagic {
		area := in.b[at+4:]
		if err := in.entries(area, area, f); err != nil {
			return err
		}
	}
	at := int64(in.b.u32(104)) | int64(in.b.u16(118))<<32
	if at == 0 {
		return nil
	}
	b, err := in.fs.block(at)
	if err != nil {
		return err
	}
	if b.u32(0) != xattrMagic {
		return tree.Damaged("inode %d has no attributes at block %d", in.number, at)
	}
	return in.entries(b[32:], b, f)
}

// entries reads entries from b, whose values are counted from the start of
// area:
//
//	0:1  length of the name     4:8   inode of the value, 0 for none
//	1:2  space                  8:12  length of the value
//	2:4  place of the value     16:   name
func (in *inode) entries(b, area le, f func(raw) error) error {
	for len(b) >= 16 && b.u32(0) != 0 {
		n := int(b[0])
		if 16+n > len(b) {
			return tree.Damaged("inode %d has an attribute's name of %d bytes", in.number, n)
		}
		a := raw{space: b[1], name: string(b[16 : 16+n])}
		at, length := int64(b.u16(2)), int64(b.u32(8))
		var err error
		switch holder := b.u32(4); {
		case length > maxXattr:
			err = tree.Damaged("inode %d has an attribute of %d bytes", in.number, length)
		case holder != 0:
			a.value, err = in.fs.heldValue(uint64(holder), length)
		case at+length > int64(len(area)):
			err = tree.Damaged("inode %d has an attribute of %d bytes at %d", in.number, length, at)
		default:
			a.value = append([]byte{}, area[at:at+length]...)
		}
		if err == nil {
			err = f(a)
		}
		if err != nil {
			return err
		}
		b = b[min(len(b), (16+n+3)&^3):]
	}
	return nil
}

// heldValue reads a long value, which is an inode's content.
func (f *FS) heldValue(n uint64, length int64) ([]byte, error) {
	in, err := f.inode(n)
	if err != nil {
		return nil, err
	}
	b := make([]byte, length)
	return b, tree.ReadFull(&content{in: in}, b, 0)
}

// acl turns an ACL as ext4 keeps it into one as the kernel shows it: there each
// entry has a number, here only those of named users and groups.
func acl(b le) ([]byte, error) {
	const user, group = 2, 8
	if len(b) < 4 || b.u32(0) != 1 {
		return nil, tree.Damaged("an ACL of an unknown kind")
	}
	out := []byte{2, 0, 0, 0}
	for b = b[4:]; len(b) >= 4; {
		out = append(out, b[:4]...)
		if tag := b.u16(0); tag != user && tag != group {
			out = binary.LittleEndian.AppendUint32(out, ^uint32(0))
			b = b[4:]
			continue
		}
		if len(b) < 8 {
			break
		}
		out = append(out, b[4:8]...)
		b = b[8:]
	}
	if len(b) != 0 {
		return nil, tree.Damaged("an ACL with %d bytes too many", len(b))
	}
	return out, nil
}
