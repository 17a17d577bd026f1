// Package s3 keeps the objects of a repository in a bucket of an object store
// that speaks the S3 protocol.
//
// An object is written by one conditional request: the server stores it whole
// under a name that is free, or not at all. Each write carries a number of its
// own, so that a request whose answer was lost is known again when it is found
// to have had its effect. Servers that do not honour the condition are found
// out by Probe, when a repository is made.
//
// Requests that fail for reasons that pass are made again, with growing pauses,
// until Config.Patience is over. What the server says is checked as far as it
// can be: lengths and places of ranges, names and order of listings, CRC-32C of
// whole objects. Listings must be up to date, as those of S3 are since 2020.
//
// docs/s3.md tells operators which servers will do, and which rights are
// needed.
package s3

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/minio/minio-go/v7"
	"golang.org/x/time/rate"

	"platter/image/store"
	"platter/image/store/retry"
)

// Errors that callers decide on, beside those of package store.
var (
	// ErrNoBucket means that the server has no such bucket.
	ErrNoBucket = errors.New("no such bucket")
	// ErrUnconditional means that the server would overwrite objects: it does
	// not honour the condition that a name be free.
	ErrUnconditional = errors.New("the server does not honour conditional writes (If-None-Match), which repositories rely on")
)

// A Config says where the objects are and how to reach them. The zero value of
// each field but Endpoint and Bucket is a good one.
type Config struct {
	Endpoint string // https://HOST or https://HOST:PORT; http on loopback only
	Bucket   string
	Prefix   string // of all keys, without slashes at its ends
	// PathStyle puts the bucket into the path even where the server is known
	// to want it in the host's name.
	PathStyle bool

	// What is empty here comes from the environment and the files that other
	// programs for S3 read, see docs/s3.md.
	Region                             string
	AccessKey, SecretKey, SessionToken string
	CAFile                             string // PEM, beside the system's own

	UploadLimit, DownloadLimit int64 // bytes in a second, 0 for none
	// Patience is how long an operation is tried without any progress, 0 for
	// retry.DefaultPatience. It is much shorter until the server has answered.
	Patience time.Duration
	// Stall is how long a connection may stand still, 0 for a minute.
	Stall time.Duration
	// PartSize is how much is sent in one request, 0 for 96 MiB, and at least
	// 5 MiB. Larger objects go in parts of this size.
	PartSize int64
	// Notify is told, in a sentence, of requests that are made again and again.
	// It is called from several goroutines; nil for nobody.
	Notify func(string)
}

const (
	defaultStall    = time.Minute
	defaultPartSize = 96 << 20
)

// A Store is a store.Store in a bucket. It holds the parts of its Puts while
// they run and otherwise some 10 KiB for each request, at most 64 of them.
type Store struct {
	config    Config
	core      *minio.Core
	transport *http.Transport
	up        *rate.Limiter
	sums      atomic.Bool // it does not take CRC-32C: send MD5
	line      retry.Line
}

var (
	_ store.Store  = (*Store)(nil)
	_ store.Remote = (*Store)(nil)
)

// Flight implements store.Remote: a server notices within this that a client
// has gone, or has done what it asked for.
func (*Store) Flight() time.Duration { return 30 * time.Second }

// Open opens the store that config describes. The server is not asked: the
// first operation finds out whether it can be reached.
func Open(_ context.Context, config Config) (*Store, error) {
	s := &Store{config: config, line: retry.Line{Patience: config.Patience, Notify: config.Notify}}
	if err := s.open(); err != nil {
		return nil, fmt.Errorf("open %s: %w", s.Location(), err)
	}
	return s, nil
}

func (s *Store) open() error {
	host, secure, err := s.config.check()
	if err != nil {
		return err
	}
	if s.transport, err = newTransport(&s.config, secure); err != nil {
		return err
	}
	s.up = limiter(s.config.UploadLimit)
	lookup := minio.BucketLookupAuto
	if s.config.PathStyle || !secure {
		lookup = minio.BucketLookupPath
	}
	s.core, err = minio.NewCore(host, &minio.Options{
		Creds: s.config.credentials(host), Secure: secure, Region: s.config.region(host),
		BucketLookup: lookup, MaxRetries: 1, // Store.retry does it
		Transport: &observer{base: s.transport, down: limiter(s.config.DownloadLimit), bucket: s.config.Bucket},
	})
	if err != nil {
		return err
	}
	s.core.SetAppInfo("platter", "1")
	return nil
}

// Location implements store.Store: what Parse reads.
func (s *Store) Location() string { return s.config.location() }

// Close ends idle connections. Operations still running end as they would.
func (s *Store) Close() error {
	s.transport.CloseIdleConnections()
	return nil
}

// Now returns the time by the server's clock, in whole seconds.
func (s *Store) Now(ctx context.Context) (now time.Time, err error) {
	err = s.line.Do(ctx, "ask for the time", func() error {
		var a answer
		_, err := s.core.BucketExists(a.watch(ctx), s.config.Bucket)
		date, dateErr := http.ParseTime(a.header.Get("Date"))
		if dateErr == nil && a.status < 500 {
			now = date
			return nil
		}
		if err == nil {
			err = errors.New("no Date in the server's answer")
		}
		return s.failure(err, &a)
	})
	return now, err
}

// key is the name of an object in the bucket.
func (s *Store) key(name string) string {
	if s.config.Prefix == "" {
		return name
	}
	return s.config.Prefix + "/" + name
}
