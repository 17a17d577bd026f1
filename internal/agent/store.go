package agent

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"platter/internal/durable"
)

// state is what is on disk.
type state struct {
	Version int             `json:"version"`
	Paused  pause           `json:"paused,omitzero"`
	Jobs    map[string]kept `json:"jobs"`
}

// A store keeps the state in a file of a directory.
type store struct{ dir string }

const (
	stateName    = "agent.json"
	stateVersion = 1
	asideSuffix  = ".damaged"
)

// load returns what is there. What cannot be read is put aside, and is no
// reason to run nothing; the error tells of it.
func (s store) load() (state, error) {
	path := filepath.Join(s.dir, stateName)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return state{}, nil
	}
	var st state
	if err == nil {
		err = json.Unmarshal(b, &st)
	}
	if err == nil && st.Version != stateVersion {
		err = fmt.Errorf("version %d, want %d", st.Version, stateVersion)
	}
	if err != nil {
		err = fmt.Errorf("what the last agent left in %s cannot be used: %w: runs that it missed are not caught up; it is kept as %s", path, err, path+asideSuffix)
		return state{}, errors.Join(err, os.Rename(path, path+asideSuffix))
	}
	return st, nil
}

// save makes the state durable, in place of the last one. Of jobs that have not
// changed since, the text is at hand: there may be hundreds.
func (a *Agent) save() error {
	var b bytes.Buffer
	b.Grow(a.size)
	defer func() { a.size = b.Len() }()
	pause, err := json.Marshal(a.paused)
	fmt.Fprintf(&b, "{\"version\":%d,\n\"paused\":%s,\n\"jobs\":{", stateVersion, pause)
	sep := "\n"
	for _, j := range a.jobs {
		if j.gone && j.Running == nil {
			continue
		}
		if j.text == nil {
			var bad error
			j.text, bad = json.Marshal(j.kept)
			err = errors.Join(err, bad)
		}
		b.WriteString(sep + `"` + j.conf.Name + `":`) // a name has nothing to be escaped
		b.Write(j.text)
		sep = ",\n"
	}
	b.WriteString("}}\n")
	if err == nil {
		if err = os.MkdirAll(a.store.dir, 0o700); err == nil {
			err = durable.Replace(filepath.Join(a.store.dir, stateName), b.Bytes())
		}
	}
	if err != nil {
		return fmt.Errorf("state of the agent: %w", err)
	}
	return nil
}
