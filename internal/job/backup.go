package job

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"platter/block"
	"platter/block/snapshot"
	"platter/catalog"
	"platter/cbt"
	"platter/cbt/full"
	"platter/image"
	"platter/image/keys"
	"platter/image/repo"
	"platter/image/segment"
)

// Backup images devices one after the other, in one run that shares segments.
// A device that fails does not keep the others from being imaged: the error
// joins those of all, and the reports are of those that went well. Devices that
// are imaged together are imaged all, or none.
func Backup(ctx context.Context, env *Env, opts BackupOptions) ([]*BackupReport, error) {
	if err := opts.split(ctx); err != nil {
		return nil, err
	}
	if err := opts.check(); err != nil {
		return nil, err
	}
	r, err := beginRun(ctx, env, &opts)
	if err != nil {
		return nil, err
	}
	defer r.end(ctx)
	if opts.Together && opts.count() > 1 && !opts.DryRun {
		return r.together(ctx)
	}
	return r.each(ctx)
}

// each images the devices one by one, each from a still view of its own.
func (r *run) each(ctx context.Context) ([]*BackupReport, error) {
	var reports []*BackupReport
	var problems []error
	for i := range r.opts.count() {
		report, err := r.one(ctx, i)
		if errors.Is(err, errCollected) && ctx.Err() == nil {
			r.env.warn("%v: once more, under a new lease", err)
			if err = r.restart(ctx); err == nil {
				report, err = r.one(ctx, i)
			}
		}
		if err != nil {
			problems = append(problems, err)
			if ctx.Err() != nil || r.broken() {
				break
			}
			continue
		}
		reports = append(reports, report)
	}
	r.withheld(ctx, reports)
	return reports, errors.Join(problems...)
}

// withheld reports what this machine has seen and the repository does not show
// any more, with the first image made; and remembers the images made.
func (r *run) withheld(ctx context.Context, reports []*BackupReport) {
	if ctx.Err() != nil || r.broken() {
		return
	}
	absent, err := Withheld(ctx, r.env)
	if err != nil {
		r.env.warn("whether the newest images are all there is not known: %v", err)
		return
	}
	if len(reports) > 0 {
		reports[0].Absent = absent
		return
	}
	for i := range absent {
		r.env.warn("%s", &absent[i])
	}
}

func (r *run) one(ctx context.Context, i int) (*BackupReport, error) {
	s, err := r.subject(ctx, i)
	if err != nil {
		return nil, err
	}
	if err := r.hold(ctx, s); err != nil {
		return nil, err
	}
	defer s.close(r.env)
	return r.device(ctx, s)
}

// count returns the number of devices to image.
func (o *BackupOptions) count() int { return max(len(o.Devices), len(o.Sources)) }

func (o *BackupOptions) check() error {
	n := o.count()
	switch {
	case n == 0:
		return fmt.Errorf("backup: %w: name a device", ErrUsage)
	case n > 1 && o.Volume != "":
		return fmt.Errorf("backup: %w: --volume names one volume, and there are %d devices", ErrUsage, n)
	case !slices.Contains([]string{"", AuditAuto, AuditFull, AuditOff}, o.Audit):
		return fmt.Errorf("backup: %w: audit %q: want auto, full or off", ErrUsage, o.Audit)
	case !slices.Contains(o.Ways.Names(), o.tracker()):
		return fmt.Errorf("backup: %w: tracker %q: want one of %s", ErrUsage, o.Tracker, strings.Join(o.Ways.Names(), ", "))
	}
	return nil
}

// A run is one backup of one or more devices.
type run struct {
	env    *Env
	opts   *BackupOptions
	id     [16]byte
	set    string
	holder *repo.Holder // nil in a dry run
	// revives: the run brings an image back, instead of making one.
	revives bool
	data    *segmentWriter
	pages   *segmentWriter
	pool    *block.Pool
	// usable are the segments that blocks can be relied on in: there, to be
	// trusted, and not condemned, when the run began.
	usable map[image.SegmentID]bool
	// damaged are blocks and pages known to be damaged where they are stored,
	// ruined the segments of which nothing can be read.
	damaged map[image.ID]bool
	ruined  map[image.SegmentID]bool
	trust   *trust
	resumed int64 // bytes of devices, taken over from earlier runs' checkpoints
}

const (
	maxSegment  = 64 << 20
	minSegment  = 8 << 20
	pageSegment = 8 << 20
	chunkSize   = 1 << 20
)

// beginRun takes a lease, and only then looks at what the repository holds.
func beginRun(ctx context.Context, env *Env, opts *BackupOptions) (*run, error) {
	r := &run{env: env, opts: opts, usable: map[image.SegmentID]bool{}, damaged: map[image.ID]bool{}, ruined: map[image.SegmentID]bool{}}
	rand.Read(r.id[:])
	if opts.count() > 1 {
		r.set = hex.EncodeToString(r.id[:])
	}
	if err := r.begin(ctx); err != nil {
		r.end(ctx)
		return nil, err
	}
	return r, nil
}

func (r *run) begin(ctx context.Context) (err error) {
	var condemned *repo.Condemned
	if r.opts.DryRun {
		condemned, err = r.env.Repo.NewestCondemned(ctx)
	} else if r.holder, err = r.env.Repo.Acquire(ctx, repo.LeaseBackup, r.id); err == nil {
		condemned = r.holder.Condemned
	}
	if err != nil {
		return err
	}
	if err := r.env.sync(ctx); err != nil {
		return err
	}
	if err := r.look(ctx, condemned); err != nil {
		return err
	}
	if r.pool, err = block.NewPool(workers(), max(chunkSize, r.env.Repo.Config.BlockSize)); err != nil {
		return err
	}
	if !r.opts.DryRun {
		r.data = newSegmentWriter(ctx, r.env, segment.Data, r.id, 2, segmentSize(r.env.Memory))
		r.pages = newSegmentWriter(ctx, r.env, segment.Pages, r.id, 2, pageSegment)
		r.pages.blocks = r.data
	}
	return nil
}

// restart begins anew under a new lease, as a run of the same set.
func (r *run) restart(ctx context.Context) error {
	r.end(ctx)
	set := r.set
	*r = run{env: r.env, opts: r.opts}
	fresh, err := beginRun(ctx, r.env, r.opts)
	if err != nil {
		return err
	}
	*r = *fresh
	r.set = set
	return nil
}

// look learns what stored before can be relied on.
func (r *run) look(ctx context.Context, condemned *repo.Condemned) error {
	err := r.env.Repo.Damaged(ctx, func(id image.ID, at image.Location) error {
		if at.Record == repo.WholeSegment {
			r.ruined[at.Segment] = true
		} else {
			r.damaged[id] = true
		}
		return nil
	})
	if err != nil && !errors.Is(err, image.ErrCorrupt) { // of which the catalog has warned
		return fmt.Errorf("read notes of damage: %w", err)
	}
	if r.trust, err = r.env.trust(ctx); err != nil {
		return err
	}
	absent := condemned.IDs()
	maps.Copy(absent, r.ruined)
	err = r.env.Catalog.Segments(ctx, func(s catalog.SegmentInfo) error {
		if !absent[s.ID] && r.trust.usable(s.Writer, s.Moved, s.ID, s.Digest) {
			r.usable[s.ID] = true
		} else {
			absent[s.ID] = true
		}
		return nil
	})
	r.env.Catalog.SetCondemned(slices.Collect(maps.Keys(absent)))
	return err
}

// segmentSize is a fifth of the memory budget: two data segments are in memory
// at a time.
func segmentSize(memory int64) int {
	return int(min(max(memory/5, minSegment), maxSegment)) &^ (segment.Align - 1)
}

// workers read as well as compute, so there are more of them than cores.
func workers() int { return 2*runtime.GOMAXPROCS(0) + 2 }

// broken reports whether segments cannot be stored any more.
func (r *run) broken() bool {
	if r.data == nil {
		return false
	}
	return r.data.failed() || r.pages.failed()
}

func (r *run) end(ctx context.Context) {
	if r.data != nil {
		// A run that stops early keeps the blocks it has, for the next one.
		_ = r.data.flush()
		_ = r.pages.flush()
		r.data.close()
		r.pages.close()
	}
	if r.pool != nil {
		_ = r.pool.Close()
	}
	if r.holder != nil {
		r.holder.Release(ctx)
	}
}

// An imaging is one image being made.
type imaging struct {
	*run
	s       *subject
	tracker cbt.Tracker
	m       *image.Manifest
	changed *cbt.Set // since the parent
	free    *cbt.Set // left out; nil for none
	pass    *pass    // over all of the device, that later ones add to
	start   time.Time
	cost    totals
	resumed int64 // bytes of the device, from a checkpoint
}

// device makes one image.
func (r *run) device(ctx context.Context, s *subject) (*BackupReport, error) {
	i, err := r.prepare(ctx, s)
	if err != nil {
		return nil, err
	}
	defer i.tracker.Close()
	err = i.step(func() error {
		err := i.read(ctx)
		for last := false; err == nil && !last; {
			last, err = i.again(ctx)
		}
		return err
	})
	if err == nil {
		err = i.conclude()
	}
	if err != nil {
		return nil, err
	}
	return i.finish(ctx)
}

// prepare finds out what there is to read.
func (r *run) prepare(ctx context.Context, s *subject) (_ *imaging, err error) {
	i := &imaging{run: r, s: s, start: time.Now()}
	if i.tracker, err = s.track(ctx); err != nil {
		return nil, fmt.Errorf("back up %s: %w", s.path, err)
	}
	i.m = r.manifest(s)
	if i.free, err = r.vacant(ctx, s.view, i.m); err == nil {
		i.changed, err = r.changed(ctx, i.tracker, i.m, s.parent)
	}
	if t, ok := i.tracker.(cbt.Sparse); err == nil && ok && i.m.Tracker.Name == full.Name && !r.opts.AllBlocks {
		err = t.Holes(ctx)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("back up %s: %w", s.path, err), i.tracker.Close())
	}
	return i, nil
}

// step does a part of the work, and counts what it stored.
func (i *imaging) step(do func() error) error {
	before, resumed := i.stored(), i.run.resumed
	err := do()
	if err == nil {
		err = i.flush()
	}
	if err != nil {
		return fmt.Errorf("back up %s: %w", i.s.path, err)
	}
	after := i.stored()
	i.cost.payload += after.payload - before.payload
	i.cost.overhead += after.overhead - before.overhead
	i.cost.count += after.count - before.count
	i.resumed += i.run.resumed - resumed
	return nil
}

// finish makes the image exist, of which all is read and stored.
func (i *imaging) finish(ctx context.Context) (*BackupReport, error) {
	report, err := i.commitImage(ctx)
	if err != nil {
		return nil, fmt.Errorf("back up %s: %w", i.s.path, err)
	}
	report.Elapsed = time.Since(i.start)
	return report, nil
}

func (i *imaging) commitImage(ctx context.Context) (*BackupReport, error) {
	s, m, r := i.s, i.m, i.run
	s.letGo()
	s.warn(m)
	report := &BackupReport{Image: m, DryRun: r.opts.DryRun, Resumed: i.resumed}
	if err := r.settle(ctx, s, i.tracker, report); err != nil {
		return nil, err
	}
	if s.parent != nil {
		report.Parent = s.parent.ID.String()
	}
	if r.opts.DryRun {
		return report, nil
	}
	m.Stats.Stored, m.Stats.Overhead = i.cost.payload, i.cost.overhead
	report.Segments = i.cost.count
	if err := r.commit(ctx, m); err != nil {
		return nil, err
	}
	r.forgetCheckpoint(ctx, m.Volume)
	r.keepHistory(ctx, i.tracker, m)
	return report, nil
}

// lineOf is the line that a writer's images are counted with.
func lineOf(w keys.Writer) string {
	if w.Vouches() {
		return ""
	}
	return w.String()
}

func (r *run) manifest(s *subject) *image.Manifest {
	info := s.view.Info()
	m := &image.Manifest{
		Volume: s.volume, Host: r.env.Host, Tags: r.opts.Tags, Set: r.set, Time: r.moment(s),
		BlockSize: r.env.Repo.Config.BlockSize, Size: info.Size, Device: info,
		Run: hex.EncodeToString(r.id[:]), Tool: r.env.Version,
		Tracker: image.Tracking{View: s.view.Method(), Passed: s.passed},
	}
	if r.holder != nil {
		m.Epoch = r.holder.Epoch()
	}
	rand.Read(m.ID[:])
	if o := snapshot.Observe(s.view); o != nil && o.Live() {
		m.Fuzzy = true
		for _, u := range o.Usage() {
			m.Warnings = append(m.Warnings, "read while in use: "+u.String())
		}
	}
	return m
}

// moment is when the view was taken, by the clock that the repository goes by.
func (r *run) moment(s *subject) time.Time {
	if !s.moment.IsZero() {
		return s.moment
	}
	return r.env.Repo.Machine.Now().Add(-time.Since(s.view.Taken())).UTC()
}

var volumePattern = regexp.MustCompile(`^[A-Za-z0-9._/+-]+$`)

// volumeName returns HOST/NAME.
func volumeName(asked, host, device string) (string, error) {
	name := asked
	if name == "" {
		name = strings.Trim(device, "/")
	}
	if asked == "" || !strings.Contains(asked, "/") {
		name = host + "/" + name
	}
	if !volumePattern.MatchString(name) || len(name) > 255 || strings.Contains(name, "//") || strings.HasPrefix(name, "/") || strings.HasSuffix(name, "/") {
		return "", fmt.Errorf("volume name %q: %w: want HOST/NAME of letters, digits and ._/+-, at most 255 in all", name, ErrUsage)
	}
	return name, nil
}

// parent returns the volume's newest image, or nil, and refuses another device
// under its name. Images that another writer made, who cannot read, are never
// compared with: what a tracker vouches for is taken over from the parent
// unread.
func (r *run) parent(ctx context.Context, volume string, d block.Info) (*image.Manifest, error) {
	mine := lineOf(r.env.Repo.Keys.Writer())
	var newest *image.Manifest
	others := map[string]bool{}
	err := r.env.Catalog.Manifests(ctx, func(_ string, old *image.Manifest) error {
		switch line := old.Line(); {
		case old.Volume != volume:
		case line != mine && line != "":
			others[line] = true
		case newest == nil, line == mine && newest.Line() != mine, line == newest.Line() && old.Seq > newest.Seq:
			newest = old
		}
		return nil
	})
	for _, w := range sortedKeys(others) {
		r.env.warn("volume %s has images of writer %.16s too: they are not compared with", volume, w)
	}
	if err != nil || newest == nil {
		return nil, err
	}
	if otherDevice(newest.Device, d) && !r.opts.ReplaceDevice {
		return nil, fmt.Errorf("back up %s: volume %s is of device %s, and this one is %s: name another volume, or say --replace-device",
			d.Path, volume, newest.Device.Identity, d.Identity)
	}
	return newest, nil
}

func otherDevice(a, b block.Info) bool {
	return a.Identity != "" && b.Identity != "" && a.Identity != b.Identity
}

// image reads what may have changed and is not free, stores what is new and
// sets the manifest's root.
func (i *imaging) image(ctx context.Context, changed *cbt.Set) error {
	i.pass = &pass{run: i.run, src: i.s.view, m: i.m, parent: i.s.parent, changed: changed, free: i.free, counts: new(counters)}
	if i.s.parent != nil {
		i.pass.counts.changes = newChanges(i.m.Device)
		i.pass.counts.changes.byVolume(ctx, i.s.view, i.m.Size)
	}
	stop := i.env.report("backup", i.m.Volume, "read", i.m.Size, i.pass.counts, i.storedBytes)
	defer stop()
	return i.pass.do(ctx)
}

// conclude looks whether what was read is of one moment, and sets down in the
// manifest what it was. All that the map needs is durable.
func (i *imaging) conclude() error {
	m, view := i.m, i.s.view
	if err := view.Check(); err != nil {
		return fmt.Errorf("back up %s: %w", i.s.path, err)
	}
	if o := snapshot.Observe(view); o != nil && !m.Fuzzy {
		if err := o.Still(); err != nil {
			m.Fuzzy = true
			m.Warnings = append(m.Warnings, err.Error())
		}
	}
	if m.Fuzzy {
		m.Tracker.History, m.Tracker.Generation = "", nil
	}
	m.Unreadable = mergeExtents(i.pass.unreadable)
	m.Done = i.env.Repo.Machine.Now().UTC()
	c, parent := i.pass.counts, i.s.parent
	m.Stats = image.Stats{
		Read: c.read.Load(), Zero: c.zero.Load(), Free: c.free.Load(), Unchanged: c.unchanged.Load(),
		Known: c.known.Load(), New: c.fresh.Load(),
	}
	m.LeftOut = i.free != nil || parent != nil && parent.LeftOut && m.Tracker.Name != full.Name
	if parent != nil {
		m.Changes = c.changes.list()
	}
	return nil
}

// A pass walks a device once, reads what may have changed since the parent,
// and sets the root of the manifest's map.
type pass struct {
	*run
	src        block.Source
	m, parent  *image.Manifest
	changed    *cbt.Set
	free       *cbt.Set // left out where all of a block is in it; nil for none
	counts     *counters
	unreadable []block.Extent
}

func (p *pass) do(ctx context.Context) error {
	steps, chunks := make(chan step, 64), make(chan chunk, workers())
	group, ctx := errgroup.WithContext(ctx)
	m, r := p.m, p.run
	pl := &planner{
		src: p.src, size: m.Size, blockSize: int64(m.BlockSize), changed: p.changed, free: p.free, parent: r.parentMap(p.parent),
		perChunk: max(1, chunkSize/m.BlockSize), steps: steps, chunks: chunks, counts: p.counts,
	}
	marks := r.checkpoints(p)
	pl.spine, pl.from = marks.resume(ctx, pl.parent)
	im := &imager{
		env: r.env, src: p.src, size: m.Size, blockSize: int64(m.BlockSize), sector: max(512, m.Device.LogicalSector),
		opts: r.opts, data: r.data, usable: r.usable, damaged: r.damaged, counts: p.counts, pool: r.pool,
		throttle: newThrottle(r.opts.LimitRead),
	}
	group.Go(func() error {
		defer close(steps)
		defer close(chunks)
		return pl.walk(ctx)
	})
	for range workers() {
		group.Go(func() error { return im.work(ctx, chunks) })
	}
	group.Go(func() (err error) {
		mp := &mapper{env: r.env, pages: r.pages, hasher: r.env.Repo.Hasher(), codec: new(segment.Codec), ctx: ctx, usable: r.usable, damaged: r.damaged, marks: marks}
		m.Root, m.RootAt, err = mp.build(m.Blocks(), steps)
		return err
	})
	err := group.Wait()
	marks.end()
	p.unreadable = append(p.unreadable, im.unreadable...)
	return err
}

func (r *run) flush() error {
	if r.data == nil {
		return nil
	}
	return errors.Join(r.data.flush(), r.pages.flush())
}

func (r *run) parentMap(parent *image.Manifest) *parentMap {
	if parent == nil {
		return nil
	}
	return &parentMap{
		root: parent.Root, rootAt: parent.RootAt, blocks: parent.Blocks(),
		read: func(ctx context.Context, id image.ID, _ image.Location) (*image.Page, error) {
			if r.damaged[id] {
				return nil, image.ErrCorrupt
			}
			p, at, err := r.env.Catalog.Page(ctx, id)
			if err == nil && !r.usable[at.Segment] {
				// What it says of where blocks are, somebody else may have made up.
				return nil, fmt.Errorf("page %s is in no segment to be trusted: %w", id, image.ErrCorrupt)
			}
			return p, err
		},
	}
}

// totals of what a run has stored.
type totals struct {
	payload, overhead int64
	count             int
}

func (r *run) stored() (t totals) {
	if r.data == nil {
		return t
	}
	data, pages := r.data.totals(), r.pages.totals()
	return totals{data.payload, data.overhead + pages.overhead + pages.payload, data.count + pages.count}
}

func (r *run) storedBytes() int64 {
	if r.data == nil {
		return 0
	}
	return r.data.bytes()
}

// mergeExtents sorts extents and joins those that touch.
func mergeExtents(list []block.Extent) []block.Extent {
	slices.SortFunc(list, func(a, b block.Extent) int { return int(min(1, max(-1, a.Offset-b.Offset))) })
	var merged []block.Extent
	for _, e := range list {
		if n := len(merged); n > 0 && e.Offset <= merged[n-1].End() {
			merged[n-1].Length = max(merged[n-1].End(), e.End()) - merged[n-1].Offset
			continue
		}
		merged = append(merged, e)
	}
	return merged
}
