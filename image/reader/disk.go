package reader

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"platter/block"
	"platter/image"
)

// A Disk is one image, to be read at any place. It keeps what was decoded
// last, and reads ahead of those who read on from where they were. It is safe
// for concurrent use.
//
// Memory is bounded by the number given to NewDisk, whatever the size of the
// image, plus the pieces that reads under way are waiting for.
type Disk struct {
	reader *Reader
	m      *image.Manifest
	pieces *pieces
	size   int64 // of a piece in bytes: whole blocks
	ahead  streams
	close  context.CancelFunc
	ctx    context.Context // of the Disk's life: a piece is loaded for whoever wants it
	loads  sync.WaitGroup
}

const (
	minPiece = 64 << 10
	// maxAhead is how far a sequential reader is read ahead of, in bytes.
	maxAhead = 8 << 20
)

// NewDisk offers image m of the Reader's repository. It reads nothing yet.
func NewDisk(r *Reader, m *image.Manifest, memory int64) *Disk {
	ctx, cancel := context.WithCancel(context.Background())
	size := int64(max(minPiece, m.BlockSize))
	return &Disk{
		reader: r, m: m, size: size, ctx: ctx, close: cancel,
		pieces: newPieces(max(memory, 4*size)),
		ahead:  streams{limit: min(maxAhead, memory/4/size*size)},
	}
}

// Size returns the size of the imaged device in bytes.
func (d *Disk) Size() int64 { return d.m.Size }

// Close ends the reading ahead, and waits for it. No reads may be under way.
func (d *Disk) Close() {
	d.close()
	d.loads.Wait()
}

// ReadAt fills p from byte off of the image. The error is io.EOF when p
// reaches beyond the end, with p filled up to there, and a *Lost when the
// repository has no good copy of a block.
func (d *Disk) ReadAt(ctx context.Context, p []byte, off int64) (n int, err error) {
	if off < 0 || off > d.m.Size {
		return 0, fmt.Errorf("read image at %d: its size is %d: %w", off, d.m.Size, io.EOF)
	}
	if rest := d.m.Size - off; int64(len(p)) > rest {
		p, err = p[:rest], io.EOF
	}
	if len(p) == 0 {
		return 0, err
	}
	first, last := off/d.size, (off+int64(len(p))-1)/d.size
	d.readAhead(off, int64(len(p)))
	// No more than a few MiB at a time, so that one read cannot take all memory.
	for span := max(1, runSize/d.size); first <= last; first += span {
		list, loadErr := d.load(ctx, first, min(span, last-first+1))
		if loadErr != nil {
			return n, loadErr
		}
		for i, pc := range list {
			n += pc.copyTo(p, off, (first+int64(i))*d.size, d.size)
		}
	}
	return n, err
}

// copyTo copies the part of a piece that lies in p, which is read from off. at
// is where the piece begins.
func (pc *piece) copyTo(p []byte, off, at, size int64) int {
	from, to := max(off, at), min(off+int64(len(p)), at+size)
	dst := p[from-off : to-off]
	if pc.data == nil {
		clear(dst)
	} else {
		copy(dst, pc.data[from-at:])
	}
	return len(dst)
}

// load returns n pieces from first on, reading together those that nobody has.
func (d *Disk) load(ctx context.Context, first, n int64) ([]*piece, error) {
	list, mine := d.pieces.claim(first, n)
	if len(mine) > 0 {
		d.fill(mine)
	}
	for _, pc := range list {
		select {
		case <-pc.ready:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if pc.err != nil {
			return nil, pc.err
		}
	}
	return list, nil
}

// fill reads pieces, in order and near each other, and tells who waits.
func (d *Disk) fill(list []*piece) {
	err := d.read(list)
	for _, pc := range list {
		if pc.err = err; err != nil {
			pc.data = nil
		}
	}
	if err != nil && len(list) > 1 && d.ctx.Err() == nil {
		// One damaged block takes only its own piece with it.
		for _, pc := range list {
			pc.data, pc.err = nil, nil
			if pc.err = d.read([]*piece{pc}); pc.err != nil {
				pc.data = nil
			}
		}
	}
	d.pieces.done(list)
}

func (d *Disk) read(list []*piece) error {
	bs := int64(d.m.BlockSize)
	var refs []Ref
	wanted := make(map[int64]*piece, len(list))
	for _, pc := range list {
		wanted[pc.index] = pc
	}
	per := d.size / bs
	from, to := list[0].index*per, (list[len(list)-1].index+1)*per
	err := d.reader.Walk(d.ctx, MapOf(d.m), from, to, func(first int64, p *image.Page) error {
		for i := range p.Entries {
			b := first + int64(i)
			pc := wanted[b/per]
			if b < from || b >= to || pc == nil || p.Entries[i].IsZero() {
				continue
			}
			if pc.data == nil {
				pc.data = make([]byte, min(d.size, d.m.Size-pc.index*d.size))
			}
			refs = append(refs, Ref{Block: b, ID: p.Entries[i], At: p.Hints[i], Length: int32(min(bs, d.m.Size-b*bs))})
		}
		return nil
	})
	if err != nil || len(refs) == 0 {
		return err
	}
	return d.reader.Read(d.ctx, refs, func(first int64, plain []byte) error {
		for off := first * bs; len(plain) > 0; {
			pc := wanted[off/d.size]
			n := copy(pc.data[off%d.size:], plain)
			plain, off = plain[n:], off+int64(n)
		}
		return nil
	})
}

// readAhead loads what a reader that reads on will want next.
func (d *Disk) readAhead(off, length int64) {
	from, to := d.ahead.next(off, length)
	first, last := from/d.size, (min(to, d.m.Size)+d.size-1)/d.size
	if first >= last || d.ctx.Err() != nil {
		return
	}
	span := max(1, runSize/d.size)
	for ; first < last; first += span {
		_, mine := d.pieces.claim(first, min(span, last-first))
		if len(mine) == 0 {
			continue
		}
		d.loads.Go(func() { d.fill(mine) })
	}
}

// A Stretch is a part of an image that is all zeros as far as its map tells,
// or is not.
type Stretch struct {
	block.Extent
	Zero bool
}

// errEnough ends a walk that has found all that was asked for.
var errEnough = errors.New("enough")

// Stretches describes the image from off on, for length bytes or until there
// are most stretches, whichever comes first. Neighbours differ.
func (d *Disk) Stretches(ctx context.Context, off, length int64, most int) ([]Stretch, error) {
	end := min(off+length, d.m.Size)
	bs := int64(d.m.BlockSize)
	var list []Stretch
	at := off
	add := func(to int64, zero bool) bool {
		to = min(to, end)
		if to <= at {
			return true
		}
		if n := len(list); n > 0 && list[n-1].Zero == zero {
			list[n-1].Length += to - at
		} else if n == most {
			return false
		} else {
			list = append(list, Stretch{block.Extent{Offset: at, Length: to - at}, zero})
		}
		at = to
		return true
	}
	err := d.reader.Walk(ctx, MapOf(d.m), off/bs, (end+bs-1)/bs, func(first int64, p *image.Page) error {
		if !add(first*bs, true) {
			return errEnough
		}
		for i := range p.Entries {
			if !add((first+int64(i)+1)*bs, p.Entries[i].IsZero()) {
				return errEnough
			}
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		return list, nil
	}
	if err == nil {
		add(end, true)
	}
	return list, err
}
