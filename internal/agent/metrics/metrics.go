// Package metrics tells Prometheus how the backups of this machine are.
//
// All is read from the records in the state folder when it is asked for:
// nothing is counted in memory, and a restart loses nothing. No label has more
// values than there are volumes, jobs and kinds of things.
package metrics

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"platter/internal/agent/alert"
	"platter/internal/agent/audit"
	"platter/internal/agent/history"
	"platter/internal/agent/notify"
)

// A Metric is one of those that are told.
type Metric struct {
	Name, Help string
	Labels     []string
}

// All returns every metric there is, in order of their names. Each is a gauge.
func All() []Metric {
	return []Metric{
		{"platter_alerts", "Open alerts.", []string{"kind"}},
		{"platter_alerts_unacknowledged", "Open alerts that nobody has acknowledged.", []string{"kind"}},
		{"platter_audit_entries", "Entries of the audit log.", nil},
		{"platter_build_info", "1, with the version of the program.", []string{"version", "goversion"}},
		{"platter_image_changed_bytes", "Bytes that differ between the last image and the one before it.", []string{"volume"}},
		{"platter_image_duration_seconds", "Time that the run took which made the last image.", []string{"volume"}},
		{"platter_image_last_good_timestamp_seconds", "When the last complete image was made; 0 for never.", []string{"volume"}},
		{"platter_image_read_bytes", "Bytes read from the device for the last image.", []string{"volume"}},
		{"platter_image_size_bytes", "Size of the device at the last image.", []string{"volume"}},
		{"platter_image_stored_bytes", "Bytes stored for the last image.", []string{"volume"}},
		{"platter_image_tracked", "1 if the last image was made of what a tracker said had changed, 0 if every block was compared.", []string{"volume"}},
		{"platter_metrics_timestamp_seconds", "When these metrics were read from the records.", nil},
		{"platter_outbox_messages", "Messages that were not told yet.", nil},
		{"platter_pruning_suspended", "1 for volumes whose pruning an alert suspends.", []string{"volume"}},
		{"platter_run_last_end_timestamp_seconds", "When the last run ended.", []string{"kind", "job"}},
		{"platter_run_last_exit_status", "Exit status of the last run that ended.", []string{"kind", "job"}},
		{"platter_run_last_success_timestamp_seconds", "When the last run ended that went well.", []string{"kind", "job"}},
		{"platter_runs_recorded", "Runs in the record, which is bounded by number and age.", []string{"kind", "outcome"}},
	}
}

// A Source reads the records of one machine.
type Source struct {
	State   string           // folder
	History *history.History // of the folder; nil to open it
	Version string           // of the program
}

// Describe implements prometheus.Collector.
func (s *Source) Describe(ch chan<- *prometheus.Desc) {
	for _, m := range All() {
		ch <- m.desc()
	}
}

func (m *Metric) desc() *prometheus.Desc { return prometheus.NewDesc(m.Name, m.Help, m.Labels, nil) }

// Collect implements prometheus.Collector. Records that cannot be read fail
// the whole: half of the truth would look like good news.
func (s *Source) Collect(ch chan<- prometheus.Metric) {
	c := &collection{descs: map[string]*prometheus.Desc{}, to: ch}
	for _, m := range All() {
		c.descs[m.Name] = m.desc()
	}
	if err := s.collect(c); err != nil {
		ch <- prometheus.NewInvalidMetric(c.descs["platter_build_info"], err)
	}
}

type collection struct {
	descs map[string]*prometheus.Desc
	to    chan<- prometheus.Metric
}

func (c *collection) set(name string, value float64, labels ...string) {
	c.to <- prometheus.MustNewConstMetric(c.descs[name], prometheus.GaugeValue, value, labels...)
}

func (s *Source) collect(c *collection) error {
	record := s.History
	if record == nil {
		record = history.In(s.State)
	}
	runs, err := record.Runs(history.Filter{})
	if err != nil {
		return err
	}
	alerts, err := alert.In(s.State, nil).List()
	if err != nil {
		return err
	}
	waiting, err := notify.In(s.State).Waiting()
	if err != nil {
		return err
	}
	head, err := audit.In(s.State).Head()
	if err != nil {
		return err
	}
	c.set("platter_build_info", 1, s.Version, runtime.Version())
	c.set("platter_metrics_timestamp_seconds", seconds(time.Now()))
	c.set("platter_outbox_messages", float64(len(waiting)))
	c.set("platter_audit_entries", float64(head.Seq))
	c.alerts(alerts)
	c.images(runs)
	c.runs(runs)
	return nil
}

func seconds(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixMilli()) / 1000
}

func (c *collection) alerts(list []alert.Alert) {
	open, unacked := map[alert.Kind]int{}, map[alert.Kind]int{}
	for i := range list {
		if a := &list[i]; a.Open() {
			open[a.Kind]++
			if a.Acked.IsZero() {
				unacked[a.Kind]++
			}
		}
	}
	for _, k := range alert.Kinds() {
		c.set("platter_alerts", float64(open[k]), string(k))
		c.set("platter_alerts_unacknowledged", float64(unacked[k]), string(k))
	}
	for volume := range alert.Held(list) {
		c.set("platter_pruning_suspended", 1, volume)
	}
}

func (c *collection) images(runs []history.Run) {
	for _, g := range alert.LastGood(runs) {
		c.set("platter_image_last_good_timestamp_seconds", seconds(g.Time), g.Volume)
	}
	type image struct {
		history.Volume
		took time.Duration
	}
	last := map[string]image{}
	for _, r := range runs {
		for _, v := range r.Volumes {
			if r.Kind == history.Backup && v.Image != "" && !r.End.IsZero() {
				last[v.Name] = image{v, r.End.Sub(r.Start)}
			}
		}
	}
	for name, v := range last {
		c.set("platter_image_size_bytes", float64(v.Size), name)
		c.set("platter_image_read_bytes", float64(v.Read), name)
		c.set("platter_image_stored_bytes", float64(v.Stored), name)
		c.set("platter_image_changed_bytes", float64(v.Changed), name)
		c.set("platter_image_duration_seconds", v.took.Seconds(), name)
		tracked := 0.0
		if v.Tracker != "full" {
			tracked = 1
		}
		c.set("platter_image_tracked", tracked, name)
	}
}

func (c *collection) runs(runs []history.Run) {
	type class struct{ kind, job string }
	type count struct{ kind, outcome string }
	ended, good, counts := map[class]history.Run{}, map[class]history.Run{}, map[count]int{}
	for _, r := range runs {
		counts[count{r.Kind, string(r.Outcome)}]++
		if r.End.IsZero() {
			continue
		}
		ended[class{r.Kind, r.Job}] = r
		if r.Outcome == history.Done {
			good[class{r.Kind, r.Job}] = r
		}
	}
	for k, r := range ended {
		c.set("platter_run_last_end_timestamp_seconds", seconds(r.End), k.kind, k.job)
		c.set("platter_run_last_exit_status", float64(r.Exit), k.kind, k.job)
	}
	for k, r := range good {
		c.set("platter_run_last_success_timestamp_seconds", seconds(r.End), k.kind, k.job)
	}
	for k, n := range counts {
		c.set("platter_runs_recorded", float64(n), k.kind, k.outcome)
	}
}

// registry holds the metrics of the machine, and none of the process.
func (s *Source) registry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(s)
	return r
}

// WriteFile puts the metrics into a file, for node_exporter, in one step. All
// may read it.
func (s *Source) WriteFile(path string) error {
	if err := prometheus.WriteToTextfile(path, s.registry()); err != nil {
		return fmt.Errorf("metrics: %w", err)
	}
	return nil
}

// Handler offers the metrics at /metrics.
func (s *Source) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.registry(), promhttp.HandlerOpts{}))
	return mux
}

// Serve offers the metrics at an address of this machine until ctx ends.
func (s *Source) Serve(ctx context.Context, address string) error {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("metrics: %w", err)
	}
	return s.serve(ctx, l)
}

func (s *Source) serve(ctx context.Context, l net.Listener) error {
	server := http.Server{Handler: s.Handler(), ReadHeaderTimeout: 10 * time.Second, WriteTimeout: time.Minute}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("metrics: %w", err)
	}
	return nil
}
