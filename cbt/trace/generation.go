package trace

import (
	"errors"
	"fmt"
	"math/bits"
	"os"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"platter/block"
)

// The map of a generation is an array of lines of 128 bytes, which is 16 words
// in the byte order of the machine. The programs add to it while it is the
// present one of its disk; from the next one on it stays as it is.
//
//	line 0    head: what the programs need, and count
//	line 1    what only processes read: whose map it is
//	line 2    the fine bits, one for each unit of the disk
//	coarse    the coarse bits, one for each 4096 units
const (
	headShift   = iota // log2 of the sectors in a unit
	headSectors        // of the disk
	headCoarse         // the line where coarse bits begin
	headFlags
	headZone    // bytes of a zone
	headNumber  // of the generation
	headNonce   // random: numbers may come again where a machine goes back in time
	headMisses  // of the programs, when the generation began
	headEvents  // marked
	headForeign // operations that may have changed anything
	headOutside // marks that the map has no place for
	headResized // the disk was seen with another size
	headWritten // sectors that the kernel had counted when the generation began
	headAdrift  // bios in flight that could not be kept
	_
	_
	bodyHistory // random: which generations are of one history
	bodySeq     // of the disk
	bodyKey     // of the disk
	bodyBefore  // nonce of the generation before, or of the last that one took in
	bodyLast    // nonce of the last generation that this one is
)

const (
	lineBytes = bitsPerLine / 8
	firstLine = 2
	flagBios  = 1 // what is in flight are bios

	minShift = 3       // 4 KiB
	maxUnits = 1 << 26 // of a disk: 8 MiB of map
)

// A generation is one map, mapped into this process. It is the owner's, who
// closes it.
type generation struct {
	m     *ebpf.Map
	mem   []byte
	words []uint64
}

// shiftFor returns the unit of a disk: 4 KiB up to 256 GiB, 64 KiB up to 4 TiB,
// 1 MiB up to 64 TiB.
func shiftFor(sectors uint64) uint {
	shift := uint(minShift)
	for sectors>>shift > maxUnits {
		shift++
	}
	return shift
}

// geometry returns the line where coarse bits begin, and how many lines there
// are in all.
func geometry(sectors uint64, shift uint) (coarse, lines uint32) {
	units := sectors>>shift + 1
	coarse = firstLine + uint32((units+bitsPerLine-1)/bitsPerLine)
	return coarse, coarse + uint32((units>>coarseShift+bitsPerLine)/bitsPerLine)
}

func mapSpec(lines uint32) *ebpf.MapSpec {
	return &ebpf.MapSpec{
		Name: "platter_bits", Type: ebpf.Array, KeySize: 4, ValueSize: lineBytes, MaxEntries: lines,
		Flags: unix.BPF_F_MMAPABLE | unix.BPF_F_INNER_MAP,
	}
}

// newGeneration makes an empty map for a disk.
func newGeneration(d disk) (*generation, error) {
	shift := shiftFor(d.sectors)
	coarse, lines := geometry(d.sectors, shift)
	m, err := ebpf.NewMap(mapSpec(lines))
	if err != nil {
		return nil, fmt.Errorf("make a map of %d bytes: %w", int(lines)*lineBytes, err)
	}
	g, err := mapped(m)
	if err != nil {
		return nil, err
	}
	g.words[headShift], g.words[headSectors], g.words[headCoarse] = uint64(shift), d.sectors, uint64(coarse)
	g.words[headZone], g.words[headWritten] = d.zone, d.written()
	if d.bios {
		g.words[headFlags] = flagBios
	}
	g.words[bodySeq], g.words[bodyKey] = d.seq, uint64(d.key)
	return g, nil
}

// mapped maps m, which it takes over.
func mapped(m *ebpf.Map) (*generation, error) {
	size := int(m.MaxEntries()) * lineBytes
	if m.Type() != ebpf.Array || m.ValueSize() != lineBytes || size < (firstLine+1)*lineBytes {
		return nil, errors.Join(errors.New("not a map of the tracer"), m.Close())
	}
	page := os.Getpagesize()
	mem, err := unix.Mmap(m.FD(), 0, (size+page-1)/page*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("map a generation: %w", err), m.Close())
	}
	return &generation{m, mem, unsafe.Slice((*uint64)(unsafe.Pointer(&mem[0])), size/8)}, nil
}

func (g *generation) Close() error {
	return errors.Join(unix.Munmap(g.mem), g.m.Close())
}

// get reads a word that programs may be changing.
func (g *generation) get(word int) uint64 { return atomic.LoadUint64(&g.words[word]) }

func (g *generation) number() uint64 { return g.get(headNumber) }
func (g *generation) unit() int64    { return 512 << g.get(headShift) }

// loss says what happened in the generation that nobody can vouch for, "" if
// nothing did.
func (g *generation) loss() string {
	switch {
	case g.get(headResized) > 0:
		return "the disk changed its size"
	case g.get(headForeign) > 0:
		return fmt.Sprintf("%d commands went to the drive that may have changed anything", g.get(headForeign))
	case g.get(headOutside) > 0:
		return fmt.Sprintf("%d writes lay outside the disk", g.get(headOutside))
	}
	return ""
}

// each calls visit with every run of units that is marked, as an extent of the
// disk in bytes, until it returns false. Fine runs come first, in order, then
// coarse ones. It allocates nothing.
func (g *generation) each(visit func(block.Extent) bool) bool {
	coarse := int(g.get(headCoarse))
	unit := g.unit()
	return runs(g.words[firstLine*wordsInLine:coarse*wordsInLine], unit, visit) &&
		runs(g.words[coarse*wordsInLine:], unit<<coarseShift, visit)
}

// runs calls visit with each run of bits, until it returns false.
func runs(words []uint64, unit int64, visit func(block.Extent) bool) bool {
	begin, open := 0, false
	for i := range words {
		w := atomic.LoadUint64(&words[i])
		if w == 0 && !open || w == ^uint64(0) && open {
			continue
		}
		for at := 0; at < 64; {
			rest := w >> at
			if open {
				rest = ^w >> at
			}
			if rest == 0 {
				break
			}
			at += bits.TrailingZeros64(rest)
			if !open {
				begin = i*64 + at
			} else if !visit(block.Extent{Offset: int64(begin) * unit, Length: int64(i*64+at-begin) * unit}) {
				return false
			}
			open = !open
		}
	}
	if open {
		return visit(block.Extent{Offset: int64(begin) * unit, Length: int64(len(words)*64-begin) * unit})
	}
	return true
}

// swallow takes over what an earlier generation has, and its number.
func (g *generation) swallow(before *generation) {
	for i := firstLine * wordsInLine; i < len(g.words); i++ {
		if w := before.words[i]; w != 0 {
			atomic.OrUint64(&g.words[i], w)
		}
	}
	for _, i := range []int{headEvents, headForeign, headOutside, headResized, headAdrift} {
		atomic.AddUint64(&g.words[i], before.get(i))
	}
	g.words[headMisses], g.words[headWritten] = before.words[headMisses], before.words[headWritten]
	g.words[headNonce], g.words[bodyBefore] = before.words[headNonce], before.words[bodyBefore]
	atomic.StoreUint64(&g.words[headNumber], before.number())
}
