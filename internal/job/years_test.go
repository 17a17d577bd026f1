package job

import (
	"bytes"
	"context"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"platter/block"
	"platter/image"
	"platter/image/reader"
	"platter/image/repo"
	"platter/image/segment"
	"platter/image/store"
	"platter/image/store/mem"
	"platter/retention"
)

// A storeClock is a machine whose clock is the store's.
type storeClock struct {
	repo.Machine
	st store.Store
}

func (c storeClock) Now() time.Time { return must(c.st.Now(context.Background())) }

func TestYearsOfNightsStayNearWhatIsLive(t *testing.T) {
	sweep(t)
	// Two disks are imaged every night and pruned to 7 days, 4 weeks, 12 months
	// and 10 years; once a week gc runs as it does by default, and again when
	// the grace is over. What is stored then, but for what the second condemned,
	// is at most 1.2 times what the images need. PLATTER_TEST_LONG=1 lives ten
	// years, make test some months.
	nights := 130
	if long() {
		nights = 3652
	}
	ctx := context.Background()
	st := mem.New()
	r := newRepo(t, st, 4<<10)
	r.Machine = storeClock{r.Machine, st}
	env := envOf(t, r)
	rnd := rand.New(rand.NewPCG(61, 1))
	disks := []*disk{{name: "a", data: make([]byte, 1<<20)}, {name: "b", data: make([]byte, 1<<20)}}
	for _, d := range disks {
		random(rnd, d.data)
	}
	policy := retention.Policy{Daily: 7, Weekly: 4, Monthly: 12, Yearly: 10}
	gc := func() *CollectReport {
		return mustCollect(t, env, CollectOptions{Grace: 24 * time.Hour, MinAge: 24 * time.Hour, MaxDelete: 0.5, MaxUnused: 0.05})
	}
	const nightly = 2 * 3 * 24 << 10 // bytes that one night adds
	worst, most, moved, last := 0.0, 0.0, int64(0), map[string][]byte{}
	for night := range nights {
		st.Advance(22 * time.Hour)
		for _, d := range disks {
			for range 3 { // most of what changes lies in a fifth of the disk
				span := len(d.data)
				if rnd.IntN(5) > 0 {
					span /= 5
				}
				at := rnd.IntN(span-20<<10) &^ 4095
				random(rnd, d.data[at:][:20<<10])
			}
			last["host/"+d.name] = bytes.Clone(d.data)
		}
		if _, err := Backup(ctx, env, BackupOptions{Sources: []block.Source{disks[0], disks[1]}}); err != nil {
			t.Fatal(err)
		}
		if _, err := Prune(ctx, env, PruneOptions{Policy: policy, Zone: time.UTC}); err != nil {
			t.Fatal(err)
		}
		st.Advance(2 * time.Hour)
		if night%7 != 6 {
			continue
		}
		st.Advance(-time.Hour) // the week's nights are as old as the min age by now, but for the last
		moved += gc().Moved
		st.Advance(25 * time.Hour)
		r := gc() // takes away what the first condemned, and condemns in turn
		moved += r.Moved
		st.Advance(-24 * time.Hour)
		// Of no use is what may be, and what the last nights wrote at most.
		if limit := int64(0.05*float64(r.Live)) + nightly; r.Unused > limit || r.Postponed > 0 {
			t.Errorf("night %d: %d bytes of no use are left of %d, want %d at most; %d wait", night, r.Unused, r.Live, limit, r.Postponed)
		}
		live, stored := float64(liveBytes(t, env)), float64(occupied(t, env))
		most = max(most, stored/live)
		worst = max(worst, (stored-float64(r.Waiting))/live)
	}
	for _, m := range must(allImages(ctx, env)) {
		got := content(t, env, m)
		if want := last[m.Volume]; m.Time.After(must(st.Now(ctx)).Add(-24*time.Hour)) && !bytes.Equal(got, want) {
			t.Errorf("image %d of %s differs", m.Seq, m.Volume)
		}
	}
	if v, err := Verify(ctx, env, VerifyOptions{ReadData: true}); err != nil {
		t.Errorf("verify: %v: %+v", err, v.Damage)
	}
	t.Logf("%d nights: %.3f times the live bytes at most, %.3f with what waits for its grace; %d KiB live, %d KiB moved in all, %d segments, %d images",
		nights, worst, most, liveBytes(t, env)>>10, moved>>10, segments(t, env), len(must(allImages(ctx, env))))
	if worst > 1.2 {
		t.Errorf("%.3f times the live bytes are stored, want 1.2 at most", worst)
	}
}

// liveBytes is what the images' blocks and pages take as records, each once.
func liveBytes(t *testing.T, env *Env) (n int64) {
	t.Helper()
	ctx := context.Background()
	need := map[image.ID]bool{}
	rd := env.reader()
	for _, m := range must(allImages(ctx, env)) {
		err := rd.WalkAll(ctx, reader.MapOf(m), 0, m.Blocks(), reader.Visitor{
			Enter: func(n reader.Node) bool { return !need[n.ID] },
			Page: func(n reader.Node, p *image.Page) error {
				need[n.ID] = true
				for _, id := range p.Entries {
					if n.Level == 0 && !id.IsZero() {
						need[id] = true
					}
				}
				return nil
			},
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, kind := range []segment.Kind{segment.Data, segment.Pages} {
		for _, f := range footers(t, env.Repo, kind) {
			for i := range f.Records {
				if need[f.Records[i].ID] {
					delete(need, f.Records[i].ID)
					n += int64(f.Records[i].Stored) + segment.RecordHeaderSize + 56 // and its place in the footer
				}
			}
		}
	}
	if len(need) > 0 {
		t.Fatalf("%d blocks and pages are nowhere", len(need))
	}
	return n
}

// occupied is what segments take, and all that collections keep beside them.
func occupied(t *testing.T, env *Env) (n int64) {
	t.Helper()
	err := env.Repo.Store.List(context.Background(), "", func(o store.Info) error {
		for _, prefix := range []string{"segments/", "index/", "attest/", "trash/segments/"} {
			if strings.HasPrefix(o.Name, prefix) {
				n += o.Size
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}
