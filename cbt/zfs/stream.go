package zfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/bits"

	"platter/block"
)

// A stream of zfs send is records, each perhaps with a payload behind it. They
// are in the byte order of the machine that sends, which the magic number of the
// first tells. As OpenZFS 2.1 has them (include/sys/zfs_ioctl.h,
// dmu_replay_record):
//
//	  0:4    type
//	  4:8    length of the payload, of a begin only
//	  8:280  what the type has, see below
//	280:312  fletcher-4 of all before, in the stream; of a begin it is more name
//
//	begin         8 magic, 16 version and features, 32 type of dataset (u32),
//	              36 flags (u32), 40 guid, 48 guid of the parent, 56 name
//	object        8 object, 16 type (u32), 24 block size (u32), 28 length of the
//	              bonus (u32), 36 its raw length (u32), 40 guid
//	freeobjects   8 first, 16 count, 24 guid
//	write         8 object, 16 type (u32), 24 offset, 32 length, 40 guid,
//	              50 compression (u8), 96 compressed length
//	free          8 object, 16 offset, 24 length, 32 guid
//	end           8 fletcher-4 of all before it, 40 guid
//	write_byref   8 object, 16 offset, 24 length, 32 guid
//	spill         8 object, 16 length, 24 guid, 40 compressed length
//	embedded      8 object, 16 offset, 24 length, 32 guid, 52 stored length (u32)
//	object_range  8 first, 16 count, 24 guid
//
// Numbers are of 8 bytes where nothing else is said.
const (
	recordSize  = 312
	checksumAt  = 280
	streamMagic = 0x2F5bacbac
)

// Types of records.
const (
	drrBegin = iota
	drrObject
	drrFreeObjects
	drrWrite
	drrFree
	drrEnd
	drrWriteByRef
	drrSpill
	drrWriteEmbedded
	drrObjectRange
	drrRedact // is not understood: it says that data is left out
)

const (
	// A plain stream of one snapshot, in the lowest two bits of the version.
	substream = 1
	// features are those whose records are these: deduplication (0, 1), spill
	// blocks (2), embedded data (16), LZ4 (17), large blocks (19, 27), compressed
	// (22), large nodes (23), raw (24), zstd (25), long names (28), large
	// microzaps (29). Not those of streams that leave something out: resumed
	// (20) or redacted (21).
	features = 1<<0 | 1<<1 | 1<<2 | 1<<16 | 1<<17 | 1<<19 | 1<<22 | 1<<23 | 1<<24 | 1<<25 | 1<<27 | 1<<28 | 1<<29
	// flags of a begin: all but that the parent is the origin of a clone.
	flags = 1<<1 | 1<<2 | 1<<3

	datasetVolume = 3  // the type of dataset that a volume is
	typeVolume    = 23 // the type of its data

	volumeObject     = 1 // the data of a volume
	propertiesObject = 2 // its size

	maxPayload  = 16 << 20 // the largest block there is
	maxBonus    = 16 << 10
	maxEmbedded = 112
	untilEnd    = math.MaxUint64
)

// errStream means that a stream is damaged, or says what is not understood here.
var errStream = errors.New("the stream of zfs send is no proof")

// A head is what a stream says of itself.
type head struct {
	from, to  uint64 // guids of the snapshots
	blockSize int64  // of the volume, bytes; 0 if the stream does not say
}

// A stream is one that is being read.
type stream struct {
	r       io.Reader
	order   binary.ByteOrder
	swap    bool // big-endian
	sum     fletcher
	off     int64 // bytes read
	head    head
	changed func(e block.Extent, freed bool)
	at      uint64 // where the last record about the volume ends, but for tail
	tail    uint64 // from where on all is freed
	record  [recordSize]byte
	buf     []byte
}

// readStream reads a stream to its end and calls changed with each extent of the
// volume that was written or freed, in whatever way, between the two snapshots.
// Of what is freed the later snapshot has nothing: a stream goes from the front of
// a volume to its end and says one thing only of each place, but that it begins
// with where the end is.
//
// It believes a stream only if that is whole, all its checksums are right, and
// there is nothing in it that it does not know. The payload is read for its
// checksum and not kept.
func readStream(r io.Reader, changed func(e block.Extent, freed bool)) (head, error) {
	s := &stream{r: r, changed: changed, tail: math.MaxInt64, buf: make([]byte, 64<<10)}
	if err := s.read(); err != nil {
		return head{}, fmt.Errorf("%w: %w", errStream, err)
	}
	return s.head, nil
}

func (s *stream) read() error {
	if err := s.begin(); err != nil {
		return err
	}
	for {
		at := s.off
		end, err := s.next()
		if err != nil {
			return fmt.Errorf("record at %d: %w", at, err)
		}
		if end {
			break
		}
	}
	if n, err := io.ReadFull(s.r, s.buf[:1]); n != 0 || !errors.Is(err, io.EOF) {
		return fmt.Errorf("it goes on after its end at %d (%w)", s.off, err)
	}
	return nil
}

// u64 and u32 read a number of the record.

func (s *stream) u64(at int) uint64 { return s.order.Uint64(s.record[at:]) }
func (s *stream) u32(at int) uint32 { return s.order.Uint32(s.record[at:]) }

// fill reads a record, whole.
func (s *stream) fill() error {
	n, err := io.ReadFull(s.r, s.record[:])
	s.off += int64(n)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// begin reads the first record.
func (s *stream) begin() error {
	if err := s.fill(); err != nil {
		return err
	}
	s.order = binary.LittleEndian
	if s.u64(8) != streamMagic {
		s.order, s.swap = binary.BigEndian, true
	}
	version := s.u64(16)
	switch {
	case s.u64(8) != streamMagic || s.u32(0) != drrBegin:
		return errors.New("it does not begin as one")
	case version&3 != substream || version>>32 != 0:
		return fmt.Errorf("it is of version %#x, not of one snapshot", version)
	case version>>2&^features != 0:
		return fmt.Errorf("it has the features %#x, of which %#x are not known", version>>2, version>>2&^uint64(features))
	case s.u32(32) != datasetVolume:
		return fmt.Errorf("it is of a dataset of type %d, not of a volume", s.u32(32))
	case s.u32(36)&^flags != 0:
		return fmt.Errorf("it has the flags %#x", s.u32(36))
	}
	s.head.to, s.head.from = s.u64(40), s.u64(48)
	s.sum.add(s.record[:], s.swap)
	return s.skip(uint64(s.u32(4)))
}

// next reads a record and its payload.
func (s *stream) next() (end bool, err error) {
	if err := s.fill(); err != nil {
		return false, err
	}
	before := s.sum
	s.sum.add(s.record[:checksumAt], s.swap)
	if got := s.fletcherAt(checksumAt); got != s.sum {
		return false, fmt.Errorf("its checksum is %v, and should be %v", got, s.sum)
	}
	s.sum.add(s.record[checksumAt:], s.swap)
	payload := uint64(0)
	switch kind := s.u32(0); kind {
	case drrObject:
		payload, err = s.object()
	case drrFreeObjects:
		err = s.freeObjects()
	case drrWrite:
		payload, err = s.write()
	case drrFree:
		err = s.free()
	case drrEnd:
		if err = s.guid(40); err == nil && s.fletcherAt(8) != before {
			err = fmt.Errorf("the checksum of all is %v, and should be %v", s.fletcherAt(8), before)
		}
		return true, err
	case drrWriteByRef:
		err = s.put(32, s.u64(8), s.u64(16), s.u64(24))
	case drrSpill:
		if err = s.guid(24); err == nil {
			payload, err = stored(s.u64(16), s.u64(40))
		}
	case drrWriteEmbedded:
		if err = s.put(32, s.u64(8), s.u64(16), s.u64(24)); s.u32(52) > maxEmbedded {
			err = errors.Join(err, fmt.Errorf("embedded data of %d bytes", s.u32(52)))
		}
		payload = uint64(s.u32(52)+7) &^ 7
	case drrObjectRange:
		err = s.guid(24)
	default:
		err = fmt.Errorf("its type %d is not known", kind)
	}
	if err != nil {
		return false, err
	}
	return false, s.skip(payload)
}

// guid checks that a record is about the snapshot that the stream is of.
func (s *stream) guid(at int) error {
	if got := s.u64(at); got != s.head.to {
		return fmt.Errorf("it is about the snapshot with guid %d, and the stream about %d", got, s.head.to)
	}
	return nil
}

func (s *stream) object() (payload uint64, err error) {
	bonus := uint64(s.u32(28)+7) &^ 7
	if raw := s.u32(36); raw != 0 {
		bonus = uint64(raw)
	}
	if s.u32(28) > maxBonus || bonus > maxBonus {
		return 0, fmt.Errorf("an object with a bonus of %d bytes", s.u32(28))
	}
	if err := s.known(s.u64(8)); err != nil {
		return 0, err
	}
	if s.u64(8) == volumeObject {
		if s.u32(16) != typeVolume {
			return 0, fmt.Errorf("the volume's object is of type %d", s.u32(16))
		}
		s.head.blockSize = int64(s.u32(24))
	}
	return bonus, s.guid(40)
}

// known refuses objects that volumes do not have.
func (s *stream) known(object uint64) error {
	if object != volumeObject && object != propertiesObject {
		return fmt.Errorf("object %d is none that a volume has", object)
	}
	return nil
}

// freeObjects gives the whole volume if its object is one of those that are gone.
func (s *stream) freeObjects() error {
	if first, n := s.u64(8), s.u64(16); first <= volumeObject && n > volumeObject-first {
		s.changed(block.Extent{Length: math.MaxInt64}, false) // it may be another one now
	}
	return s.guid(24)
}

func (s *stream) write() (payload uint64, err error) {
	if s.u64(8) == volumeObject && s.u32(16) != typeVolume {
		return 0, fmt.Errorf("the volume's data is of type %d", s.u32(16))
	}
	if err := s.put(40, s.u64(8), s.u64(24), s.u64(32)); err != nil {
		return 0, err
	}
	if s.record[50] == 0 {
		return stored(s.u64(32), 0)
	}
	if s.u64(96) == 0 {
		return 0, errors.New("compressed data of no bytes")
	}
	return stored(s.u64(32), s.u64(96))
}

// put gives an extent that was written.
func (s *stream) put(guidAt int, object, off, length uint64) error {
	if err := s.known(object); err != nil {
		return err
	}
	if length == 0 || length > maxPayload || off > math.MaxInt64-length {
		return fmt.Errorf("%d bytes written at %d", length, off)
	}
	if object == volumeObject {
		if off < s.at || off+length > s.tail {
			return fmt.Errorf("%d bytes written at %d, of which something was said before", length, off)
		}
		s.at = off + length
		s.changed(block.Extent{Offset: int64(off), Length: int64(length)}, false)
	}
	return s.guid(guidAt)
}

// stored is the length of a payload of which the compressed length is 0 if it is
// not compressed.
func stored(length, compressed uint64) (uint64, error) {
	if length == 0 || length > maxPayload || compressed > maxPayload {
		return 0, fmt.Errorf("%d bytes, stored as %d", length, compressed)
	}
	if compressed != 0 {
		return compressed, nil
	}
	return length, nil
}

func (s *stream) free() error {
	off, length := s.u64(16), s.u64(24)
	if err := s.known(s.u64(8)); err != nil {
		return err
	}
	// No volume goes beyond 2^63: what is freed may.
	if s.u64(8) == volumeObject && off < math.MaxInt64 {
		if off < s.at {
			return fmt.Errorf("%d bytes freed at %d, of which something was said before", length, off)
		}
		if length == untilEnd {
			s.tail = min(s.tail, off)
		}
		end := off + min(length, math.MaxInt64-off)
		if length != untilEnd {
			s.at = end
		}
		s.changed(block.Extent{Offset: int64(off), Length: int64(end - off)}, true)
	}
	return s.guid(32)
}

// skip reads a payload, for its checksum.
func (s *stream) skip(n uint64) error {
	if n > maxPayload || n%4 != 0 {
		return fmt.Errorf("a payload of %d bytes", n)
	}
	for n > 0 {
		p := s.buf[:min(n, uint64(len(s.buf)))]
		m, err := io.ReadFull(s.r, p)
		s.off += int64(m)
		if err != nil {
			return fmt.Errorf("a payload ends at %d: %w", s.off, io.ErrUnexpectedEOF)
		}
		s.sum.add(p, s.swap)
		n -= uint64(len(p))
	}
	return nil
}

// A fletcher is a fletcher-4 checksum, of words of 4 bytes.
type fletcher [4]uint64

// add goes on with p, whose length is a multiple of 4.
func (f *fletcher) add(p []byte, swap bool) {
	a, b, c, d := f[0], f[1], f[2], f[3]
	for ; len(p) >= 4; p = p[4:] {
		w := binary.LittleEndian.Uint32(p)
		if swap {
			w = bits.ReverseBytes32(w)
		}
		a += uint64(w)
		b += a
		c += b
		d += c
	}
	*f = fletcher{a, b, c, d}
}

func (s *stream) fletcherAt(at int) fletcher {
	return fletcher{s.u64(at), s.u64(at + 8), s.u64(at + 16), s.u64(at + 24)}
}

func (f fletcher) String() string { return fmt.Sprintf("%x-%x-%x-%x", f[0], f[1], f[2], f[3]) }
