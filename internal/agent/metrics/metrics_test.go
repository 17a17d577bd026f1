package metrics

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"platter/internal/agent/alert"
	"platter/internal/agent/audit"
	"platter/internal/agent/config"
	"platter/internal/agent/history"
	"platter/internal/agent/notify"
)

// machine makes the records of one on which every metric has a value.
func machine(t *testing.T) *Source {
	t.Helper()
	dir := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	runs := history.In(dir)
	record := func(r history.Run, exit int, end history.Outcome) {
		open, err := runs.Begin(r)
		must(err)
		open.Exit, open.Outcome = exit, end
		must(runs.End(open))
	}
	record(history.Run{Kind: history.Backup, Job: "nightly", Volumes: []history.Volume{
		{Name: "db1/root", Image: "aa", Size: 1000, Read: 500, Stored: 250, Changed: 125, Tracker: "trace"},
		{Name: "db1/\"odd\"\\name", Image: "bb", Incomplete: true, Tracker: "full"},
	}}, 0, history.Done)
	record(history.Run{Kind: history.Verify}, 13, history.Failed)
	_, err := runs.Begin(history.Run{Kind: history.Prune})
	must(err)
	_, err = alert.In(dir, nil).Update(func(u *alert.Update) {
		u.Raise(alert.Condition{Kind: alert.Changed, Subject: "db1/root"}, 0)
		u.Raise(alert.Condition{Kind: alert.Late, Subject: "a"}, 0)
		u.Raise(alert.Condition{Kind: alert.Late, Subject: "b"}, 0)
		u.Acknowledge(3, "alice")
	})
	must(err)
	must(notify.In(dir).Put(notify.Message{ID: "1"}, []config.Notifier{{Name: "n", Kind: config.Webhook}}))
	must(audit.In(dir).Add(audit.Entry{Act: "pin"}))
	return &Source{State: dir, Version: "1.2.3"}
}

func scrape(t *testing.T, s *Source) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "platter.prom")
	if err := s.WriteFile(path); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestMetricsTellWhatTheRecordsSay(t *testing.T) {
	s := machine(t)
	text := scrape(t, s)
	for _, want := range []string{
		`platter_alerts{kind="late"} 2`, `platter_alerts_unacknowledged{kind="late"} 1`, `platter_alerts{kind="damaged"} 0`,
		`platter_audit_entries 1`, `platter_outbox_messages 1`, `platter_pruning_suspended{volume="db1/root"} 1`,
		`platter_image_size_bytes{volume="db1/root"} 1000`, `platter_image_read_bytes{volume="db1/root"} 500`,
		`platter_image_stored_bytes{volume="db1/root"} 250`, `platter_image_changed_bytes{volume="db1/root"} 125`,
		`platter_image_tracked{volume="db1/root"} 1`, `platter_image_tracked{volume="db1/\"odd\"\\name"} 0`,
		`platter_image_last_good_timestamp_seconds{volume="db1/\"odd\"\\name"} 0`,
		`platter_run_last_exit_status{job="",kind="verify"} 13`, `platter_run_last_exit_status{job="nightly",kind="backup"} 0`,
		`platter_runs_recorded{kind="prune",outcome="running"} 1`, `version="1.2.3"`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in\n%s", want, text)
		}
	}
	if strings.Contains(text, `platter_run_last_success_timestamp_seconds{job="",kind="verify"}`) {
		t.Error("a failed verification counts as a success")
	}
	for _, m := range All() {
		if !strings.Contains(text, "\n"+m.Name+"{") && !strings.Contains(text, "\n"+m.Name+" ") {
			t.Errorf("%s has no value", m.Name)
		}
	}
}

func TestMetricsAreServedOnThisMachineUntilTheEnd(t *testing.T) {
	s := machine(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.serve(ctx, l) }()
	resp, err := http.Get("http://" + l.Addr().String() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil || resp.StatusCode != 200 || !strings.Contains(string(body), "platter_outbox_messages 1") {
		t.Errorf("%d, %v: %s", resp.StatusCode, err, body)
	}
	// Records that cannot be read are no good news.
	if err := os.WriteFile(filepath.Join(s.State, alert.FileName), []byte("nonsense\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	resp, err = http.Get("http://" + l.Addr().String() + "/metrics")
	if err != nil || resp.StatusCode != 500 {
		t.Errorf("%+v, %v", resp, err)
	}
	resp.Body.Close()
	stop()

	if err := <-done; err != nil {
		t.Error(err)
	}
}

const docs = "../../../docs"

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(docs, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestEveryMetricIsInThePageWithItsLabels(t *testing.T) {
	page := read(t, "metrics.md")
	var known []string
	for _, m := range All() {
		known = append(known, m.Name)
		var labels []string
		for _, l := range m.Labels {
			labels = append(labels, "`"+l+"`")
		}
		row := fmt.Sprintf("\n| `%s` | %s", m.Name, strings.Join(labels, ", "))
		if !strings.Contains(page, strings.TrimRight(row, " ")+" |") {
			t.Errorf("docs/metrics.md has no row %s", row)
		}
	}
	if !slices.IsSorted(known) {
		t.Errorf("not in order: %q", known)
	}
	for _, name := range []string{"metrics.md", "monitoring/platter.rules.yml", "monitoring/grafana.json"} {
		for _, used := range regexp.MustCompile(`platter_[a-z_]+`).FindAllString(read(t, name), -1) {
			if !slices.Contains(known, used) {
				t.Errorf("docs/%s: there is no metric %s", name, used)
			}
		}
	}
	if !json.Valid([]byte(read(t, "monitoring/grafana.json"))) {
		t.Error("docs/monitoring/grafana.json is no JSON")
	}
}

func TestRulesAreWhatPrometheusTakes(t *testing.T) {
	tool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("promtool, of Debian's package prometheus, is not here")
	}
	out, err := exec.CommandContext(t.Context(), tool, "check", "rules", filepath.Join(docs, "monitoring/platter.rules.yml")).CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	check := exec.CommandContext(t.Context(), tool, "check", "metrics")
	check.Stdin = strings.NewReader(scrape(t, machine(t)))
	if out, err := check.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
