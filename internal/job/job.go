// Package job is one run of something: a backup, a restore, a verification, a
// prune, a collection. The story of each reads from top to bottom.
//
// A job takes an Env and its own options, reports progress while it works, and
// returns a report that says everything a person or a program wants to know.
// Reports marshal to JSON as they stand.
package job

import (
	"errors"
	"time"

	"platter/block"
	"platter/block/snapshot"
	"platter/catalog"
	"platter/cbt"
	"platter/image"
	"platter/image/repo"
	"platter/internal/export/adapt"
	"platter/retention"
)

// An Env is what every job works with.
type Env struct {
	Repo *repo.Repo
	// Catalog is nil for reading jobs that run while another process holds
	// it, or on a machine that has none.
	Catalog *catalog.Catalog
	// Memory is the budget in bytes for the whole process.
	Memory   int64
	Version  string         // of the program, for manifests
	Host     string         // this machine's name, for volume names
	Progress func(Progress) // may be nil; called from one goroutine at a time
	// Warn reports what a person should know at once; may be nil.
	Warn func(string)
}

// Progress is a moment of a running job.
type Progress struct {
	Job       string        `json:"job"`
	Subject   string        `json:"subject,omitempty"` // volume, image or target
	Phase     string        `json:"phase,omitempty"`   // what is being done, a verb: read, verify, write, read back, …
	Done      int64         `json:"bytes_done"`
	Total     int64         `json:"bytes_total"` // 0 while unknown
	Unchanged int64         `json:"bytes_unchanged"`
	Stored    int64         `json:"bytes_stored"`
	Elapsed   time.Duration `json:"elapsed_ns"`
}

// Errors that decide the exit status.
var (
	// ErrDamaged: stored data is damaged or missing (exit 13).
	ErrDamaged = errors.New("damage found")
	// ErrUsage: the options cannot be meant (exit 2).
	ErrUsage = errors.New("usage")
	// ErrConfirm: a destructive job was not confirmed (exit 2).
	ErrConfirm = errors.New("not confirmed")
)

// BackupOptions say what to image and how.
type BackupOptions struct {
	Devices []string
	// Volume names the volume (HOST/NAME or NAME); empty derives it from the
	// device. Not with several devices.
	Volume string
	Tags   []string
	// Tracker is auto, full or the name of one: then no other will do.
	Tracker string
	// Audit is auto, full or off; "" for auto.
	Audit string
	// Ways are the still views and trackers there are.
	Ways            Ways
	Live            bool  // image a device that is in use and fits no still view, as fuzzy
	AllBlocks       bool  // read and keep what filesystems call free, too
	AllowUnreadable bool  // go on past read errors, recording the ranges
	ReplaceDevice   bool  // allow another device under a known volume name
	DryRun          bool  // read and compare, store nothing
	LimitRead       int64 // bytes per second, 0 for none
	Hooks           Hooks
	// Together images all devices as they were at one moment, or none.
	Together bool
	// RepositoryOnDevice allows a device that is in use to be imaged to a
	// repository that lies on it.
	RepositoryOnDevice bool
	// CheckpointEvery is how many bytes of the device a run that dies may have
	// to read again, 0 for 1 GiB; it is less where they take long.
	CheckpointEvery int64
	// Sources replaces opening Devices, for tests; one for each device.
	Sources []block.Source
}

// Ways are what the program knows to image a device by.
type Ways struct {
	// Views are tried in order: the first that fits, and has a tracker where
	// one is wanted, is taken.
	Views []snapshot.Provider
	// Trackers are each for views of one method. Of those for the same method
	// the first is preferred.
	Trackers []cbt.Opener
}

// A BackupReport tells of one image made.
type BackupReport struct {
	Image    *image.Manifest `json:"image"`
	Parent   string          `json:"parent,omitempty"` // image compared with, hex
	Elapsed  time.Duration   `json:"elapsed_ns"`
	DryRun   bool            `json:"dry_run,omitempty"`
	Frozen   time.Duration   `json:"frozen_ns,omitempty"` // that filesystems stood still, at most
	Together bool            `json:"together,omitempty"`  // all images of the run are of one moment
	Segments int             `json:"segments"`            // new ones
	// Resumed bytes of the device were not read: an earlier run had, and the
	// device has not been written to since.
	Resumed int64 `json:"resumed_bytes,omitempty"`
	// Absent are images, of any volume, that this machine has seen and the
	// repository does not show any more; with the run's first image.
	Absent []Absent `json:"absent,omitempty"`
}

// RestoreOptions say which image to write where.
type RestoreOptions struct {
	Image      string // as on the command line; with :pN at the end partition N of it
	Target     string
	InPlace    bool // write only blocks that differ
	Grow       bool // the last partition and its filesystem take the room that a larger target has
	NoReadBack bool
	DryRun     bool // plan only
	Adapt      AdaptOptions
	// Ways are the trackers that may tell an in-place restore where to look;
	// without any it compares every block. State is a directory for the journal
	// of what is under way.
	Ways  Ways
	State string
	// Confirm shows the plan and returns whether to go on; nil refuses when
	// the plan destroys anything. --yes is a function that returns true.
	Confirm    func(*RestorePlan) (bool, error)
	LimitWrite int64 // bytes per second, 0 for none
}

// A RestorePlan says what a restore will do, before it writes anything.
type RestorePlan struct {
	Image    *image.Manifest `json:"image"`
	Target   block.Info      `json:"target"`
	Create   bool            `json:"create"`             // the target is a file that does not exist yet
	Destroys string          `json:"destroys,omitempty"` // what is on the target now, for people
	InPlace  bool            `json:"in_place"`
	// Partition is what of the image is written, nil for all of it.
	Partition *block.Partition `json:"partition,omitempty"`
	Fit       *block.Fit       `json:"fit"` // what of it will be another than in the image
	Adapted   *adapt.Report    `json:"adapted,omitempty"`
	Steps     []string         `json:"steps"`
	Notices   []string         `json:"notices,omitempty"` // fuzzy image, unreadable ranges, sector sizes, …
}

// A RestoreReport tells what was written and proven.
type RestoreReport struct {
	Plan     *RestorePlan `json:"plan"`
	Written  int64        `json:"written"` // bytes of data written
	Zeroed   int64        `json:"zeroed"`  // bytes made zero without writing data
	Kept     int64        `json:"kept"`    // bytes found equal already (--in-place)
	Trusted  int64        `json:"trusted"` // bytes not looked at: a tracker vouches for them (--in-place)
	ReadBack bool         `json:"read_back"`
	Rollback *Rollback    `json:"rollback,omitempty"`
	Grown    *Grown       `json:"grown,omitempty"` // --grow: nil where there was no room
	// Adapted is what was changed beside what the plan says: the firmware's
	// list of what to start.
	Adapted  []string      `json:"adapted,omitempty"`
	Notices  []string      `json:"notices,omitempty"`
	Segments int           `json:"segments"` // segments touched
	Elapsed  time.Duration `json:"elapsed_ns"`
}

// VerifyOptions say what to prove.
type VerifyOptions struct {
	Images   []string // none for all
	ReadData bool
	// Subset reads this share of the data segments, 0 < Subset <= 1.
	Subset float64
}

// A Damage is one place where stored data is not what was written.
type Damage struct {
	Image   string         `json:"image,omitempty"` // hex; empty for a segment no image needs
	Volume  string         `json:"volume,omitempty"`
	Extent  block.Extent   `json:"extent"` // of the image, affected
	At      image.Location `json:"at"`
	Object  string         `json:"object"` // name in the store
	Problem string         `json:"problem"`

	manifest string // name of the image's; empty where Image is
}

// A Forgery is an object that somebody with a key of the repository wrote and
// had no right to. It counts for nothing, and takes nothing from any image.
type Forgery struct {
	Object  string `json:"object"` // name in the store
	Problem string `json:"problem"`
}

// A VerifyReport tells what was proven and what was found.
type VerifyReport struct {
	Images    int    `json:"images"`
	Segments  int    `json:"segments"`
	Pages     int64  `json:"pages"`
	Blocks    int64  `json:"blocks"` // distinct blocks whose bytes were read
	BytesRead int64  `json:"bytes_read"`
	Scope     string `json:"scope"`              // structure, 5 %, every byte
	Attested  int    `json:"attested"`           // segments that everybody may dedupe against from now on
	Condemned int    `json:"condemned_segments"` // that gc deletes when their grace is over
	// Indexes are objects that hold the ends of segments for newcomers: of
	// Indexed segments that are there, and IndexedGone that are not any more.
	Indexes     int           `json:"indexes"`
	Indexed     int           `json:"indexed_segments"`
	IndexedGone int           `json:"indexed_segments_gone"`
	Damage      []Damage      `json:"damage,omitempty"`
	Forged      []Forgery     `json:"forged,omitempty"`
	Elapsed     time.Duration `json:"elapsed_ns"`
}

// PruneOptions say which images to keep; see retention.Rule.
type PruneOptions struct {
	Policy retention.Policy // of all images, where there are no Rules
	Rules  []retention.Rule
	// MaxDelete is the largest share of the images that one writer made of a
	// volume that one run may forget, MaxCount the largest number of all; 0 for any.
	MaxDelete float64
	MaxCount  int
	Volumes   []string // none for all
	// Suspended says why no image of a volume is forgotten; "" if some may be.
	// It may be nil.
	Suspended func(volume string) string
	Zone      *time.Location // of the calendar rules; nil for this machine's
	DryRun    bool
}

// PruneReport gives a verdict on every image looked at.
type PruneReport struct {
	Verdicts []PruneVerdict `json:"verdicts"`
	Kept     int            `json:"kept"`
	Dropped  int            `json:"dropped"`
	DryRun   bool           `json:"dry_run,omitempty"`
	Refused  bool           `json:"refused,omitempty"` // it was too many: nothing was forgotten
}

// A PruneVerdict says why an image is kept or dropped.
type PruneVerdict struct {
	Image  string    `json:"image"`
	Volume string    `json:"volume"`
	Time   time.Time `json:"time"`
	Keep   bool      `json:"keep"`
	Reason string    `json:"reason"`
	name   string    // of the manifest
	line   string    // volume and writer: the images that it was judged with
}

// CollectOptions bound a collection.
type CollectOptions struct {
	Grace     time.Duration // from condemned to deleted
	MinAge    time.Duration // youngest segment that may be condemned
	MaxDelete float64       // largest share of stored bytes one run may delete, but for what repacking moved
	// MaxUnused is the share of stored bytes that may be of no use, in segments
	// that hold live records besides: above it segments are repacked, those
	// with the least in use first. 1 repacks nothing.
	MaxUnused  float64
	LimitRead  int64 // bytes per second read to be moved, 0 for none
	LimitWrite int64 // bytes per second moved, 0 for none
	DryRun     bool
	// indexFloor is from how many segments without an index on one is written;
	// 0 for the default. Tests want few.
	indexFloor int
}

// CollectReport tells what was condemned and when it goes, and what was moved.
type CollectReport struct {
	Segments  int           `json:"segments"` // looked at
	Live      int64         `json:"live_bytes"`
	Condemned []Condemned   `json:"condemned"` // now waiting, oldest first
	Deleted   []Condemned   `json:"deleted"`
	Spared    int           `json:"spared"` // condemned before, found used again
	Freed     int64         `json:"freed_bytes"`
	Waiting   int64         `json:"waiting_bytes"`             // of what is condemned: freed when its grace is over
	Unused    int64         `json:"unused_bytes"`              // about, beside live records, in segments that stay
	Postponed int64         `json:"postponed_bytes,omitempty"` // in segments that hold too much of no use and wait for the next collection
	Repacked  []Repacked    `json:"repacked"`
	Moved     int64         `json:"moved_bytes"`  // stored again in new segments
	Written   int           `json:"new_segments"` // that they are in
	Indexes   int           `json:"new_indexes"`
	Notices   []string      `json:"notices,omitempty"`
	DryRun    bool          `json:"dry_run,omitempty"`
	Elapsed   time.Duration `json:"elapsed_ns"`
}

// A Repacked segment had its live records moved to another, and is condemned.
type Repacked struct {
	Segment image.SegmentID `json:"segment"`
	Size    int64           `json:"size"`
	Live    int64           `json:"live"` // bytes in use, about
	Merged  bool            `json:"merged"`
}

// A Condemned segment holds nothing that any image needs.
type Condemned struct {
	Segment image.SegmentID `json:"segment"`
	Size    int64           `json:"size"`
	Since   time.Time       `json:"since"`
	Goes    time.Time       `json:"goes"` // not deleted before
}

// DiffReport lists where two images differ, in order, merged into extents.
type DiffReport struct {
	A, B    string         `json:"-"`
	Extents []block.Extent `json:"extents"`
	Bytes   int64          `json:"bytes"`
}

// StatsReport sums up a repository.
type StatsReport struct {
	Repository string `json:"repository"`
	Volumes    int    `json:"volumes"`
	Images     int    `json:"images"`
	Logical    int64  `json:"logical_bytes"` // device bytes of all images
	Segments   int    `json:"segments"`
	Blocks     int64  `json:"blocks"` // records of data segments
	Plain      int64  `json:"plain_bytes"`
	Stored     int64  `json:"stored_bytes"` // of all objects
	Condemned  int64  `json:"condemned_bytes"`
}
