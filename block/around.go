package block

import (
	"context"
	"errors"
	"fmt"
)

// ReadAround fills p from off like src.ReadAt. Where the device reports an
// unreadable range, it reads again sector by sector, leaves zeros for what
// cannot be read, and returns the extents of that, merged and in order. Any
// error but a *ReadError ends it. The sector is a device's physical sector
// size in bytes; less than 512 counts as 512.
func ReadAround(ctx context.Context, src Source, p []byte, off int64, sector int) (bad []Extent, err error) {
	_, err = src.ReadAt(ctx, p, off)
	if err == nil {
		return nil, nil
	}
	if !isUnreadable(err) {
		return nil, err
	}
	sector = max(sector, 512)
	// A sector of its own, aligned: in the middle of p there is no room for
	// what a direct read rounds up to.
	buf, err := AllocAligned(sector)
	if err != nil {
		return nil, fmt.Errorf("read around bad sectors: %w", err)
	}
	defer FreeAligned(buf)
	for at := 0; at < len(p); {
		// Sectors are counted from the device's start, not from off.
		n := min(sector-int((off+int64(at))%int64(sector)), len(p)-at)
		_, err := src.ReadAt(ctx, buf[:n], off+int64(at))
		switch {
		case err == nil:
			copy(p[at:], buf[:n])
		case isUnreadable(err):
			clear(p[at : at+n])
			bad = addExtent(bad, Extent{off + int64(at), int64(n)})
		default:
			return bad, err
		}
		at += n
	}
	return bad, nil
}

func isUnreadable(err error) bool {
	var e *ReadError
	return errors.As(err, &e)
}

// addExtent appends e, or lengthens the last extent by it.
func addExtent(list []Extent, e Extent) []Extent {
	if i := len(list) - 1; i >= 0 && list[i].End() == e.Offset {
		list[i].Length += e.Length
		return list
	}
	return append(list, e)
}
