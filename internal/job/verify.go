package job

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"platter/image"
	"platter/image/keys"
	"platter/image/reader"
	"platter/image/repo"
)

// Verify proves that what the repository holds is what was written.
//
// It always checks the structure: every manifest, each volume's chain of them,
// every page of every map, and that each block a map names is a record of the
// right length. With ReadData it also reads every byte of every segment (of
// those that the images named need, if any are named); with Subset a random
// share of the data segments.
//
// It names the objects that somebody had no right to write, and attests, where
// the keys allow it, the segments of writers that cannot read: all that it read
// whole.
//
// Damaged records are noted in the repository and the catalog, so that the
// next backup stores those blocks again. What was found of each image is
// recorded in the repository too. With damage the report comes with an
// error wrapping ErrDamaged; any other error means that verification itself
// was cut short.
func Verify(ctx context.Context, env *Env, opts VerifyOptions) (*VerifyReport, error) {
	start := time.Now()
	if opts.Subset < 0 || opts.Subset > 1 {
		return nil, fmt.Errorf("verify: %w: a share of %v, want one between 0 and 1", ErrUsage, opts.Subset)
	}
	if (opts.ReadData || opts.Subset > 0) && !env.Repo.Keys.CanRead() {
		return nil, fmt.Errorf("verify the data: %w", keys.ErrNoDataKey)
	}
	v := newVerifier(env, opts)
	var err error
	if v.began, err = env.Repo.Store.Now(ctx); err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	for _, step := range []func(context.Context) error{v.manifests, v.strangers, v.hints, v.maps, v.segments, v.gone, v.assess, v.note, v.attest, v.record} {
		if err := step(ctx); err != nil {
			return nil, fmt.Errorf("verify: %w", err)
		}
	}
	v.report.Elapsed = time.Since(start)
	if n := len(v.report.Damage); n > 0 {
		return v.report, fmt.Errorf("verify: %w: places: %d", ErrDamaged, n)
	}
	return v.report, nil
}

func newVerifier(env *Env, opts VerifyOptions) *verifier {
	v := &verifier{env: env, opts: opts, report: &VerifyReport{Scope: scope(opts)}, used: map[image.SegmentID]struct{}{}, broken: map[image.SegmentID]error{}}
	v.reader = v.newReader()
	return v
}

func scope(opts VerifyOptions) string {
	switch {
	case opts.ReadData || opts.Subset == 1:
		return "every byte"
	case opts.Subset > 0:
		return fmt.Sprintf("structure, and %.3g %% of the data", opts.Subset*100)
	}
	return "structure"
}

// A verifier is one verification.
type verifier struct {
	env      *Env
	opts     VerifyOptions
	report   *VerifyReport
	reader   *reader.Reader
	images   []*image.Manifest
	used     map[image.SegmentID]struct{} // that the images' maps point to
	bad      findings
	began    time.Time                 // by the store's clock
	fresh    []*finding                // those of bad that no verification before has noted
	mapped   int                       // findings of bad that maps made: they come first
	vanished bool                      // a segment that images need was there, and is not any more
	absent   []Absent                  // images that are gone
	broken   map[image.SegmentID]error // nothing of these can be read
	trust    *trust                    // nil where these keys attest nothing
	whole    []repo.Attested           // segments to be attested
}

// maxFindings bounds the damaged records that are kept in memory, and the
// places that a report lists.
const maxFindings = 100_000

// A finding is a block or page that is not whole where it is stored, or
// nowhere stored.
type finding struct {
	id     image.ID
	page   bool
	length int32          // of a block, in bytes
	at     image.Location // zero if it is nowhere
	object string
	err    error
}

// problem says what is wrong, without the object's name.
func (f *finding) problem() string {
	err := f.err
	if lost, ok := errors.AsType[*reader.Lost](err); ok {
		err = lost.Err
	}
	text := strings.TrimLeft(strings.TrimPrefix(err.Error(), f.object), " :")
	if f.page {
		text = "map page: " + text
	}
	return text
}

type findings struct {
	list []finding
	more int // that are not in list
}

func (f *findings) add(x finding) {
	if len(f.list) < maxFindings {
		f.list = append(f.list, x)
	} else {
		f.more++
	}
}

// places says where to look for blocks, and keeps the catalog's own copies of
// pages out of a proof of the repository.
type places struct{ reader.Index }

func (places) Page(context.Context, image.ID) (*image.Page, image.Location, error) {
	return nil, image.Location{}, errNoPages
}

var errNoPages = fmt.Errorf("pages are read from the repository")

func (v *verifier) newReader() *reader.Reader {
	return reader.New(v.env.Repo, v.index(), v.env.Memory/4)
}

func (v *verifier) index() reader.Index {
	if v.env.Catalog == nil {
		return nil
	}
	return places{v.env.Catalog}
}

// damage adds a place to the report.
func (v *verifier) damage(d Damage) {
	switch n := len(v.report.Damage); {
	case n < maxFindings:
		v.report.Damage = append(v.report.Damage, d)
	case n == maxFindings:
		v.report.Damage = append(v.report.Damage, Damage{Problem: "there is more damage than this report lists"})
	}
}

// forgery adds an object that counts for nothing to the report.
func (v *verifier) forgery(name string, err error) {
	if len(v.report.Forged) < maxFindings {
		v.report.Forged = append(v.report.Forged, Forgery{Object: name, Problem: err.Error()})
	}
}
