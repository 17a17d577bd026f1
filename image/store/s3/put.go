package s3

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"sync"

	"github.com/minio/minio-go/v7"
	"golang.org/x/time/rate"

	"platter/image/store"
	"platter/image/store/retry"
)

// markKey is the key of the metadata that tells whose write made an object.
const markKey = "Platter-Put"

// An upload is one Put: what it writes, and by which number it is known.
type upload struct {
	name  string
	parts [][]byte
	size  int64
	sum   uint32 // CRC-32C
	mark  string // random, hex
	// Doubt: a request of this upload may have had its effect unseen.
	doubt bool
	said  error // why, in the server's words
}

func newUpload(name string, parts [][]byte) *upload {
	u := &upload{name: name, parts: parts}
	for _, p := range parts {
		u.size += int64(len(p))
		u.sum = crc32.Update(u.sum, castagnoli(), p)
	}
	var mark [16]byte
	rand.Read(mark[:])
	u.mark = hex.EncodeToString(mark[:])
	return u
}

// Put implements store.Store. When it gives up a write that may have had its
// effect, the error is a store.ErrNotDurable.
func (s *Store) Put(ctx context.Context, name string, parts ...[]byte) error {
	if err := check(ctx, name); err != nil {
		return fmt.Errorf("put %s: %w", name, err)
	}
	u := newUpload(name, parts)
	send := s.send
	if u.size > s.partSize() {
		send = s.sendParts
	}
	err := s.line.Do(ctx, "put "+name, func() error { return s.put(ctx, u, send) })
	if err == nil {
		return nil
	}
	// What came last may have been a look for the object, whose answer has no words.
	if u.said != nil && !errors.Is(err, u.said) && !errors.Is(err, store.ErrExists) {
		err = fmt.Errorf("%w, after %s", err, u.said)
	}
	if u.doubt && !errors.Is(err, store.ErrExists) && !errors.Is(err, store.ErrNotDurable) {
		err = fmt.Errorf("%w: %w", store.ErrNotDurable, err)
	}
	return fmt.Errorf("put %s: %w", name, err)
}

func (s *Store) partSize() int64 {
	if s.config.PartSize == 0 {
		return defaultPartSize
	}
	return s.config.PartSize
}

// put sends once, unless an earlier request turns out to have been enough.
func (s *Store) put(ctx context.Context, u *upload, send func(context.Context, *upload) error) error {
	if u.doubt {
		if there, err := s.settle(ctx, u); there || err != nil {
			return err
		}
	}
	err := send(ctx, u)
	if f := (*retry.Failure)(nil); errors.As(err, &f) {
		u.doubt, u.said = u.doubt || f.Doubt, err
	}
	if !errors.Is(err, store.ErrExists) {
		return err
	}
	// By another's write, or by this one: sent twice by what stands between,
	// or when its first answer was lost.
	there, settleErr := s.settle(ctx, u)
	if !there && settleErr == nil {
		return &retry.Failure{Cause: fmt.Errorf("said to be there, and is not: %s", err), Again: true}
	}
	return settleErr
}

// settle looks for what earlier requests of u may have left. there is false
// where there is nothing; otherwise the error is that of Put.
func (s *Store) settle(ctx context.Context, u *upload) (there bool, err error) {
	o, err := s.stat(ctx, u.name)
	if errors.Is(err, store.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	mark := o.UserMetadata[markKey]
	if mark != "" && mark != u.mark || mark == "" && !u.doubt {
		return true, store.ErrExists
	}
	same := o.Size == u.size
	if same {
		if same, err = s.holds(ctx, u); err != nil {
			return false, err
		}
	}
	switch {
	case same:
		return true, nil
	case mark == "": // the server keeps no metadata: whose it is, the bytes say
		return true, store.ErrExists
	}
	return true, fmt.Errorf("%s: %w: it holds other bytes than were sent", s.Location(), store.ErrNotDurable)
}

// holds reads the object and compares.
func (s *Store) holds(ctx context.Context, u *upload) (bool, error) {
	var a answer
	got, _, _, err := s.core.GetObject(a.watch(ctx), s.config.Bucket, s.key(u.name), minio.GetObjectOptions{})
	if err != nil {
		err = s.failure(err, &a)
		if errors.Is(err, store.ErrNotFound) {
			// It was there a moment ago: one of both answers was an old one.
			return false, &retry.Failure{Cause: fmt.Errorf("%s: seen, and then not found: %s", s.Location(), err), Again: true, Doubt: true}
		}
		return false, err
	}
	defer got.Close()
	want := newBody(ctx, u.parts, nil)
	var p, q [16 << 10]byte
	for rest := u.size; rest > 0; {
		n := int(min(rest, int64(len(p))))
		if _, err := io.ReadFull(got, p[:n]); err != nil {
			return false, s.failure(fmt.Errorf("%d bytes missing: %w", rest, err), &a)
		}
		if _, err := io.ReadFull(want, q[:n]); err != nil || p != q {
			return false, err
		}
		rest -= int64(n)
	}
	return true, nil
}

// send writes the object by one conditional request.
func (s *Store) send(ctx context.Context, u *upload) error {
	opts := minio.PutObjectOptions{UserMetadata: map[string]string{markKey: u.mark}, DisableContentSha256: true}
	opts.SetMatchETagExcept("*")
	sum := ""
	if s.sums.Load() {
		sum = u.md5()
	} else {
		opts.UserMetadata[sumHeader] = encodeSum(u.sum)
	}
	body := newBody(ctx, u.parts, s.up)
	defer body.release()
	var a answer
	info, err := s.core.PutObject(a.watch(ctx), s.config.Bucket, s.key(u.name), body, u.size, sum, "", opts)
	if err != nil {
		return s.sendFailed(err, &a, sum == "")
	}
	switch {
	case sum == "" && info.ChecksumCRC32C == encodeSum(u.sum), sum != "" && sameMD5(info.ETag, sum):
		return nil
	case sum == "" && info.ChecksumCRC32C != "":
		u.doubt = true
		return fmt.Errorf("%s: %w: CRC-32C is %s to the server, want %s", s.Location(), store.ErrNotDurable, info.ChecksumCRC32C, encodeSum(u.sum))
	}
	return s.confirm(ctx, u)
}

// sendFailed turns to MD5 where a server does not know CRC-32C.
func (s *Store) sendFailed(err error, a *answer, summed bool) error {
	failed := s.failure(err, a)
	var resp minio.ErrorResponse
	if summed && errors.As(err, &resp) && (a.status == http.StatusBadRequest || a.status == http.StatusNotImplemented) &&
		bytes.Contains(bytes.ToLower([]byte(resp.Code+resp.Message)), []byte("checksum")) && s.sums.CompareAndSwap(false, true) {
		return &retry.Failure{Cause: failed, Again: true}
	}
	return failed
}

// confirm makes sure of a write that the server says nothing of but that all
// is well.
func (s *Store) confirm(ctx context.Context, u *upload) error {
	o, err := s.stat(ctx, u.name)
	mark := o.UserMetadata[markKey]
	switch {
	case errors.Is(err, store.ErrNotFound):
		return &retry.Failure{Cause: fmt.Errorf("%s: said to be stored, and is not there", s.Location()), Again: true, Doubt: true}
	case err != nil:
		if f := (*retry.Failure)(nil); errors.As(err, &f) {
			f.Doubt = true
		}
		return err
	case mark != "" && mark != u.mark:
		return store.ErrExists // by another's write: ours never came that far
	case o.Size != u.size:
		u.doubt = true
		return fmt.Errorf("%s: %w: %d bytes are there after %d were sent", s.Location(), store.ErrNotDurable, o.Size, u.size)
	}
	return nil
}

// md5 is in base64, as headers have it.
func (u *upload) md5() string {
	h := md5.New()
	for _, p := range u.parts {
		h.Write(p)
	}
	return base64.StdEncoding.EncodeToString(h.Sum(nil))
}

// sameMD5 reports whether an ETag is the MD5 that was sent. Of encrypted
// objects it is something else.
func sameMD5(etag, sum string) bool {
	raw, err := base64.StdEncoding.DecodeString(sum)
	return err == nil && etag == hex.EncodeToString(raw)
}

// A body reads parts one behind the other. The transport may hold on to it
// after the request has ended; once released it touches no part any more.
type body struct {
	ctx   context.Context
	limit *rate.Limiter

	mu    sync.Mutex
	parts [][]byte
	used  int // bytes of the first part
}

func newBody(ctx context.Context, parts [][]byte, limit *rate.Limiter) *body {
	return &body{ctx: ctx, limit: limit, parts: parts}
}

func (b *body) release() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.parts = nil
}

func (b *body) Read(p []byte) (int, error) {
	n := b.copy(p[:min(len(p), copyBuffer)])
	if n == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	if b.limit != nil {
		return n, b.limit.WaitN(b.ctx, n)
	}
	return n, nil
}

func (b *body) copy(p []byte) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(b.parts) > 0 {
		if n := copy(p, b.parts[0][b.used:]); n > 0 || len(p) == 0 {
			b.used += n
			return n
		}
		b.parts, b.used = b.parts[1:], 0
	}
	return 0
}
