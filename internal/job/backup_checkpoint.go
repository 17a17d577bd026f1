package job

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"platter/block/snapshot"
	"platter/catalog"
	"platter/image"
)

// What a run loses at most when it dies, beside what is being stored.
const (
	markBytes = 1 << 30 // of the device
	markTime  = sealAfter
)

// lingering is for what must not be left undone because a job is stopped: it
// outlives ctx by a minute, which is enough unless the store is gone.
func lingering(ctx context.Context) (context.Context, func()) {
	long, cancel := context.WithCancel(context.WithoutCancel(ctx))
	timer := time.AfterFunc(time.Minute, cancel)
	timer.Stop()
	stop := context.AfterFunc(ctx, func() { timer.Reset(time.Minute) })
	return long, func() {
		stop()
		timer.Stop()
		cancel()
	}
}

// A checkpoint says how far a run came with a map, all of it durable. The
// catalog keeps one for each volume. It is of use to a later run only while
// the device holds what it held, which Moment proves; else that run reads all
// again, and finds the blocks by their IDs.
type checkpoint struct {
	Moment    string          `json:"moment"` // of block.Observer
	Size      int64           `json:"size"`
	BlockSize int             `json:"block_size"`
	Spine     []image.Subtree `json:"spine"`
}

const checkpointSpace = "checkpoint"

// checkpoints writes those of one pass over a device: none where nothing proves,
// to a later run, that the device still holds what this one reads.
type checkpoints struct {
	run    *run
	volume string
	state  checkpoint
	every  int64 // blocks

	last   int64         // blocks, of the last checkpoint
	since  time.Duration // uptime, the same
	work   sync.WaitGroup
	active atomic.Bool
}

func (r *run) checkpoints(p *pass) *checkpoints {
	every := r.opts.CheckpointEvery
	if every == 0 {
		every = markBytes
	}
	return &checkpoints{
		run: r, volume: p.m.Volume, every: every / int64(p.m.BlockSize), since: r.env.Repo.Machine.Uptime(),
		state: checkpoint{Moment: r.proof(p), Size: p.m.Size, BlockSize: p.m.BlockSize},
	}
}

// proof is a Moment, or nothing. Ranges that cannot be read are in no
// checkpoint, so that a run which may pass over them writes none.
func (r *run) proof(p *pass) string {
	view, ok := p.src.(snapshot.View)
	if !ok || r.opts.DryRun || r.opts.AllowUnreadable || p.m.Fuzzy {
		return ""
	}
	o := snapshot.Observe(view)
	if o == nil {
		return ""
	}
	moment, proven := o.Moment()
	if !proven {
		return ""
	}
	if p.free != nil {
		moment += ", without free space"
	}
	return moment
}

// offer is told of every step of the map, and writes a checkpoint when one is
// due. The writing goes on in the background.
func (c *checkpoints) offer(t *image.Tree) {
	if c.run.data == nil { // dry run
		return
	}
	c.run.data.sealOld()
	c.run.pages.sealOld()
	if c.state.Moment == "" {
		return
	}
	at, now := t.Blocks(), c.run.env.Repo.Machine.Uptime()
	full := at-c.last >= c.every
	if at <= c.last || !full && now-c.since < markTime {
		return
	}
	if full {
		c.work.Wait() // so that no more is lost than was promised
	}
	if !c.active.CompareAndSwap(false, true) {
		return // the one before is not stored yet
	}
	c.last, c.since = at, now
	next := c.state
	next.Spine = t.Spine()
	c.work.Go(func() {
		// It costs a later run time, and this one nothing.
		if err := c.write(next); err != nil && !c.run.broken() {
			c.run.env.warn("no checkpoint of %s: %v", c.volume, err)
		}
		c.active.Store(false)
	})
}

// write makes all that the spine stands on durable, and then the checkpoint.
func (c *checkpoints) write(next checkpoint) error {
	if err := c.run.flush(); err != nil {
		return err
	}
	value, err := json.Marshal(next)
	if err != nil {
		return err
	}
	return c.run.env.Catalog.Put(context.WithoutCancel(c.run.data.ctx), checkpointSpace, c.volume, value)
}

// end waits until no checkpoint is being written.
func (c *checkpoints) end() { c.work.Wait() }

// resume returns what an earlier run did of the map, and how many bytes that
// spans.
func (c *checkpoints) resume(ctx context.Context, parent *parentMap) ([]image.Subtree, int64) {
	if c.state.Moment == "" {
		return nil, 0
	}
	spine, blocks, err := c.load(ctx, parent)
	if err != nil || blocks == 0 {
		if err != nil && !errors.Is(err, catalog.ErrNotFound) {
			c.run.env.warn("%s is read from its beginning: an earlier run's checkpoint is of no use: %v", c.volume, err)
		}
		return nil, 0
	}
	bytes := blocks * int64(c.state.BlockSize)
	c.last = blocks
	c.run.resumed += bytes
	c.run.env.warn("%s: going on at byte %d, where an earlier run was cut off", c.volume, bytes)
	return spine, bytes
}

func (c *checkpoints) load(ctx context.Context, parent *parentMap) ([]image.Subtree, int64, error) {
	value, err := c.run.env.Catalog.Get(ctx, checkpointSpace, c.volume)
	if err != nil {
		return nil, 0, err
	}
	var was checkpoint
	if err := json.Unmarshal(value, &was); err != nil {
		return nil, 0, err
	}
	if was.Moment != c.state.Moment || was.Size != c.state.Size || was.BlockSize != c.state.BlockSize {
		return nil, 0, fmt.Errorf("the device was written to since, or nothing proves that it was not")
	}
	blocks := (was.Size + int64(was.BlockSize) - 1) / int64(was.BlockSize)
	span, err := image.Span(was.Spine, blocks)
	if err != nil {
		return nil, 0, err
	}
	first := int64(0)
	for _, s := range was.Spine {
		if err := c.stands(ctx, parent, s, first); err != nil {
			return nil, 0, err
		}
		first += image.PageBlocks(s.Level)
	}
	return was.Spine, span, nil
}

// stands returns an error unless all below a subtree is stored where it can be
// relied on: no manifest has protected it until now. What the parent has at
// the same place its manifest protects.
func (c *checkpoints) stands(ctx context.Context, parent *parentMap, s image.Subtree, first int64) error {
	if s.ID.IsZero() {
		return nil
	}
	if id, _, ok := parent.node(ctx, s.Level, first/image.PageBlocks(s.Level)); ok && id == s.ID {
		return nil
	}
	r := c.run
	if r.damaged[s.ID] {
		return fmt.Errorf("page %s is damaged", s.ID)
	}
	p, at, err := r.env.Catalog.Page(ctx, s.ID)
	if err != nil {
		return err
	}
	if !r.usable[at.Segment] {
		return fmt.Errorf("segment %s is gone, condemned or not to be trusted", at.Segment)
	}
	if s.Level == 0 {
		return c.blocksStand(ctx, p)
	}
	for i, id := range p.Entries {
		below := image.Subtree{Level: s.Level - 1, ID: id, At: p.Hints[i]}
		if err := c.stands(ctx, parent, below, first+int64(i)*image.PageBlocks(s.Level-1)); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// blocksStand returns an error unless the blocks that a leaf names are where it
// says, or elsewhere: a page may have come into the store without the blocks of
// the run that wrote it, and those of its heirs lie in segments of their own.
func (c *checkpoints) blocksStand(ctx context.Context, leaf *image.Page) error {
	r := c.run
	var moved []image.ID
	for i, id := range leaf.Entries {
		if !id.IsZero() && (r.damaged[id] || !r.usable[leaf.Hints[i].Segment]) {
			moved = append(moved, id)
		}
	}
	at := make([]image.Location, len(moved))
	if err := r.env.Catalog.Lookup(ctx, moved, at); err != nil {
		return err
	}
	for i := range at {
		if at[i].IsZero() {
			return fmt.Errorf("block %s is gone, condemned or damaged", moved[i])
		}
	}
	return ctx.Err()
}

// forgetCheckpoint is called when the image is there. One that stays costs
// nothing: it is of no use unless the device still holds the same.
func (r *run) forgetCheckpoint(ctx context.Context, volume string) {
	_ = r.env.Catalog.Delete(context.WithoutCancel(ctx), checkpointSpace, volume)
}
