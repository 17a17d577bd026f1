package job

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"platter/block"
	"platter/image"
	"platter/internal/durable"
)

// A journal says that a rollback of a device was begun, and to what image. It
// is durable before the first byte is written, and goes when the last one is.
// One that is found belongs to a rollback that was cut off, and whose target is
// a mix of two moments: whoever asks what it holds is told.
type journal struct {
	path string
}

// journaled is what is in a journal.
type journaled struct {
	Version int       `json:"rollback"`
	Target  string    `json:"target"`
	Name    string    `json:"device"`
	Size    int64     `json:"size"`
	Volume  string    `json:"volume"`
	Image   string    `json:"image"`
	Parent  string    `json:"parent"`
	Begun   time.Time `json:"begun"`
}

// openJournal makes the journal of a target durable. One that is there already
// is taken over, and the report says since when.
func openJournal(state string, m, parent *image.Manifest, target *block.Info, report *Rollback) (*journal, error) {
	dir := filepath.Join(state, "rollbacks")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make room for the journal of the rollback: %w", err)
	}
	name := sha256.Sum256([]byte(target.Name + "\x00" + target.Identity))
	j := &journal{filepath.Join(dir, fmt.Sprintf("%x.json", name[:8]))}
	entry := journaled{1, target.Path, target.Name, target.Size, m.Volume, m.ID.String(), parent.ID.String(), time.Now().UTC()}
	if old, err := os.ReadFile(j.path); err == nil {
		var before journaled
		if json.Unmarshal(old, &before) == nil {
			report.Resumed = before.Begun.Format(time.RFC3339)
		}
	}
	b, err := json.MarshalIndent(entry, "", "  ")
	if err != nil {
		return nil, err
	}
	err = durable.Replace(j.path, append(b, '\n'))
	if err == nil { // the folder may be new too
		err = durable.SyncDir(state)
	}
	if err != nil {
		return nil, fmt.Errorf("write the journal of the rollback: %w", err)
	}
	return j, nil
}

func (j *journal) remove() error {
	err := os.Remove(j.path)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		err = durable.SyncDir(filepath.Dir(j.path))
	}
	if err != nil {
		return fmt.Errorf("end the journal of the rollback, which is done: %w", err)
	}
	return nil
}
