package job

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"platter/block"
	"platter/cbt"
	"platter/image"
	"platter/image/keys"
	"platter/image/reader"
	"platter/image/segment"
)

// Restore writes an image to a device or a file: it plans, has the plan
// confirmed, and writes.
//
// No block is written before its bytes were checked against its ID. The
// partition table and boot sectors go last, so that a disk restored by half
// does not start. Afterwards all is read back from the device and checked
// again.
//
// The report is there, with its plan, whenever the image was found. Errors
// wrap block.ErrRefused when the target must not be written to, ErrConfirm,
// or ErrDamaged, with image, extent and segment, for a block of which the
// repository has no good copy.
func Restore(ctx context.Context, env *Env, opts RestoreOptions) (*RestoreReport, error) {
	start := time.Now()
	if !env.Repo.Keys.CanRead() {
		return nil, fmt.Errorf("restore: %w", keys.ErrNoDataKey)
	}
	w, err := openWanted(ctx, env, opts.Image)
	if err != nil {
		return nil, err
	}
	defer w.close()
	target, err := w.target(env, &opts)
	if err != nil {
		return nil, err
	}
	if opts.Adapt.any() {
		if err := w.adapt(ctx, env, &opts); err != nil {
			return nil, err
		}
		if target, err = w.target(env, &opts); err != nil { // for what it holds now
			return nil, err
		}
	}
	rb, why := w.planRollback(ctx, env, &opts, target)
	report := &RestoreReport{Plan: restorePlan(w, target, &opts, rollbackText(rb, why))}
	report.Notices = report.Plan.Notices
	if opts.DryRun {
		return report, nil
	}
	if err := confirm(report.Plan, opts.Confirm); err != nil {
		return report, err
	}
	if err = restore(ctx, env, w, target, &opts, rb, report); err == nil {
		err = growFilesystem(ctx, &opts, report)
	}
	if err == nil {
		w.bootEntry(ctx, &opts, report)
	}
	report.Elapsed = time.Since(start)
	return report, err
}

func confirm(p *RestorePlan, ask func(*RestorePlan) (bool, error)) error {
	if ask == nil {
		if p.Destroys == "" {
			return nil
		}
		return fmt.Errorf("restore to %s: this would destroy %s: %w", p.Target.Path, p.Destroys, ErrConfirm)
	}
	yes, err := ask(p)
	if err == nil && !yes {
		err = fmt.Errorf("restore to %s: %w", p.Target.Path, ErrConfirm)
	}
	return err
}

// restorePlan says what a restore will do.
func restorePlan(w *wanted, t *block.TargetPlan, opts *RestoreOptions, inPlace string) *RestorePlan {
	m := w.image
	p := &RestorePlan{Image: m, Target: t.Info, Create: t.Create, InPlace: opts.InPlace, Partition: w.part, Fit: w.fit}
	if !t.Create {
		p.Destroys = "what is on " + t.Info.Path + " now"
		if t.Old != "" {
			p.Destroys = t.Old + " on " + t.Info.Path
		}
	}
	p.Steps = restoreSteps(w, t, opts, inPlace)
	p.Notices = slices.Concat(imageNotices(m), t.Notices, w.fit.Notices)
	if p.Adapted = w.adapted; p.Adapted != nil {
		p.Notices = append(p.Notices, p.Adapted.Left...)
	}
	if fw := m.Device.Firmware; fw != "" && w.part == nil && opts.Adapt.Firmware == "" {
		p.Notices = append(p.Notices, "the image starts by "+firmwareText(fw)+": the machine must start that way too")
	}
	return p
}

func restoreSteps(w *wanted, t *block.TargetPlan, opts *RestoreOptions, inPlace string) (steps []string) {
	add := func(step string) { steps = append(steps, step) }
	switch {
	case t.Create:
		add("create the file")
	case t.File && !opts.InPlace:
		add("cut the file to nothing")
	case !opts.InPlace:
		add("zero the first and last MiB, so that nothing starts from a disk restored by half")
	}
	switch {
	case opts.InPlace:
		add(inPlace)
	case t.File:
		add("write all blocks; zeros become holes")
	default:
		add("write all blocks, and zero what is zero in the image")
	}
	if w.adapted != nil {
		add("write what was changed of the image, which is:")
		steps = append(steps, w.adapted.Changes...)
	}
	add("write the first and last MiB, with partition table and boot sectors")
	if !t.File && t.Info.Size > w.region.Length {
		add("wipe old signatures behind the image")
	}
	if !opts.NoReadBack {
		add("read all of it back and check it")
	}
	return append(append(steps, w.fit.Changes...), w.grows...)
}

// imageNotices are what one must know before trusting a restored image.
func imageNotices(m *image.Manifest) (notices []string) {
	if m.Fuzzy {
		notices = append(notices, "the image is fuzzy: its device was written to while it was read")
	}
	for _, e := range m.Unreadable {
		notices = append(notices, fmt.Sprintf("%d bytes at %d could not be read from the device: the image holds zeros there", e.Length, e.Offset))
	}
	return append(notices, m.Warnings...)
}

func firmwareText(firmware string) string {
	return map[string]string{"bios": "BIOS", "uefi": "UEFI", "both": "BIOS or UEFI"}[firmware]
}

// A restorer writes one image to one target.
type restorer struct {
	env        *Env
	opts       *RestoreOptions
	image      *image.Manifest
	wanted     *wanted
	reader     *reader.Reader
	device     *block.Target // what is written to
	target     canvas        // the same, by the offsets of the image
	pool       *block.Pool   // for reading the target
	fresh      bool          // all of the target reads as zeros before it is written
	isFile     bool
	first, end int64    // blocks of the image that are written
	only       *cbt.Set // what of the target may be another than in the image; nil for all
	edge       int64    // blocks at either end that are written last

	throttle *throttle
	counts   counters
	written  restoreCounts
	stage    string // what is true of the target, for errors
}

// restore opens the target and does what was planned.
func restore(ctx context.Context, env *Env, w *wanted, plan *block.TargetPlan, opts *RestoreOptions, rb *rollback, report *RestoreReport) (err error) {
	m := w.image
	target, err := plan.Open()
	if err != nil {
		return err
	}
	r := &restorer{
		env: env, opts: opts, image: m, wanted: w, reader: w.reader, device: target,
		fresh: plan.File && !opts.InPlace, isFile: plan.File,
		first: w.region.Offset / int64(m.BlockSize), end: (w.region.End() + int64(m.BlockSize) - 1) / int64(m.BlockSize),
		edge:     max(1, edgeSize/int64(m.BlockSize)),
		throttle: newThrottle(opts.LimitWrite),
	}
	defer func() {
		if e := target.Close(); err == nil && e != nil {
			err = fmt.Errorf("close %s: %w", opts.Target, e)
		}
	}()
	if r.pool, err = block.NewPool(workers(), max(chunkSize, m.BlockSize)); err != nil {
		return err
	}
	defer r.pool.Close()
	if r.target, err = w.canvas(target); err != nil {
		return r.explain(err)
	}
	if rb != nil {
		r.stage = "the target is as it was"
		rb.restorer, report.Rollback = r, rb.report
		if err := rb.begin(ctx); err != nil {
			return r.explain(err)
		}
	}
	err = r.run(ctx, report)
	if err == nil && rb != nil {
		err = rb.end(ctx)
	}
	report.Written, report.Zeroed, report.Kept = r.written.data.Load(), r.written.zeroed.Load(), r.written.kept.Load()
	report.Trusted = r.written.trusted.Load()
	report.Segments = r.reader.Segments()
	if err != nil {
		return r.explain(err)
	}
	return nil
}

// edgeSize is how much at either end is written last, in bytes: the partition
// tables, boot sectors, and the superblock of a filesystem without a table.
const edgeSize = 1 << 20

func (r *restorer) run(ctx context.Context, report *RestoreReport) error {
	r.stage = "the target is as it was"
	if err := r.invalidate(ctx); err != nil {
		return err
	}
	if err := r.write(ctx); err != nil {
		return err
	}
	r.stage = "all of the image was written, but not read back"
	if !r.opts.NoReadBack {
		if err := r.readBack(ctx); err != nil {
			return err
		}
		report.ReadBack = true
	}
	if r.wanted.over != nil {
		if err := r.writeAdapted(ctx); err != nil {
			return err
		}
	}
	return r.finish(ctx, report)
}

// invalidate takes away what an old system on a device could start from, and
// makes that durable, before the first new byte is written.
func (r *restorer) invalidate(ctx context.Context) error {
	if r.isFile || r.opts.InPlace {
		return nil
	}
	r.stage = "the target's first and last MiB are zero, so that nothing starts from it"
	for _, e := range r.edges() {
		if err := r.target.Zero(ctx, e); err != nil {
			return err
		}
	}
	if err := block.WipeBeyond(r.device, r.wanted.region.Length); err != nil {
		return err
	}
	return r.device.Sync()
}

// ends returns where the first blocks end, which are written last, and where
// the last ones begin.
func (r *restorer) ends() (first, last int64) {
	first = min(r.first+r.edge, r.end)
	return first, max(first, r.end-r.edge)
}

// edges returns both ends of the image in bytes; they may be all of it.
func (r *restorer) edges() []block.Extent {
	first, last := r.ends()
	return []block.Extent{r.extent(r.first, first), r.extent(last, r.end)}
}

// write writes the middle, then the end, then the beginning.
func (r *restorer) write(ctx context.Context) error {
	stop := r.env.report("restore", r.opts.Target, "write", r.wanted.region.Length, &r.counts, func() int64 { return 0 })
	defer stop()
	first, last := r.ends()
	if !r.opts.InPlace {
		r.stage = "the target is incomplete: its first and last MiB are still zero, so that nothing starts from it; restore again"
	} else {
		r.stage = "the target is incomplete, a mix of what it held and the image: restore again"
	}
	if err := r.pass(ctx, first, last, r.writeWindow); err != nil {
		return err
	}
	// What the table leads to is durable before the table is there.
	if err := r.target.Sync(); err != nil {
		return err
	}
	if err := r.pass(ctx, last, r.end, r.writeWindow); err != nil {
		return err
	}
	if r.wanted.over == nil { // otherwise what was changed comes before
		if err := r.pass(ctx, r.first, first, r.writeWindow); err != nil {
			return err
		}
	}
	if !r.isFile && r.opts.InPlace {
		if err := block.WipeBeyond(r.device, r.wanted.region.Length); err != nil {
			return err
		}
	}
	return r.target.Sync()
}

// finish writes what is another on this disk than in the image, and tells the
// kernel.
func (r *restorer) finish(ctx context.Context, report *RestoreReport) error {
	if r.isFile {
		return nil
	}
	if fit := r.wanted.fit; !fit.Empty() {
		r.stage = "all of the image is there, but its partition table is not fitted to this disk: restore again"
		if err := fit.Write(ctx, r.wanted.source, r.device); err != nil {
			return err
		}
		if err := errors.Join(r.device.Sync(), fit.Check(r.device)); err != nil {
			return err
		}
	}
	if err := r.device.RereadTable(); err != nil {
		report.Notices = append(report.Notices, err.Error())
	}
	return nil
}

// explain says what became of the target.
func (r *restorer) explain(err error) error {
	return fmt.Errorf("restore image %s of %s to %s: %w (%s)", r.image.ID.String()[:8], r.image.Volume, r.opts.Target,
		damaged(r.image, err), r.stage)
}

// damaged says which part of an image a lost block or page leaves without
// data, and makes it ErrDamaged.
func damaged(m *image.Manifest, err error) error {
	var lost *reader.Lost
	if !errors.As(err, &lost) || !reader.Damaged(err) {
		return err
	}
	where := "bytes " + blockExtent(m, lost.Block).String()
	if lost.Page {
		where = fmt.Sprintf("the map from byte %d on", lost.Block*int64(m.BlockSize))
	}
	if !lost.At.IsZero() && !strings.Contains(lost.Err.Error(), lost.At.Segment.String()) {
		where += " in " + segment.Name(lost.At.Segment)
	}
	return fmt.Errorf("%w: image %s, %s: %w", ErrDamaged, m.ID, where, err)
}

// blockExtent returns the bytes of block n.
func blockExtent(m *image.Manifest, n int64) block.Extent {
	off := n * int64(m.BlockSize)
	return block.Extent{Offset: off, Length: max(0, min(int64(m.BlockSize), m.Size-off))}
}
