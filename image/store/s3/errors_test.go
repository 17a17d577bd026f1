package s3_test

import (
	"context"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"platter/image/store"
	"platter/image/store/s3"
	"platter/image/store/s3/s3test"
)

// wantText checks an error for a person's eyes.
func wantText(t *testing.T, err error, words ...string) {
	t.Helper()
	for _, w := range words {
		if err == nil || !strings.Contains(err.Error(), w) {
			t.Errorf("got %v, want %q in it", err, w)
		}
	}
}

func get(t *testing.T, config s3.Config) error {
	t.Helper()
	_, err := open(t, config).Get(t.Context(), "config", 100)
	return err
}

func TestErrorsSayWhatToDo(t *testing.T) {
	server := s3test.Start(t)
	right := server.Config("errors")

	c := right
	c.AccessKey = "nobody"
	wantText(t, get(t, c), "get config: s3:"+server.URL+"/bucket/errors: ", "AWS_ACCESS_KEY_ID")

	c = right
	c.SecretKey = "wrong"
	wantText(t, get(t, c), "SignatureDoesNotMatch", "the secret key is not that of the access key")

	c = right
	c.Bucket = "no-such-bucket"
	err := get(t, c)
	wantText(t, err, "make bucket no-such-bucket first")
	if !errors.Is(err, s3.ErrNoBucket) || errors.Is(err, store.ErrNotFound) {
		t.Errorf("got %v, want ErrNoBucket", err)
	}
	if err := open(t, c).Put(t.Context(), "x"); !errors.Is(err, s3.ErrNoBucket) || errors.Is(err, store.ErrNotDurable) {
		t.Errorf("put: got %v, want ErrNoBucket alone", err)
	}

	c = right
	c.Region = "mars-1"
	wantText(t, get(t, c), "AWS_REGION")

	if err := get(t, right); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("all right: got %v, want ErrNotFound", err)
	}
}

func TestAnAbsentServerIsNotWaitedForLong(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	closed := "http://" + l.Addr().String()
	l.Close()
	c := s3test.Config(closed, "")
	c.Patience = time.Second
	start := time.Now()
	wantText(t, get(t, c), "connection refused", "given up after")
	if err := open(t, c).Put(t.Context(), "x"); errors.Is(err, store.ErrNotDurable) {
		t.Errorf("put: got %v, but nothing was ever sent", err)
	}
	if d := time.Since(start); d > 15*time.Second {
		t.Errorf("took %s", d)
	}
}

// front is a server with a certificate that only it has signed.
func front(t *testing.T, handler http.Handler) (url, ca string) {
	t.Helper()
	s := httptest.NewUnstartedServer(handler)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	ca = filepath.Join(t.TempDir(), "ca.pem")
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	if err := os.WriteFile(ca, block, 0o600); err != nil {
		t.Fatal(err)
	}
	return s.URL, ca
}

func TestCertificates(t *testing.T) {
	server := s3test.Start(t)
	behind, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	host, ca := front(t, &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(behind)
		r.Out.Host = r.In.Host
	}})
	c := s3test.Config(host, "tls")
	wantText(t, get(t, c), "unknown authority", "AWS_CA_BUNDLE")
	c.CAFile = ca
	s := open(t, c)
	if err := s.Put(t.Context(), "x", content(1)); err != nil {
		t.Fatal(err)
	}
	if what := holds(t, s, "x", content(1)); what != "" {
		t.Error(what)
	}
	t.Setenv("AWS_CA_BUNDLE", ca)
	if err := get(t, s3test.Config(host, "tls")); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("by AWS_CA_BUNDLE: got %v, want ErrNotFound", err)
	}
	c.CAFile = filepath.Join(t.TempDir(), "none")
	if _, err := s3.Open(t.Context(), c); err == nil {
		t.Error("a file of certificates that is not there was taken")
	}
	if err := os.WriteFile(c.CAFile, []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = s3.Open(t.Context(), c)
	wantText(t, err, "no certificates")
	wantText(t, get(t, s3test.Config(strings.Replace(server.URL, "http:", "https:", 1), "")), "does not speak TLS")
}

// scripted answers all requests alike.
func scripted(t *testing.T, status int, header http.Header, body string) s3.Config {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for k, v := range header {
			w.Header()[k] = v
		}
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(status)
		w.Write([]byte(body))
	}))
	t.Cleanup(s.Close)
	c := s3test.Config(s.URL, "")
	c.Patience = 100 * time.Millisecond
	return c
}

func xmlError(code, more string) string {
	return "<Error><Code>" + code + "</Code><Message>it says so</Message>" + more + "</Error>"
}

func TestAnswersOfOtherServers(t *testing.T) {
	date := http.Header{"Date": {time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat)}}
	for _, tt := range []struct {
		status int
		header http.Header
		body   string
		is     error
		words  []string
	}{
		{403, date, xmlError("RequestTimeTooSkewed", ""), nil, []string{"clock is 1h0m", "set it right"}},
		{403, nil, xmlError("AccessDenied", ""), nil, []string{"docs/s3.md"}},
		{400, nil, xmlError("ExpiredToken", ""), nil, []string{"new temporary credentials"}},
		{301, nil, xmlError("PermanentRedirect", "<Region>eu-north-1</Region>"), nil, []string{"region eu-north-1"}},
		{400, nil, xmlError("AuthorizationHeaderMalformed", "<Region>garage</Region>"), nil, []string{"region garage: set AWS_REGION"}},
		{403, nil, xmlError("QuotaExceeded", ""), store.ErrFull, nil},
		{507, nil, xmlError("XMinioStorageFull", ""), store.ErrFull, nil},
		{501, nil, xmlError("NotImplemented", ""), nil, []string{"conditional writes"}},
		{503, nil, xmlError("SlowDown", "<RequestId>42</RequestId>"), nil, []string{"given up after", "status 503", "request 42"}},
		{500, nil, "", nil, []string{"given up after", "status 500"}},
	} {
		err := open(t, scripted(t, tt.status, tt.header, tt.body)).Put(t.Context(), "x", []byte("y"))
		if tt.is != nil && !errors.Is(err, tt.is) {
			t.Errorf("%d %s: got %v, want %v", tt.status, tt.body, err, tt.is)
		}
		if got, want := errors.Is(err, store.ErrNotDurable), tt.status == 500 || tt.status == 503; got != want {
			t.Errorf("%d %s: got %v, not durable %v, want %v", tt.status, tt.body, err, got, want)
		}
		wantText(t, err, tt.words...)
	}
}

// A listing decides what is deleted: what is none must not pass for an empty
// one.
func TestWhatIsNoListingIsRefused(t *testing.T) {
	for _, body := range []string{
		"", "<html></html>", "<ListBucketResult>", "<ListBucketResult></ListBucketResult>",
		"<ListBucketResult><Name>another</Name></ListBucketResult>",
		"<ListBucketResult><Name>bucket</Name>", "<ListAllMyBucketsResult><Name>bucket</Name></ListAllMyBucketsResult>",
		"<ListBucketResult><Name>bucket</Name><IsTruncated>true</IsTruncated></ListBucketResult>",
	} {
		err := open(t, scripted(t, 200, nil, body)).List(t.Context(), "", func(store.Info) error { return nil })
		if err == nil {
			t.Errorf("%q passed for an empty listing", body)
		}
	}
	good := "<ListBucketResult><Name>bucket</Name><IsTruncated>false</IsTruncated></ListBucketResult>"
	if err := open(t, scripted(t, 200, nil, good)).List(t.Context(), "", nil); err != nil {
		t.Errorf("an empty listing: %v", err)
	}
	object := func(key string) string {
		return "<Contents><Key>" + key + "</Key><Size>1</Size><LastModified>2026-01-01T00:00:00Z</LastModified></Contents>"
	}
	unordered := strings.Replace(good, "</Name>", "</Name>"+object("b")+object("a"), 1)
	err := open(t, scripted(t, 200, nil, unordered)).List(t.Context(), "", func(store.Info) error { return nil })
	wantText(t, err, `the server lists "a" after "b"`)
}

func TestForeignKeysArePassedOver(t *testing.T) {
	server := s3test.Start(t)
	inner, outer := open(t, server.Config("a/b")), open(t, server.Config("a"))
	for _, s := range []store.Store{inner, outer} {
		if err := s.Put(t.Context(), "x", nil); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"a/Upper", "a/dot.ted", "ab", "a/c/d_e"} {
		path := filepath.Join(server.Dir, s3test.Bucket, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	err := outer.List(t.Context(), "", func(o store.Info) error {
		got = append(got, o.Name)
		return nil
	})
	if want := []string{"b/x", "x"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
}

func TestProbe(t *testing.T) {
	server := s3test.Start(t)
	proxy := server.Proxy(t)
	config := s3test.Config(proxy.URL, "probe")
	if err := open(t, config).Probe(t.Context()); err != nil {
		t.Errorf("a good server: %v", err)
	}
	proxy.Fail(s3test.Rule{Method: "PUT", Fault: s3test.NoCondition})
	if err := open(t, config).Probe(t.Context()); !errors.Is(err, s3.ErrUnconditional) {
		t.Errorf("one that overwrites: got %v, want ErrUnconditional", err)
	}
	proxy.Heal()
	proxy.Fail(s3test.Rule{Method: "PUT", Key: "-2", Fault: s3test.NoCondition})
	if err := open(t, config).Probe(t.Context()); !errors.Is(err, s3.ErrUnconditional) {
		t.Errorf("one that overwrites when several come at once: got %v, want ErrUnconditional", err)
	}
	proxy.Heal()
	proxy.Fail(s3test.Rule{Method: "GET", Fault: s3test.WholeObject})
	config.Patience = 200 * time.Millisecond
	wantText(t, open(t, config).Probe(t.Context()), "range")
	proxy.Heal()
	err := open(t, config).List(t.Context(), "", func(o store.Info) error { return errors.New("left: " + o.Name) })
	if err != nil {
		t.Error(err)
	}
}

func TestLimits(t *testing.T) {
	server := s3test.Start(t)
	config := server.Config("limits")
	config.UploadLimit, config.DownloadLimit = 1<<20, 1<<20
	s, p := open(t, config), content(1)
	big := slices.Repeat(p, 10) // 500,000 bytes
	start := time.Now()
	if err := s.Put(t.Context(), "x", big); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(start); d < 300*time.Millisecond {
		t.Errorf("%d bytes went up in %s, at 1 MiB/s", len(big), d)
	}
	start = time.Now()
	if err := s.ReadAt(t.Context(), "x", big, 0); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(start); d < 300*time.Millisecond {
		t.Errorf("%d bytes came down in %s, at 1 MiB/s", len(big), d)
	}
}

// A server that does not know CRC-32C gets MD5.
func TestMD5WhereThereIsNoCRC(t *testing.T) {
	server := s3test.Start(t)
	behind, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	through := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(behind)
		r.Out.Host = r.In.Host
	}}
	refused, sums := 0, 0
	old := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Amz-Checksum-Crc32c") != "" {
			refused++
			w.Header().Set("Content-Type", "application/xml")
			w.WriteHeader(400)
			w.Write([]byte("<Error><Code>InvalidArgument</Code><Message>Unsupported header 'x-amz-checksum-crc32c' received for this API call.</Message></Error>"))
			return
		}
		if r.Header.Get("Content-Md5") != "" {
			sums++
		}
		through.ServeHTTP(w, r)
	}))
	t.Cleanup(old.Close)
	s := open(t, s3test.Config(old.URL, "md5"))
	for _, name := range []string{"a", "b"} {
		if err := s.Put(t.Context(), name, content(1)); err != nil {
			t.Fatal(err)
		}
		if what := holds(t, s, name, content(1)); what != "" {
			t.Error(what)
		}
	}
	if refused != 1 || sums != 2 {
		t.Errorf("%d requests with CRC-32C and %d with MD5, want 1 and 2", refused, sums)
	}
}

func TestTroubleIsTold(t *testing.T) {
	server := s3test.Start(t)
	proxy := server.Proxy(t)
	for n := 1; n <= 5; n++ {
		proxy.Fail(s3test.Rule{Nth: 1, Fault: s3test.ErrorBefore})
	}
	told := make(chan string, 10)
	config := s3test.Config(proxy.URL, "")
	config.Notify = func(s string) { told <- s }
	if _, err := open(t, config).Now(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(told) != 1 {
		t.Fatalf("told %d times, want once", len(told))
	}
	if s := <-told; !strings.Contains(s, "ask for the time") || !strings.Contains(s, "trying again") {
		t.Errorf("told %q", s)
	}
}

func TestCancelEndsThePause(t *testing.T) {
	server := s3test.Start(t)
	proxy := server.Proxy(t)
	proxy.Fail(s3test.Rule{Method: "GET", Fault: s3test.SlowDown})
	s := open(t, s3test.Config(proxy.URL, ""))
	if _, err := s.Now(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(100*time.Millisecond, cancel)
	if _, err := s.Get(ctx, "x", 1); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
}
