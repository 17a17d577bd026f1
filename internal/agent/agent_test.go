package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"platter/internal/agent/config"
	"platter/internal/agent/event"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A machine is where agents of a test run, in a bubble of synctest: its clock
// may be set, it may crash, and its config may be edited.
type machine struct {
	t      *testing.T
	offset atomic.Int64 // of its clock from the bubble's, in nanoseconds
	dir    string
	text   string // of the config
	do     func(ctx context.Context, t Task) Result

	agent  *Agent
	cancel context.CancelFunc
	done   chan error
	dead   *bool // the agent that runs has crashed: nobody hears it any more

	mu     sync.Mutex
	events []event.Event
	hear   func(event.Event) // may be nil
}

// newMachine is one whose clock shows a time, and that has no agent yet. Its
// state is in memory: syncing a file there takes no time.
func newMachine(t *testing.T, at, text string) *machine {
	start, err := time.Parse("2006-01-02 15:04", at)
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{t: t, text: text, dir: memoryDir(t)}
	m.sets(time.Until(start))
	m.do = func(context.Context, Task) Result { return Result{} }
	return m
}

func memoryDir(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "platter-agent-*")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func (m *machine) now() time.Time { return time.Now().Add(time.Duration(m.offset.Load())) }

// sets sets its clock.
func (m *machine) sets(by time.Duration) { m.offset.Add(int64(by)) }

// Run lets the agents' runs be what the test says.
func (m *machine) Run(ctx context.Context, t Task, progress func(Progress)) Result {
	return m.do(ctx, t)
}

func (m *machine) load(string) (*config.Config, error) {
	path := filepath.Join(m.dir, "platter.toml")
	if err := os.WriteFile(path, []byte(m.text), 0o600); err != nil {
		return nil, err
	}
	return config.Load(path)
}

// start starts an agent.
func (m *machine) start() {
	m.t.Helper()
	dead := new(bool)
	a, err := New(Options{
		Config: "platter.toml", State: m.dir, Machine: "m", Runner: m, Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Load: m.load, Now: m.now,
		Observe: func(e event.Event) {
			m.mu.Lock()
			defer m.mu.Unlock()
			if !*dead {
				m.events = append(m.events, e)
				if m.hear != nil {
					m.hear(e)
				}
			}
		},
	})
	if err != nil {
		m.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	m.agent, m.cancel, m.done, m.dead = a, cancel, make(chan error, 1), dead
	go func() { m.done <- a.Run(ctx) }()
	synctest.Wait()
}

// stop stops the agent the way systemd does.
func (m *machine) stop() {
	m.t.Helper()
	m.cancel()
	if err := <-m.done; err != nil {
		m.t.Error(err)
	}
}

// crash ends the agent without a last word: what it does from now on changes
// nothing on disk, and nobody hears of it.
func (m *machine) crash() {
	m.t.Helper()
	b, err := os.ReadFile(filepath.Join(m.dir, stateName))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		m.t.Fatal(err)
	}
	m.mu.Lock()
	*m.dead = true
	m.mu.Unlock()
	m.stop()
	if err == nil {
		if err := os.WriteFile(filepath.Join(m.dir, stateName), b, 0o600); err != nil {
			m.t.Fatal(err)
		}
	}
}

// takes is a run that takes so long and ends with a status, unless stopped.
func takes(d time.Duration, exit int) func(context.Context, Task) Result {
	return func(ctx context.Context, _ Task) Result {
		select {
		case <-time.After(d):
			return Result{Exit: exit, Error: strings.Repeat("it failed", min(exit, 1))}
		case <-ctx.Done():
			return Result{Exit: 130, Error: "interrupted"}
		}
	}
}

// story is what happened, in short.
func (m *machine) story() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var list []string
	for _, e := range m.events {
		text := fmt.Sprintf("%s %s", e.At.Format("02T15:04"), e.Kind)
		if e.Job != "" {
			text += " " + e.Job
		}
		switch {
		case e.Kind == event.Finished:
			text += fmt.Sprintf(" %d", e.Exit)
			if !e.Final {
				text += " again"
			}
		case e.Count > 0:
			text += fmt.Sprintf(" %d", e.Count)
		}
		list = append(list, text)
	}
	return strings.Join(list, "; ")
}

func (m *machine) want(story string) {
	m.t.Helper()
	if got := m.story(); got != story {
		m.t.Errorf("\n got %s\nwant %s", got, story)
	}
}

const nightly = `
[job.a]
devices = ["/a"]
schedule = "daily 02:30"
time-zone = "UTC"
`

// in runs a test in a bubble.
func in(t *testing.T, at, text string, f func(t *testing.T, m *machine)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { f(t, newMachine(t, at, text)) })
}

func TestAJobRunsWhenItIsDue(t *testing.T) {
	in(t, "2026-01-01 12:00", nightly, func(t *testing.T, m *machine) {
		m.do = takes(time.Hour, 0)
		m.start()
		time.Sleep(48 * time.Hour)
		m.stop()
		m.want("02T02:30 started a; 02T03:30 finished a 0; 03T02:30 started a; 03T03:30 finished a 0")
	})
}

func TestDowntimeIsCaughtUpOnce(t *testing.T) {
	in(t, "2026-01-01 12:00", nightly, func(t *testing.T, m *machine) {
		m.start()
		m.stop()
		time.Sleep(10 * 24 * time.Hour)
		m.start()
		time.Sleep(24 * time.Hour)
		m.stop()
		m.want("11T12:00 missed a 9; 11T12:00 started a; 11T12:00 finished a 0; 12T02:30 started a; 12T02:30 finished a 0")
	})
}

func TestAJobThatIsNewMissedNothing(t *testing.T) {
	in(t, "2026-01-01 12:00", "", func(t *testing.T, m *machine) {
		m.start()
		time.Sleep(72 * time.Hour)
		m.text = nightly
		if err := m.agent.Reload(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		m.stop()
		m.want("")
	})
}

func TestFailedRunsAreTriedAgainUntilTheyAreGivenUp(t *testing.T) {
	in(t, "2026-01-01 02:00", nightly, func(t *testing.T, m *machine) {
		m.do = takes(10*time.Minute, 1)
		m.start()
		time.Sleep(6 * time.Hour)
		m.want("01T02:30 started a; 01T02:40 finished a 1 again; 01T02:41 started a; 01T02:51 finished a 1 again; " +
			"01T02:53 started a; 01T03:03 finished a 1 again; 01T03:07 started a; 01T03:17 finished a 1")
		m.stop()
	})
	in(t, "2026-01-01 02:00", nightly+"attempts = 100\ngive-up-after = \"30m\"", func(t *testing.T, m *machine) {
		m.do = takes(10*time.Minute, 1)
		m.start()
		time.Sleep(6 * time.Hour)
		m.want("01T02:30 started a; 01T02:40 finished a 1 again; 01T02:41 started a; 01T02:51 finished a 1 again; 01T02:53 started a; 01T03:03 finished a 1")
		m.stop()
	})
	for _, lasting := range []int{2, 3, 12, 13, 14} {
		in(t, "2026-01-01 02:00", nightly, func(t *testing.T, m *machine) {
			m.do = takes(10*time.Minute, lasting)
			m.start()
			time.Sleep(6 * time.Hour)
			m.want(fmt.Sprintf("01T02:30 started a; 01T02:40 finished a %d", lasting))
			m.stop()
		})
	}
}

func TestRunsThatTakeTooLongAreStopped(t *testing.T) {
	in(t, "2026-01-01 02:00", nightly+"stop-after = \"1h\"\nattempts = 2", func(t *testing.T, m *machine) {
		m.do = takes(10*time.Hour, 0)
		m.start()
		time.Sleep(8 * time.Hour)
		m.stop()
		m.want("01T02:30 started a; 01T03:30 finished a 130 again; 01T03:31 started a; 01T04:31 finished a 130")
		if !strings.Contains(m.events[1].Error, "stop-after") {
			t.Errorf("got %+v", m.events[1])
		}
	})
}

func TestARunThatIsStillGoingIsNotBegunAgain(t *testing.T) {
	in(t, "2026-01-01 12:00", strings.Replace(nightly, "daily 02:30", "hourly", 1), func(t *testing.T, m *machine) {
		m.do = takes(150*time.Minute, 0)
		m.start()
		time.Sleep(5*time.Hour + time.Minute)
		m.stop()
		m.want("01T13:00 started a; 01T14:00 skipped a 1; 01T15:00 skipped a 1; 01T15:30 finished a 0; 01T16:00 started a; 01T17:00 skipped a 1; 01T17:01 finished a 130 again")
		if !strings.Contains(m.events[1].Error, "the run of 2026-01-01 13:00 has not ended") {
			t.Errorf("got %+v", m.events[1])
		}
	})
}

func TestAnAgentThatStopsOrDiesGoesOnWithItsRuns(t *testing.T) {
	in(t, "2026-01-01 02:00", nightly, func(t *testing.T, m *machine) {
		m.do = takes(4*time.Hour, 0)
		m.start()
		time.Sleep(time.Hour)
		m.stop()
		time.Sleep(time.Hour)
		m.start()
		time.Sleep(time.Hour)
		m.crash()
		time.Sleep(2 * 24 * time.Hour)
		m.start()
		time.Sleep(5 * time.Hour)
		m.stop()
		m.want("01T02:30 started a; 01T03:00 finished a 130 again; 01T04:00 started a; " +
			"03T05:00 finished a -1; 03T05:00 missed a 1; 03T05:00 started a; 03T09:00 finished a 0")
		if m.events[2].Run != m.events[0].Run {
			t.Errorf("it went on as another run: %+v", m.events)
		}
	})
}

func TestAnAgentThatDiesInEveryAttemptGivesUp(t *testing.T) {
	in(t, "2026-01-01 02:00", nightly+"attempts = 2", func(t *testing.T, m *machine) {
		m.do = takes(4*time.Hour, 0)
		for range 3 {
			m.start()
			time.Sleep(time.Hour)
			m.crash()
		}
		m.start()
		time.Sleep(time.Hour)
		m.stop()
		m.want("01T02:30 started a; 01T03:00 finished a -1 again; 01T03:01 started a; 01T04:00 finished a -1")
	})
}

func TestOneRunPerDeviceAndCatalogAndALimit(t *testing.T) {
	text := "[agent]\nruns-at-once = 2\ntime-zone = \"UTC\"\n[repository.r]\nlocation = \"/r\"\n[repository.s]\nlocation = \"/s\"\n[repository.q]\nlocation = \"/q\"\n"
	for _, j := range []string{"a r /1", "b r /2", "c s /1", "d s /3", "e q /4"} {
		w := strings.Fields(j)
		text += fmt.Sprintf("[job.%s]\nrepository = %q\ndevices = [%q]\nschedule = \"daily 02:30\"\n", w[0], w[1], w[2])
	}
	in(t, "2026-01-01 02:00", text, func(t *testing.T, m *machine) {
		m.do = func(ctx context.Context, t Task) Result {
			return takes(time.Hour+time.Duration(t.Job.Name[0]-'a')*time.Minute, 0)(ctx, t)
		}
		m.start()
		time.Sleep(12 * time.Hour)
		m.stop()
		// c waits for a's device, and keeps nobody else waiting.
		m.want("01T02:30 started a; 01T02:30 started d; 01T03:30 finished a 0; 01T03:30 started b; 01T03:33 finished d 0; " +
			"01T03:33 started c; 01T04:31 finished b 0; 01T04:31 started e; 01T04:35 finished c 0; 01T05:35 finished e 0")
	})
}

func TestWindows(t *testing.T) {
	in(t, "2026-01-01 01:00", nightly+"window = \"02:00..04:00\"\nstop-at-window-end = true", func(t *testing.T, m *machine) {
		m.do = takes(3*time.Hour, 0)
		m.start()
		time.Sleep(26 * time.Hour)
		m.do = takes(time.Minute, 0)
		time.Sleep(2 * time.Hour)
		m.stop()
		m.want("01T02:30 started a; 01T04:00 finished a 130 again; 02T02:00 started a; 02T02:30 skipped a 1; 02T04:00 finished a 130 again")
	})
	// Caught up in the window only.
	in(t, "2026-01-01 12:00", nightly+"window = \"22:00..06:00\"", func(t *testing.T, m *machine) {
		m.start()
		m.stop()
		time.Sleep(24 * time.Hour)
		m.start()
		time.Sleep(24 * time.Hour)
		m.stop()
		m.want("02T22:00 started a; 02T22:00 finished a 0; 03T02:30 started a; 03T02:30 finished a 0")
	})
}

func TestJitterMovesARunAndLosesNone(t *testing.T) {
	in(t, "2026-01-01 02:00", nightly+"jitter = \"1h\"", func(t *testing.T, m *machine) {
		m.start()
		time.Sleep(30 * time.Hour)
		m.stop()
		if len(m.events) != 4 {
			t.Fatal(m.story())
		}
		due := time.Date(2026, 1, 1, 2, 30, 0, 0, time.UTC)
		first, second := m.events[0], m.events[2]
		if !first.Due.Equal(due) || first.At.Before(due) || !first.At.Before(due.Add(time.Hour)) || second.At.Sub(first.At).Round(time.Minute) != 24*time.Hour {
			t.Errorf("due %v, begun %v and %v", first.Due, first.At, second.At)
		}
	})
}

func TestTheClockMayBeSet(t *testing.T) {
	in(t, "2026-01-01 12:00", nightly, func(t *testing.T, m *machine) {
		m.start()
		time.Sleep(20 * time.Hour)
		m.sets(5 * 24 * time.Hour) // 2026-01-07 08:00
		time.Sleep(24 * time.Hour)
		m.stop()
		m.want("02T02:30 started a; 02T02:30 finished a 0; 07T08:00 clock; 07T08:00 missed a 4; 07T08:00 started a; 07T08:00 finished a 0; 08T02:30 started a; 08T02:30 finished a 0")
	})
	in(t, "2026-01-01 12:00", nightly, func(t *testing.T, m *machine) {
		m.start()
		time.Sleep(15 * time.Hour)
		m.sets(-2 * time.Hour) // 2026-01-02 01:00: 02:30 comes again, and is not due again
		time.Sleep(24 * time.Hour)
		m.sets(-10 * 365 * 24 * time.Hour) // ten years back
		time.Sleep(48 * time.Hour)
		m.stop()
		m.want("02T02:30 started a; 02T02:30 finished a 0; 02T01:00 clock; 06T01:00 clock; 06T02:30 started a; 06T02:30 finished a 0; 07T02:30 started a; 07T02:30 finished a 0")
	})
	// While the agent is not there.
	in(t, "2036-01-01 12:00", nightly, func(t *testing.T, m *machine) {
		m.start()
		time.Sleep(15 * time.Hour)
		m.stop()
		m.sets(-10 * 365 * 24 * time.Hour)
		m.start()
		time.Sleep(24 * time.Hour)
		m.stop()
		m.want("02T02:30 started a; 02T02:30 finished a 0; 05T02:30 started a; 05T02:30 finished a 0")
	})
	// While a run waits to be tried again.
	in(t, "2026-01-01 12:00", nightly, func(t *testing.T, m *machine) {
		m.do = takes(0, 1)
		m.start()
		time.Sleep(14*time.Hour + 30*time.Minute + time.Second)
		m.do = takes(0, 0)
		m.sets(-365 * 24 * time.Hour)
		time.Sleep(5 * time.Minute)
		m.stop()
		m.want("02T02:30 started a; 02T02:30 finished a 1 again; 02T02:30 clock; 02T02:30 started a; 02T02:30 finished a 0")
	})
}

func TestReloadLosesNoRun(t *testing.T) {
	in(t, "2026-01-01 02:00", nightly+"[job.b]\ndevices=[\"/b\"]\nrepository=\"r\"\nschedule=\"02:45\"\n[repository.r]\nlocation=\"/r\"\n[agent]\ntime-zone=\"UTC\"", func(t *testing.T, m *machine) {
		m.do = takes(time.Hour, 0)
		m.start()
		time.Sleep(50 * time.Minute)
		good := m.text
		m.text = "[job.a]\nbad = 1\n"
		if err := m.agent.Reload(t.Context()); err == nil || !strings.Contains(err.Error(), "unknown key job.a.bad") {
			t.Errorf("a bad config: %v", err)
		}
		m.text = strings.Replace(good, "[job.b]", "[job.c]", 1)
		if err := m.agent.Reload(t.Context()); err != nil {
			t.Fatal(err)
		}
		s, err := m.agent.Status(t.Context())
		if err != nil || len(s.Jobs) != 3 || s.Jobs[0].State != Running || s.Jobs[2].State != Running {
			t.Errorf("%+v, %v", s, err)
		}
		time.Sleep(25 * time.Hour)
		m.stop()
		m.want("01T02:30 started a; 01T02:45 started b; 01T03:30 finished a 0; 01T03:45 finished b 0; 02T02:30 started a; 02T02:45 started c; 02T03:30 finished a 0; 02T03:45 finished c 0")
	})
	// Another schedule begins now; a run that waits and is taken out is told of.
	in(t, "2026-01-01 02:00", nightly+"window=\"02:00..03:00\"", func(t *testing.T, m *machine) {
		m.do = takes(0, 1)
		m.start()
		time.Sleep(59 * time.Minute)
		m.text = strings.Replace(m.text, "02:30", "01:00", 1)
		if err := m.agent.Reload(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		m.text = ""
		if err := m.agent.Reload(t.Context()); err != nil {
			t.Fatal(err)
		}
		m.stop()
		m.want("01T02:30 started a; 01T02:30 finished a 1 again; 01T02:31 started a; 01T02:31 finished a 1 again; 01T02:33 started a; 01T02:33 finished a 1 again; 01T02:37 started a; 01T02:37 finished a 1")
	})
}

func TestAJobTakenOutOfTheConfigWhileItWaitsIsToldOf(t *testing.T) {
	in(t, "2026-01-01 02:00", nightly+"window=\"22:00..23:00\"", func(t *testing.T, m *machine) {
		m.start()
		time.Sleep(time.Hour)
		m.text = ""
		if err := m.agent.Reload(t.Context()); err != nil {
			t.Fatal(err)
		}
		m.stop()
		m.want("01T03:00 skipped a 1")
	})
	// The same while the agent is not there.
	in(t, "2026-01-01 02:00", nightly+"window=\"22:00..23:00\"", func(t *testing.T, m *machine) {
		m.start()
		time.Sleep(time.Hour)
		m.stop()
		m.text = ""
		m.start()
		m.stop()
		m.want("01T03:00 skipped a 1")
	})
}

func TestRequests(t *testing.T) {
	in(t, "2026-01-01 01:00", nightly, func(t *testing.T, m *machine) {
		ctx := t.Context()
		m.do = takes(time.Hour, 0)
		m.start()
		check := func(err error, want string) {
			t.Helper()
			if fmt.Sprint(err) != want && !(want != "" && err != nil && strings.Contains(err.Error(), want)) {
				t.Errorf("got %v, want %q", err, want)
			}
			synctest.Wait()
		}
		ok := "<nil>"
		check(m.agent.RunNow(ctx, "x"), `there is no job "x"`)
		check(m.agent.StopRun(ctx, "a"), "does not run")
		check(m.agent.Pause(ctx, "", time.Time{}, false), ok)
		time.Sleep(2 * time.Hour) // 03:00
		if s, _ := m.agent.Status(ctx); s.Paused == nil || s.Jobs[0].State != Paused || s.Jobs[0].Run.Obstacle != "all jobs are paused" {
			t.Errorf("got %+v", s)
		}
		// A pause survives a restart.
		m.stop()
		m.start()
		time.Sleep(time.Hour)               // 04:00
		check(m.agent.RunNow(ctx, "a"), ok) // in spite of the pause
		check(m.agent.RunNow(ctx, "a"), "runs already")
		time.Sleep(30 * time.Minute)
		check(m.agent.Pause(ctx, "a", m.now().Add(10*time.Minute), true), ok) // interrupts it
		check(m.agent.Resume(ctx, ""), ok)
		time.Sleep(time.Minute)
		check(m.agent.StopRun(ctx, "a"), ok)
		check(m.agent.Pause(ctx, "a", m.now().Add(time.Hour), false), ok)
		if s, _ := m.agent.Status(ctx); s.Jobs[0].State != Paused || s.Jobs[0].Paused.Until.IsZero() {
			t.Errorf("got %+v", s)
		}
		time.Sleep(24 * time.Hour)
		m.stop()
		check(m.agent.RunNow(ctx, "a"), "the agent has stopped")
		m.want("01T04:00 started a; 01T04:30 finished a 130 again; 01T04:30 started a; 01T04:31 finished a 130; 02T02:30 started a; 02T03:30 finished a 0")
	})
}

func TestStateThatCannotBeSavedIsToldOfOnceAndRunsGoOn(t *testing.T) {
	in(t, "2026-01-01 02:00", strings.Replace(nightly, "daily 02:30", "hourly", 1), func(t *testing.T, m *machine) {
		m.start()
		time.Sleep(time.Minute)
		good := m.dir
		keepIn := func(dir string) {
			if err := m.agent.do(t.Context(), func() { m.agent.store.dir = dir }); err != nil {
				t.Fatal(err)
			}
		}
		keepIn(filepath.Join(good, "platter.toml", "x")) // below a file nothing can be made
		time.Sleep(2 * time.Hour)
		keepIn(good)
		time.Sleep(time.Hour)
		m.stop()
		m.want("01T03:00 trouble; 01T03:00 started a; 01T03:00 finished a 0; 01T04:00 started a; 01T04:00 finished a 0; 01T04:01 trouble; 01T05:00 started a; 01T05:00 finished a 0")
	})
}

func TestDamagedStateIsPutAsideAndToldOf(t *testing.T) {
	for _, text := range []string{"", "{", `{"version": 99}`} {
		in(t, "2026-01-01 02:00", nightly, func(t *testing.T, m *machine) {
			path := filepath.Join(m.dir, stateName)
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			m.start()
			time.Sleep(time.Hour)
			m.stop()
			m.want("01T02:00 trouble; 01T02:30 started a; 01T02:30 finished a 0")
			if b, err := os.ReadFile(path + asideSuffix); err != nil || string(b) != text {
				t.Errorf("put aside: %q, %v", b, err)
			}
		})
	}
}
