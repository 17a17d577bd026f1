package history

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestMain can be a run that begins and never ends.
func TestMain(m *testing.M) {
	if dir := os.Getenv("PLATTER_TEST_HISTORY"); dir != "" {
		r, err := In(dir).Begin(Run{Kind: Backup, Subjects: []string{"/dev/sdz"}})
		fmt.Println(r.ID, err)
		select {}
	}
	os.Exit(m.Run())
}

func run(t *testing.T, h *History, r Run, end Outcome) string {
	t.Helper()
	open, err := h.Begin(r)
	if err != nil {
		t.Fatal(err)
	}
	open.Outcome = end
	if err := h.End(open); err != nil {
		t.Fatal(err)
	}
	return open.ID
}

func list(t *testing.T, h *History, f Filter) (ids []string) {
	t.Helper()
	runs, err := h.Runs(f)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range runs {
		ids = append(ids, r.ID)
	}
	return ids
}

func TestRunsAreFoundByVolumeJobKindAndOutcome(t *testing.T) {
	h := In(t.TempDir())
	if got := list(t, h, Filter{}); got != nil {
		t.Errorf("runs of an empty record: %v", got)
	}
	a := run(t, h, Run{Kind: Backup, Job: "nightly", Volumes: []Volume{{Name: "db1/root"}, {Name: "db1/data"}}}, Done)
	b := run(t, h, Run{Kind: Backup, Subjects: []string{"/dev/sdb"}}, Failed)
	c := run(t, h, Run{Kind: Prune}, Incomplete)
	for _, x := range []struct {
		f    Filter
		want []string
	}{
		{Filter{}, []string{a, b, c}},
		{Filter{Volume: "db1/data"}, []string{a}},
		{Filter{Volume: "root"}, []string{a}},
		{Filter{Volume: "oot"}, nil},
		{Filter{Volume: "/dev/sdb"}, []string{b}},
		{Filter{Failed: true}, []string{b, c}},
		{Filter{Kind: Prune}, []string{c}},
		{Filter{Job: "nightly"}, []string{a}},
	} {
		if got := list(t, h, x.f); !slices.Equal(got, x.want) {
			t.Errorf("%+v: got %v, want %v", x.f, got, x.want)
		}
	}
}

func TestARunThatWasKilledIsShownAsDied(t *testing.T) {
	dir := t.TempDir()
	h := In(dir)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "PLATTER_TEST_HISTORY="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	id, problem, _ := strings.Cut(strings.TrimSpace(line), " ")
	if err != nil || problem != "<nil>" {
		t.Fatalf("the run says %q, %v", line, err)
	}
	look := func(want Outcome) {
		t.Helper()
		runs, err := h.Runs(Filter{})
		if err != nil || len(runs) != 1 || runs[0].ID != id || runs[0].Outcome != want || !runs[0].End.IsZero() {
			t.Errorf("got %+v, %v, want %s to be %s", runs, err, id, want)
		}
	}
	look(Running)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	look(Died)

	// One of another boot is surely gone, though its number may be in use.
	open, err := h.Begin(Run{Kind: Verify})
	if err != nil {
		t.Fatal(err)
	}
	if got := list(t, h, Filter{Failed: true}); !slices.Equal(got, []string{id}) {
		t.Errorf("got %v", got)
	}
	open.Process.Boot = "another boot"
	if err := h.write(open); err != nil {
		t.Fatal(err)
	}
	if got := list(t, h, Filter{Failed: true}); !slices.Equal(got, []string{id, open.ID}) {
		t.Errorf("got %v", got)
	}
}

func TestTheRecordIsBoundedByNumberAndAge(t *testing.T) {
	h := In(t.TempDir())
	h.MaxRuns = 5
	now := time.Now()
	h.now = func() time.Time { return now }
	long := strings.Repeat("x", lineBytes)
	living, err := h.Begin(Run{Kind: Backup})
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for range 23 {
		now = now.Add(time.Hour)
		ids = append(ids, run(t, h, Run{Kind: Backup, Error: long}, Failed))
	}
	if got := list(t, h, Filter{}); !slices.Equal(got, ids[len(ids)-5:]) {
		t.Errorf("got %v, want the last 5 of %v", got, ids)
	}
	info, err := os.Stat(h.path)
	if limit := int64(5 * 4 * lineBytes * 4); err != nil || info.Size() > limit {
		t.Errorf("the file has %d bytes, want at most %d; %v", info.Size(), limit, err)
	}
	// The end of a run is kept even where its beginning was dropped.
	living.Outcome = Done
	if err := h.End(living); err != nil {
		t.Fatal(err)
	}
	if got := list(t, h, Filter{}); got[len(got)-1] != living.ID {
		t.Errorf("got %v, want %s at the end", got, living.ID)
	}
	now = now.Add(DefaultAge - time.Minute)
	if got := list(t, h, Filter{}); len(got) != 1 || got[0] != ids[len(ids)-1] {
		t.Errorf("got %v, want the one that is not too old", got)
	}
}

func TestDamagedLinesAreLeftOut(t *testing.T) {
	h := In(t.TempDir())
	a := run(t, h, Run{Kind: Backup}, Done)
	f, err := os.OpenFile(filepath.Join(filepath.Dir(h.path), FileName), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(f, "{\"id\": 3}\nnothing\n{}\n{\"id\":\"to")
	f.Close()
	b := run(t, h, Run{Kind: Backup}, Done)
	if got := list(t, h, Filter{}); !slices.Equal(got, []string{a, b}) {
		t.Errorf("got %v, want %v", got, []string{a, b})
	}
}

// BenchmarkRuns reads the record of 10,000 runs, again and again.
func BenchmarkRuns(b *testing.B) {
	h := In(b.TempDir())
	var text []byte
	for i := range 10_000 {
		line, err := json.Marshal(Run{ID: fmt.Sprintf("%016d", i), Kind: Backup, Outcome: Done, Start: time.Now(), End: time.Now(), Volumes: []Volume{{Name: fmt.Sprintf("db1/%d", i%200), Image: strings.Repeat("a", 32)}}})
		if err != nil {
			b.Fatal(err)
		}
		text = append(append(text, line...), '\n')
	}
	if err := os.WriteFile(h.path, text, 0o600); err != nil {
		b.Fatal(err)
	}
	for name, fresh := range map[string]bool{"changed": true, "unchanged": false} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if fresh {
					h.read = nil
				}
				if runs, err := h.Runs(Filter{}); err != nil || len(runs) != 10_000 {
					b.Fatal(len(runs), err)
				}
			}
		})
	}
}
