package s3_test

import (
	"fmt"
	"testing"

	"platter/image/store"
	"platter/image/store/s3/s3test"
	"platter/image/store/storetest"
)

const segmentBytes = 64 << 20

// benched is a bucket on one server or the other.
func benched(b *testing.B, f func(b *testing.B, s store.Store, server func() float64)) {
	// With the server's MD5 and page cache, and without.
	for name, flags := range map[string][]string{"s3": nil, "s3-lean": {"--data-integrity-etag", "--enable-odirect"}, "s3-etag": {"--data-integrity-etag"}} {
		b.Run(name, func(b *testing.B) {
			server := s3test.Start(b, flags...)
			f(b, open(b, server.Config("bench")), server.CPU)
		})
	}
}

// report gives the processor time of both ends for each GiB.
func report(b *testing.B, client, server float64) {
	gib := float64(b.N) * segmentBytes / (1 << 30)
	b.ReportMetric(client/gib, "client-CPU-s/GiB")
	b.ReportMetric(server/gib, "server-CPU-s/GiB")
}

func BenchmarkPutSegment(b *testing.B) {
	benched(b, func(b *testing.B, s store.Store, server func() float64) {
		data := storetest.Bytes(1, segmentBytes)
		b.SetBytes(segmentBytes)
		mine, theirs := s3test.CPU(), server()
		b.ResetTimer()
		for i := range b.N {
			if err := s.Put(b.Context(), fmt.Sprintf("segments/%d/%d", i, b.N), data); err != nil {
				b.Fatal(err)
			}
		}
		b.StopTimer()
		report(b, s3test.CPU()-mine, server()-theirs)
	})
}

func BenchmarkReadSegment(b *testing.B) {
	for _, size := range []int{1 << 20, 4 << 20, 16 << 20} {
		b.Run(fmt.Sprintf("%dMiB", size>>20), func(b *testing.B) {
			benched(b, func(b *testing.B, s store.Store, server func() float64) {
				if err := s.Put(b.Context(), "x", storetest.Bytes(1, segmentBytes)); err != nil {
					b.Fatal(err)
				}
				p := store.AllocAligned(size)
				b.SetBytes(segmentBytes)
				mine, theirs := s3test.CPU(), server()
				b.ResetTimer()
				for range b.N {
					for off := int64(0); off < segmentBytes; off += int64(size) {
						if err := s.ReadAt(b.Context(), "x", p, off); err != nil {
							b.Fatal(err)
						}
					}
				}
				b.StopTimer()
				report(b, s3test.CPU()-mine, server()-theirs)
			})
		})
	}
}
