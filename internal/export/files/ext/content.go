package ext

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"

	"golang.org/x/sys/unix"

	"platter/block"
	"platter/internal/export/files/tree"
)

// Open returns the content of a regular file.
func (in *inode) Open(context.Context) (tree.File, error) {
	if in.kind() != unix.S_IFREG {
		return nil, tree.Damaged("inode %d is no regular file", in.number)
	}
	if in.flags()&flagEncrypted != 0 {
		return nil, tree.NeedsKernel("inode %d is encrypted", in.number)
	}
	return in.content()
}

func (in *inode) content() (tree.File, error) {
	if in.flags()&flagInline == 0 {
		return &content{in: in}, nil
	}
	b, err := in.inline()
	if err != nil {
		return nil, err
	}
	if in.size() > int64(len(b)) {
		return nil, tree.Damaged("inode %d holds %d of its %d bytes", in.number, len(b), in.size())
	}
	return memory{bytes.NewReader(b[:in.size()])}, nil
}

// memory is a file that lies in its inode.
type memory struct{ *bytes.Reader }

func (m memory) Close() error { return nil }

func (m memory) Data(off int64) (block.Extent, error) {
	if off >= m.Size() {
		return block.Extent{}, io.EOF
	}
	return block.Extent{Offset: off, Length: m.Size() - off}, nil
}

// content is a file that lies in blocks.
type content struct {
	in   *inode
	last run // found last
}

// A run is blocks of a file that follow each other on the disk, or a hole.
type run struct {
	from, count int64 // blocks of the file
	at          int64 // block of the disk, 0 for a hole
}

// Close does nothing.
func (c *content) Close() error { return nil }

// Data returns the next range that is no hole.
func (c *content) Data(off int64) (block.Extent, error) {
	bs, size := c.in.fs.blockSize, c.in.size()
	for off < size {
		r, err := c.run(off / bs)
		if err != nil {
			return block.Extent{}, err
		}
		end := size
		if r.from+r.count < (size+bs-1)/bs {
			end = (r.from + r.count) * bs
		}
		if r.at != 0 {
			return block.Extent{Offset: off, Length: end - off}, nil
		}
		off = end
	}
	return block.Extent{}, io.EOF
}

// ReadAt reads the file, holes as zeros.
func (c *content) ReadAt(p []byte, off int64) (n int, err error) {
	bs, size := c.in.fs.blockSize, c.in.size()
	if off >= size {
		return 0, io.EOF
	}
	if int64(len(p)) > size-off {
		p, err = p[:size-off], io.EOF
	}
	for n < len(p) {
		at := off + int64(n)
		r, findErr := c.run(at / bs)
		if findErr != nil {
			return n, findErr
		}
		part := p[n:]
		if left := r.from + r.count - at/bs; left <= int64(len(part))/bs {
			part = part[:left*bs-at%bs]
		}
		if r.at == 0 {
			clear(part)
		} else if readErr := tree.ReadFull(c.in.fs.r, part, (r.at+at/bs-r.from)*bs+at%bs); readErr != nil {
			return n, readErr
		}
		n += len(part)
	}
	return n, err
}

// run finds where block n of the file is.
func (c *content) run(n int64) (run, error) {
	if n >= c.last.from && n-c.last.from < c.last.count {
		return c.last, nil
	}
	find := c.in.pointer
	if c.in.flags()&flagExtents != 0 {
		find = c.in.extent
	}
	r, err := find(n)
	if err != nil {
		return run{}, err
	}
	if r.at != 0 && (r.at < 0 || r.at >= c.in.fs.blocks || r.count > c.in.fs.blocks-r.at) {
		return run{}, tree.Damaged("inode %d lies in %d blocks at %d, of %d", c.in.number, r.count, r.at, c.in.fs.blocks)
	}
	c.last = r
	return r, nil
}

// maxDepth of a tree of extents.
const maxDepth = 5

// extent looks in the tree of extents. Each node has a header of 12 bytes,
//
//	0:2  0xf30a    2:4  entries    6:8  levels below
//
// and entries of 12, in order: in leaves
//
//	0:4  block of the file    4:6  count, above 32768 never written
//	6:8  block of the disk, high    8:12  low
//
// and above them
//
//	0:4  first block of the file    4:8  node, low    8:10  high
func (in *inode) extent(n int64) (run, error) {
	node, end, depth := in.place(), int64(math.MaxUint32)+1, -1
	for {
		entries := int(node.u16(2))
		below := int(node.u16(6))
		if node.u16(0) != 0xf30a || 12+12*entries > len(node) || below > maxDepth || depth >= 0 && below != depth-1 {
			return run{}, tree.Damaged("inode %d has a bad node in its tree of extents", in.number)
		}
		depth = below
		i := entries - 1
		for ; i >= 0 && int64(node.u32(12+12*i)) > n; i-- {
			end = int64(node.u32(12 + 12*i))
		}
		if i < 0 {
			return hole(n, end)
		}
		e := node[12+12*i : 24+12*i]
		if depth > 0 {
			var err error
			if node, err = in.fs.block(int64(e.u32(4)) | int64(e.u16(8))<<32); err != nil {
				return run{}, err
			}
			continue
		}
		r := run{from: int64(e.u32(0)), count: int64(e.u16(4)), at: int64(e.u32(8)) | int64(e.u16(6))<<32}
		if r.count > 32768 {
			r.count, r.at = r.count-32768, 0
		} else if r.at == 0 {
			return run{}, tree.Damaged("inode %d has an extent at block 0", in.number)
		}
		if n-r.from >= r.count {
			return hole(n, end)
		}
		return r, nil
	}
}

// hole is what no extent covers, from block n up to end.
func hole(n, end int64) (run, error) {
	if end <= n {
		end = n + 1
	}
	return run{from: n, count: end - n}, nil
}

// pointer looks in the pointers of ext2 and ext3: twelve to blocks, then one
// each to blocks of pointers, to blocks of those, and once more.
func (in *inode) pointer(n int64) (run, error) {
	const direct = 12
	if n < direct {
		return follow(in.place()[:4*direct], n, 0), nil
	}
	per := in.fs.blockSize / 4
	from, span := int64(direct), int64(1) // span: blocks behind one pointer of the node
	for level := range 3 {
		if n-from < span*per {
			return in.indirect(int64(in.place().u32(4*(direct+level))), n, from, span)
		}
		from += span * per
		span *= per
	}
	return run{}, tree.Damaged("inode %d is %d bytes long", in.number, in.size())
}

// indirect follows pointers from the node at block at, which covers the file
// from block from on.
func (in *inode) indirect(at, n, from, span int64) (run, error) {
	per := in.fs.blockSize / 4
	for {
		if at == 0 {
			return run{from: from, count: span * per}, nil
		}
		b, err := in.fs.block(at)
		if err != nil {
			return run{}, err
		}
		if span == 1 {
			return follow(b, n, from), nil
		}
		i := (n - from) / span
		at, from = int64(b.u32(int(4*i))), from+i*span
		span /= per
	}
}

// follow returns the run of block n among pointers, the first of which is for
// block from.
func follow(pointers le, n, from int64) run {
	at := func(i int64) int64 { return int64(pointers.u32(int(4 * i))) }
	i := n - from
	r := run{from: n, count: 1, at: at(i)}
	for j := i + 1; j < int64(len(pointers)/4); j++ {
		if r.at == 0 && at(j) != 0 || r.at != 0 && at(j) != r.at+r.count {
			break
		}
		r.count++
	}
	return r
}

func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
