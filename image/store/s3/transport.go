package s3

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/xml"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"time"

	"golang.org/x/time/rate"
)

const (
	connections = 64        // at once, further requests wait
	copyBuffer  = 128 << 10 // of a connection in each direction, bytes
	maxListing  = 16 << 20  // bytes of a page of a listing: a thousand keys
)

// newTransport speaks HTTP/1.1 alone: large objects go faster by several
// connections than by streams of one.
func newTransport(c *Config, secure bool) (*http.Transport, error) {
	stall := c.Stall
	if stall == 0 {
		stall = defaultStall
	}
	dialer := &net.Dialer{Timeout: 15 * time.Second, KeepAlive: 15 * time.Second}
	t := &http.Transport{
		Proxy: http.ProxyFromEnvironment,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := dialer.DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return &patientConn{conn, stall}, nil
		},
		MaxConnsPerHost: connections, MaxIdleConnsPerHost: connections,
		IdleConnTimeout:     min(stall/2, 30*time.Second),
		TLSHandshakeTimeout: 15 * time.Second,
		DisableCompression:  true,
		ReadBufferSize:      copyBuffer, WriteBufferSize: copyBuffer,
	}
	if !secure {
		return t, nil
	}
	roots, err := c.roots()
	if err != nil {
		return nil, err
	}
	t.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}
	return t, nil
}

// roots are the certificates to believe; nil for the system's.
func (c *Config) roots() (*x509.CertPool, error) {
	file := c.CAFile
	if file == "" {
		file = os.Getenv("AWS_CA_BUNDLE")
	}
	if file == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read the certificates to trust: %w", err)
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s: no certificates in PEM form", file)
	}
	return pool, nil
}

// A patientConn ends when nothing moves for so long: what is written counts
// for reads too, as an answer follows what was asked.
type patientConn struct {
	net.Conn
	stall time.Duration
}

func (c *patientConn) Read(p []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(c.stall)); err != nil {
		return 0, err
	}
	return c.Conn.Read(p)
}

func (c *patientConn) Write(p []byte) (int, error) {
	if err := c.SetDeadline(time.Now().Add(c.stall)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

// An answer is what minio-go does not tell of a request. It belongs to one
// request at a time.
type answer struct {
	method string
	sent   bool // the request may have reached the server
	status int  // 0: no answer came
	header http.Header
}

type answerKey struct{}

// watch returns a context for one request whose answer is to be noted.
func (a *answer) watch(ctx context.Context) context.Context {
	return context.WithValue(ctx, answerKey{}, a)
}

// An observer notes answers, slows downloads and checks listings.
type observer struct {
	base   http.RoundTripper
	down   *rate.Limiter
	bucket string
}

func (o *observer) RoundTrip(req *http.Request) (*http.Response, error) {
	a, ok := req.Context().Value(answerKey{}).(*answer)
	if !ok {
		return o.base.RoundTrip(req)
	}
	*a = answer{method: req.Method}
	ctx := httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { a.sent = true },
	})
	resp, err := o.base.RoundTrip(req.WithContext(ctx))
	if err != nil {
		return nil, err
	}
	a.status, a.header = resp.StatusCode, resp.Header
	if o.down != nil {
		resp.Body = &slowBody{resp.Body, req.Context(), o.down}
	}
	if resp.StatusCode == http.StatusOK && req.URL.Query().Get("list-type") != "" {
		if err := o.checkListing(resp); err != nil {
			return nil, err
		}
	}
	return resp, nil
}

// checkListing refuses what is no whole listing of the bucket: minio-go takes
// any XML for an empty one, and what is listed decides what is deleted.
func (o *observer) checkListing(resp *http.Response) error {
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxListing))
	if err != nil {
		return fmt.Errorf("read the listing: %w", err)
	}
	var list struct {
		XMLName xml.Name `xml:"ListBucketResult"`
		Name    string
	}
	if err := xml.Unmarshal(body, &list); err != nil {
		return fmt.Errorf("read the listing: %w", err)
	}
	if list.Name != o.bucket {
		return fmt.Errorf("got a listing of bucket %q, want %q", list.Name, o.bucket)
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	return nil
}

// limiter allows so many bytes in a second, nil for any.
func limiter(perSecond int64) *rate.Limiter {
	if perSecond <= 0 {
		return nil
	}
	return rate.NewLimiter(rate.Limit(perSecond), copyBuffer)
}

// A slowBody keeps to a limit.
type slowBody struct {
	io.ReadCloser
	ctx   context.Context
	limit *rate.Limiter
}

func (b *slowBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p[:min(len(p), copyBuffer)])
	if wait := b.limit.WaitN(b.ctx, n); wait != nil && err == nil {
		err = wait
	}
	return n, err
}
