// Package audit keeps a log of who did what with disks, images and keys on
// this machine.
//
// The log is only ever added to. Each entry holds the hash of the one before
// it, so that a line that is changed, moved or taken out is noticed; the last
// hash, the head, is kept in a file of its own and sent to the journal, so
// that a log that lost its end is noticed too. Who may write all of these can
// still forge the log: compare the head with one that was kept elsewhere.
package audit

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"platter/internal/agent/lines"
)

// An Entry is one line of the log.
type Entry struct {
	Seq  uint64    `json:"seq"` // from 1
	Time time.Time `json:"time"`
	Act  string    `json:"act"` // as the command is typed: backup, key add, agent start
	// Phase is began or ended; empty for what takes no time.
	Phase      string   `json:"phase,omitempty"`
	Who        Who      `json:"who"`
	Repository string   `json:"repository,omitempty"`
	Subjects   []string `json:"subjects,omitempty"` // as they were named
	Images     []string `json:"images,omitempty"`   // volume and ID
	Run        string   `json:"run,omitempty"`      // of the history
	Outcome    string   `json:"outcome,omitempty"`
	Prev       string   `json:"prev"` // hash of the entry before, 64 hex digits
	Hash       string   `json:"-"`    // of this one
}

// Phases of an act.
const (
	Began = "began"
	Ended = "ended"
)

// A Log is the log of one machine.
type Log struct {
	dir     string
	now     func() time.Time
	largest int64 // bytes of one file
	// The journal may be nil; told returns nil where it has no head.
	journal func(log string, h Head) error
	told    func(log string) *Head
}

// Names of files in the folder of the log.
const (
	folder   = "audit"
	current  = "audit.jsonl"
	headName = "head"
)

const defaultLargest = 16 << 20

// In returns the log in a machine's state folder. No file is made yet.
func In(dir string) *Log {
	return &Log{dir: filepath.Join(dir, folder), now: time.Now, largest: defaultLargest, journal: toJournal, told: fromJournal}
}

// A Head is the number and the hash of the last entry.
type Head struct {
	Seq  uint64 `json:"seq"`
	Hash string `json:"hash"`
}

func (l *Log) path() string { return filepath.Join(l.dir, current) }

// Add adds an entry, which is durable when Add returns. Number, time and
// hashes are filled in, and who, if it is not said.
func (l *Log) Add(e Entry) error {
	if e.Who == (Who{}) {
		e.Who = Me()
	}
	head, err := l.add(&e)
	if err != nil {
		return fmt.Errorf("audit log: %w", err)
	}
	if l.journal != nil {
		_ = l.journal(l.dir, head) // there may be none; the file has it
	}
	return nil
}

func (l *Log) add(e *Entry) (Head, error) {
	f, err := lines.Open(l.path())
	if err != nil {
		return Head{}, err
	}
	defer f.Close()
	last, err := l.last(f)
	if err != nil {
		return Head{}, err
	}
	if f.Size() >= l.largest {
		if err := f.Rename(rotated(last.Seq)); err != nil {
			return Head{}, err
		}
	}
	e.Seq, e.Prev, e.Time = last.Seq+1, last.Hash, l.now()
	line, hash, err := encode(e)
	if err != nil {
		return Head{}, err
	}
	if err := f.Append(line); err != nil {
		return Head{}, err
	}
	head := Head{e.Seq, hash}
	return head, l.keep(head)
}

// keep replaces the head beside the log. It is not made durable: one that a
// crash sets back is of an entry before, and as good as it was then.
func (l *Log) keep(head Head) error {
	text, err := json.Marshal(head)
	if err != nil {
		return err
	}
	path := filepath.Join(l.dir, headName)
	if err := os.WriteFile(path+".new", append(text, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// last returns the head that the next entry goes on from: the one that was
// kept, so that what a log lost stays to be seen, or that of an entry after it,
// where a crash came before the head was written.
func (l *Log) last(f *lines.File) (Head, error) {
	kept, err := l.head()
	if err != nil {
		return Head{}, err
	}
	line, err := f.Last()
	if err != nil {
		return Head{}, err
	}
	e, ok := decode(line)
	if !ok || e.Seq <= kept.Seq {
		return kept, nil
	}
	return Head{e.Seq, e.Hash}, nil
}

// Head returns the number and hash of the last entry, as they were kept beside
// the log; zero for a log that was never written to.
func (l *Log) Head() (Head, error) { return l.head() }

func (l *Log) head() (h Head, err error) {
	text, err := os.ReadFile(filepath.Join(l.dir, headName))
	if errors.Is(err, fs.ErrNotExist) {
		return Head{Hash: firstPrev}, nil
	}
	if err != nil {
		return h, err
	}
	if err := json.Unmarshal(text, &h); err != nil || len(h.Hash) != len(firstPrev) {
		return Head{Hash: firstPrev}, nil // Verify says so
	}
	return h, nil
}

// rotated is the name of a file that ends with entry seq. Names sort in the
// order of the entries.
func rotated(seq uint64) string { return fmt.Sprintf("audit-%012d.jsonl", seq) }

// firstPrev stands in the first entry in place of a hash.
var firstPrev = hex.EncodeToString(make([]byte, sha256.Size))

// A line is the JSON of its entry with one more key at its end, the hash of
// all before that key. The entry holds the hash of the one before it.
const hashKey = `,"hash":"`

func encode(e *Entry) (line []byte, hash string, err error) {
	body, err := json.Marshal(e)
	if err != nil {
		return nil, "", err
	}
	body = body[:len(body)-1]
	sum := sha256.Sum256(body)
	hash = hex.EncodeToString(sum[:])
	return fmt.Appendf(body, `%s%s"}`, hashKey, hash), hash, nil
}

// decode returns the entry of a line whose hash is right.
func decode(line []byte) (e Entry, ok bool) {
	at := len(line) - len(hashKey) - 2*sha256.Size - len(`"}`)
	if at < 0 || string(line[at:at+len(hashKey)]) != hashKey {
		return e, false
	}
	sum := sha256.Sum256(line[:at])
	e.Hash = string(line[at+len(hashKey) : len(line)-2])
	if hex.EncodeToString(sum[:]) != e.Hash {
		return e, false
	}
	hash := e.Hash
	if json.Unmarshal(line, &e) != nil {
		return e, false
	}
	e.Hash = hash
	return e, true
}
