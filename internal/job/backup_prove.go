package job

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"platter/block"
	"platter/block/snapshot"
	"platter/cbt"
	"platter/cbt/full"
	"platter/image"
)

// Modes of the self-audit.
const (
	AuditAuto = "auto"
	AuditFull = "full"
	AuditOff  = "off"
)

// auditCycle is the time in which every block that trackers vouch for is read
// once, whatever they say.
const auditCycle = 30 * 24 * time.Hour

// maxMissed bounds how many extents a report names.
const maxMissed = 64

// A prover reads again what a tracker says has not changed, and compares it
// with the image before.
type prover struct {
	*run
	src     block.Source
	m       *image.Manifest
	parent  *parentMap
	changed *cbt.Set // may have changed, says the tracker: not read here
	free    *cbt.Set // holds nothing: nor is this; nil for none
	// leftOut: zeros of the image before may stand for what was free then.
	leftOut bool
	hasher  *image.Hasher
	slow    *throttle
	data    block.Extent // first range that may hold data and ends after where the walk is

	read   int64          // bytes
	missed []block.Extent // had changed all the same
	unsure []block.Extent // may have: see doubtful
}

func (i *imaging) prover() *prover {
	return &prover{
		run: i.run, src: i.s.view, m: i.m, parent: i.parentMap(i.s.parent), changed: i.changed, free: i.free, leftOut: i.s.parent.LeftOut,
		hasher: i.env.Repo.Hasher(), slow: newThrottle(i.opts.LimitRead),
	}
}

// check goes through the whole blocks that e touches.
func (p *prover) check(ctx context.Context, e block.Extent) error {
	buf, err := p.pool.Get(ctx)
	if err != nil {
		return err
	}
	defer p.pool.Put(buf)
	p.data = block.Extent{}
	size := int64(p.m.BlockSize)
	most := int64(len(buf)) / size
	for n, end := e.Offset/size, min((e.End()+size-1)/size, p.m.Blocks()); n < end && len(p.missed) < maxMissed; {
		leaf, _, _ := p.parent.leaf(ctx, n/image.PageEntries)
		run := int64(0)
		for run < min(most, end-n) && p.wanted(leaf, n+run) && (n+run)/image.PageEntries == n/image.PageEntries {
			run++
		}
		if run == 0 {
			n++
			continue
		}
		if err := p.compare(ctx, leaf, n, run, buf); err != nil {
			return err
		}
		n += run
	}
	return nil
}

// wanted reports whether a block is one that the tracker vouches for. Nothing
// can be said of one whose place in the image before cannot be read.
func (p *prover) wanted(leaf *image.Page, n int64) bool {
	e := p.blocks(n, 1)
	return leaf != nil && n < p.parent.blocks && !p.changed.Contains(e) && (p.free == nil || !p.free.Contains(e))
}

func (p *prover) blocks(n, count int64) block.Extent {
	size := int64(p.m.BlockSize)
	return block.Extent{Offset: n * size, Length: min(count*size, p.m.Size-n*size)}
}

// compare reads a run of blocks within one page of the map. Holes are zeros,
// and need not be read.
func (p *prover) compare(ctx context.Context, leaf *image.Page, n, count int64, buf []byte) error {
	e := p.blocks(n, count)
	buf = buf[:e.Length]
	if err := p.seek(e.Offset); err != nil {
		return err
	}
	if p.data.Offset >= e.End() {
		clear(buf)
	} else if ok, err := p.fill(ctx, buf, e.Offset); !ok {
		return err
	}
	size := int64(p.m.BlockSize)
	for i := range count {
		before := leaf.Entries[(n+i)%image.PageEntries]
		b := buf[i*size : min((i+1)*size, int64(len(buf)))]
		switch {
		case p.hasher.Compare(b, before) == before:
		case before.IsZero() && p.leftOut:
			p.unsure = mergeExtents(append(p.unsure, p.blocks(n+i, 1)))
		default:
			p.missed = mergeExtents(append(p.missed, p.blocks(n+i, 1)))
		}
	}
	return nil
}

// fill reads. What cannot be read any more is in the image from before: that
// is worth a warning, and no reason to lose the night.
func (p *prover) fill(ctx context.Context, buf []byte, off int64) (ok bool, err error) {
	if err := p.slow.wait(ctx, len(buf)); err != nil {
		return false, err
	}
	p.read += int64(len(buf))
	_, err = p.src.ReadAt(ctx, buf, off)
	var bad *block.ReadError
	if errors.As(err, &bad) {
		p.m.Warnings = append(p.m.Warnings, fmt.Sprintf("%v; the image has what was read there before", bad))
		return false, nil
	}
	return err == nil, err
}

func (p *prover) seek(off int64) error {
	if p.data.End() > off {
		return nil
	}
	d, err := p.src.Data(off)
	if errors.Is(err, io.EOF) {
		d, err = block.Extent{Offset: p.m.Size, Length: 1}, nil
	}
	p.data = d
	return err
}

// canaries are places that are read every night, whatever the tracker says:
// what changes whenever anything does, and what nothing may lose. First and
// last MiB of the device and of its partitions hold partition tables and
// superblocks; btrfs has copies of its own further in.
func canaries(d block.Info) []block.Extent {
	var list []block.Extent
	ends := func(e block.Extent, content string) {
		const edge = 1 << 20
		list = append(list, block.Extent{Offset: e.Offset, Length: min(edge, e.Length)},
			block.Extent{Offset: max(e.Offset, e.End()-edge), Length: min(edge, e.Length)})
		if content == "btrfs" {
			for _, mirror := range []int64{64 << 20, 256 << 30} {
				list = append(list, block.Extent{Offset: e.Offset + mirror, Length: 4096})
			}
		}
	}
	ends(block.Extent{Length: d.Size}, d.Content)
	if d.Table != nil {
		for _, p := range d.Table.Partitions {
			ends(p.Extent, p.Content)
		}
	}
	var on []block.Extent
	for _, e := range mergeExtents(list) {
		if e.Offset >= 0 && e.Offset < d.Size {
			on = append(on, block.Extent{Offset: e.Offset, Length: min(e.Length, d.Size-e.Offset)})
		}
	}
	return on
}

// read reads what may have changed, and proves the tracker by the way: the
// canaries before, the night's share of the audit after. A tracker that missed
// a write has its history ended, and every block is compared at once, in the
// same still view. Of a view that is of no moment yet, all this comes before its
// moment.
func (i *imaging) read(ctx context.Context) error {
	i.m.Audit = &image.Audit{Since: i.m.Time}
	if i.m.Tracker.Name == full.Name {
		return i.image(ctx, i.changed)
	}
	p := i.prover()
	for _, e := range canaries(i.m.Device) {
		doubt(i.s.view, e)
		if err := p.check(ctx, e); err != nil {
			return fmt.Errorf("check canaries: %w", err)
		}
	}
	i.m.Audit.Canaries, p.read = p.read, 0
	missed, err := p.judge(ctx, i.s.view)
	if err == nil && len(missed) == 0 {
		for _, e := range p.unsure {
			i.changed.Add(e)
		}
		p.unsure = nil
		if err = i.image(ctx, i.changed); err == nil {
			missed, err = i.audit(ctx, p)
		}
	}
	switch {
	case err != nil:
		return err
	case len(missed) == 0:
		return i.doubtful(ctx, p.unsure)
	}
	i.alarm(i.m, missed)
	doubt(i.s.view, block.Extent{Length: i.m.Size})
	return i.image(ctx, cbt.Unknown(i.m.Size))
}

// doubt has a part of the view be read, also if the tracker said it is a hole.
func doubt(view snapshot.View, e block.Extent) {
	if v, ok := view.(snapshot.Told); ok {
		v.Doubt(e)
	}
}

// judge returns what the tracker missed. Of a device that goes on being
// written to, what was written meanwhile is no proof of anything.
func (p *prover) judge(ctx context.Context, view snapshot.View) ([]block.Extent, error) {
	v, ok := view.(cbt.Converging)
	if !ok || len(p.missed) == 0 {
		return p.missed, nil
	}
	written, err := v.Written(ctx)
	if err != nil {
		return nil, err
	}
	var missed []block.Extent
	for _, e := range p.missed {
		for n := e.Offset / int64(p.m.BlockSize); n*int64(p.m.BlockSize) < e.End(); n++ {
			if b := p.blocks(n, 1); !written.Contains(b) {
				missed = append(missed, b)
			}
		}
	}
	return mergeExtents(missed), nil
}

// alarm ends the tracker's history: this image is no parent of a tracked one.
func (r *run) alarm(m *image.Manifest, missed []block.Extent) {
	m.Tracker.Why = fmt.Sprintf("tracker %s missed a write at %v", m.Tracker.Name, missed[0])
	m.Warnings = append(m.Warnings, fmt.Sprintf("tracker %s is not to be trusted: it called unchanged what had changed at %s; every block was compared",
		m.Tracker.Name, fewExtents(missed)))
	r.env.warn("%s: %s: comparing every block", m.Volume, m.Tracker.Why)
	m.Tracker.Name, m.Tracker.History, m.Tracker.Generation = full.Name, "", nil
	m.Audit.Since, m.Audit.Done, m.Audit.Missed = m.Time, 0, missed
}

// fewExtents names the first extents of a list.
func fewExtents(list []block.Extent) string {
	var words []string
	for _, e := range list[:min(3, len(list))] {
		words = append(words, e.String())
	}
	if more := len(list) - len(words); more > 0 {
		words = append(words, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(words, ", ")
}

// audit re-reads the share of the device that is due, at idle priority.
func (i *imaging) audit(ctx context.Context, p *prover) ([]block.Extent, error) {
	a, parent := p.m.Audit, i.s.parent
	if parent.Audit != nil {
		a.Since, a.Done = parent.Audit.Since, min(parent.Audit.Done, p.m.Size)
	}
	if i.opts.DryRun {
		return nil, nil
	}
	due := due(a, p.m, parent.Time, i.opts.Audit)
	start := time.Now()
	err := idly(func() error { return p.check(ctx, due) })
	if err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	a.Read, a.Took, a.Done = p.read, time.Since(start), due.End()
	missed, err := p.judge(ctx, i.s.view)
	switch late := p.m.Time.Sub(a.Since) - auditCycle; {
	case a.Done >= p.m.Size && p.m.Size > 0:
		a.Since, a.Done = p.m.Time, 0
	case late > 0:
		p.m.Warnings = append(p.m.Warnings, fmt.Sprintf("the audit is overdue: of %d bytes that the tracker vouches for, those from %d on were last read before %s",
			p.m.Size, a.Done, a.Since.Format(time.DateOnly)))
	}
	return missed, err
}

// due returns what is to be audited in a run: as much of the device, from
// where the last run ended, as lets the cycle end in time if runs go on at the
// pace of the last two. What was missed is made up for by a quarter of the
// device at a time.
func due(a *image.Audit, m *image.Manifest, last time.Time, mode string) block.Extent {
	rest := block.Extent{Offset: a.Done, Length: m.Size - a.Done}
	switch mode {
	case AuditOff:
		rest.Length = 0
		return rest
	case AuditFull:
		return block.Extent{Length: m.Size}
	}
	pace := min(max(m.Time.Sub(last), 0), auditCycle)
	passed := min(max(m.Time.Sub(a.Since), 0)+pace, auditCycle)
	share := float64(passed) / float64(auditCycle)
	size := int64(m.BlockSize)
	goal := int64(share*float64(m.Size)+float64(size)-1) / size * size
	most := max(m.Size/4, 64<<20)
	rest.Length = max(0, min(min(goal, m.Size)-a.Done, most/size*size))
	return rest
}

// idly calls f on a thread that gets the disk only when nobody else wants it.
func idly(f func() error) error {
	done := make(chan error, 1)
	go func() {
		// The thread ends with the goroutine, and its priority with it.
		runtime.LockOSThread()
		const whoProcess, classIdle = 1, 3 << 13
		_, _, _ = unix.Syscall(unix.SYS_IOPRIO_SET, whoProcess, 0, classIdle)
		done <- f()
	}()
	return <-done
}

// suspects adds to changed what is known to be damaged where the image before
// has it: a tracker has no reason to name that, and the image would inherit
// the damage.
func (r *run) suspects(ctx context.Context, parent *image.Manifest, changed *cbt.Set) error {
	if len(r.damaged) == 0 && len(r.ruined) == 0 {
		return nil
	}
	if e, ok := changed.Next(0); ok && e.Length == changed.Size() {
		return nil // all of it is compared as it is
	}
	levels := image.Levels(parent.Blocks())
	if levels == 0 {
		return nil
	}
	return r.suspect(ctx, r.parentMap(parent), levels-1, 0, int64(parent.BlockSize), changed)
}

// suspect does so below one page of the map.
func (r *run) suspect(ctx context.Context, m *parentMap, level int, index, size int64, changed *cbt.Set) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	span := image.PageBlocks(level)
	first := index * span
	p, id, at := m.page(ctx, level, index)
	switch {
	case p == nil || r.ruined[at.Segment]:
		changed.Add(block.Extent{Offset: first * size, Length: min(span, m.blocks-first) * size})
		return nil
	case id.IsZero():
		return nil
	}
	for i, id := range p.Entries {
		if id.IsZero() {
			continue
		}
		if level > 0 {
			if err := r.suspect(ctx, m, level-1, index*image.PageEntries+int64(i), size, changed); err != nil {
				return err
			}
		} else if r.damaged[id] || r.ruined[p.Hints[i].Segment] {
			changed.Add(block.Extent{Offset: (first + int64(i)) * size, Length: size})
		}
	}
	return nil
}
