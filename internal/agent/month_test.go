package agent

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"platter/internal/agent/event"
	"platter/internal/agent/schedule"
)

// A month is what a simulated machine goes through, and what must hold of it.
type month struct {
	*machine
	seed    uint64
	start   time.Time
	mu      sync.Mutex
	busy    map[string]string // catalog or device, and the job that uses it
	running int
	runs    map[string]int // of each job
	wrong   []string
	set     []span // of wall clock that came twice
}

type span struct{ from, to time.Time }

const (
	volumes      = 200
	repositories = 8
	atOnce       = 4
)

// monthConfig is a config with a job for each of many volumes.
func monthConfig() string {
	var b strings.Builder
	fmt.Fprintf(&b, "[agent]\nruns-at-once = %d\ntime-zone = \"UTC\"\n", atOnce)
	for r := range repositories {
		fmt.Fprintf(&b, "[repository.r%d]\nlocation = \"/r%d\"\n", r, r)
	}
	kinds := []string{
		"daily 02:30|Europe/Berlin|30m|", "daily 01:30|America/New_York|1h|", "Mon..Fri 22:00|UTC|0|", "every 12h|UTC|2h|",
		"0/6:15|Europe/Berlin|0|", "Sun 02:15; Wed 03:00|Europe/Berlin|10m|", "daily 12:00|Australia/Lord_Howe|0|22:00..06:00", "30 2 * * *|America/New_York|5m|",
	}
	for v := range volumes {
		k := strings.Split(kinds[v%len(kinds)], "|")
		if v%40 == 3 {
			k = []string{"*:30", "America/New_York", "0", ""}
		}
		fmt.Fprintf(&b, "[job.v%03d]\nrepository = \"r%d\"\ndevices = [\"/dev/vg/v%03d\"]\nschedule = %q\ntime-zone = %q\njitter = %q\n", v, v/25%repositories, v, k[0], k[1], k[2])
		if k[3] != "" {
			fmt.Fprintf(&b, "window = %q\n", k[3])
		}
	}
	return b.String()
}

// day is how many days of the month are over.
func (m *month) day() float64 { return m.now().Sub(m.start).Hours() / 24 }

// outcome is what becomes of a run of a job, by the days that things go wrong.
func (m *month) outcome(t Task, r *rand.Rand) int {
	day := m.day()
	switch repo := t.Repository.Name; {
	case repo == "r3" && day > 6 && day < 7.5: // its store is dead
		return 1
	case repo == "r5" && day > 15 && day < 16: // its disk is full
		return 1
	case repo == "r6" && day > 20 && day < 21: // its password was changed
		return 12
	case t.Job.Name == "v017" && day > 3 && day < 5: // the device is gone
		return 1
	case t.Job.Name == "v100" && day > 10 && day < 12: // stored data is damaged
		return 13
	}
	switch n := r.IntN(1000); {
	case n < 10:
		return 1
	case n < 15:
		return -1 // it was killed
	case n < 18:
		return 3
	}
	return 0
}

// run is one attempt, which takes some minutes.
func (m *month) run(ctx context.Context, t Task) Result {
	m.take(t)
	defer m.give(t)
	m.mu.Lock()
	m.runs[t.Job.Name]++
	n := m.runs[t.Job.Name]
	m.mu.Unlock()
	var job uint64
	fmt.Sscanf(t.Job.Name, "v%d", &job)
	r := rand.New(rand.NewPCG(m.seed, job<<32|uint64(n)))
	select {
	case <-time.After(30*time.Second + rand.N(8*time.Minute)):
		exit := m.outcome(t, r)
		return Result{Exit: exit, Error: map[bool]string{true: "it failed"}[exit != 0]}
	case <-ctx.Done():
		return Result{Exit: 130, Error: "interrupted"}
	}
}

// take and give watch over what runs need to themselves.
func (m *month) take(t Task) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, thing := range []string{t.Repository.Name, t.Job.Devices[0]} {
		if other, ok := m.busy[thing]; ok {
			m.wrong = append(m.wrong, fmt.Sprintf("%s and %s use %s at the same time", other, t.Job.Name, thing))
		}
		m.busy[thing] = t.Job.Name
	}
	if m.running++; m.running > atOnce {
		m.wrong = append(m.wrong, fmt.Sprintf("%d runs at once", m.running))
	}
}

func (m *month) give(t Task) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.busy, t.Repository.Name)
	delete(m.busy, t.Job.Devices[0])
	m.running--
}

// sets sets the machine's clock.
func (m *month) sets(by time.Duration) {
	now := m.now()
	m.machine.sets(by)
	if by < 0 {
		m.set = append(m.set, span{m.now(), now})
	}
}

// live is the month.
func (m *month) live() {
	day := 24 * time.Hour
	m.machine.start()
	for _, step := range []func(){
		func() { time.Sleep(2*day + 2*time.Hour) },
		func() { m.crash(); time.Sleep(time.Minute) },
		m.machine.start,
		func() { time.Sleep(2*day + 5*time.Hour) },
		func() { m.stop(); time.Sleep(40 * time.Hour) }, // off over a weekend
		m.machine.start,
		func() { time.Sleep(2 * day) },
		func() { m.sets(3 * time.Hour); time.Sleep(3 * day) },
		func() { m.sets(-2 * time.Hour); time.Sleep(2 * day) },
		func() { m.crash(); m.sets(-26 * time.Hour) }, // off, and the clock is wrong when it comes back,
		m.machine.start,
		func() { time.Sleep(time.Hour); m.sets(26 * time.Hour); time.Sleep(day) }, // until somebody sees it
		func() { m.stop() },
		m.machine.start,
		func() { time.Sleep(m.start.Add(31 * day).Sub(m.now())) },
		m.stop,
	} {
		step()
		synctest.Wait()
	}
}

// accounts for every time that a job was due: how often it was told of.
func (m *month) accounts(name string, s schedule.Schedule, zone *time.Location) map[time.Time]int {
	told := map[time.Time]int{}
	seen := map[string]bool{}
	count := func(first, last time.Time, want int) {
		n := 0
		for at := first; !at.After(last); at = s.Next(at, zone) {
			told[at.UTC()]++
			n++
		}
		if n != want {
			m.t.Errorf("%s: %d times from %v to %v were told to be %d", name, n, first, last, want)
		}
	}
	for _, e := range m.events {
		switch {
		case e.Job != name:
		case e.Kind == event.Skipped, e.Kind == event.Missed:
			count(e.Due, e.Last, e.Count)
		case e.Kind == event.Started && !seen[e.Run]:
			seen[e.Run] = true
			count(e.Due, e.Due, 1)
		}
	}
	return told
}

// check is what must hold in the end.
func (m *month) check() (runs, attempts, skipped, missed int) {
	saved, err := m.agent.store.load()
	if err != nil {
		m.t.Fatal(err)
	}
	for _, text := range m.wrong {
		m.t.Error(text)
	}
	for _, c := range m.agent.config.Jobs {
		told := m.accounts(c.Name, c.Schedule, c.Zone)
		last := saved.Jobs[c.Name]
		if w := last.Waiting; w != nil && w.Attempt == 1 {
			told[w.Due.UTC()] = max(told[w.Due.UTC()], 1)
		}
		for at := c.Schedule.Next(m.start, c.Zone); !at.After(last.Handled); at = c.Schedule.Next(at, c.Zone) {
			twice := slices.ContainsFunc(m.set, func(s span) bool { return !at.Before(s.from) && !at.After(s.to) })
			if n := told[at.UTC()]; n != 1 && !(twice && n == 2) {
				m.t.Errorf("seed %d: %s was due at %v, which was told %d times", m.seed, c.Name, at, n)
			}
		}
		if last.Last == nil || m.now().Sub(last.Last.Good) > 5*24*time.Hour {
			m.t.Errorf("seed %d: %s: no good run for long: %+v", m.seed, c.Name, last.Last)
		}
	}
	open, final := map[string]bool{}, map[string]int{}
	for _, e := range m.events {
		switch e.Kind {
		case event.Started:
			if open[e.Run] {
				m.t.Errorf("seed %d: %s begins again before it ended: %+v", m.seed, e.Job, e)
			}
			open[e.Run] = true
			attempts++
			final[e.Run] += 0
		case event.Finished:
			if !open[e.Run] || final[e.Run] > 0 {
				m.t.Errorf("seed %d: %s ended before it began, or twice: %+v", m.seed, e.Job, e)
			}
			delete(open, e.Run)
			if e.Final {
				final[e.Run]++
			}
		case event.Skipped:
			skipped += e.Count
		case event.Missed:
			missed += e.Count
		}
	}
	waits := map[string]bool{}
	for _, k := range saved.Jobs {
		if k.Waiting != nil {
			waits[k.Waiting.Run] = true
		}
	}
	for run, n := range final {
		if n != 1 && !waits[run] {
			m.t.Errorf("seed %d: run %s has no end", m.seed, run)
		}
	}
	if len(open) > 0 {
		m.t.Errorf("seed %d: begun and never ended: %v", m.seed, slices.Collect(maps.Keys(open)))
	}
	return len(final), attempts, skipped, missed
}

// TestAMonthOfManyVolumesLosesNoRun: crashes, downtime, clocks that are set and
// that change, dead stores, full disks and devices that are gone.
func TestAMonthOfManyVolumesLosesNoRun(t *testing.T) {
	seeds := 1
	if os.Getenv("PLATTER_TEST_LONG") != "" {
		seeds = 20
	}
	for seed := range seeds {
		synctest.Test(t, func(t *testing.T) {
			m := &month{seed: uint64(seed), busy: map[string]string{}, runs: map[string]int{}}
			m.machine = newMachine(t, "2026-10-10 00:00", monthConfig())
			m.start = m.now()
			m.do = m.run
			m.live()
			runs, attempts, skipped, missed := m.check()
			if runs < 5000 || attempts <= runs || missed == 0 || skipped == 0 {
				t.Errorf("%d runs", runs)
			}
			t.Logf("%d runs in %d attempts, %d times skipped, %d missed, %d events", runs, attempts, skipped, missed, len(m.events))
		})
	}
}
