// Package fat lays a FAT filesystem out anew for a disk with sectors of another
// size: the same files and folders, their names and times byte for byte, in
// clusters of other places.
//
// What it reads is taken as hostile: no chain is followed twice, and nothing
// outside the filesystem is read or written.
package fat

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// ErrUnfit wraps why a filesystem cannot be laid out anew.
var ErrUnfit = errors.New("a FAT filesystem that cannot be converted")

func unfit(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrUnfit, fmt.Sprintf(format, args...))
}

const (
	// maxClusters bounds the memory that tables take: 16 MiB each.
	maxClusters = 4 << 20
	// maxFolder is what a folder may have: 65536 entries.
	maxFolder = 2 << 20
	// maxFolders bounds all folders together, which are kept in memory.
	maxFolders = 32 << 20
)

// A shape is where the parts of a filesystem are.
type shape struct {
	sector, cluster int64 // bytes
	bits            int64 // of an entry of the table: 12, 16 or 32
	total           int64 // sectors, as all below but clusters
	reserved        int64
	tables, table   int64
	root            int64 // entries of the root folder, 0 with 32 bits
	clusters        int64
}

func (s *shape) rootSectors() int64 { return (s.root*32 + s.sector - 1) / s.sector }

// data is the offset of the first cluster, in bytes.
func (s *shape) data() int64 {
	return (s.reserved + s.tables*s.table + s.rootSectors()) * s.sector
}

// place is the offset of a cluster, in bytes.
func (s *shape) place(cluster uint32) int64 { return s.data() + (int64(cluster)-2)*s.cluster }

// end is the mark of a chain's last cluster.
func (s *shape) end() uint32 { return uint32(1<<s.bits-1) & 0x0fffffff }

func (s *shape) entry(table []byte, i uint32) uint32 {
	switch s.bits {
	case 12:
		return uint32(binary.LittleEndian.Uint16(table[i*3/2:])) >> (4 * (i & 1)) & 0xfff
	case 16:
		return uint32(binary.LittleEndian.Uint16(table[i*2:]))
	}
	return binary.LittleEndian.Uint32(table[i*4:]) & 0x0fffffff
}

func (s *shape) set(table []byte, i, v uint32) {
	switch s.bits {
	case 12:
		at := table[i*3/2:]
		old := binary.LittleEndian.Uint16(at)
		if i&1 == 1 {
			binary.LittleEndian.PutUint16(at, old&0xf|uint16(v)<<4)
		} else {
			binary.LittleEndian.PutUint16(at, old&0xf000|uint16(v)&0xfff)
		}
	case 16:
		binary.LittleEndian.PutUint16(table[i*2:], uint16(v))
	default:
		binary.LittleEndian.PutUint32(table[i*4:], v)
	}
}

// A source is the filesystem as it is.
type source struct {
	shape
	r      io.ReaderAt
	off    int64 // of the filesystem in r
	boot   []byte
	table  []byte
	first  uint32 // cluster of the root folder with 32 bits
	seen   []uint64
	folder int64 // bytes of folders that were read
}

func (s *source) u16(at int) int64 { return int64(binary.LittleEndian.Uint16(s.boot[at:])) }
func (s *source) u32(at int) int64 { return int64(binary.LittleEndian.Uint32(s.boot[at:])) }

func open(r io.ReaderAt, off, length int64) (*source, error) {
	s := &source{r: r, off: off, boot: make([]byte, 512)}
	if err := s.read(s.boot, 0); err != nil {
		return nil, err
	}
	perCluster := int64(s.boot[13])
	s.sector, s.reserved, s.tables, s.root = s.u16(11), s.u16(14), int64(s.boot[16]), s.u16(17)
	s.total, s.shape.table = s.u16(19), s.u16(22)
	if s.total == 0 {
		s.total = s.u32(32)
	}
	wide := s.shape.table == 0
	if wide {
		s.shape.table, s.first, s.root = s.u32(36), uint32(s.u32(44)), 0
	}
	switch {
	case s.sector < 512 || s.sector > 4096 || s.sector&(s.sector-1) != 0 || perCluster < 1 || perCluster > 128 || perCluster&(perCluster-1) != 0:
		return nil, unfit("clusters of %d sectors of %d bytes", perCluster, s.sector)
	case s.reserved < 1 || s.tables < 1 || s.tables > 2 || s.shape.table < 1 || s.total*s.sector > length:
		return nil, unfit("%d sectors with %d tables of %d in %d bytes", s.total, s.tables, s.shape.table, length)
	}
	s.cluster = perCluster * s.sector
	s.clusters = (s.total*s.sector - s.data()) / s.cluster
	switch {
	case s.clusters < 1 || s.clusters > maxClusters:
		return nil, unfit("%d clusters", s.clusters)
	case wide:
		s.bits = 32
	case s.clusters < 4085:
		s.bits = 12
	default:
		s.bits = 16
	}
	if need := ((s.clusters+2)*s.bits + 7) / 8; need > s.shape.table*s.sector {
		return nil, unfit("a table of %d sectors for %d clusters", s.shape.table, s.clusters)
	}
	s.table = make([]byte, ((s.clusters+2)*s.bits+7)/8+4)
	s.seen = make([]uint64, (s.clusters+2)/64+1)
	return s, s.read(s.table[:len(s.table)-4], s.reserved*s.sector)
}

func (s *source) read(p []byte, at int64) error {
	n, err := s.r.ReadAt(p, s.off+at)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// chain returns the clusters of a file or folder.
func (s *source) chain(first uint32) (list []uint32, err error) {
	for c := first; ; c = s.entry(s.table, c) {
		if c >= s.end()-7 {
			return list, nil
		}
		if c < 2 || int64(c) >= s.clusters+2 {
			return nil, unfit("a chain leads to cluster %d of %d: check it with fsck.fat", c, s.clusters)
		}
		if s.seen[c/64]>>(c%64)&1 != 0 {
			return nil, unfit("cluster %d belongs to two files: check it with fsck.fat", c)
		}
		s.seen[c/64] |= 1 << (c % 64)
		list = append(list, c)
	}
}

// folder reads a folder, cut after its last entry.
func (s *source) readFolder(clusters []uint32) ([]byte, error) {
	n := int64(len(clusters)) * s.cluster
	if s.folder += n; n > maxFolder || s.folder > maxFolders {
		return nil, unfit("folders of %d bytes", s.folder)
	}
	b := make([]byte, n)
	for i, c := range clusters {
		if err := s.read(b[int64(i)*s.cluster:][:s.cluster], s.place(c)); err != nil {
			return nil, err
		}
	}
	return cut(b), nil
}

// cut ends a folder where its entries do.
func cut(b []byte) []byte {
	for at := 0; at < len(b); at += 32 {
		if b[at] == 0 {
			return b[:at]
		}
	}
	return b
}
