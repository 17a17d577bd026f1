package s3

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"

	"github.com/minio/minio-go/v7/pkg/s3utils"
)

// Scheme begins the name of a repository in a bucket.
const Scheme = "s3:"

// maxPrefix leaves room for names in the 1024 bytes that a key may have.
const maxPrefix = 400

const grammar = "want s3:https://HOST/BUCKET or s3:https://HOST/BUCKET/PREFIX"

// Parse reads s3:https://HOST[:PORT]/BUCKET[/PREFIX], the name of a repository.
// On loopback http will do.
func Parse(name string) (Config, error) {
	rest, ok := strings.CutPrefix(name, Scheme)
	if !ok || !strings.Contains(rest, "://") {
		return Config{}, fmt.Errorf("%s: %s", name, grammar)
	}
	u, err := url.Parse(rest)
	if err != nil {
		return Config{}, fmt.Errorf("s3: not a URL: %s", grammar) // its text may hold a secret
	}
	if u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return Config{}, fmt.Errorf("%s%s://%s: the name holds more than host, bucket and prefix; keys belong into the environment or a file: %s",
			Scheme, u.Scheme, u.Host, grammar)
	}
	bucket, prefix, _ := strings.Cut(strings.Trim(u.Path, "/"), "/")
	c := Config{Endpoint: u.Scheme + "://" + u.Host, Bucket: bucket, Prefix: prefix}
	if _, _, err := c.check(); err != nil {
		return Config{}, fmt.Errorf("%s: %w", name, err)
	}
	return c, nil
}

func (c *Config) location() string {
	l := Scheme + c.Endpoint + "/" + c.Bucket
	if c.Prefix != "" {
		l += "/" + c.Prefix
	}
	return l
}

// check returns the host with its port, and whether it is spoken to by TLS.
func (c *Config) check() (host string, secure bool, err error) {
	u, err := url.Parse(c.Endpoint)
	switch {
	case err != nil || u.Host == "" || u.Path != "" || u.Scheme != "http" && u.Scheme != "https":
		return "", false, errors.New(grammar)
	case u.Scheme == "http" && !isLoopback(u.Hostname()):
		return "", false, errors.New("http is for servers on this machine: use https, so that keys and data stay private")
	case c.Bucket == "":
		return "", false, fmt.Errorf("no bucket: %s", grammar)
	case c.PartSize != 0 && c.PartSize < 5<<20:
		return "", false, fmt.Errorf("parts of %d bytes, want 5 MiB or more", c.PartSize)
	}
	if err := s3utils.CheckValidBucketName(c.Bucket); err != nil {
		return "", false, fmt.Errorf("bucket %q: %w", c.Bucket, err)
	}
	if err := checkPrefix(c.Prefix); err != nil {
		return "", false, err
	}
	return u.Host, u.Scheme == "https", nil
}

// checkPrefix takes what needs no quoting anywhere.
func checkPrefix(prefix string) error {
	if prefix == "" {
		return nil
	}
	if len(prefix) > maxPrefix {
		return fmt.Errorf("prefix of %d bytes, want at most %d", len(prefix), maxPrefix)
	}
	for part := range strings.SplitSeq(prefix, "/") {
		plain := strings.Trim(part, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") == ""
		if part == "" || part == "." || part == ".." || !plain {
			return fmt.Errorf("prefix %q: want parts of letters, digits, dots, dashes and underscores between single slashes", prefix)
		}
	}
	return nil
}

func isLoopback(host string) bool {
	return host == "localhost" || net.ParseIP(host).IsLoopback()
}
