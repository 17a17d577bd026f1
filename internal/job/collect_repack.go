package job

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"platter/image"
	"platter/image/reader"
	"platter/image/repo"
	"platter/image/segment"
	"platter/image/store"
)

// A batch of sources is moved before their list is published: that much is
// done again after a crash.
const (
	batchMoved = 1 << 30 // bytes
	batchTime  = 2 * time.Minute
)

// repack moves the live records of segments that are to go.
//
// Sources are listed as condemned only after what was live in them is durable
// elsewhere, and known to be read from there. A run that hits a dead record of
// a source before the list is out is one like any other that uses what is
// condemned while it works: its lease is older than the list, which spares the
// source until the run's manifest is there.
func (c *collector) repack(ctx context.Context) error {
	sources, err := c.plan(ctx)
	if err != nil || len(sources) == 0 {
		return err
	}
	if c.opts.DryRun {
		for _, s := range sources {
			c.repacked(s)
			c.report.Moved += s.useful()
			c.report.Waiting += s.size
		}
		return nil
	}
	return c.move(ctx, sources)
}

// move moves the live records of sources, which are in order of kind.
func (c *collector) move(ctx context.Context, sources []source) error {
	p := &packer{
		c: c, sources: ids(sources), read: newThrottle(c.opts.LimitRead), write: newThrottle(c.opts.LimitWrite),
		codec: new(segment.Codec), hasher: c.env.Repo.Hasher(), mine: map[image.SegmentID]bool{},
	}
	defer p.end(ctx)
	for len(sources) > 0 {
		kind := sources[0].Kind
		n := slices.IndexFunc(sources, func(s source) bool { return s.Kind != kind })
		if n < 0 {
			n = len(sources)
		}
		if err := p.pack(ctx, kind, sources[:n]); err != nil {
			return err
		}
		if p.beaten {
			c.notice("another collection published first: what is left to repack waits for the next")
			return nil
		}
		sources = sources[n:]
	}
	return nil
}

// A packer moves records of one kind after the other.
type packer struct {
	c           *collector
	sources     map[image.SegmentID]bool // all of them: none is a place to rely on
	mine        map[image.SegmentID]bool // segments stored by this run
	w           *segmentWriter
	read, write *throttle
	codec       *segment.Codec
	hasher      *image.Hasher
	buf, plain  []byte
	beaten      bool

	batch []source
	moves map[image.SegmentID][]repo.Move
	bytes int64
	began time.Duration
}

// end leaves the catalog with what is condemned and no more.
func (p *packer) end(ctx context.Context) {
	if p.w != nil {
		p.w.close()
	}
	p.c.marks.condemned = p.c.state.IDs()
	p.c.marks.distrust(nil)
}

func (p *packer) pack(ctx context.Context, kind segment.Kind, sources []source) (err error) {
	if p.w != nil {
		p.w.close()
	}
	p.w = newSegmentWriter(ctx, p.c.env, kind, p.c.run, 2, int(p.c.segmentSize(kind)))
	p.restart()
	for _, s := range sources {
		moves, err := p.source(ctx, s)
		if reader.Damaged(err) && ctx.Err() == nil {
			p.c.notice("segment %s stays as it is, for it is damaged: %v: run platter verify --read-data", s.ID, err)
			continue
		}
		if err != nil {
			return errors.Join(err, p.w.flush())
		}
		p.batch = append(p.batch, s)
		p.moves[s.ID] = moves
		if p.bytes < batchMoved && p.c.env.Repo.Machine.Uptime()-p.began < batchTime {
			continue
		}
		if err = p.publish(ctx); err != nil || p.beaten {
			break
		}
	}
	if err != nil || p.beaten {
		return err
	}
	err = p.publish(ctx)
	p.c.report.Written += p.w.totals().count
	return err
}

func (p *packer) restart() {
	p.batch, p.moves, p.bytes, p.began = nil, map[image.SegmentID][]repo.Move{}, 0, p.c.env.Repo.Machine.Uptime()
	p.c.marks.condemned = p.c.state.IDs()
	p.c.marks.distrust(p.sources)
}

// publish makes what was moved durable, says where it went, and condemns what
// it came from.
func (p *packer) publish(ctx context.Context) error {
	if err := p.w.flush(); err != nil {
		return fmt.Errorf("collect: %w", err)
	}
	if len(p.batch) == 0 {
		return nil
	}
	if !p.c.holder.Valid() {
		return errors.New("collect: the lease ran out: run it again")
	}
	if err := p.attest(ctx); err != nil {
		return fmt.Errorf("collect: %w", err)
	}
	if _, err := p.c.env.Repo.PutMoves(ctx, p.moves); err != nil {
		return fmt.Errorf("collect: %w", err)
	}
	err := p.c.condemnSources(ctx, p.batch)
	if errors.Is(err, store.ErrExists) && ctx.Err() == nil {
		p.beaten = true
		return nil
	}
	if err != nil {
		return err
	}
	p.c.report.Moved += p.bytes
	p.restart()
	return nil
}

// attest says that the new segments can be relied on. Their records were read
// and checked against their IDs, or else come from segments that are vouched
// for: others are no sources where there is no data key.
func (p *packer) attest(ctx context.Context) error {
	list := p.w.stored
	p.w.stored = nil
	for _, a := range list {
		p.mine[a.Segment] = true
	}
	if p.c.marks.trust.all || len(list) == 0 {
		return nil
	}
	return p.c.env.Repo.Attest(ctx, list)
}

// condemnSources publishes a list on which the sources stand.
func (c *collector) condemnSources(ctx context.Context, sources []source) error {
	now, err := c.env.Repo.Store.Now(ctx)
	if err != nil {
		return err
	}
	next := *c.state
	next.Epoch, next.Next = c.state.Next, c.state.Next+1
	next.Time, next.Run = now.UTC(), hex.EncodeToString(c.run[:])
	next.Segments = slices.DeleteFunc(slices.Clone(c.state.Segments), func(s repo.CondemnedSegment) bool { return c.gone[s.Segment] })
	for _, s := range sources {
		next.Segments = append(next.Segments, repo.CondemnedSegment{
			Segment: s.ID, Size: s.size, Since: now.UTC(), Epoch: next.Epoch, Moved: s.useful(),
		})
	}
	if err := c.env.Repo.PublishCondemned(ctx, &next); err != nil {
		return err
	}
	c.state = &next
	for _, s := range sources {
		s.used = false
		c.repacked(s)
	}
	return nil
}

// maxMove bounds what is read at once, in bytes.
const maxMove = 1 << 20

// source moves the live records of a segment and returns where they went.
func (p *packer) source(ctx context.Context, s source) (moves []repo.Move, err error) {
	f, err := p.c.marks.reader.Footer(ctx, s.ID)
	if err != nil {
		return nil, err
	}
	for n := 0; n < len(f.Records); {
		if !s.has(uint32(n)) {
			n++
			continue
		}
		last := n
		for last+1 < len(f.Records) && s.has(uint32(last+1)) && last-n < image.PageEntries &&
			f.Records[last+1].Offset+int64(f.Records[last+1].Stored)-f.Records[n].Offset <= maxMove {
			last++
		}
		if moves, err = p.span(ctx, f, n, last, moves); err != nil {
			return nil, err
		}
		n = last + 1
	}
	return moves, nil
}

// span moves records that lie one behind the other, but for those that have
// another place already.
func (p *packer) span(ctx context.Context, f *segment.Footer, first, last int, moves []repo.Move) ([]repo.Move, error) {
	ids := make([]image.ID, last-first+1)
	at := make([]image.Location, len(ids))
	for i := range ids {
		ids[i] = f.Records[first+i].ID
	}
	if err := p.c.env.Catalog.Lookup(ctx, ids, at); err != nil {
		return nil, err
	}
	var stored []byte
	start := f.Records[first].Offset
	for i := range ids {
		if p.reliable(at[i]) {
			moves = appendMoved(moves, uint32(first+i), at[i])
			continue
		}
		if stored == nil {
			var err error
			if stored, err = p.load(ctx, f, start, f.Records[last].Offset+int64(f.Records[last].Stored)); err != nil {
				return nil, err
			}
		}
		r := &f.Records[first+i]
		to, err := p.move(ctx, f, first+i, stored[r.Offset-start:][:r.Stored])
		if err != nil {
			return nil, err
		}
		moves = appendMoved(moves, uint32(first+i), to)
	}
	return moves, nil
}

// reliable reports whether the catalog led to a place that stays.
func (p *packer) reliable(at image.Location) bool {
	return p.mine[at.Segment] || !p.sources[at.Segment] && p.c.marks.vouched(at)
}

func (p *packer) load(ctx context.Context, f *segment.Footer, start, end int64) ([]byte, error) {
	if err := p.read.wait(ctx, int(end-start)); err != nil {
		return nil, err
	}
	p.buf = slices.Grow(p.buf[:0], int(end-start))[:end-start]
	return p.buf, p.c.env.Repo.Store.ReadAt(ctx, segment.Name(f.ID), p.buf, start)
}

// move checks a record as far as the keys go and stores it again as it is.
// One that is damaged is noted, so that the next backup stores its block again.
func (p *packer) move(ctx context.Context, f *segment.Footer, n int, stored []byte) (image.Location, error) {
	m, err := f.Move(n, stored)
	var page *image.Page
	if err == nil {
		page, err = p.check(f, n, stored)
	}
	if err != nil {
		err = fmt.Errorf("record %d: %w", n, err)
		if errors.Is(err, image.ErrCorrupt) {
			err = errors.Join(err, p.note(ctx, f.Records[n].ID, image.Location{Segment: f.ID, Record: uint32(n)}))
		}
		return image.Location{}, err
	}
	if err := p.write.wait(ctx, len(stored)); err != nil {
		return image.Location{}, err
	}
	s, mine := p.w.claim(f.Records[n].ID)
	if mine {
		if err := p.w.move(s, m, page); err != nil {
			return image.Location{}, err
		}
		p.bytes += int64(len(stored))
	}
	return s.at, nil
}

func (p *packer) note(ctx context.Context, id image.ID, at image.Location) error {
	if err := p.c.env.Repo.NoteDamage(ctx, []image.ID{id}, []image.Location{at}); err != nil {
		return err
	}
	return p.c.env.Catalog.MarkDamaged(ctx, id, at)
}

// check checks a record's content against its ID: always that of a page, that
// of a block where there is the data key.
func (p *packer) check(f *segment.Footer, n int, stored []byte) (*image.Page, error) {
	r := &f.Records[n]
	if f.Kind == segment.Data && !p.c.env.Repo.Keys.CanRead() {
		return nil, nil
	}
	p.plain = slices.Grow(p.plain[:0], int(r.Plain))[:r.Plain]
	if err := f.Expand(p.codec, p.plain, stored, n); err != nil {
		return nil, err
	}
	if f.Kind == segment.Data {
		if !p.hasher.Is(r.ID, p.plain) {
			return nil, fmt.Errorf("content is not what its ID says: %w", image.ErrCorrupt)
		}
		return nil, nil
	}
	if r.Plain < image.PageSize || p.hasher.Page(p.plain[:image.PageSize]) != r.ID {
		return nil, fmt.Errorf("content is not what its ID says: %w", image.ErrCorrupt)
	}
	return image.DecodePage(p.plain)
}

// appendMoved adds the move of one record, behind the last one where it goes on.
func appendMoved(moves []repo.Move, record uint32, to image.Location) []repo.Move {
	if n := len(moves) - 1; n >= 0 {
		m := &moves[n]
		if m.First+m.Count == record && m.To.Segment == to.Segment && m.To.Record+m.Count == to.Record {
			m.Count++
			return moves
		}
	}
	return append(moves, repo.Move{First: record, Count: 1, To: to})
}
