// Package block is a disk: devices and the extents of them, read in parallel
// past the page cache, written on restore, and what their first sectors say
// of partitions and filesystems.
//
// It knows nothing of backups.
package block

import "fmt"

// An Extent is a range of bytes of a device.
type Extent struct {
	Offset int64 `json:"offset"`
	Length int64 `json:"length"`
}

// End returns the first byte after e.
func (e Extent) End() int64 { return e.Offset + e.Length }

// String returns OFFSET+LENGTH.
func (e Extent) String() string { return fmt.Sprintf("%d+%d", e.Offset, e.Length) }

// Kinds of device.
const (
	KindFile      = "file"
	KindDisk      = "disk"
	KindPartition = "partition"
	KindLoop      = "loop"
	KindLVM       = "lvm"
	KindZvol      = "zvol"
	KindVM        = "vm" // of a running virtual machine
	KindOther     = "other"
)

// Info identifies a device and says what is on it. It is kept in the manifest
// and shown to people; all strings come from the device and are untrusted.
type Info struct {
	Path           string `json:"path"` // as named on the command line
	Kind           string `json:"kind"`
	Size           int64  `json:"size"`            // bytes
	LogicalSector  int    `json:"logical_sector"`  // bytes, 512 for files
	PhysicalSector int    `json:"physical_sector"` // bytes
	Serial         string `json:"serial,omitempty"`
	WWN            string `json:"wwn,omitempty"`
	Model          string `json:"model,omitempty"`
	// Name is a stable name for the device that never comes from sdX: serial
	// or WWN, LV, dataset, or file path. Only [A-Za-z0-9._/+-].
	Name string `json:"name"`
	// Identity tells this device from another of the same Name (serial, WWN,
	// LV or partition UUID); empty when nothing does.
	Identity string `json:"identity,omitempty"`
	Table    *Table `json:"table,omitempty"`      // nil without a partition table
	Content  string `json:"filesystem,omitempty"` // what the device itself holds (ext4, LVM2_member, …), "" if unknown or partitioned
	Firmware string `json:"firmware,omitempty"`   // what the image boots by: bios, uefi, both, or "" if it does not look bootable
}

// A Table is a partition table.
type Table struct {
	Type       string      `json:"type"` // gpt or mbr
	ID         string      `json:"id"`   // disk GUID or MBR signature
	SectorSize int         `json:"sector_size"`
	Partitions []Partition `json:"partitions"`
}

// A Partition is one entry of a Table, logical ones of an MBR included.
type Partition struct {
	Number  int    `json:"number"`
	Extent         // bytes
	Type    string `json:"type"` // GUID, or MBR type in hex
	ID      string `json:"id,omitempty"`
	Name    string `json:"name,omitempty"`
	Content string `json:"filesystem,omitempty"`
	Active  bool   `json:"active,omitempty"`
}
