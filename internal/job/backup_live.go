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

// checkSelf refuses to copy a device in passes while what the passes store goes
// to that device.
func (r *run) checkSelf(s *subject, w way) error {
	place := r.env.Repo.Store.Location()
	copied := w.method() == passes.Method || w.method() == era.Method && s.device.How == block.Live
	if !copied || r.opts.RepositoryOnDevice || !filepath.IsAbs(place) {
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
	v, ok := s.view.(interface {
		cbt.Converging
		Frozen() time.Duration
		Notes() []string
	})
	m := report.Image
	if !ok || r.opts.DryRun {
		return nil
	}
	report.Frozen = v.Frozen()
	m.Warnings = append(m.Warnings, v.Notes()...)
	if m.Tracker.History == "" {
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
