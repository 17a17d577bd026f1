package s3

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"

	"platter/image/store"
	"platter/image/store/retry"
)

// failure says what is to be made of an error of minio-go.
func (s *Store) failure(err error, a *answer) error {
	if a.status != 0 {
		s.line.Met()
	}
	var resp minio.ErrorResponse
	if errors.As(err, &resp) && resp.StatusCode != 0 {
		return s.refused(&resp, a)
	}
	if fatal := s.unreachable(err); fatal != nil {
		return &retry.Failure{Cause: fatal}
	}
	// The text of an end that came too soon is kept, its kind is not: to
	// callers that is a read past the end.
	return &retry.Failure{Cause: fmt.Errorf("%s: %s", s.Location(), strings.TrimSuffix(err.Error(), " Retry again.")), Again: true, Doubt: a.sent}
}

// unreachable returns what makes every further try useless, or nil.
func (s *Store) unreachable(err error) error {
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	var record tls.RecordHeaderError
	switch {
	case errors.Is(err, errNoCredentials):
		return fmt.Errorf("%s: %w", s.Location(), err)
	case errors.As(err, &unknown):
		return fmt.Errorf("%s: %w: if that authority is yours, name a file with its certificate in AWS_CA_BUNDLE", s.Location(), err)
	case errors.As(err, &name), errors.As(err, &invalid):
		return fmt.Errorf("%s: %w", s.Location(), err)
	case errors.As(err, &record), strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		return fmt.Errorf("%s: the server does not speak TLS there: %w", s.Location(), err)
	}
	return nil
}

// refused turns an answer of the server into a failure.
func (s *Store) refused(resp *minio.ErrorResponse, a *answer) error {
	f := &retry.Failure{Cause: s.describe(resp, a)}
	code, status := resp.Code, resp.StatusCode
	is := func(codes ...string) bool { return slices.Contains(codes, code) }
	kind := func(err error) error {
		f.Cause = fmt.Errorf("%w: %w", err, f.Cause)
		return f
	}
	switch {
	case status == http.StatusNotFound && a.method == http.MethodGet && !strings.Contains(a.header.Get("Content-Type"), "xml"):
		// By what stands between us and the store, and knows nothing of objects.
		// HEAD is answered without words by both.
		f.Again = true
	case is("NoSuchBucket"):
		return kind(ErrNoBucket)
	case is("QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded") || status == http.StatusInsufficientStorage:
		return kind(store.ErrFull)
	case status == http.StatusNotFound && is("NoSuchKey") && (a.method == http.MethodPut || a.method == http.MethodPost):
		f.Again, f.Doubt = true, true // a write looks for no object
	case status == http.StatusNotFound && is("NoSuchKey"):
		return kind(store.ErrNotFound)
	case status == http.StatusPreconditionFailed && (a.method == http.MethodPut || a.method == http.MethodPost):
		return kind(store.ErrExists)
	case is("BadDigest", "InvalidDigest", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch", "IncompleteBody"):
		f.Again, f.Damage = true, true
	case status >= 500 && status != http.StatusNotImplemented, status == http.StatusTooManyRequests:
		f.Again, f.Doubt = true, true
	case status < 300: // not the success that was asked for
		f.Again, f.Doubt = true, true
	case status == http.StatusRequestTimeout, status == 499, is("RequestTimeout"):
		f.Again, f.Doubt = true, true
	case status == http.StatusConflict: // two conditional requests at once
		f.Again = true
	}
	f.Wait = retryAfter(a.header)
	return f
}

// describe says in words what the server answered, and what to do about it.
func (s *Store) describe(resp *minio.ErrorResponse, a *answer) error {
	text := fmt.Sprintf("%s: %s (%s, status %d", s.Location(), strings.TrimSuffix(resp.Error(), "."), resp.Code, resp.StatusCode)
	if resp.RequestID != "" {
		text += ", request " + resp.RequestID
	}
	text += ")"
	if advice := s.advice(resp, a); advice != "" {
		text += ": " + advice
	}
	return errors.New(text)
}

func (s *Store) advice(resp *minio.ErrorResponse, a *answer) string {
	switch resp.Code {
	case "NoSuchBucket":
		return fmt.Sprintf("make bucket %s first, or correct its name", s.config.Bucket)
	case "InvalidAccessKeyId", "InvalidAccessKeyID", "XAdminUserNotFound":
		return "the server does not know the access key: see AWS_ACCESS_KEY_ID or the profile"
	case "SignatureDoesNotMatch":
		return "the secret key is not that of the access key, or something between changes requests"
	case "ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired":
		return "get new temporary credentials"
	case "AccessDenied", "AllAccessDisabled", "AccountProblem":
		return "the credentials lack a right that docs/s3.md lists"
	case "RequestTimeTooSkewed", "RequestExpired":
		if date, err := http.ParseTime(a.header.Get("Date")); err == nil {
			return fmt.Sprintf("this machine's clock is %s off the server's: set it right", time.Until(date).Abs().Round(time.Second))
		}
		return "set this machine's clock right"
	case "NotImplemented":
		return "the server lacks what repositories rely on, most likely conditional writes (If-None-Match)"
	case "AuthorizationHeaderMalformed", "InvalidRegion", "PermanentRedirect", "TemporaryRedirect", "IllegalLocationConstraintException":
		if resp.Region != "" {
			return fmt.Sprintf("the bucket is in region %s: set AWS_REGION to it", resp.Region)
		}
		return "set AWS_REGION to the bucket's region, and name its endpoint"
	}
	return ""
}

// retryAfter is how long the server asks to be left alone.
func retryAfter(h http.Header) time.Duration {
	text := h.Get("Retry-After")
	if n, err := strconv.Atoi(text); err == nil && n > 0 && n < 3600 {
		return time.Duration(n) * time.Second
	}
	if at, err := http.ParseTime(text); err == nil {
		return max(0, min(time.Until(at), time.Hour))
	}
	return 0
}

// check guards every operation on an object.
func check(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return store.CheckName(name)
}
