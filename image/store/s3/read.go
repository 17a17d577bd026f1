package s3

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"time"

	"github.com/minio/minio-go/v7"
	"golang.org/x/sync/errgroup"

	"platter/image/store"
	"platter/image/store/retry"
)

const (
	pieceSize = 8 << 20 // bytes read in one request
	pieces    = 4       // of one read at once
)

// Head implements store.Store. Times are in whole seconds.
func (s *Store) Head(ctx context.Context, name string) (info store.Info, err error) {
	if err := check(ctx, name); err != nil {
		return info, fmt.Errorf("head %s: %w", name, err)
	}
	err = s.line.Do(ctx, "head "+name, func() error {
		o, err := s.stat(ctx, name)
		info = store.Info{Name: name, Size: o.Size, Modified: o.LastModified.Truncate(time.Second)}
		return err
	})
	if err != nil {
		return store.Info{}, fmt.Errorf("head %s: %w", name, err)
	}
	return info, nil
}

// stat asks once.
func (s *Store) stat(ctx context.Context, name string) (minio.ObjectInfo, error) {
	var a answer
	o, err := s.core.StatObject(a.watch(ctx), s.config.Bucket, s.key(name), minio.StatObjectOptions{Checksum: true})
	if err == nil {
		err = genuine(&o)
	}
	if err == nil {
		return o, nil
	}
	if err = s.failure(err, &a); errors.Is(err, store.ErrNotFound) {
		err = s.absent(ctx, name)
	}
	return minio.ObjectInfo{}, err
}

// absent asks in another way whether an object is not there: the answer to HEAD
// does not tell a missing object from a missing bucket, or from a proxy's page.
func (s *Store) absent(ctx context.Context, name string) error {
	var a answer
	var opts minio.GetObjectOptions
	if err := opts.SetRange(0, 1); err != nil {
		return err
	}
	body, _, _, err := s.core.GetObject(a.watch(ctx), s.config.Bucket, s.key(name), opts)
	if err == nil {
		body.Close()
		return &retry.Failure{Cause: fmt.Errorf("%s: HEAD finds no object where GET does", s.Location()), Again: true}
	}
	err = s.failure(err, &a)
	if f := (*retry.Failure)(nil); errors.As(err, &f) {
		f.Sure = errors.Is(err, store.ErrNotFound)
		f.Again = f.Again || a.status == http.StatusRequestedRangeNotSatisfiable // of an empty one
	}
	return err
}

// genuine refuses the answer of something that is no store of objects.
func genuine(o *minio.ObjectInfo) error {
	if o.ETag == "" || o.Size < 0 {
		return errors.New("the answer has no ETag or no length: it comes from something else than a server for S3")
	}
	return nil
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, name string, limit int64) (data []byte, err error) {
	if err := check(ctx, name); err != nil {
		return nil, fmt.Errorf("get %s: %w", name, err)
	}
	err = s.line.Do(ctx, "get "+name, func() error {
		data, err = s.get(ctx, name, limit)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", name, err)
	}
	return data, nil
}

// get asks once.
func (s *Store) get(ctx context.Context, name string, limit int64) ([]byte, error) {
	var a answer
	var opts minio.GetObjectOptions
	opts.Set("X-Amz-Checksum-Mode", "ENABLED")
	body, o, _, err := s.core.GetObject(a.watch(ctx), s.config.Bucket, s.key(name), opts)
	if err != nil {
		return nil, s.failure(err, &a)
	}
	defer body.Close()
	if err := genuine(&o); err != nil {
		return nil, s.failure(err, &a)
	}
	if o.Size > limit {
		return nil, fmt.Errorf("%d bytes, limit %d: %w", o.Size, limit, store.ErrTooLarge)
	}
	// The length is what the server says: memory follows what it sends.
	data, err := io.ReadAll(io.LimitReader(body, o.Size))
	if err == nil && int64(len(data)) != o.Size {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, s.failure(fmt.Errorf("%d of %d bytes came: %w", len(data), o.Size, err), &a)
	}
	return data, s.checkSum(&a, crc32.Checksum(data, castagnoli()))
}

// checkSum compares what was read with the server's checksum of the whole
// object, where it sent one.
func (s *Store) checkSum(a *answer, sum uint32) error {
	want := a.header.Get(sumHeader)
	if a.status != http.StatusOK || len(want) != len(encodeSum(0)) || want == encodeSum(sum) {
		return nil
	}
	return &retry.Failure{Cause: fmt.Errorf("%s: came damaged: CRC-32C is %s, want %s", s.Location(), encodeSum(sum), want), Again: true, Damage: true}
}

const sumHeader = "X-Amz-Checksum-Crc32c"

func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

func encodeSum(sum uint32) string {
	return base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, sum))
}

// ReadAt implements store.Store. Long reads are made of several requests at
// once. The server has no checksum for a range: who reads one checks it.
func (s *Store) ReadAt(ctx context.Context, name string, p []byte, off int64) error {
	err := check(ctx, name)
	switch {
	case err != nil:
	case off < 0 || off > 1<<62:
		err = errors.New("no such offset")
	case len(p) == 0:
		_, err = s.Head(ctx, name)
	case len(p) <= pieceSize:
		err = s.readPiece(ctx, name, p, off)
	default:
		err = s.readPieces(ctx, name, p, off)
	}
	if err != nil {
		return fmt.Errorf("read %s: %d bytes at %d: %w", name, len(p), off, err)
	}
	return nil
}

func (s *Store) readPieces(ctx context.Context, name string, p []byte, off int64) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(pieces)
	for len(p) > 0 {
		piece, at := p[:min(len(p), pieceSize)], off
		g.Go(func() error { return s.readPiece(ctx, name, piece, at) })
		p, off = p[len(piece):], off+int64(len(piece))
	}
	return g.Wait()
}

// readPiece goes on where a request broke off.
func (s *Store) readPiece(ctx context.Context, name string, p []byte, off int64) error {
	return s.line.Do(ctx, "read "+name, func() error {
		n, err := s.fetch(ctx, name, p, off)
		p, off = p[n:], off+int64(n)
		if f := (*retry.Failure)(nil); n > 0 && errors.As(err, &f) {
			f.Moved = true
		}
		return err
	})
}

// fetch asks once for bytes off to off+len(p), and returns how many came.
func (s *Store) fetch(ctx context.Context, name string, p []byte, off int64) (int, error) {
	var a answer
	var opts minio.GetObjectOptions
	if err := opts.SetRange(off, off+int64(len(p))-1); err != nil {
		return 0, err
	}
	body, o, header, err := s.core.GetObject(a.watch(ctx), s.config.Bucket, s.key(name), opts)
	if a.status == http.StatusRequestedRangeNotSatisfiable {
		return 0, io.ErrUnexpectedEOF
	}
	if err != nil {
		return 0, s.failure(err, &a)
	}
	defer body.Close()
	err = genuine(&o)
	if err == nil {
		err = checkRange(&a, header, off, int64(len(p)))
	}
	if err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return 0, err
		}
		return 0, s.failure(err, &a)
	}
	n, err := io.ReadFull(body, p)
	if err != nil {
		return n, s.failure(fmt.Errorf("%d of %d bytes came: %w", n, len(p), err), &a)
	}
	return n, nil
}

// checkRange refuses an answer that is not the range asked for.
func checkRange(a *answer, h http.Header, off, length int64) error {
	var first, last, size int64
	if a.status == http.StatusOK && off == 0 {
		// The whole object, which some send when that was asked for.
		if _, err := fmt.Sscan(h.Get("Content-Length"), &size); err != nil {
			return errors.New("no length in the server's answer")
		}
		last = size - 1
	} else if _, err := fmt.Sscanf(h.Get("Content-Range"), "bytes %d-%d/%d", &first, &last, &size); err != nil || a.status != http.StatusPartialContent {
		return fmt.Errorf("status %d and range %q in answer to bytes %d-%d", a.status, h.Get("Content-Range"), off, off+length-1)
	}
	if size >= 0 && off+length > size {
		return fmt.Errorf("%w: the object has %d bytes", io.ErrUnexpectedEOF, size)
	}
	if first != off || last < off+length-1 {
		return fmt.Errorf("got bytes %d-%d in answer to %d-%d", first, last, off, off+length-1)
	}
	return nil
}
