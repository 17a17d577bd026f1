package freespace

import "encoding/binary"

// Of the log everything is counted in basic blocks of 512 bytes. The first
// word of each is the cycle, or the mark of a record and then the cycle.
const (
	xlogMark     = 0xfeedbabe
	xlogMaxBack  = 520  // blocks, of the largest record
	xlogInFlight = 4096 // blocks that may have been written out of order
	xlogMaxTail  = 16   // records from tail to head that are looked at

	xlogStart   = 0x01
	xlogCommit  = 0x02
	xlogUnmount = 0x20
)

// An xlogRecord is the header of a record.
type xlogRecord struct {
	at, data, end int64 // blocks; what is logged begins at data
	b             []byte
}

func (r xlogRecord) ops() int64 { return be32(r.b, 40) }

// logBlock reads a block of the log.
func (x *xfsfs) logBlock(n int64) ([]byte, error) {
	return x.bytes(x.log*x.blockSize+n*512, 512)
}

func (x *xfsfs) cycle(n int64) (int64, error) {
	b, err := x.logBlock(n)
	if err == nil && be32(b, 0) == xlogMark {
		return be32(b, 4), nil
	}
	return be32(b, 0), err
}

// settled returns an error unless all that the log holds is in its place:
// after an unmount, and while the filesystem is frozen, where nothing but the
// superblock is left to be replayed.
func (x *xfsfs) settled() error {
	head, cycle, err := x.head()
	if err != nil {
		return err
	}
	for at := head - 1; at >= max(0, head-xlogMaxBack); at-- {
		r, ok, err := x.record(at, cycle)
		if err != nil {
			return err
		}
		if ok && r.end == head {
			return x.last(r, cycle)
		}
	}
	return unsure("its log has no end that can be found")
}

// head returns where the log goes on, and the cycle before that: the cycles
// are one number up to there, and the one before from there on.
func (x *xfsfs) head() (head, cycle int64, err error) {
	size := x.logBlocks * (x.blockSize / 512)
	if cycle, err = x.cycle(0); err != nil {
		return 0, 0, err
	}
	last, err := x.cycle(size - 1)
	if err != nil || last == cycle {
		return size, cycle, err
	}
	low, high := int64(0), size-1 // of the cycle, not of the cycle
	for high-low > 1 {
		mid := (low + high) / 2
		c, err := x.cycle(mid)
		if err != nil {
			return 0, 0, err
		}
		if c == cycle {
			low = mid
		} else {
			high = mid
		}
	}
	for n := high; n < min(size, high+xlogInFlight); n++ {
		c, err := x.cycle(n)
		if err != nil {
			return 0, 0, err
		}
		if c != cycle-1 {
			return 0, 0, unsure("block %d of its log is of cycle %d, after %d", n, c, cycle)
		}
	}
	return high, cycle, nil
}

// record reads the header of a record; ok is false where there is none.
func (x *xfsfs) record(at, cycle int64) (r xlogRecord, ok bool, err error) {
	b, err := x.logBlock(at)
	if err != nil || be32(b, 0) != xlogMark || be32(b, 4) != cycle {
		return r, false, err
	}
	headers := int64(1)
	if be32(b, 8)&2 != 0 { // version 2
		headers = max(1, (be32(b, 320)+32767)/32768)
	}
	r = xlogRecord{at: at, data: at + headers, end: at + headers + (be32(b, 12)+511)/512, b: b}
	return r, be64(b, 16) == cycle<<32|at, nil
}

// last judges the last record of the log.
func (x *xfsfs) last(r xlogRecord, cycle int64) error {
	data, err := x.logBlock(r.data)
	if err != nil {
		return err
	}
	if r.ops() == 1 && data[9]&xlogUnmount != 0 {
		return nil
	}
	tail := be64(r.b, 24)
	at, head := tail&(1<<32-1), r.end
	for range xlogMaxTail {
		r, ok, err := x.record(at, cycle)
		if err != nil {
			return err
		}
		if tail>>32 != cycle || !ok || r.end > head || !x.superblockOnly(r) {
			break
		}
		if at = r.end; at == head {
			return nil
		}
	}
	return unsure("its log is not empty: it is mounted, or was not unmounted")
}

// superblockOnly reports whether a record is one transaction that changes
// nothing but the superblock, which says nothing of where free space lies.
func (x *xfsfs) superblockOnly(r xlogRecord) bool {
	if r.ops() != 5 || r.end <= r.data {
		return false
	}
	p, err := x.logBlock(r.data)
	if err != nil {
		return false
	}
	copy(p[:4], r.b[44:48]) // what was there before the cycle
	type op struct {
		flags byte
		data  []byte
	}
	var ops []op
	for range 5 {
		if len(p) < 12 || be32(p, 4) > int64(len(p)-12) {
			return false
		}
		n := 12 + be32(p, 4)
		ops = append(ops, op{p[9], p[12:n]})
		p = p[n:]
	}
	item := ops[2].data
	return ops[0].flags == xlogStart && len(ops[1].data) == 16 && string(ops[1].data[:4]) == "NART" &&
		len(item) == 24 && binary.LittleEndian.Uint16(item) == 0x123c && binary.LittleEndian.Uint16(item[2:]) == 2 &&
		int64(binary.LittleEndian.Uint16(item[6:]))*512 == x.sector && binary.LittleEndian.Uint64(item[8:]) == 0 &&
		ops[4].flags == xlogCommit && len(ops[4].data) == 0
}
