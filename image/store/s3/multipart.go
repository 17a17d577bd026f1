package s3

import (
	"context"
	"errors"
	"fmt"

	"github.com/minio/minio-go/v7"
	"golang.org/x/sync/errgroup"

	"platter/image/store"
)

// uploads is how many parts of an object are sent at once.
const uploads = 4

// sendParts writes a large object in parts, which the server makes into one by
// a conditional request. Names that two may claim at once are those of small
// objects only; large ones have random names.
func (s *Store) sendParts(ctx context.Context, u *upload) error {
	opts := minio.PutObjectOptions{UserMetadata: map[string]string{markKey: u.mark}}
	if _, err := s.Head(ctx, u.name); err == nil {
		return store.ErrExists // which spares the sending
	} else if !errors.Is(err, store.ErrNotFound) {
		return err
	}
	var id string
	err := s.line.Do(ctx, "begin "+u.name, func() (err error) {
		var a answer
		if id, err = s.core.NewMultipartUpload(a.watch(ctx), s.config.Bucket, s.key(u.name), opts); err != nil {
			return s.failure(err, &a)
		}
		return nil
	})
	if err != nil {
		return err
	}
	list, err := s.sendEach(ctx, u, id)
	if err == nil {
		err = s.complete(ctx, u, id, list)
	}
	if err != nil {
		// What is left of it costs money, until the bucket's own rule ends it.
		_ = s.core.AbortMultipartUpload(context.WithoutCancel(ctx), s.config.Bucket, s.key(u.name), id)
	}
	return err
}

func (s *Store) sendEach(ctx context.Context, u *upload, id string) ([]minio.CompletePart, error) {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(uploads)
	list := make([]minio.CompletePart, (u.size+s.partSize()-1)/s.partSize())
	for n := range list {
		part := &upload{name: u.name, parts: cut(u.parts, int64(n)*s.partSize(), s.partSize())}
		for _, p := range part.parts {
			part.size += int64(len(p))
		}
		g.Go(func() error {
			return s.line.Do(ctx, fmt.Sprintf("put part %d of %s", n+1, u.name), func() error {
				etag, err := s.sendPart(ctx, part, id, n+1)
				list[n] = minio.CompletePart{PartNumber: n + 1, ETag: etag}
				return err
			})
		})
	}
	return list, g.Wait()
}

func (s *Store) sendPart(ctx context.Context, u *upload, id string, number int) (etag string, err error) {
	sum := u.md5()
	body := newBody(ctx, u.parts, s.up)
	defer body.release()
	var a answer
	p, err := s.core.PutObjectPart(a.watch(ctx), s.config.Bucket, s.key(u.name), id, number, body, u.size,
		minio.PutObjectPartOptions{Md5Base64: sum, DisableContentSha256: true})
	if err != nil {
		return "", s.failure(err, &a)
	}
	return p.ETag, nil
}

// complete makes the parts an object, and looks at it.
func (s *Store) complete(ctx context.Context, u *upload, id string, list []minio.CompletePart) error {
	var opts minio.PutObjectOptions
	opts.SetMatchETagExcept("*")
	var a answer
	_, err := s.core.CompleteMultipartUpload(a.watch(ctx), s.config.Bucket, s.key(u.name), id, list, opts)
	if err != nil {
		return s.failure(err, &a)
	}
	return s.confirm(ctx, u)
}

// cut returns length bytes from off on of what parts hold, or fewer at the
// end, without copying them.
func cut(parts [][]byte, off, length int64) (list [][]byte) {
	for _, p := range parts {
		skip := min(off, int64(len(p)))
		p, off = p[skip:], off-skip
		n := min(length, int64(len(p)))
		if length -= n; n > 0 {
			list = append(list, p[:n])
		}
	}
	return list
}
