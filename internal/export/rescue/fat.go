package rescue

import (
	"encoding/binary"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
)

// FAT32, as firmware, GRUB and Linux read it. Names are of 8 letters, a dot and 3
// letters at most, so that there are no long ones; times are all the same, so
// that the same files make the same bytes.
const (
	sectorSize   = 512
	fatReserved  = 32 // sectors before the first table
	fatTables    = 2
	fatEntry     = 32
	fatLeast     = 65536  // clusters: with fewer it would be FAT16
	fatMost      = 200000 // clusters, beyond which they become larger
	fatEnd       = 0x0fffffff
	fatDate      = 0x21 // the first of January 1980
	fatDirectory = 0x10
	fatLabel     = 0x08
	fatArchive   = 0x20
)

// A file is one of the medium. Its path has no leading slash.
type file struct {
	path string
	body []byte
}

// fatDir is a folder while the volume is laid out.
type fatDir struct {
	cluster uint32
	parent  *fatDir
	entries []byte
}

// A fatVolume is a volume while it is filled.
type fatVolume struct {
	bytes   []byte
	cluster int64  // bytes
	data    int64  // where cluster 2 begins
	next    uint32 // the first free cluster
	table   []uint32
	dirs    map[string]*fatDir
}

// formatFAT returns a volume with files, and room for free bytes more.
func formatFAT(label string, serial uint32, files []file, free int64) ([]byte, error) {
	dirs := map[string]bool{}
	for _, f := range files {
		for d := path.Dir(f.path); d != "."; d = path.Dir(d) {
			dirs[d] = true
		}
	}
	perCluster, clusters := int64(1), int64(0)
	for ; ; perCluster *= 2 {
		size := perCluster * sectorSize
		clusters = (free+size-1)/size + int64(len(dirs)) + 1
		for _, f := range files {
			clusters += (int64(len(f.body)) + size - 1) / size
		}
		if clusters = max(clusters, fatLeast); clusters <= fatMost {
			break
		}
	}
	tableSectors := ((clusters+2)*4 + sectorSize - 1) / sectorSize
	v := &fatVolume{cluster: perCluster * sectorSize, next: 3, table: make([]uint32, clusters+2), dirs: map[string]*fatDir{".": {cluster: 2}}}
	v.data = (fatReserved + fatTables*tableSectors) * sectorSize
	v.bytes = make([]byte, v.data+clusters*v.cluster)
	v.table[0], v.table[1], v.table[2] = 0x0ffffff8, fatEnd, fatEnd
	root := v.dirs["."]
	root.entries = append(root.entries, fatEntryOf(fmt.Sprintf("%-11s", label), fatLabel, 0, 0, 0)...)
	for _, d := range slices.Sorted(maps.Keys(dirs)) {
		if err := v.addDir(d); err != nil {
			return nil, err
		}
	}
	for _, f := range files {
		if err := v.add(f); err != nil {
			return nil, err
		}
	}
	for name, d := range v.dirs {
		if int64(len(d.entries)) > v.cluster {
			return nil, fmt.Errorf("too many files in %s", name)
		}
		copy(v.at(d.cluster), d.entries)
	}
	v.head(label, serial, perCluster, tableSectors)
	return v.bytes, nil
}

func (v *fatVolume) at(cluster uint32) []byte {
	return v.bytes[v.data+int64(cluster-2)*v.cluster:]
}

// take chains so many bytes of clusters and returns the first; 0 for none.
func (v *fatVolume) take(n int64) uint32 {
	count := uint32((n + v.cluster - 1) / v.cluster)
	if count == 0 {
		return 0
	}
	first := v.next
	for i := range count {
		v.table[first+i] = first + i + 1
	}
	v.next += count
	v.table[v.next-1] = fatEnd
	return first
}

func (v *fatVolume) addDir(name string) error {
	parent := v.dirs[path.Dir(name)]
	d := &fatDir{cluster: v.take(1), parent: parent}
	v.dirs[name] = d
	up := parent.cluster
	if up == 2 {
		up = 0 // how the root is called from within a folder
	}
	d.entries = append(fatEntryOf(".          ", fatDirectory, 0, d.cluster, 0), fatEntryOf("..         ", fatDirectory, 0, up, 0)...)
	return v.enter(parent, name, fatDirectory, d.cluster, 0)
}

func (v *fatVolume) add(f file) error {
	first := v.take(int64(len(f.body)))
	if first != 0 {
		copy(v.at(first), f.body)
	}
	return v.enter(v.dirs[path.Dir(f.path)], f.path, fatArchive, first, len(f.body))
}

// enter puts a name into a folder.
func (v *fatVolume) enter(d *fatDir, name string, kind byte, cluster uint32, size int) error {
	base, ext, _ := strings.Cut(path.Base(name), ".")
	if len(base) == 0 || len(base) > 8 || len(ext) > 3 {
		return fmt.Errorf("%s: no name of 8 letters, a dot and 3 letters", name)
	}
	var lower byte // which parts of the name are in small letters
	if base == strings.ToLower(base) {
		lower |= 0x08
	}
	if ext != "" && ext == strings.ToLower(ext) {
		lower |= 0x10
	}
	d.entries = append(d.entries, fatEntryOf(strings.ToUpper(fmt.Sprintf("%-8s%-3s", base, ext)), kind, lower, cluster, size)...)
	return nil
}

// fatEntryOf, little-endian:
//
//	 0:11  name
//	11     kind
//	12     which parts of the name are in small letters
//	16:18  date of making, also at 18 and 24
//	20:22  first cluster, high half
//	26:28  first cluster, low half
//	28:32  size in bytes
func fatEntryOf(name string, kind, lower byte, cluster uint32, size int) []byte {
	e := make([]byte, fatEntry)
	copy(e, name)
	e[11], e[12] = kind, lower
	for _, at := range []int{16, 18, 24} {
		binary.LittleEndian.PutUint16(e[at:], fatDate)
	}
	binary.LittleEndian.PutUint16(e[20:], uint16(cluster>>16))
	binary.LittleEndian.PutUint16(e[26:], uint16(cluster))
	binary.LittleEndian.PutUint32(e[28:], uint32(size))
	return e
}

// head writes boot sector, what is free, and the tables.
func (v *fatVolume) head(label string, serial uint32, perCluster, tableSectors int64) {
	b := v.bytes
	put := binary.LittleEndian
	copy(b, "\xeb\x58\x90PLATTER ")
	put.PutUint16(b[11:], sectorSize)
	b[13] = byte(perCluster)
	put.PutUint16(b[14:], fatReserved)
	b[16] = fatTables
	b[21] = 0xf8                                           // a disk
	put.PutUint16(b[24:], 63)                              // sectors of a track, as they are told
	put.PutUint16(b[26:], 255)                             // heads
	put.PutUint32(b[28:], espStart)                        // sectors before the volume
	put.PutUint32(b[32:], uint32(len(b)/sectorSize))       // sectors
	put.PutUint32(b[36:], uint32(tableSectors))            //
	put.PutUint32(b[44:], 2)                               // the root
	put.PutUint16(b[48:], 1)                               // sector of what is free
	put.PutUint16(b[50:], 6)                               // of the copy of this sector
	b[64], b[66] = 0x80, 0x29                              // a disk; the next three are there
	put.PutUint32(b[67:], serial)                          //
	copy(b[71:], fmt.Sprintf("%-11s%-8s", label, "FAT32")) //
	b[510], b[511] = 0x55, 0xaa
	info := b[sectorSize : 2*sectorSize]
	copy(info, "RRaA")
	copy(info[484:], "rrAa")
	put.PutUint32(info[488:], uint32(len(v.table))-v.next)
	put.PutUint32(info[492:], v.next)
	info[510], info[511] = 0x55, 0xaa
	copy(b[6*sectorSize:], b[:2*sectorSize])
	for n := range int64(fatTables) {
		for i, next := range v.table {
			put.PutUint32(b[(fatReserved+n*tableSectors)*sectorSize+int64(i)*4:], next)
		}
	}
}
