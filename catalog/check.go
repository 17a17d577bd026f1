package catalog

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"golang.org/x/sync/errgroup"

	"platter/image"
	"platter/image/segment"
)

// A Difference is one thing that catalog and repository say otherwise, or that
// could not be compared.
type Difference struct {
	Object  string `json:"object"` // segment, manifest or entry
	Problem string `json:"problem"`
}

// A CheckReport says how a catalog compares with its repository.
type CheckReport struct {
	Segments    int           `json:"segments"` // in the repository
	Records     int64         `json:"records"`  // compared, pages included
	Pages       int64         `json:"pages"`    // whose contents were compared
	Manifests   int           `json:"manifests"`
	Different   int           `json:"different"`
	Differences []Difference  `json:"differences,omitempty"` // the first 1000
	Elapsed     time.Duration `json:"elapsed_ns"`
}

const maxDifferences = 1000

// A checker compares a catalog with its repository.
type checker struct {
	c      *Catalog
	repo   Repository
	totals totals // as the segments add up
	mu     sync.Mutex
	report CheckReport         // guarded by mu
	pages  map[uint32]struct{} // numbers of page segments; guarded by mu
}

// Check compares every entry with the footers, pages and manifests of the
// repository, both ways, and changes nothing. Segments cannot be added or
// dropped while it runs.
func (c *Catalog) Check(ctx context.Context, repo Repository) (CheckReport, error) {
	start := time.Now()
	if err := c.write.take(ctx); err != nil {
		return CheckReport{}, err
	}
	defer c.write.leave()
	k := &checker{c: c, repo: repo, pages: map[uint32]struct{}{}}
	err := c.state.get()
	for _, step := range []func(context.Context) error{k.segments, k.lists, k.pageKeys, k.manifests, k.damage} {
		if err == nil {
			err = step(ctx)
		}
	}
	k.report.Elapsed = time.Since(start)
	return k.report, c.state.wrap("check", err)
}

func (k *checker) differ(object, format string, args ...any) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.report.Different++
	if len(k.report.Differences) < maxDifferences {
		k.report.Differences = append(k.report.Differences, Difference{object, fmt.Sprintf(format, args...)})
	}
}

// checkWorkers is how many footers are read at once.
const checkWorkers = 4

// segments compares the segments known with those in the repository, and each
// with its footer.
func (k *checker) segments(ctx context.Context) error {
	j, err := k.c.newJoin(tagSegment, func(key, value []byte) error {
		info, err := parseInfo(key, value)
		k.totals.add(&info, 1)
		k.notePages(&info)
		k.differ("segment "+info.ID.String(), "is not in the repository")
		return err
	})
	if err != nil {
		return err
	}
	defer j.close()
	g, group := errgroup.WithContext(ctx)
	g.SetLimit(checkWorkers)
	err = k.repo.Segments(ctx, func(id image.SegmentID, _ int64, _ time.Time) error {
		k.report.Segments++
		value, known, err := j.next(group, segmentKey(id))
		if err != nil {
			return err
		}
		if !known {
			k.differ("segment "+id.String(), "is not in the catalog")
			return nil
		}
		info, err := parseInfo(segmentKey(id), value)
		if err != nil {
			return err
		}
		k.totals.add(&info, 1)
		k.notePages(&info)
		g.Go(func() error { return k.segment(group, &info) })
		return nil
	})
	if err == nil {
		err = j.rest()
	}
	if err = errors.Join(g.Wait(), err); err != nil {
		return err
	}
	k.totals.next = k.c.totals.next
	if k.totals != k.c.totals {
		k.differ("totals", "are %+v, the segments add up to %+v", k.c.totals, k.totals)
	}
	return nil
}

func (k *checker) notePages(info *SegmentInfo) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if info.Kind == segment.Pages {
		k.pages[info.number] = struct{}{}
	}
}

// segment compares one segment with its footer.
func (k *checker) segment(ctx context.Context, info *SegmentInfo) error {
	object := "segment " + info.ID.String()
	f, err := k.repo.Footer(ctx, info.ID)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		k.differ(object, "footer cannot be read: %v", err)
		return nil
	}
	if want := infoOf(f, info.number); want != *info {
		k.differ(object, "is %+v by its footer, %+v in the catalog", want, *info)
	}
	for chunk := range chunks(len(f.Records)) {
		same, err := k.same(numberKey(tagRecords, info.number, chunk), listValue(f, chunk))
		if err != nil {
			return err
		}
		if !same {
			k.differ(object, "records from %d on differ from the footer", chunk*chunkRecords)
		}
	}
	k.mu.Lock()
	k.report.Records += int64(len(f.Records))
	k.mu.Unlock()
	if f.Kind != segment.Pages {
		return nil
	}
	return k.pageContents(ctx, info, f)
}

// same reports whether an entry has this value.
func (k *checker) same(key, want []byte) (bool, error) {
	value, closer, err := k.c.db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer closer.Close()
	return bytes.Equal(value, want), nil
}

func (k *checker) pageContents(ctx context.Context, info *SegmentInfo, f *segment.Footer) error {
	object := "segment " + info.ID.String()
	var buf []byte
	var failed error
	n := int64(0)
	err := k.repo.Pages(ctx, f, func(record int, p *image.Page, _ image.ID) error {
		var same bool
		buf = p.Encode(buf[:0])
		if same, failed = k.same(numberKey(tagPage, info.number, uint32(record)), buf); failed != nil {
			return failed
		}
		if !same {
			k.differ(object, "page %d differs", record)
		}
		n++
		return nil
	})
	if failed != nil || ctx.Err() != nil {
		return errors.Join(failed, ctx.Err())
	}
	if err != nil {
		k.differ(object, "pages cannot be read: %v", err)
	}
	k.mu.Lock()
	k.report.Pages += n
	k.mu.Unlock()
	return nil
}

// manifests compares all copies of manifests.
func (k *checker) manifests(ctx context.Context) error {
	j, err := k.c.newJoin(tagManifest, func(key, _ []byte) error {
		k.differ("manifest "+string(key[1:]), "is not in the repository")
		return nil
	})
	if err != nil {
		return err
	}
	defer j.close()
	err = k.repo.Manifests(ctx, func(name string) error {
		k.report.Manifests++
		value, known, err := j.next(ctx, manifestKey(name))
		if err != nil {
			return err
		}
		if !known {
			k.differ("manifest "+name, "is not in the catalog")
			return nil
		}
		return k.manifest(ctx, name, value)
	})
	if err != nil {
		return err
	}
	return j.rest()
}

func (k *checker) manifest(ctx context.Context, name string, have []byte) error {
	m, err := k.repo.Manifest(ctx, name)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		k.differ("manifest "+name, "cannot be read: %v", err)
		return nil
	}
	want, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if !bytes.Equal(have, want) {
		k.differ("manifest "+name, "differs")
	}
	return nil
}

// damage compares the damaged records known.
func (k *checker) damage(ctx context.Context) error {
	want, err := damageOf(ctx, k.repo.Damaged)
	if err != nil {
		return err
	}
	have, err := damageOf(ctx, k.c.Damaged)
	if err != nil {
		return err
	}
	for _, r := range want {
		if _, ok := slices.BinarySearchFunc(have, r, compareDamage); !ok {
			k.differ("record "+r.at.String(), "is damaged, and the catalog does not know")
		}
	}
	for _, r := range have {
		if _, ok := slices.BinarySearchFunc(want, r, compareDamage); !ok {
			k.differ("record "+r.at.String(), "is damaged by the catalog, not by the repository")
		}
	}
	return nil
}
