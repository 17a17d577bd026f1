package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"platter/image/keys"
	"platter/image/repo"
	"platter/image/store"
	"platter/image/store/mem"
	"platter/internal/agent/config"
	"platter/internal/agent/history"
)

// careless is a store with something wrong: what it says of time, or of what
// may be done.
type careless struct {
	store.Store
	skew      time.Duration
	overwrite bool
	noDelete  bool
	noWrite   bool
}

func (c *careless) Now(ctx context.Context) (time.Time, error) {
	t, err := c.Store.Now(ctx)
	return t.Add(c.skew), err
}

func (c *careless) Put(ctx context.Context, name string, parts ...[]byte) error {
	if c.noWrite {
		return errors.New("access denied")
	}
	err := c.Store.Put(ctx, name, parts...)
	if c.overwrite && errors.Is(err, store.ErrExists) {
		return nil
	}
	return err
}

func (c *careless) Delete(ctx context.Context, name string) error {
	if c.noDelete {
		return errors.New("access denied")
	}
	return c.Store.Delete(ctx, name)
}

// patient is one with nothing wrong.
func patient(t *testing.T) (*Patient, *careless) {
	t.Helper()
	here := mem.New()
	here.Advance(time.Since(mem.Epoch()))
	c := &careless{Store: here}
	r, err := repo.Init(t.Context(), c, repo.InitOptions{Encryption: &repo.Encryption{KeyFile: make([]byte, keys.MinKeyFile)}})
	if err != nil {
		t.Fatal(err)
	}
	state := filepath.Join(t.TempDir(), "state")
	runs := history.In(state)
	for _, kind := range []string{history.Backup, history.Verify} {
		run, err := runs.Begin(history.Run{Kind: kind, Volumes: []history.Volume{{Name: "db1/root", Image: "aa"}}})
		if err != nil {
			t.Fatal(err)
		}
		run.Outcome = history.Done
		if err := runs.End(run); err != nil {
			t.Fatal(err)
		}
	}
	return &Patient{State: state, Repo: r}, c
}

// look returns the findings of one check, or why it was skipped.
func look(t *testing.T, p *Patient, check string) string {
	t.Helper()
	r := Look(t.Context(), p)
	var text []string
	for _, f := range r.Findings {
		if f.Remedy == "" {
			t.Errorf("no remedy for %s", f.Text)
		}
		if f.Check == check {
			text = append(text, f.Text)
		}
	}
	for _, c := range r.Checks {
		if c.Name == check {
			if c.Found != len(text) {
				t.Errorf("%s: %d findings, and %d told", check, c.Found, len(text))
			}
			return strings.Join(append(text, c.Skipped), "; ")
		}
	}
	t.Errorf("no check %q", check)
	return ""
}

func TestEachThingThatIsWrongIsFound(t *testing.T) {
	for _, c := range []struct {
		check string
		harm  func(p *Patient, s *careless)
		want  string
	}{
		{"rights in the repository", func(_ *Patient, s *careless) { s.overwrite = true }, "took a second object"},
		{"rights in the repository", func(_ *Patient, s *careless) { s.noDelete = true }, "may not delete: access denied"},
		{"rights in the repository", func(_ *Patient, s *careless) { s.noWrite = true }, "a lease cannot be written: "},
		{"clock", func(_ *Patient, s *careless) { s.skew = -2 * time.Minute }, "2m0s away"},
		{"clock", func(_ *Patient, s *careless) { s.skew = 2 * time.Minute }, "2m0s away"},
		{"leases", func(p *Patient, _ *careless) { abandon(t, p) }, "1 leases were left"},
		{"age of images", func(p *Patient, _ *careless) { later(p, oldImage+time.Hour) }, "db1/root: the last good image is"},
		{"verification", func(p *Patient, _ *careless) { later(p, oldVerification+time.Hour) }, "30 days ago"},
		{"modes of files and folders", func(p *Patient, _ *careless) { must(t, os.Chmod(p.State, 0o755)) }, "has mode 0755"},
		{"modes of files and folders", func(p *Patient, _ *careless) {
			p.Secrets = []string{filepath.Join(p.State, "secret")}
			must(t, os.WriteFile(p.Secrets[0], nil, 0o644))
			must(t, os.Chmod(p.Secrets[0], 0o644))
		}, "secret has mode 0644"},
		{"repository", func(p *Patient, _ *careless) { p.Repo, p.Problem = nil, errors.New("no such bucket") }, "no such bucket"},
		{"audit log", func(p *Patient, _ *careless) {
			must(t, os.MkdirAll(filepath.Join(p.State, "audit"), 0o700))
			must(t, os.WriteFile(filepath.Join(p.State, "audit", "audit.jsonl"), []byte("x\n"), 0o600))
		}, "tampered with"},
		{"alerts", func(p *Patient, _ *careless) {
			must(t, os.WriteFile(filepath.Join(p.State, "alerts.jsonl"), []byte(`{"id":3,"kind":"late","text":"too old"}`+"\n"), 0o600))
		}, "alert 3 is open: too old"},
	} {
		p, s := patient(t)
		if got := look(t, p, c.check); got != "" {
			t.Errorf("%s of one with nothing wrong: %s", c.check, got)
		}
		c.harm(p, s)
		if got := look(t, p, c.check); !strings.Contains(got, c.want) {
			t.Errorf("%s: got %q, want %q", c.check, got, c.want)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func later(p *Patient, d time.Duration) {
	p.Now = func() time.Time { return time.Now().Add(d) }
}

// abandon leaves the lease of a run whose process is gone.
func abandon(t *testing.T, p *Patient) {
	t.Helper()
	m := p.Repo.Machine
	p.Repo.Machine = departed{m}
	if _, err := p.Repo.Acquire(t.Context(), repo.LeaseBackup, [16]byte{7}); err != nil {
		t.Fatal(err)
	}
	p.Repo.Machine = m
}

// departed is this machine, seen by a process that is no more.
type departed struct{ repo.Machine }

func (d departed) Process() repo.Lease {
	l := d.Machine.Process()
	l.Birth++
	return l
}

func TestTheOnlyKeyIsAFinding(t *testing.T) {
	p, _ := patient(t)
	if got := look(t, p, "keys"); !strings.Contains(got, "1 keys open the repository") {
		t.Errorf("got %q", got)
	}
}

func TestLookingLeavesNothingBehind(t *testing.T) {
	p, s := patient(t)
	names := func() (list []string) {
		must(t, s.List(t.Context(), "", func(o store.Info) error { list = append(list, o.Name); return nil }))
		return list
	}
	before := fmt.Sprint(names())
	Look(t.Context(), p)
	if after := fmt.Sprint(names()); after != before {
		t.Errorf("before %s, after %s", before, after)
	}
}

func TestSnapshotsThatAreOldOrFullAreFound(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	lv := func(name string, age time.Duration, full string) string {
		return fmt.Sprintf(`{"lv_full_name":"vg/%s","lv_time":"%d","data_percent":"%s"}`, name, now.Add(-age).Unix(), full)
	}
	report := &Report{}
	e := &exam{&Patient{Now: func() time.Time { return now }}, t.Context(), &Check{}, report}
	e.judgeSnapshots([]byte(`{"report":[{"lv":[` + strings.Join([]string{
		lv("platter-1", oldSnapshot+time.Hour, "1.00"), lv("platter-2", time.Hour, "91.5"), lv("platter-3", time.Hour, "12"), lv("platter-4", time.Hour, ""),
	}, ",") + `]}]}`))
	if len(report.Findings) != 2 || !strings.Contains(report.Findings[0].Text, "vg/platter-1 is 14 days old") || !strings.Contains(report.Findings[1].Text, "vg/platter-2 is 92 % full") {
		t.Errorf("%+v", report.Findings)
	}
}

func TestCopiesOfFilesThatNobodyNeedsAreFound(t *testing.T) {
	dir := t.TempDir()
	disk := filepath.Join(dir, "vm.img")
	left := ".platter/0123456789ab.0123456789abcdef.1111111111111111.00000000-1-1-1."
	must(t, errors.Join(os.Mkdir(filepath.Join(dir, ".platter"), 0o700), os.WriteFile(disk, nil, 0o600)))
	for _, name := range []string{left + "taken", left + "kept"} {
		must(t, os.WriteFile(filepath.Join(dir, name), nil, 0o600))
	}
	find := func(at time.Time) []Finding {
		report := &Report{}
		p := &Patient{Now: func() time.Time { return at }, Config: &config.Config{Jobs: []*config.Job{{Devices: []string{disk, disk, "/dev/null"}}}}}
		(&exam{p, t.Context(), &Check{}, report}).copies()
		return report.Findings
	}
	if f := find(time.Now()); len(f) != 1 || !strings.Contains(f[0].Text, "taken was left behind") || f[0].Remedy != "platter snapshots --remove "+dir {
		t.Errorf("%+v", f)
	}
	if f := find(time.Now().Add(oldSnapshot + 2*time.Hour)); len(f) != 2 || !strings.Contains(f[0].Text+f[1].Text, "kept is 14 days old") {
		t.Errorf("%+v", f)
	}
}
