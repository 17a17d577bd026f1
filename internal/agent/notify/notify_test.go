package notify

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"platter/internal/agent/config"
)

// A receiver is a server on this machine that keeps what it gets.
type receiver struct {
	*httptest.Server
	mu     sync.Mutex
	got    []received
	status int
	delay  time.Duration
}

type received struct {
	path, body string
	header     http.Header
}

func newReceiver(t *testing.T, start func(http.Handler) *httptest.Server) *receiver {
	t.Helper()
	r := &receiver{status: 200}
	r.Server = start(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, _ := io.ReadAll(req.Body)
		r.mu.Lock()
		r.got = append(r.got, received{req.URL.Path, string(body), req.Header})
		status, delay := r.status, r.delay
		r.mu.Unlock()
		select {
		case <-time.After(delay):
		case <-req.Context().Done():
		}
		if status == http.StatusFound {
			w.Header().Set("Location", "/elsewhere")
		}
		w.WriteHeader(status)
		fmt.Fprint(w, "the server's words")
	}))
	t.Cleanup(r.Close)
	return r
}

func (r *receiver) answer(status int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.status = status
}

func (r *receiver) take() []received {
	r.mu.Lock()
	defer r.mu.Unlock()
	got := r.got
	r.got = nil
	return got
}

func file(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// newOutbox returns an outbox whose clock is *now.
func newOutbox(t *testing.T) (o *Outbox, now *time.Time) {
	now = new(time.Time)
	*now = time.Now()
	o = In(t.TempDir())
	o.now = func() time.Time { return *now }
	return o, now
}

func (o *Outbox) mustPut(t *testing.T, m Message, n ...config.Notifier) {
	t.Helper()
	if err := o.Put(m, n); err != nil {
		t.Fatal(err)
	}
}

func (o *Outbox) mustDeliver(t *testing.T, n ...config.Notifier) *Report {
	t.Helper()
	r, err := o.Deliver(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestEachServiceGetsTheShapeItWants(t *testing.T) {
	server := newReceiver(t, httptest.NewServer)
	token := file(t, "s3cret\n")
	m := Message{ID: "1-raised", Title: "late: über <db1>", Body: "a & b\nc", Urgent: true, Data: json.RawMessage(`{"what":"raised"}`)}
	field := func(text string, path ...string) string {
		var v any
		if err := json.Unmarshal([]byte(text), &v); err != nil {
			return err.Error()
		}
		for _, p := range path {
			switch at := v.(type) {
			case map[string]any:
				v = at[p]
			case []any:
				v = at[0]
			}
		}
		return fmt.Sprint(v)
	}
	for _, c := range []struct {
		n     config.Notifier
		check func(received) []string // pairs of got and want
	}{
		{config.Notifier{Kind: config.Slack}, func(r received) []string {
			return []string{field(r.body, "text"), "*late: über &lt;db1&gt;*\na &amp; b\nc", r.header.Get("Content-Type"), "application/json"}
		}},
		{config.Notifier{Kind: config.Teams}, func(r received) []string {
			return []string{
				field(r.body, "attachments", "0", "contentType"), "application/vnd.microsoft.card.adaptive",
				field(r.body, "attachments", "0", "content", "body", "0", "text"), m.Title,
			}
		}},
		{config.Notifier{Kind: config.Ntfy, TokenFile: token}, func(r received) []string {
			title, _ := new(mime.WordDecoder).DecodeHeader(r.header.Get("Title"))
			return []string{r.body, m.Body, title, m.Title, r.header.Get("Priority"), "4", r.header.Get("Authorization"), "Bearer s3cret"}
		}},
		{config.Notifier{Kind: config.Gotify, TokenFile: token}, func(r received) []string {
			return []string{r.path, "/hook/message", r.header.Get("X-Gotify-Key"), "s3cret", r.header.Get("Authorization"), "", field(r.body, "message"), m.Body, field(r.body, "priority"), "8"}
		}},
		{config.Notifier{Kind: config.Webhook}, func(r received) []string {
			return []string{r.path, "/hook", field(r.body, "title"), m.Title, field(r.body, "data", "what"), "raised", field(r.body, "id"), m.ID}
		}},
	} {
		o, _ := newOutbox(t)
		c.n.Name, c.n.URLFile = c.n.Kind, file(t, server.URL+"/hook\n")
		o.mustPut(t, m, c.n)
		if r := o.mustDeliver(t, c.n); r.Sent != 1 {
			t.Errorf("%s: %+v", c.n.Kind, r)
		}
		got := server.take()
		if len(got) != 1 {
			t.Errorf("%s: %d requests", c.n.Kind, len(got))
			continue
		}
		for pair := range slices.Chunk(c.check(got[0]), 2) {
			if pair[0] != pair[1] {
				t.Errorf("%s: got %q, want %q", c.n.Kind, pair[0], pair[1])
			}
		}
	}
}

func TestPingsAreForHealthchecksAndOfTheJobsItNames(t *testing.T) {
	server := newReceiver(t, httptest.NewServer)
	checks := config.Notifier{Name: "hc", Kind: config.Healthchecks, URL: server.URL + "/uuid", Jobs: []string{"nightly"}}
	hook := config.Notifier{Name: "hook", Kind: config.Webhook, URL: server.URL}
	o, now := newOutbox(t)
	for i, p := range []string{PingStart, PingSuccess, PingStart, PingFail} {
		*now = now.Add(time.Second)
		o.mustPut(t, Message{ID: fmt.Sprint(i), Ping: p, Job: "nightly", Body: p}, checks, hook)
		o.mustPut(t, Message{ID: fmt.Sprint("other", i), Ping: p, Job: "other"}, checks, hook)
	}
	o.mustPut(t, Message{ID: "alert", Title: "t"}, checks)
	o.mustDeliver(t, checks, hook)
	var paths []string
	for _, r := range server.take() {
		paths = append(paths, r.path)
	}
	if want := []string{"/uuid/start", "/uuid", "/uuid/start", "/uuid/fail"}; !slices.Equal(paths, want) {
		t.Errorf("got %q, want %q", paths, want)
	}
	// That a run began is no news an hour later.
	o.mustPut(t, Message{ID: "late", Ping: PingStart, Job: "nightly"}, checks)
	*now = now.Add(staleStart + time.Second)
	if r := o.mustDeliver(t, checks); r.Sent != 0 || len(r.GivenUp) != 0 || len(server.take()) != 0 {
		t.Errorf("%+v", r)
	}
}

func TestAServerThatIsAwayLosesNothingAndKeepsTheOrder(t *testing.T) {
	server := newReceiver(t, httptest.NewServer)
	other := newReceiver(t, httptest.NewServer)
	n := config.Notifier{Name: "hook", Kind: config.Ntfy, URL: server.URL}
	up := config.Notifier{Name: "up", Kind: config.Ntfy, URL: other.URL}
	o, now := newOutbox(t)
	for i := range 3 {
		*now = now.Add(time.Second)
		o.mustPut(t, Message{ID: fmt.Sprint(i), Body: fmt.Sprint(i)}, n, up)
		o.mustPut(t, Message{ID: fmt.Sprint(i), Body: "again"}, n, up)
	}
	server.answer(503)
	r := o.mustDeliver(t, n, up)
	if r.Sent != 3 || r.Waiting != 3 || len(r.Failed) != 1 || !strings.Contains(r.Failed[0].Problem, "503") || !strings.Contains(r.Failed[0].Problem, "the server's words") {
		t.Errorf("%+v", r)
	}
	server.answer(200)
	if r := o.mustDeliver(t, n); r.Sent != 0 || r.Waiting != 3 {
		t.Errorf("before it is due: %+v", r)
	}
	server.take()
	*now = now.Add(firstPause)
	again := In(filepath.Dir(o.dir)) // a restart
	again.now = o.now
	if r := again.mustDeliver(t, n); r.Sent != 3 || r.Waiting != 0 {
		t.Errorf("%+v", r)
	}
	var bodies []string
	for _, r := range server.take() {
		bodies = append(bodies, r.body)
	}
	if !slices.Equal(bodies, []string{"0", "1", "2"}) {
		t.Errorf("got %q", bodies)
	}
}

func TestPausesGrowAndMessagesAreGivenUp(t *testing.T) {
	server := newReceiver(t, httptest.NewServer)
	server.answer(401)
	n := config.Notifier{Name: "hook", Kind: config.Ntfy, URL: server.URL}
	o, now := newOutbox(t)
	o.mustPut(t, Message{ID: "a"}, n)
	attempts := 0
	for range 5 * 24 * 2 {
		r := o.mustDeliver(t, n)
		attempts += len(r.Failed)
		if len(r.GivenUp) == 1 {
			if now.Sub(r.GivenUp[0].Created) < giveUpAfter || !strings.Contains(r.GivenUp[0].Problem, "401") {
				t.Errorf("%+v", r.GivenUp)
			}
			break
		}
		*now = now.Add(30 * time.Minute)
	}
	if list, err := o.Waiting(); err != nil || len(list) > 0 {
		t.Errorf("still there: %v, %v", list, err)
	}
	if attempts < 70 || attempts > 90 {
		t.Errorf("%d attempts in three days, want about one an hour", attempts)
	}
	// So is what nobody is there to take any more, and what is too much.
	o.mustPut(t, Message{ID: "b"}, n)
	if r := o.mustDeliver(t); len(r.GivenUp) != 1 || !strings.Contains(r.GivenUp[0].Problem, "no longer") {
		t.Errorf("%+v", r)
	}
}

func TestTheOutboxIsBounded(t *testing.T) {
	n := config.Notifier{Name: "hook", Kind: config.Ntfy, URL: "http://127.0.0.1:1"}
	o, _ := newOutbox(t)
	if err := os.MkdirAll(o.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	o.most = 20
	for i := range 25 {
		m := Message{ID: fmt.Sprintf("%06d", i), Notifier: n.Name, Created: o.now().Add(time.Duration(i))}
		text, _ := json.Marshal(m)
		if err := os.WriteFile(o.path(&m), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if r := o.mustDeliver(t, n); len(r.GivenUp) != 5 || r.GivenUp[0].ID != "000000" || r.Waiting != 20 {
		t.Errorf("gave up %d, %d wait", len(r.GivenUp), r.Waiting)
	}
}

func TestNothingWaitsLongerThanItMay(t *testing.T) {
	server := newReceiver(t, httptest.NewServer)
	server.delay = time.Minute
	n := config.Notifier{Name: "hook", Kind: config.Ntfy, URL: server.URL}
	o, _ := newOutbox(t)
	o.mustPut(t, Message{ID: "a"}, n)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	r, err := o.Deliver(ctx, []config.Notifier{n})
	if err != nil || r.Sent != 0 || r.Waiting != 1 {
		t.Errorf("%+v, %v", r, err)
	}
	if list, _ := o.Waiting(); len(list) != 1 || list[0].Attempts != 0 {
		t.Errorf("%+v", list)
	}
}

func TestSecretsStayWithTheServerTheyAreFor(t *testing.T) {
	server := newReceiver(t, httptest.NewServer)
	server.answer(http.StatusFound)
	n := config.Notifier{Name: "hook", Kind: config.Ntfy, URL: server.URL + "/topic", TokenFile: file(t, "s3cret")}
	o, _ := newOutbox(t)
	o.mustPut(t, Message{ID: "a"}, n)
	if r := o.mustDeliver(t, n); len(r.Failed) != 1 {
		t.Errorf("%+v", r)
	}
	if got := server.take(); len(got) != 1 {
		t.Errorf("it went on elsewhere: %+v", got)
	}
	dead := config.Notifier{Name: "dead", Kind: config.Slack, URLFile: file(t, "http://127.0.0.1:1/services/T0/s3cret")}
	o.mustPut(t, Message{ID: "b"}, dead)
	r := o.mustDeliver(t, dead)
	if len(r.Failed) != 1 || strings.Contains(r.Failed[0].Problem, "s3cret") {
		t.Errorf("%+v", r.Failed)
	}
	far := config.Notifier{Name: "far", Kind: config.Slack, URLFile: file(t, "http://example.org/s3cret")}
	o.mustPut(t, Message{ID: "c"}, far)
	if r := o.mustDeliver(t, far); len(r.Failed) != 1 || !strings.Contains(r.Failed[0].Problem, "want https") {
		t.Errorf("%+v", r.Failed)
	}
}

func TestCertificatesAreChecked(t *testing.T) {
	server := newReceiver(t, httptest.NewTLSServer)
	server.Config.ErrorLog = nil
	ca := file(t, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})))
	for _, c := range []struct {
		ca   string
		sent int
	}{{"", 0}, {ca, 1}, {file(t, "no certificate"), 0}} {
		o, _ := newOutbox(t)
		n := config.Notifier{Name: "hook", Kind: config.Webhook, URL: server.URL, CAFile: c.ca}
		o.mustPut(t, Message{ID: "a"}, n)
		if r := o.mustDeliver(t, n); r.Sent != c.sent {
			t.Errorf("%q: %+v", c.ca, r)
		}
	}
}
