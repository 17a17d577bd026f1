package alert

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"platter/internal/agent/config"
	"platter/internal/agent/history"
)

// A scene is a book whose clock stands still until it is moved, and what it
// told.
type scene struct {
	*testing.T
	dir  string
	book *Book
	now  time.Time
	told []string
}

func newScene(t *testing.T) *scene {
	t.Helper()
	s := &scene{T: t, dir: t.TempDir(), now: time.Now()}
	s.reopen()
	return s
}

// reopen is a restart.
func (s *scene) reopen() {
	s.book = In(s.dir, func(list []Change) error {
		for i := range list {
			s.told = append(s.told, fmt.Sprintf("%s %s %s", list[i].What, list[i].Alert.Kind, list[i].Alert.Subject))
		}
		return nil
	})
	s.book.now = func() time.Time { return s.now }
}

func (s *scene) update(change func(*Update)) {
	s.Helper()
	if _, err := s.book.Update(change); err != nil {
		s.Fatal(err)
	}
}

// says checks what was told since the last time.
func (s *scene) says(want ...string) {
	s.Helper()
	if !slices.Equal(s.told, want) {
		s.Errorf("told %q, want %q", s.told, want)
	}
	s.told = nil
}

func (s *scene) open() (list []Alert) {
	s.Helper()
	all, err := s.book.List()
	if err != nil {
		s.Fatal(err)
	}
	return slices.DeleteFunc(all, func(a Alert) bool { return !a.Open() })
}

func TestAConditionIsToldOnceWhenItBeginsAndOnceWhenItEnds(t *testing.T) {
	s := newScene(t)
	raise := func() { s.update(func(u *Update) { u.Raise(Condition{Failed, "job a", "text", ""}, 0) }) }
	resolve := func() { s.update(func(u *Update) { u.Resolve(Failed, "job a") }) }
	resolve()
	s.says()
	raise()
	s.says("raised failed job a")
	for range 3 {
		s.now = s.now.Add(100 * 24 * time.Hour)
		s.reopen()
		raise()
	}
	s.says()
	s.update(func(u *Update) { u.Resolve(Failed, "job b") })
	s.says()
	resolve()
	resolve()
	s.says("resolved failed job a")
	raise()
	s.says("raised failed job a")
	if open := s.open(); len(open) != 1 || open[0].ID != 2 {
		t.Errorf("open: %+v", open)
	}
}

func TestAnAlertIsRepeatedWhereARuleSaysSoUntilItIsAcknowledged(t *testing.T) {
	s := newScene(t)
	raise := func() { s.update(func(u *Update) { u.Raise(Condition{Late, "v", "text", ""}, 24*time.Hour) }) }
	raise()
	s.says("raised late v")
	for range 49 {
		s.now = s.now.Add(time.Hour)
		raise()
	}
	s.says("repeated late v", "repeated late v")
	s.update(func(u *Update) {
		if !u.Acknowledge(1, "alice") || u.Acknowledge(2, "alice") {
			t.Error("acknowledged the wrong one")
		}
	})
	s.now = s.now.Add(72 * time.Hour)
	raise()
	s.says()
	s.update(func(u *Update) { u.Resolve(Late, "v") })
	s.says("resolved late v")
}

func TestWhatSuspendsPruningEndsOnlyWhenItIsAcknowledged(t *testing.T) {
	s := newScene(t)
	s.update(func(u *Update) {
		u.Raise(Condition{Changed, "v", "half of it", ""}, 0)
		u.Raise(Condition{Entropy, "v", "noise", ""}, 0)
		u.Raise(Condition{Late, "w", "late", ""}, 0)
	})
	s.told = nil
	held := Held(s.open())
	if len(held) != 1 || !strings.Contains(held["v"], "alert 1: half of it; suspended by alert 2: noise") {
		t.Errorf("held: %q", held)
	}
	s.update(func(u *Update) { u.Acknowledge(1, "alice") })
	s.says("resolved changed v")
	if held := Held(s.open()); !strings.Contains(held["v"], "noise") {
		t.Errorf("held: %q", held)
	}
	s.update(func(u *Update) { u.Acknowledge(2, "alice") })
	if held := Held(s.open()); len(held) != 0 {
		t.Errorf("held: %q", held)
	}
}

func TestAChangeThatCouldNotBeToldComesAgainUnderItsID(t *testing.T) {
	s := newScene(t)
	var ids []string
	s.book.tell = func(list []Change) error {
		ids = append(ids, list[0].ID())
		return errors.New("no space")
	}
	raise := func(u *Update) { u.Raise(Condition{Late, "v", "text", ""}, 0) }
	if _, err := s.book.Update(raise); err == nil || !strings.Contains(err.Error(), "no space") {
		t.Errorf("got %v", err)
	}
	if len(s.open()) != 0 {
		t.Error("kept what was not told")
	}
	_, _ = s.book.Update(raise)
	if len(ids) != 2 || ids[0] != ids[1] {
		t.Errorf("IDs %q, want the same twice", ids)
	}
}

func TestOldAlertsAreForgottenAndNumbersNeverReused(t *testing.T) {
	s := newScene(t)
	for i := range 5 {
		s.update(func(u *Update) { u.Raise(Condition{Late, fmt.Sprint(i), "", ""}, 0) })
		s.update(func(u *Update) { u.Resolve(Late, fmt.Sprint(i)) })
	}
	s.now = s.now.Add(keepResolved + time.Hour)
	s.update(func(u *Update) { u.Raise(Condition{Late, "x", "", ""}, 0) })
	all, err := s.book.List()
	if err != nil || len(all) != 1 || all[0].ID != 6 {
		t.Errorf("%+v, %v", all, err)
	}
	if err := os.WriteFile(s.book.path, []byte("nonsense\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.book.List(); err == nil || !strings.Contains(err.Error(), "line 1") {
		t.Errorf("got %v", err)
	}
}

const gib = 1 << 30

// a night is a backup of one volume that went well.
func night(day int, v history.Volume) history.Run {
	when := time.Now().Add(time.Duration(day-100) * 24 * time.Hour)
	v.Name, v.Image = "db1/root", fmt.Sprintf("%032d", day)
	if v.Time.IsZero() {
		v.Time = when
	}
	return history.Run{
		ID: fmt.Sprint(day), Kind: history.Backup, Subjects: []string{"/dev/sda"}, Start: when, End: when.Add(time.Hour),
		Outcome: history.Done, Volumes: []history.Volume{v},
	}
}

// ordinary nights: a disk of 100 GiB of which 40 are in use, a full one and
// then a gibibyte a night.
func ordinary() []history.Run {
	runs := []history.Run{night(0, history.Volume{Size: 100 * gib, Tracker: "full", Zero: 60 * gib, New: 40 * gib, Encoded: 20 * gib})}
	for day := 1; day < 15; day++ {
		runs = append(runs, night(day, history.Volume{
			Size: 100 * gib, Tracker: "trace", Parent: true, Changed: 2 * gib, Known: gib, New: gib, Encoded: gib / 2,
		}))
	}
	return runs
}

func TestOddImagesAreFoundAndOrdinaryOnesAreNot(t *testing.T) {
	usual := history.Volume{Size: 100 * gib, Tracker: "trace", Parent: true, Changed: 2 * gib, Known: gib, New: gib, Encoded: gib / 2}
	with := func(change func(*history.Volume)) history.Volume {
		v := usual
		change(&v)
		return v
	}
	for _, c := range []struct {
		name string
		v    history.Volume
		want []Kind
	}{
		{"an ordinary night", usual, nil},
		{"nothing changed", with(func(v *history.Volume) { v.Changed, v.Known, v.New, v.Encoded = 0, 0, 0, 0 }), nil},
		{"just under half", with(func(v *history.Volume) { v.Changed = 20 * gib }), nil},
		{"more than half of what is in use", with(func(v *history.Volume) { v.Changed = 20*gib + 65536 }), []Kind{Changed}},
		{"a full compare that finds the usual", with(func(v *history.Volume) { v.Tracker, v.Zero = "full", 61*gib }), nil},
		{"noise", with(func(v *history.Volume) { v.Encoded = gib }), []Kind{Entropy}},
		{"a little noise", with(func(v *history.Volume) { v.Known, v.New, v.Encoded = gib, floor-1, floor }), nil},
		{"nothing known", with(func(v *history.Volume) { v.Known, v.New, v.Encoded = 0, 2*gib, gib }), []Kind{Dedupe}},
		{"all encrypted", with(func(v *history.Volume) { v.Changed, v.Known, v.New, v.Encoded = 40*gib, 0, 40*gib, 40*gib }), []Kind{Changed, Entropy, Dedupe}},
		{"emptied", with(func(v *history.Volume) { v.Tracker, v.Zero, v.Changed = "full", 95*gib, 3*gib }), []Kind{Shrunk}},
		{"emptied, as a tracker saw", with(func(v *history.Volume) { v.Zero, v.Changed = 30*gib, 30*gib }), []Kind{Changed, Shrunk}},
		{"a smaller device", with(func(v *history.Volume) { v.Size = 50 * gib }), []Kind{Shrunk}},
		{"a larger device", with(func(v *history.Volume) { v.Size = 500 * gib }), nil},
		{"dated back", with(func(v *history.Volume) { v.Time = ordinary()[14].Volumes[0].Time.Add(-2 * time.Minute) }), []Kind{Clock}},
		{"dated ahead", with(func(v *history.Volume) { v.Time = time.Now().Add(25 * time.Hour) }), []Kind{Clock}},
		{"a tracker missed a write", with(func(v *history.Volume) { v.Missed = true }), []Kind{Tracker}},
		{"another volume's first", with(func(v *history.Volume) { v.Parent, v.Changed = false, 100*gib }), nil},
	} {
		s := newScene(t)
		run := night(15, c.v)
		s.update(func(u *Update) { u.AfterRun(&run, ordinary(), nil) })
		var got []Kind
		for _, a := range s.open() {
			got = append(got, a.Kind)
			if a.Subject != "db1/root" || !a.Kind.Suspends() || !strings.Contains(a.Text, "db1/root") || a.Remedy == "" {
				t.Errorf("%s: %+v", c.name, a)
			}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: got %v, want %v", c.name, got, c.want)
		}
	}
}

func TestTheFirstImagesOfAVolumeAreNeverOddForTheirContent(t *testing.T) {
	s := newScene(t)
	for i := range 3 {
		run := ordinary()[i]
		run.Volumes[0].Encoded = run.Volumes[0].New
		s.update(func(u *Update) { u.AfterRun(&run, ordinary()[:i], nil) })
	}
	s.says()
	off := []config.Alert{{Volumes: []string{"db1/*"}, Changed: 0.5, Off: true}}
	run := night(15, history.Volume{Size: gib, Parent: true, Changed: 40 * gib})
	s.update(func(u *Update) { u.AfterRun(&run, ordinary(), off) })
	s.says()
}

func TestVolumesWhoseLastGoodImageIsOldAreLate(t *testing.T) {
	s := newScene(t)
	rules := []config.Alert{{Volumes: []string{"db1/*"}, LastGood: 36 * time.Hour}, {LastGood: 0}}
	runs := ordinary()
	other := night(0, history.Volume{})
	other.Volumes[0].Name = "web1/root"
	runs = append(runs, other)
	at := runs[14].End
	look := func() { s.update(func(u *Update) { u.Late(runs, rules, at) }) }
	at = runs[14].End.Add(36 * time.Hour)
	look()
	s.says()
	at = at.Add(time.Second)
	look()
	look()
	s.says("raised late db1/root")

	// One that is fuzzy, failed, or goes on, is no good image.
	bad := night(16, history.Volume{Incomplete: true})
	failed := history.Run{Kind: history.Backup, End: at, Outcome: history.Failed, Volumes: []history.Volume{{Name: "db1/root"}}}
	running := night(17, history.Volume{})
	running.End = time.Time{}
	runs = append(runs, bad, failed, running)
	look()
	s.says()
	good := night(0, history.Volume{})
	good.End = at
	runs = append(runs, good)
	look()
	s.says("resolved late db1/root")

	// A volume that never had one.
	runs = []history.Run{bad}
	look()
	s.says("raised late db1/root")
	if open := s.open(); !strings.Contains(open[0].Text, "no good image yet") {
		t.Errorf("%+v", open)
	}
}

func TestRunsThatFailAreToldUntilOneGoesWell(t *testing.T) {
	s := newScene(t)
	run := func(kind string, o history.Outcome, exit int, subjects ...string) {
		r := history.Run{Kind: kind, Outcome: o, Exit: exit, Repository: "/repo", Subjects: subjects, Error: "why"}
		if kind == history.Boot {
			r.Volumes = []history.Volume{{Name: "v", Image: "0123456789"}}
		}
		s.update(func(u *Update) { u.AfterRun(&r, nil, nil) })
	}
	run(history.Backup, history.Failed, 1, "/dev/sda")
	run(history.Backup, history.Failed, 1, "/dev/sda")
	run(history.Backup, history.Done, 0, "/dev/sdb")
	s.says("raised failed backup /dev/sda")
	run(history.Backup, history.Interrupted, 130, "/dev/sda")
	s.says()
	run(history.Backup, history.Done, 0, "/dev/sda")
	s.says("resolved failed backup /dev/sda")

	run(history.Verify, history.Failed, exitDamage)
	s.says("raised failed verify", "raised damaged /repo")
	run(history.Verify, history.Done, 0, "latest") // of one image: the damage may be in another
	s.says()
	run(history.Verify, history.Done, 0)
	s.says("resolved failed verify", "resolved damaged /repo")

	run(history.Boot, history.Incomplete, 3, "v")
	s.says("raised failed boot v", "raised unbooted v")
	run(history.Boot, history.Done, 0, "v")
	s.says("resolved failed boot v", "resolved unbooted v")

	died := history.Run{Kind: history.Prune, Outcome: history.Died}
	ofJob := history.Run{Kind: history.Prune, Outcome: history.Died, Job: "tidy", Subjects: []string{"x"}}
	s.update(func(u *Update) { u.Died([]history.Run{died, ofJob}) })
	s.says("raised failed prune")
	s.update(func(u *Update) { u.Died([]history.Run{died, {Kind: history.Prune, Outcome: history.Done}}) })
	s.says()

	// Whether a job failed is for the agent to say.
	r := history.Run{Kind: history.Backup, Job: "nightly", Outcome: history.Failed}
	s.update(func(u *Update) { u.AfterRun(&r, nil, nil) })
	s.says()
}
