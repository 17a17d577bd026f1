package job

import (
	"context"
	"time"

	"platter/catalog"
	"platter/image"
	"platter/image/reader"
	"platter/image/segment"
)

// count adds up the data segments' records.
func (s *StatsReport) count(ctx context.Context, env *Env) error {
	if env.Catalog != nil {
		if err := env.sync(ctx); err != nil {
			return err
		}
		return env.Catalog.Segments(ctx, func(i catalog.SegmentInfo) error {
			if i.Kind == segment.Data {
				s.Blocks += int64(i.Records)
				s.Plain += i.Plain
			}
			return nil
		})
	}
	return env.Repo.Segments(ctx, func(id image.SegmentID, size int64, _ time.Time) error {
		f, err := segment.ReadFooter(ctx, env.Repo.Store, env.Repo.Keys, id, size)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			if !reader.Damaged(err) {
				return err
			}
			env.warn("a segment is not counted: %v", err)
			return nil
		}
		if f.Kind == segment.Data {
			s.Blocks += int64(len(f.Records))
			for i := range f.Records {
				s.Plain += int64(f.Records[i].Plain)
			}
		}
		return nil
	})
}
