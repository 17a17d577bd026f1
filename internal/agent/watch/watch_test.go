package watch

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"platter/internal/agent/alert"
	"platter/internal/agent/config"
	"platter/internal/agent/event"
	"platter/internal/agent/history"
	"platter/internal/agent/notify"
)

// listener is a webhook that keeps the titles it gets, and answers as status
// says.
func listener(t *testing.T) (n config.Notifier, titles chan string, status *int) {
	t.Helper()
	titles, status = make(chan string, 100), new(int)
	*status = 200
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var m struct{ Title string }
		body, _ := io.ReadAll(r.Body)
		_ = json.Unmarshal(body, &m)
		if *status == 200 {
			titles <- m.Title
		}
		w.WriteHeader(*status)
	}))
	t.Cleanup(s.Close)
	return config.Notifier{Name: "hook", Kind: config.Webhook, URL: s.URL}, titles, status
}

func got(titles chan string) (list []string) {
	for {
		select {
		case title := <-titles:
			_, what, _ := strings.Cut(title, ": ")
			list = append(list, what)
		default:
			return list
		}
	}
}

func newWatch(t *testing.T) (w *Watch, titles chan string) {
	t.Helper()
	n, titles, _ := listener(t)
	conf := &config.Config{Notifiers: []config.Notifier{n}, Alerts: []config.Alert{{LastGood: time.Hour, Changed: 0.5}}}
	return &Watch{
		State: t.TempDir(), Version: "1", Config: func() *config.Config { return conf },
		Warn: func(s string) { t.Errorf("warning: %s", s) },
	}, titles
}

func TestWhatTheAgentTellsOfJobsIsToldOnce(t *testing.T) {
	w, titles := newWatch(t)
	finished := func(exit int, final bool) {
		w.Observe(event.Event{Kind: event.Finished, Job: "nightly", Does: "backup", Exit: exit, Final: final, Error: "why"})
		w.look(t.Context())
	}
	finished(1, false)
	if list := got(titles); len(list) > 0 {
		t.Errorf("told of an attempt: %q", list)
	}
	finished(1, true)
	finished(1, true)
	w.Observe(event.Event{Kind: event.Skipped, Job: "nightly", Count: 2, Error: "the last run goes on"})
	w.Observe(event.Event{Kind: event.Clock, Error: "by an hour"})
	w.look(t.Context())
	if list, want := got(titles), []string{"failed: job nightly", "skipped: job nightly", "clock: *"}; !slices.Equal(list, want) {
		t.Errorf("got %q, want %q", list, want)
	}
	list, err := alert.In(w.State, nil).List()
	if held := alert.Held(list); err != nil || held[alert.Everything] == "" {
		t.Errorf("%v, %v: a clock that jumped suspends no pruning", held, err)
	}
	finished(0, true)
	if list, want := got(titles), []string{"over: failed: job nightly", "over: skipped: job nightly"}; !slices.Equal(list, want) {
		t.Errorf("got %q, want %q", list, want)
	}
}

func TestImagesGrowOldWithoutAnyRun(t *testing.T) {
	w, titles := newWatch(t)
	runs := history.In(w.State)
	r, err := runs.Begin(history.Run{Kind: history.Backup})
	if err != nil {
		t.Fatal(err)
	}
	r.Volumes = []history.Volume{{Name: "v", Image: "aa", Incomplete: true}}
	r.Outcome = history.Incomplete
	if err := runs.End(r); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		w.look(t.Context())
	}
	if list, want := got(titles), []string{"late: v"}; !slices.Equal(list, want) {
		t.Errorf("got %q, want %q", list, want)
	}
	d := w.desk()
	r, err = runs.Begin(history.Run{Kind: history.Backup})
	if err != nil {
		t.Fatal(err)
	}
	d.Began(r)
	r.Volumes, r.Outcome = []history.Volume{{Name: "v", Image: "bb", Time: time.Now()}}, history.Done
	if err := runs.End(r); err != nil {
		t.Fatal(err)
	}
	d.Ended(r)
	d.Deliver(t.Context())
	if list, want := got(titles), []string{"over: late: v"}; !slices.Equal(list, want) {
		t.Errorf("got %q, want %q", list, want)
	}
}

func TestMessagesThatAreGivenUpAreAnAlert(t *testing.T) {
	n, titles, status := listener(t)
	var warned []string
	d := &Desk{State: t.TempDir(), Notifiers: []config.Notifier{n}, Warn: func(s string) { warned = append(warned, s) }}
	*status = 500
	if _, err := d.Update(func(u *alert.Update) { u.Raise(alert.Condition{Kind: alert.Late, Subject: "v"}, 0) }); err != nil {
		t.Fatal(err)
	}
	d.Deliver(t.Context())
	if len(warned) != 1 || !strings.Contains(warned[0], "notify hook: the server answers 500") {
		t.Errorf("warned %q", warned)
	}
	d.Notifiers[0].Name = "other" // the config lost it
	d.Deliver(t.Context())
	list, err := alert.In(d.State, nil).List()
	if err != nil || len(list) != 2 || list[1].Kind != alert.Unsent || !list[1].Open() {
		t.Errorf("%+v, %v", list, err)
	}
	*status = 200
	d.Deliver(t.Context())
	if got := got(titles); len(got) != 1 || got[0] != "unsent: hook" {
		t.Errorf("told %q", got)
	}
	if list, err = alert.In(d.State, nil).List(); err != nil || list[1].Open() {
		t.Errorf("%+v, %v", list, err)
	}
}

func TestMessagesSayWhatToDoAndCannotBeMadeUpByAVolume(t *testing.T) {
	c := &alert.Change{What: alert.WasRaised, Time: time.Now(), Alert: alert.Alert{ID: 7, Condition: alert.Condition{
		Kind: alert.Changed, Subject: "v\nBcc: all", Text: "half of it", Remedy: "look",
	}}}
	m := message(c)
	if strings.ContainsAny(m.Title, "\r\n") || !m.Urgent || !strings.Contains(m.Body, "What to do: look.") || !strings.Contains(m.Body, "platter alerts ack 7") {
		t.Errorf("%+v", m)
	}
	c.What = alert.WasResolved
	if m := message(c); m.Urgent || strings.Contains(m.Body, "ack") || !strings.Contains(m.Body, "This is over") {
		t.Errorf("%+v", m)
	}
}

func TestAWatchOffersMetricsWhileItRuns(t *testing.T) {
	w, _ := newWatch(t)
	conf := w.Config()
	conf.Metrics.File = filepath.Join(t.TempDir(), "platter.prom")
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); w.Run(ctx) }()
	for range 1000 {
		if text, err := os.ReadFile(conf.Metrics.File); err == nil {
			if !strings.Contains(string(text), "platter_outbox_messages 0") {
				t.Errorf("got %s", text)
			}
			break
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-done:
			t.Fatal("it ended")
		}
	}
	stop()
	<-done
	if _, err := os.Stat(conf.Metrics.File); err != nil {
		t.Error(err)
	}
	if waiting, err := notify.In(w.State).Waiting(); err != nil || len(waiting) > 0 {
		t.Error(fmt.Sprint(waiting, err))
	}
}
