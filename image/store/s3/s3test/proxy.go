package s3test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/minio/minio-go/v7/pkg/signer"
)

// A Fault is what a Proxy does to a request.
type Fault int

// Faults. Before means that the server never saw the request, After that it
// has done what was asked.
const (
	None             Fault = iota
	ErrorBefore            // status 500
	ErrorAfter             // status 500
	SlowDown               // status 503, with Retry-After of a second
	TooMany                // status 429
	ResetBefore            // the connection ends
	ResetAfter             // the connection ends
	HangBefore             // no answer until the client gives up
	HangAfter              // no answer until the client gives up
	CutAnswer              // the connection ends in the middle of the answer
	StallAnswer            // nothing more comes from the middle of the answer on
	FlipAnswer             // one bit of the answer's body is turned over
	FlipRequest            // one bit of the request's body is turned over
	StaleNotFound          // status 404 in the words of S3
	WordlessNotFound       // status 404 by a proxy that knows nothing of S3
	SentTwice              // the request reaches the server twice; the second answer is the one
	NoCondition            // the server does not see If-None-Match
	WholeObject            // the server does not see Range
	FalseSuccess           // status 200 with a page of HTML
	Conflict               // status 409
	BadGateway             // status 502
	TwoWriters             // status 412, though nothing is there
	faults
)

var names = [...]string{
	"none", "500 before", "500 after", "503 slow down", "429", "reset before", "reset after", "hang before", "hang after",
	"answer cut", "answer stalled", "answer flipped", "request flipped", "stale 404", "wordless 404", "sent twice",
	"no condition", "whole object", "false success", "409", "502", "false 412",
}

func (f Fault) String() string { return names[f] }

// Faults returns every fault but None.
func Faults() []Fault {
	list := make([]Fault, 0, faults)
	for f := None + 1; f < faults; f++ {
		list = append(list, f)
	}
	return list
}

// Passing returns the faults that a store gets over soon and that it can tell
// from the truth also where there is no TLS.
func Passing() []Fault {
	return slices.DeleteFunc(Faults(), func(f Fault) bool {
		return slices.Contains([]Fault{HangBefore, HangAfter, StallAnswer, FlipAnswer, NoCondition, TwoWriters}, f)
	})
}

// A Rule says which requests go wrong and how.
type Rule struct {
	Method string // any if empty
	Key    string // the request's path holds this
	Query  string // the request's query holds this
	Nth    int    // of those that match, from 1; 0 for all
	Fault  Fault
}

// A Proxy stands before a Server and follows rules. It holds a request and its
// answer in memory.
type Proxy struct {
	URL string

	server string
	client http.Client
	front  *httptest.Server
	ended  chan struct{}
	close  sync.Once

	mu    sync.Mutex
	rules []*activeRule
	draw  func(r *http.Request) Fault
	seen  []string
	quiet bool // seen is not kept
}

type activeRule struct {
	Rule
	matched int
}

// Proxy starts a proxy before the server. It ends with the test.
func (s *Server) Proxy(t testing.TB) *Proxy {
	t.Helper()
	p := &Proxy{server: s.URL, ended: make(chan struct{}), client: http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 16, DisableCompression: true}}}
	p.front = httptest.NewServer(http.HandlerFunc(p.serve))
	p.URL = p.front.URL
	t.Cleanup(p.Close)
	return p
}

// Close ends the proxy, if that is not to wait for the end of the test.
func (p *Proxy) Close() {
	p.close.Do(func() {
		close(p.ended)
		p.front.CloseClientConnections()
		p.front.Close()
		p.client.CloseIdleConnections()
	})
}

// Fail adds a rule. The first that matches a request decides.
func (p *Proxy) Fail(r Rule) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rules = append(p.rules, &activeRule{Rule: r})
}

// Random makes a share of the requests that no rule decides on go wrong by one
// of the faults, chosen by seed.
func (p *Proxy) Random(seed uint64, share float64, list []Fault) {
	rng := rand.New(rand.NewPCG(seed, 0))
	p.mu.Lock()
	defer p.mu.Unlock()
	p.draw = func(*http.Request) Fault {
		if rng.Float64() >= share {
			return None
		}
		return list[rng.IntN(len(list))]
	}
}

// Heal forgets all rules.
func (p *Proxy) Heal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rules, p.draw = nil, nil
}

// Forget has Seen remember nothing from now on, for tests of hours.
func (p *Proxy) Forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen, p.quiet = nil, true
}

// Seen returns the requests so far, each as method, path and query, with the
// fault they met.
func (p *Proxy) Seen() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.seen)
}

func (p *Proxy) pick(r *http.Request) (f Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	defer func() {
		if !p.quiet {
			p.seen = append(p.seen, fmt.Sprintf("%s %s: %s", r.Method, r.URL.RequestURI(), f))
		}
	}()
	for _, rule := range p.rules {
		if rule.Method != "" && rule.Method != r.Method || !strings.Contains(r.URL.Path, rule.Key) || !strings.Contains(r.URL.RawQuery, rule.Query) {
			continue
		}
		if rule.matched++; rule.Nth == 0 || rule.Nth == rule.matched {
			return rule.Fault
		}
	}
	if p.draw == nil {
		return None
	}
	return p.draw(r)
}

// A reply is an answer, read whole.
type reply struct {
	status int
	header http.Header
	body   []byte
}

func (p *Proxy) serve(w http.ResponseWriter, r *http.Request) {
	fault := p.pick(r)
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	if made := refusal(fault); made != nil {
		send(w, r, made)
		return
	}
	switch fault {
	case ResetBefore:
		panic(http.ErrAbortHandler)
	case HangBefore:
		p.hang(r)
	case FlipRequest:
		flip(body)
	case SentTwice:
		if _, err := p.forward(r, body); err != nil {
			panic(http.ErrAbortHandler)
		}
	case NoCondition, WholeObject:
		resign(r, map[Fault]string{NoCondition: "If-None-Match", WholeObject: "Range"}[fault])
	}
	got, err := p.forward(r, body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	p.answer(w, r, got, fault)
}

// refusal is an answer that is given in the server's place, or nil.
func refusal(f Fault) *reply {
	xml := func(status int, code string) *reply {
		return &reply{
			status,
			http.Header{"Content-Type": {"application/xml"}},
			fmt.Appendf(nil, "<?xml version=\"1.0\"?><Error><Code>%s</Code><Message>%s</Message></Error>", code, f),
		}
	}
	html := func(status int) *reply {
		return &reply{
			status,
			http.Header{"Content-Type": {"text/html"}, "Last-Modified": {"Mon, 02 Jan 2006 15:04:05 GMT"}},
			[]byte("<html><body>hello</body></html>"),
		}
	}
	switch f {
	case ErrorBefore:
		return xml(500, "InternalError")
	case SlowDown:
		r := xml(503, "SlowDown")
		r.header.Set("Retry-After", "1")
		return r
	case TooMany:
		return xml(429, "TooManyRequests")
	case StaleNotFound:
		return xml(404, "NoSuchKey")
	case WordlessNotFound:
		return html(404)
	case FalseSuccess:
		return html(200)
	case Conflict:
		return xml(409, "ConditionalRequestConflict")
	case BadGateway:
		return html(502)
	case TwoWriters:
		return xml(412, "PreconditionFailed")
	}
	return nil
}

// answer gives what the server answered, as far as the fault lets it.
func (p *Proxy) answer(w http.ResponseWriter, r *http.Request, got *reply, fault Fault) {
	switch fault {
	case ErrorAfter:
		got = refusal(ErrorBefore)
	case ResetAfter:
		panic(http.ErrAbortHandler)
	case HangAfter:
		p.hang(r)
	case FlipAnswer:
		flip(got.body)
	case CutAnswer, StallAnswer:
		if len(got.body) == 0 {
			break
		}
		half(w, got)
		if fault == StallAnswer {
			p.hang(r)
		}
		panic(http.ErrAbortHandler)
	}
	send(w, r, got)
}

func send(w http.ResponseWriter, r *http.Request, got *reply) {
	for k, v := range got.header {
		w.Header()[k] = v
	}
	if r.Method != http.MethodHead {
		w.Header().Set("Content-Length", fmt.Sprint(len(got.body)))
	}
	w.WriteHeader(got.status)
	_, _ = w.Write(got.body)
}

// half sends the head of an answer and half of its body.
func half(w http.ResponseWriter, got *reply) {
	for k, v := range got.header {
		w.Header()[k] = v
	}
	w.WriteHeader(got.status)
	_, _ = w.Write(got.body[:len(got.body)/2])
	_ = http.NewResponseController(w).Flush()
}

// hang waits until the client has gone, and ends the connection.
func (p *Proxy) hang(r *http.Request) {
	select {
	case <-r.Context().Done():
	case <-p.ended:
	}
	panic(http.ErrAbortHandler)
}

func flip(body []byte) {
	if len(body) > 0 {
		body[len(body)/2] ^= 0x10
	}
}

// forward asks the server. Host and signature are the client's.
func (p *Proxy) forward(r *http.Request, body []byte) (*reply, error) {
	req, err := http.NewRequestWithContext(r.Context(), r.Method, p.server+r.URL.RequestURI(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header, req.Host = r.Header.Clone(), r.Host
	resp, err := p.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	got := &reply{status: resp.StatusCode, header: resp.Header}
	got.body, err = io.ReadAll(resp.Body)
	if errors.Is(err, io.ErrUnexpectedEOF) && r.Method == http.MethodHead {
		err = nil
	}
	return got, err
}

// resign takes a header away, as a server would that does not know it.
func resign(r *http.Request, header string) {
	r.Header.Del(header)
	r.Header.Del("Authorization")
	r.URL.Host, r.URL.Scheme = r.Host, "http"
	accept := r.Header.Get("Accept-Encoding")
	r.Header.Del("Accept-Encoding")
	*r = *signer.SignV4(*r, AccessKey, SecretKey, "", region)
	if accept != "" {
		r.Header.Set("Accept-Encoding", accept)
	}
}
