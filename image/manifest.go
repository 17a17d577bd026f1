package image

import (
	"encoding/hex"
	"time"

	"platter/block"
)

// An ImageID is the random 128-bit name of an image.
type ImageID [16]byte

// String returns id as 32 hex digits.
func (id ImageID) String() string { return hex.EncodeToString(id[:]) }

// MarshalText encodes id as 32 hex digits.
func (id ImageID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText is the reverse of MarshalText.
func (id *ImageID) UnmarshalText(text []byte) error { return unhex(id[:], text, "image ID") }

// A Manifest makes an image: it names the root of a complete block map and
// says of what, when and how. It is written once, last, and is the commit
// point of a backup.
type Manifest struct {
	ID     ImageID `json:"id"`
	Volume string  `json:"volume"` // HOST/NAME
	// Seq numbers the images of a volume from 1 and never repeats, not even
	// after a prune. Order is by Seq; the wall clock is only shown.
	Seq  uint64    `json:"seq"`
	Set  string    `json:"set,omitempty"` // shared by the images of one run over several devices
	Host string    `json:"host"`
	Tags []string  `json:"tags,omitempty"`
	Time time.Time `json:"time"`     // when the still view was taken, or reading began
	Done time.Time `json:"finished"` // when the last segment was durable

	BlockSize int      `json:"block_size"` // bytes
	Size      int64    `json:"size"`       // bytes of the device
	Root      ID       `json:"root"`       // zero for a device of zeros only
	RootAt    Location `json:"root_at"`    // a hint, like those in pages

	Device block.Info `json:"device"`

	// Predecessor is the digest of the volume's manifest before this one,
	// all-zero for the first.
	Predecessor Digest `json:"predecessor"`

	Tracker Tracking    `json:"tracker"`
	Audit   *Audit      `json:"audit,omitempty"` // of what the tracker vouched for
	Changes []Change    `json:"changes,omitempty"`
	Free    []FreeSpace `json:"free_space,omitempty"` // of each filesystem that was asked
	// LeftOut: zeros of this image may stand for what was free, in it or in an
	// image that it was tracked from.
	LeftOut    bool           `json:"left_out,omitempty"`
	Fuzzy      bool           `json:"fuzzy,omitempty"`      // written to while it was read
	Unreadable []block.Extent `json:"unreadable,omitempty"` // ranges that could not be read and hold zeros
	Warnings   []string       `json:"warnings,omitempty"`

	Stats Stats  `json:"stats"`
	Run   string `json:"run"` // the run that made it, hex
	// Epoch of the newest list of condemned segments when the run began.
	Epoch uint64 `json:"epoch"`
	Tool  string `json:"tool"` // version of the program
	// Writer is the public key of who signed the manifest, 64 hex digits; ""
	// in a repository that is not encrypted. WriteOnly writers cannot read.
	Writer    string `json:"writer,omitempty"`
	WriteOnly bool   `json:"write_only,omitempty"`
	// Features that a reader must know to read this image right.
	Features []string `json:"features,omitempty"`
}

// Tracking records how a backup knew what had changed.
type Tracking struct {
	Name string `json:"name"`          // "full" when every block was compared
	Why  string `json:"why,omitempty"` // why every block, where a tracker was there
	// View is the method of the still view that was read, "direct" for the
	// device itself.
	View string `json:"view,omitempty"`
	// History names the tracker that Generation belongs to. Both are empty in
	// an image that the next one cannot be tracked from.
	History    string   `json:"history,omitempty"`
	Generation []byte   `json:"generation,omitempty"` // opaque to all but the tracker
	Parent     ImageID  `json:"parent"`               // image compared with; zero for none
	Passed     []Passed `json:"passed,omitempty"`     // better ways that did not fit
}

// Passed is a way of imaging a device that was passed over.
type Passed struct {
	Way string `json:"way"` // method of the still view, or tracker
	Why string `json:"why"`
}

// An Audit reads, a share a run, what trackers say has not changed. It goes
// from the device's start to its end within a cycle of 30 days.
type Audit struct {
	Since time.Time `json:"since"` // when the cycle began; every block was compared then, or the cycle before ended
	Done  int64     `json:"done"`  // bytes of the device that had their turn since
	// What this run read in vain, in bytes, apart from Stats.Read: places that
	// are read every time, and the share that was due.
	Canaries int64         `json:"canary_bytes"`
	Read     int64         `json:"read_bytes"`
	Took     time.Duration `json:"took_ns"` // of the share
	// Missed is what had changed although the tracker vouched for it, as far
	// as it was looked for: then every block was compared.
	Missed []block.Extent `json:"missed,omitempty"`
}

// A Change tells how much of a part of the device differs from the image that
// was compared with.
type Change struct {
	Partition int    `json:"partition,omitempty"`  // number, 0 for what lies outside of partitions
	Name      string `json:"name,omitempty"`       // of the partition
	Content   string `json:"filesystem,omitempty"` // what the partition or device holds
	Volume    string `json:"volume,omitempty"`     // GROUP/NAME, of what LVM has there
	Bytes     int64  `json:"bytes"`                // in whole blocks
}

// FreeSpace is what a filesystem on the device says is free. Of that the image
// has zeros, or what was there when it was last in use.
type FreeSpace struct {
	Partition int    `json:"partition,omitempty"` // number, 0 for the whole device
	Content   string `json:"filesystem"`
	Bytes     int64  `json:"bytes"`         // in whole blocks
	Read      int64  `json:"read_bytes"`    // of the filesystem's records, to know that
	Why       string `json:"why,omitempty"` // why it was not believed, and all of it counts as used
}

// Stats counts what a backup did. All are bytes unless named otherwise.
type Stats struct {
	Read      int64 `json:"read"`      // read from the device
	Zero      int64 `json:"zero"`      // zeros, holes included
	Free      int64 `json:"free"`      // not read, as its filesystem says that nothing is there: zeros in the image
	Unchanged int64 `json:"unchanged"` // equal to the parent at the same offset
	Known     int64 `json:"known"`     // stored before, elsewhere
	New       int64 `json:"new"`       // plain bytes stored by this run
	Stored    int64 `json:"stored"`    // encoded bytes of those, in segments
	Overhead  int64 `json:"overhead"`  // map pages, headers, footers and padding
}

// A Digest is a keyed BLAKE3-256 of a whole object.
type Digest [32]byte

// String returns d as 64 hex digits.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// MarshalText encodes d as 64 hex digits.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText is the reverse of MarshalText.
func (d *Digest) UnmarshalText(text []byte) error { return unhex(d[:], text, "digest") }

// Line tells whose images of the volume this one is counted with: those who
// can read share one line, "", any other writer has its own. Images of other
// lines are another's word, whatever volume they name.
func (m *Manifest) Line() string {
	if m.WriteOnly {
		return m.Writer
	}
	return ""
}

// Blocks returns the number of blocks of the image, the last one perhaps short.
func (m *Manifest) Blocks() int64 {
	return (m.Size + int64(m.BlockSize) - 1) / int64(m.BlockSize)
}

// Incomplete reports whether the image lacks data or was not read from a
// still device.
func (m *Manifest) Incomplete() bool { return m.Fuzzy || len(m.Unreadable) > 0 }

// Missed reports whether a tracker was found to have missed a write. The image
// is whole; those before, since its last full compare, may lack it.
func (m *Manifest) Missed() bool { return m.Audit != nil && len(m.Audit.Missed) > 0 }
