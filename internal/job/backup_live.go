package job

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"platter/block"
	"platter/cbt"
	"platter/cbt/era"
	passes "platter/cbt/live"
)

// errSelf means that a repository lies on the device that is to be imaged
// while it is in use.
var errSelf = errors.New("the repository lies on it, and each pass would copy what the one before stored: " +
	"name another repository, or say --repository-on-device")

// moves reports whether a way is to copy a device while it is written to.
func moves(s *subject, w way) bool {
	return w.method() == passes.Method || w.method() == era.Method && s.device.How == block.Live
}

// checkSelf refuses to copy a device in passes while what the passes store goes
// to that device.
func (r *run) checkSelf(s *subject, w way) error {
	place := r.env.Repo.Store.Location()
	if !moves(s, w) || r.opts.RepositoryOnDevice || !filepath.IsAbs(place) {
		return nil
	}
	carries, err := block.Carries(s.path, place)
	if err == nil && carries {
		err = errSelf
	}
	return err
}

// settle sets down the moment that a view came to in the end: when it was, what
// it cost, and where the tracker goes on from.
func (r *run) settle(ctx context.Context, s *subject, t cbt.Tracker, report *BackupReport) (err error) {
	m := report.Image
	if v, ok := s.view.(interface {
		Frozen() time.Duration
		Notes() []string
	}); ok && !r.opts.DryRun {
		report.Frozen = v.Frozen()
		m.Warnings = append(m.Warnings, v.Notes()...)
	}
	if _, ok := s.view.(cbt.Converging); !ok || r.opts.DryRun || m.Tracker.History == "" {
		return nil
	}
	if m.Tracker.Generation, err = t.Mark(ctx); err != nil {
		return fmt.Errorf("mark the history of tracker %s: %w", t.Name(), err)
	}
	return nil
}

// trustOwn lets the next pass rely on what this run has stored. No pass is
// under way.
func (r *run) trustOwn() {
	for _, w := range []*segmentWriter{r.data, r.pages} {
		for _, id := range w.own {
			r.usable[id] = true
		}
	}
}
