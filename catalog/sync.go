package catalog

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"platter/image"
	"platter/image/segment"
)

// A Repository is what a catalog is made from.
type Repository interface {
	// Segments calls f for every segment, in order of ID.
	Segments(ctx context.Context, f func(id image.SegmentID, size int64, modified time.Time) error) error
	// Footer reads and checks the footer of a segment.
	Footer(ctx context.Context, id image.SegmentID) (*segment.Footer, error)
	// Footers calls f with the checked footer of every segment in list, or with
	// what is wrong with it, in any order and from several goroutines at once.
	Footers(ctx context.Context, list []segment.Object, f func(segment.Object, *segment.Footer, error) error) error
	// Pages calls f for every page of a page segment, decoded and checked, in
	// order of its records.
	Pages(ctx context.Context, footer *segment.Footer, f func(record int, p *image.Page, id image.ID) error) error
	// Manifests calls f for the name of every manifest, in order of name.
	Manifests(ctx context.Context, f func(name string) error) error
	// Manifest reads and checks a manifest.
	Manifest(ctx context.Context, name string) (*image.Manifest, error)
	// Damaged calls f for every record that verification found damaged.
	Damaged(ctx context.Context, f func(image.ID, image.Location) error) error
}

// A SyncReport says what bringing a catalog up to date has changed.
type SyncReport struct {
	Segments         int           `json:"segments"` // in the repository
	Added            int           `json:"added"`    // segments
	Dropped          int           `json:"dropped"`  // segments
	Records          int64         `json:"records"`  // of the segments added
	Manifests        int           `json:"manifests"`
	ManifestsAdded   int           `json:"manifests_added"`
	ManifestsDropped int           `json:"manifests_dropped"`
	Damaged          int           `json:"damaged"` // records
	Skipped          int           `json:"skipped"` // segments and manifests that could not be read
	Warnings         []string      `json:"warnings,omitempty"`
	Elapsed          time.Duration `json:"elapsed_ns"`
}

// maxWarnings bounds SyncReport.Warnings. Skipped counts all.
const maxWarnings = 100

func (r *SyncReport) warn(format string, args ...any) {
	r.Skipped++
	if len(r.Warnings) < maxWarnings {
		r.Warnings = append(r.Warnings, fmt.Sprintf(format, args...))
	}
}

func (r *SyncReport) skip(id image.SegmentID, problem error) {
	r.warn("segment %s: %v: its blocks count as unknown", id, problem)
}

// Sync brings the catalog up to date with its repository: it adds segments and
// manifests that are new there and drops those that are gone. When nothing has
// changed it costs one listing. A segment or manifest that cannot be read is
// passed over with a warning: what it holds counts as unknown. progress, which
// may be nil, hears of segments added, one call at a time.
func (c *Catalog) Sync(ctx context.Context, repo Repository, progress func(done, total int)) (SyncReport, error) {
	start := time.Now()
	var report SyncReport
	err := c.syncSegments(ctx, repo, &report, progress)
	if err == nil {
		err = c.syncManifests(ctx, repo, &report)
	}
	if err == nil {
		err = c.syncDamage(ctx, repo, &report)
	}
	if err == nil {
		err = c.settle()
	}
	report.Elapsed = time.Since(start)
	return report, c.state.wrap("synchronize", err)
}

// settle makes all that was written so far durable.
func (c *Catalog) settle() error {
	b := c.db.NewBatch()
	if err := b.LogData([]byte{0}, nil); err != nil {
		return err
	}
	return c.apply("flush", b, true)
}

func (c *Catalog) syncSegments(ctx context.Context, repo Repository, report *SyncReport, progress func(done, total int)) error {
	added, gone, err := c.compareListing(ctx, repo, report)
	if err != nil {
		return err
	}
	if err := c.DropSegments(ctx, gone); err != nil {
		return err
	}
	report.Dropped = len(gone)
	return c.addAll(ctx, repo, added, report, progress)
}

// compareListing returns the segments that are new in the repository and those
// that are gone: 24 bytes of memory for each.
func (c *Catalog) compareListing(ctx context.Context, repo Repository, report *SyncReport) (added []segment.Object, gone []image.SegmentID, err error) {
	j, err := c.newJoin(tagSegment, func(key, _ []byte) error {
		gone = append(gone, image.SegmentID(key[1:]))
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	defer j.close()
	err = repo.Segments(ctx, func(id image.SegmentID, size int64, _ time.Time) error {
		report.Segments++
		_, known, err := j.next(ctx, segmentKey(id))
		if err == nil && !known {
			added = append(added, segment.Object{ID: id, Size: size})
		}
		return err
	})
	if err == nil {
		err = j.rest()
	}
	return added, gone, err
}

// addAll adds new segments: many in rounds, few one by one.
func (c *Catalog) addAll(ctx context.Context, repo Repository, list []segment.Object, report *SyncReport, progress func(done, total int)) error {
	done, total := 0, len(list)
	step := func() {
		if done++; progress != nil {
			progress(done, total)
		}
	}
	if worthRounds(list, c.opts.BlockSize) {
		return c.addRounds(ctx, repo, list, report, step)
	}
	return c.addSome(ctx, repo, list, report, step)
}

// addSome adds a few segments.
func (c *Catalog) addSome(ctx context.Context, repo Repository, list []segment.Object, report *SyncReport, step func()) error {
	var mu sync.Mutex
	return repo.Footers(ctx, list, func(o segment.Object, f *segment.Footer, problem error) error {
		var failed error
		if problem == nil {
			problem, failed = c.addFrom(ctx, repo, f)
		}
		mu.Lock()
		defer mu.Unlock()
		switch {
		case failed != nil:
			return failed
		case problem != nil:
			report.skip(o.ID, problem)
		default:
			report.Added++
			report.Records += int64(len(f.Records))
		}
		step()
		return nil
	})
}

// addFrom adds a segment. problem is what is wrong with the segment, err what
// is wrong with the catalog.
func (c *Catalog) addFrom(ctx context.Context, repo Repository, f *segment.Footer) (problem, err error) {
	source := func(ctx context.Context, add func(int, *image.Page) error) error {
		problem = repo.Pages(ctx, f, func(record int, p *image.Page, _ image.ID) error {
			err = add(record, p)
			return err
		})
		return problem
	}
	failed := c.add(ctx, f, source, false)
	if err == nil && problem != nil {
		return problem, ctx.Err()
	}
	return nil, failed
}

func (c *Catalog) syncManifests(ctx context.Context, repo Repository, report *SyncReport) error {
	var added, gone []string
	j, err := c.newJoin(tagManifest, func(key, _ []byte) error {
		gone = append(gone, string(key[1:]))
		return nil
	})
	if err != nil {
		return err
	}
	defer j.close()
	err = repo.Manifests(ctx, func(name string) error {
		report.Manifests++
		_, known, err := j.next(ctx, manifestKey(name))
		if err == nil && !known {
			added = append(added, name)
		}
		return err
	})
	if err == nil {
		err = j.rest()
	}
	if err != nil {
		return err
	}
	for _, name := range gone {
		if err := c.DropManifest(ctx, name); err != nil {
			return err
		}
		report.ManifestsDropped++
	}
	return c.addManifests(ctx, repo, added, report)
}

func (c *Catalog) addManifests(ctx context.Context, repo Repository, names []string, report *SyncReport) error {
	for _, name := range names {
		m, err := repo.Manifest(ctx, name)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			report.warn("manifest %s: %v", name, err)
			continue
		}
		if err := c.putManifest(ctx, name, m, false); err != nil {
			return err
		}
		report.ManifestsAdded++
	}
	return nil
}

func (c *Catalog) syncDamage(ctx context.Context, repo Repository, report *SyncReport) error {
	want, err := damageOf(ctx, repo.Damaged)
	if errors.Is(err, image.ErrCorrupt) {
		// What was known of damage stays known while a note cannot be read.
		report.warn("%v: run platter verify --read-data", err)
		known, err := damageOf(ctx, c.Damaged)
		if err != nil {
			return err
		}
		want = append(want, known...)
		slices.SortFunc(want, compareDamage)
		want = slices.CompactFunc(want, sameRecord)
	} else if err != nil {
		return fmt.Errorf("list damage: %w", err)
	}
	report.Damaged = len(want)
	return c.setDamage(ctx, want)
}
