package job

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"time"

	"platter/image"
	"platter/image/segment"
	"platter/image/store"
)

// A fileStore reads one segment from wherever its file lies.
type fileStore struct {
	store.Store // nil: nothing else is asked of it
	file        *os.File
}

func (s fileStore) ReadAt(_ context.Context, name string, p []byte, off int64) error {
	if _, err := s.file.ReadAt(p, off); err == io.EOF {
		return fmt.Errorf("read %s: %d bytes at %d: %w", name, len(p), off, io.ErrUnexpectedEOF)
	} else if err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	return nil
}

// segment shows a segment: its header, its footer's records, and whether each
// of them is whole. Of the header, see image/FORMAT.md:
//
//	8:10 kind, 16:32 repository, 32:48 segment, 48:64 run, 64:72 when
func (in *inspection) segment() {
	header := make([]byte, segment.Align)
	if n, err := in.file.ReadAt(header, 0); err != nil {
		in.say("%s: segment, cut off after %d bytes", in.name, n)
		in.problems++
		return
	}
	kind := map[uint16]string{uint16(segment.Data): "data", uint16(segment.Pages): "map pages"}[binary.LittleEndian.Uint16(header[8:])]
	id := image.SegmentID(header[32:48])
	var named image.SegmentID
	if len(in.name) >= 32 && named.UnmarshalText([]byte(in.name[len(in.name)-32:])) == nil {
		id = named // the header may be what is damaged
	}
	in.say("%s: segment of %s, %d bytes", in.name, kind, in.size)
	in.say("repository %s, run %s, made %s", hexText(header[16:32]), hexText(header[48:64]),
		time.Unix(0, int64(binary.LittleEndian.Uint64(header[64:]))).UTC().Format(time.RFC3339))
	if in.repo == nil {
		in.say("no repository that opens is around it: its footer and records are not checked")
		return
	}
	from := *in.repo
	from.Store = fileStore{file: in.file}
	f, err := segment.ReadFooter(in.ctx, from.Store, from.Keys, id, in.size)
	if err != nil {
		in.wrong(err)
		return
	}
	if err := segment.CheckHeader(header, from.Keys, from.ID, f); err != nil {
		in.wrong(err)
	}
	v := &verifier{env: &Env{Repo: &from}, report: &VerifyReport{}}
	r := (&scrubber{v: v, counts: new(counters)}).newReading()
	if err := r.records(in.ctx, f); err != nil {
		in.wrong(err)
		return
	}
	in.records(f, v.bad.list)
}

// records lists all records of a segment.
func (in *inspection) records(f *segment.Footer, bad []finding) {
	problems := map[uint32]error{}
	for _, x := range bad {
		problems[x.at.Record] = x.err
	}
	var plain, stored int64
	in.say("%7s %10s %8s %8s %4s  %s", "RECORD", "OFFSET", "STORED", "PLAIN", "HOW", "ID")
	for n := range f.Records {
		r := &f.Records[n]
		plain, stored = plain+int64(r.Plain), stored+int64(r.Stored)
		how := "raw"
		if r.Flags&segment.FlagLZ4 != 0 {
			how = "lz4"
		}
		in.say("%7d %10d %8d %8d %4s  %s", n, r.Offset, r.Stored, r.Plain, how, r.ID)
		if err := problems[uint32(n)]; err != nil {
			in.wrong(err)
		}
	}
	in.say("%d records of %d bytes, stored in %d", len(f.Records), plain, stored)
}
