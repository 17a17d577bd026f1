package catalog

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"platter/image"
	"platter/image/segment"
)

// The benchmarks work on a catalog of 10 million blocks:
//
//	go test -run '^$' -bench . -benchtime 1x -timeout 30m ./catalog
//
// A run takes some minutes, and 1.5 GiB below $TMPDIR.
const (
	bigSegments = 5300
	bigRecords  = 1900
	bigPages    = 80_000
	pageRecords = 14_000 // pages in a segment of 64 MiB
)

// bigRepo makes up its footers as they are asked for.
type bigRepo struct {
	segments, records, pages int
}

func bigSegment(n int) (id image.SegmentID) {
	binary.BigEndian.PutUint64(id[:], uint64(n)<<32)
	return id
}

// bigID is the ID of a record: random but for its seed.
func bigID(segment, record int) (id image.ID) {
	s := rand.NewPCG(uint64(segment), uint64(record))
	for i := 0; i < len(id); i += 8 {
		binary.LittleEndian.PutUint64(id[i:], s.Uint64())
	}
	return id
}

func (r bigRepo) pageSegments() int { return (r.pages + pageRecords - 1) / pageRecords }

func (r bigRepo) Segments(_ context.Context, f func(image.SegmentID, int64, time.Time) error) error {
	for n := range r.segments + r.pageSegments() {
		if err := f(bigSegment(n), 64<<20, time.Time{}); err != nil {
			return err
		}
	}
	return nil
}

func (r bigRepo) Footer(_ context.Context, id image.SegmentID) (*segment.Footer, error) {
	n := int(binary.BigEndian.Uint64(id[:]) >> 32)
	f := &segment.Footer{ID: id, Kind: segment.Data, Size: 64 << 20}
	records := r.records
	if n >= r.segments {
		f.Kind = segment.Pages
		records = min(pageRecords, r.pages-(n-r.segments)*pageRecords)
	}
	f.Records = make([]segment.Record, records)
	for i := range f.Records {
		f.Records[i] = segment.Record{ID: bigID(n, i), Kind: f.Kind, Plain: 65536, Stored: 33000}
	}
	return f, nil
}

func (r bigRepo) Footers(ctx context.Context, list []segment.Object, f func(segment.Object, *segment.Footer, error) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(4)
	for _, o := range list {
		if ctx.Err() != nil {
			break
		}
		g.Go(func() error {
			footer, err := r.Footer(ctx, o.ID)
			return f(o, footer, err)
		})
	}
	return g.Wait()
}

func (r bigRepo) Pages(_ context.Context, f *segment.Footer, visit func(int, *image.Page, image.ID) error) error {
	n := int(binary.BigEndian.Uint64(f.ID[:]) >> 32)
	for i := range f.Records {
		p := new(image.Page)
		at := image.Location{Segment: bigSegment(i % r.segments)}
		for j := range p.Entries {
			p.Entries[j] = bigID(n*pageRecords+i, j)
			p.Hints[j] = at
			at.Record++
		}
		if err := visit(i, p, f.Records[i].ID); err != nil {
			return err
		}
	}
	return nil
}

func (r bigRepo) Manifests(context.Context, func(string) error) error { return nil }

func (r bigRepo) Manifest(context.Context, string) (*image.Manifest, error) { return nil, ErrNotFound }

func (r bigRepo) Damaged(context.Context, func(image.ID, image.Location) error) error { return nil }

// memory returns a line of /proc/self/status in MiB.
func memory(name string) float64 {
	b, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(b)) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			kb, _ := strconv.Atoi(strings.Fields(value)[0])
			return float64(kb) / 1024
		}
	}
	return 0
}

// resetPeak starts VmHWM afresh.
func resetPeak() {
	debug.FreeOSMemory()
	os.WriteFile("/proc/self/clear_refs", []byte("5"), 0)
}

// cpuTime is what this process has used: on a busy machine it says more than
// the clock.
func cpuTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func BenchmarkRebuild(b *testing.B) {
	repo := bigRepo{bigSegments, bigRecords, bigPages}
	for b.Loop() {
		opts := Options{Dir: b.TempDir() + "/catalog", Repository: [16]byte{1}, BlockSize: 65536, Memory: 64 << 20}
		resetPeak()
		start, cpu := time.Now(), cpuTime()
		c, report, err := Rebuild(b.Context(), opts, repo, nil)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(time.Since(start).Seconds(), "s/rebuild")
		b.ReportMetric((cpuTime() - cpu).Seconds(), "cpu-s")
		b.ReportMetric(memory("VmHWM"), "MiB-peak")
		s, err := c.Stats(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		b.Logf("%+v %+v", report, s)
		b.ReportMetric(float64(s.Disk)/(1<<20), "MiB-disk")
		mustClose(b, c)
	}
}

func BenchmarkSync(b *testing.B) {
	repo := bigRepo{bigSegments, bigRecords, bigPages}
	for b.Loop() {
		opts := Options{Dir: b.TempDir() + "/catalog", Repository: [16]byte{1}, BlockSize: 65536, Memory: 64 << 20}
		c := mustOpen(b, opts)
		resetPeak()
		start := time.Now()
		if _, err := c.Sync(b.Context(), repo, nil); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(time.Since(start).Seconds(), "s/sync")
		b.ReportMetric(memory("VmHWM"), "MiB-peak")
		start = time.Now()
		if _, err := c.Sync(b.Context(), repo, nil); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(time.Since(start).Seconds()*1000, "ms/nothing-new")
		mustClose(b, c)
	}
}

// BenchmarkLookup asks for map pages' worth of blocks in several ways.
func BenchmarkLookup(b *testing.B) {
	repo := bigRepo{bigSegments, bigRecords, 0}
	opts := Options{Dir: b.TempDir() + "/catalog", Repository: [16]byte{1}, BlockSize: 65536, Memory: 64 << 20}
	c, _, err := Rebuild(b.Context(), opts, repo, nil)
	if err != nil {
		b.Fatal(err)
	}
	runtime.GC()
	random := rand.New(rand.NewPCG(1, 1))
	run := func(name string, keys int, id func(n int) image.ID) {
		b.Run(name, func(b *testing.B) {
			resetPeak()
			ids, at := make([]image.ID, image.PageEntries), make([]image.Location, image.PageEntries)
			found, n := 0, 0
			start, cpu := time.Now(), cpuTime()
			for b.Loop() {
				for n = 0; n < keys; n += len(ids) {
					for i := range ids {
						ids[i] = id(n + i)
					}
					if err := c.Lookup(b.Context(), ids, at); err != nil {
						b.Fatal(err)
					}
					for i := range at {
						if !at[i].IsZero() {
							found++
						}
					}
				}
			}
			b.ReportMetric(float64(n*b.N)/time.Since(start).Seconds(), "keys/s")
			b.ReportMetric((cpuTime()-cpu).Seconds()*1e6/float64(n*b.N), "cpu-µs/key")
			b.ReportMetric(float64(found)/float64(n*b.N), "found")
			b.ReportMetric(memory("VmHWM"), "MiB-peak")
		})
	}
	run("absent,no filter", 100_000, func(n int) image.ID { return bigID(-1, n) })
	run("runs", 1_000_000, func(n int) image.ID { return bigID(n/bigRecords, n%bigRecords) })
	run("random", 50_000, func(int) image.ID { return bigID(random.IntN(bigSegments), random.IntN(bigRecords)) })
	run("absent,filter built", 2_000_000, func(n int) image.ID { return bigID(-2, n) })
	run("random,filter", 50_000, func(int) image.ID { return bigID(random.IntN(bigSegments), random.IntN(bigRecords)) })
	run("absent,filter", 2_000_000, func(n int) image.ID { return bigID(-3, n) })
	mustClose(b, c)
}
