package job

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"platter/image"
	"platter/image/keys"
	"platter/image/reader"
	"platter/image/segment"
	"platter/image/store"
)

// A suspect is a segment to read.
type suspect struct {
	id   image.SegmentID
	size int64
}

// segments reads segments whole: those in question, or a share of them.
func (v *verifier) segments(ctx context.Context) error {
	if !v.opts.ReadData && v.opts.Subset == 0 {
		return nil
	}
	list, total, err := v.suspects(ctx)
	if err != nil {
		return err
	}
	v.report.Segments = len(list)
	if v.env.Repo.Keys.Encrypted() && v.env.Repo.Keys.Writer().MayCollect() {
		if v.trust, err = v.env.trust(ctx); err != nil {
			return err
		}
	}
	counts := new(counters)
	stop := v.env.report("verify", "segments", "read", total, counts, func() int64 { return 0 })
	defer stop()
	g, ctx := errgroup.WithContext(ctx)
	s := &scrubber{v: v, counts: counts}
	todo := make(chan suspect)
	for range min(len(list), scrubbers) {
		g.Go(func() error {
			r := s.newReading()
			for x := range todo {
				if err := r.segment(ctx, x); err != nil {
					return err
				}
			}
			return nil
		})
	}
	g.Go(func() error {
		defer close(todo)
		for _, x := range list {
			select {
			case todo <- x:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	err = g.Wait()
	v.report.Blocks, v.report.BytesRead = s.blocks.Load(), counts.done.Load()
	return err
}

// scrubbers read segments at the same time, each from front to back.
const scrubbers = 3

// suspects lists the segments to read, and their bytes.
func (v *verifier) suspects(ctx context.Context) (list []suspect, total int64, err error) {
	err = v.env.Repo.Segments(ctx, func(id image.SegmentID, size int64, _ time.Time) error {
		if _, ok := v.used[id]; ok || len(v.opts.Images) == 0 {
			list = append(list, suspect{id, size})
		}
		return nil
	})
	if err != nil {
		return nil, 0, fmt.Errorf("list segments: %w", err)
	}
	if !v.opts.ReadData && v.opts.Subset < 1 {
		if list, err = v.share(ctx, list); err != nil {
			return nil, 0, err
		}
	}
	for _, x := range list {
		total += x.size
	}
	return list, total, nil
}

// share picks data segments at random.
func (v *verifier) share(ctx context.Context, list []suspect) ([]suspect, error) {
	var data []suspect
	for _, x := range list {
		f, err := v.reader.Footer(ctx, x.id)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil || f.Kind == segment.Data {
			data = append(data, x)
		}
	}
	rand.Shuffle(len(data), func(i, j int) { data[i], data[j] = data[j], data[i] })
	n := int(float64(len(data))*v.opts.Subset + 0.999999)
	return data[:min(n, len(data))], nil
}

// A scrubber is shared by all who read segments.
type scrubber struct {
	v      *verifier
	counts *counters
	blocks atomic.Int64
	mu     sync.Mutex // guards the verifier's findings and report
}

// A reading reads one segment after the other.
type reading struct {
	*scrubber
	codec     *segment.Codec
	hasher    *image.Hasher
	in, plain []byte
	wrong     bool // something of the segment being read
}

func (s *scrubber) newReading() *reading {
	most := max(s.v.env.Repo.Config.BlockSize, image.MaxPageEncoded)
	return &reading{
		scrubber: s, codec: new(segment.Codec), hasher: s.v.env.Repo.Hasher(),
		in: store.AllocAligned(max(most, chunkSize) + 2*store.Align), plain: make([]byte, most),
	}
}

// segment reads all of a segment and keeps what is wrong with it.
func (r *reading) segment(ctx context.Context, x suspect) error {
	name := segment.Name(x.id)
	r.wrong = false
	f, err := segment.ReadFooter(ctx, r.v.env.Repo.Store, r.v.env.Repo.Keys, x.id, x.size)
	if _, used := r.v.used[x.id]; errors.Is(err, keys.ErrForged) && !used {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.v.forgery(name, err)
		return nil
	}
	if errors.Is(err, image.ErrCorrupt) {
		r.mu.Lock()
		r.v.broken[x.id] = err
		r.mu.Unlock()
	}
	if err == nil {
		var header [segment.Align]byte
		if err = r.v.env.Repo.Store.ReadAt(ctx, name, header[:], 0); err == nil {
			if e := segment.CheckHeader(header[:], r.v.env.Repo.Keys, r.v.env.Repo.ID, f); e != nil {
				r.wrong = true
				r.object(name, e)
			}
			if err = r.v.env.Repo.Unlock(ctx, f); err == nil {
				err = r.records(ctx, f)
			}
		}
	}
	r.counts.done.Add(x.size)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err == nil:
		if !r.wrong {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.v.attests(f)
		}
		return nil
	case errors.Is(err, store.ErrNotFound):
		// Collected meanwhile, unless an image that is still there needs it.
		_, used := r.v.used[x.id]
		r.mu.Lock()
		defer r.mu.Unlock()
		r.v.vanished = r.v.vanished || used
		return nil
	case reader.Damaged(err):
		r.object(name, err)
		return nil
	}
	return err
}

// object reports a segment that is damaged elsewhere than in a record.
func (r *reading) object(name string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.v.damage(Damage{Object: name, Problem: (&finding{object: name, err: err}).problem()})
}

// records reads the records of a segment, as many at once as fit.
func (r *reading) records(ctx context.Context, f *segment.Footer) error {
	room := int64(len(r.in) - store.Align)
	for n := 0; n < len(f.Records); {
		start := (f.Records[n].Offset - segment.RecordHeaderSize) &^ (store.Align - 1)
		end, last := start, n
		for last < len(f.Records) {
			e := f.Records[last].Offset + int64(f.Records[last].Stored)
			if e-start > room {
				break
			}
			end, last = e, last+1
		}
		if last == n {
			return fmt.Errorf("%s: record %d of %d bytes: %w", segment.Name(f.ID), n, f.Records[n].Stored, image.ErrCorrupt)
		}
		buf := r.in[:(end-start+store.Align-1)&^(store.Align-1)]
		err := r.v.env.Repo.Store.ReadAt(ctx, segment.Name(f.ID), buf, start)
		if errors.Is(err, store.ErrNotFound) {
			return err
		}
		for ; n < last; n++ {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			r.record(ctx, f, n, buf, start, err)
		}
	}
	return nil
}

// record checks one record, whose header and payload are in buf unless that
// could not be read as a whole.
func (r *reading) record(ctx context.Context, f *segment.Footer, n int, buf []byte, start int64, readErr error) {
	rec := &f.Records[n]
	at := rec.Offset - segment.RecordHeaderSize
	b := buf[at-start:][:segment.RecordHeaderSize+int64(rec.Stored)]
	var err error
	if readErr != nil {
		err = r.v.env.Repo.Store.ReadAt(ctx, segment.Name(f.ID), b, at)
	}
	if err == nil {
		err = r.check(f, n, b)
	}
	if f.Kind == segment.Data {
		r.blocks.Add(1)
	}
	if err == nil || ctx.Err() != nil {
		return
	}
	r.wrong = true
	if w := f.Writer.String(); w != "" {
		err = fmt.Errorf("%w (writer %.16s)", err, w)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.v.bad.add(finding{
		id: rec.ID, page: f.Kind == segment.Pages, length: int32(rec.Plain),
		at: image.Location{Segment: f.ID, Record: uint32(n)}, object: segment.Name(f.ID), err: err,
	})
}

// check checks the header and payload of a record.
func (r *reading) check(f *segment.Footer, n int, b []byte) error {
	rec := &f.Records[n]
	wrong := func(what string) error {
		return fmt.Errorf("%s at %d: record %d: %s: %w", segment.Name(f.ID), rec.Offset, n, what, image.ErrCorrupt)
	}
	if int(rec.Plain) > len(r.plain) {
		return wrong(fmt.Sprintf("%d bytes", rec.Plain))
	}
	if err := f.CheckRecord(b, n); err != nil {
		return err
	}
	plain := r.plain[:rec.Plain]
	if err := f.Decode(r.codec, plain, b[segment.RecordHeaderSize:], n); err != nil {
		return err
	}
	if f.Kind == segment.Data {
		if !r.hasher.Is(rec.ID, plain) {
			return wrong("content is not what its ID says")
		}
		return nil
	}
	if len(plain) < image.PageSize || r.hasher.Page(plain[:image.PageSize]) != rec.ID {
		return wrong("content is not what its ID says")
	}
	if _, err := image.DecodePage(plain); err != nil {
		return wrong(err.Error())
	}
	return nil
}
