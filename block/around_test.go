package block

import (
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// broken is a source some of whose extents cannot be read.
type broken struct {
	Source
	data []byte
	bad  []Extent
	err  error // instead of a ReadError
}

func (b *broken) Info() Info { return Info{Path: "/dev/broken", Size: int64(len(b.data))} }

func (b *broken) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if off+int64(len(p)) > int64(len(b.data)) {
		return 0, io.ErrUnexpectedEOF
	}
	for _, e := range b.bad {
		if off < e.End() && e.Offset < off+int64(len(p)) {
			if b.err != nil {
				return 0, b.err
			}
			// What came in before the error may be anything.
			copy(p, "rubbish")
			return 0, &ReadError{Path: "/dev/broken", Extent: Extent{off, int64(len(p))}, Err: unix.EIO}
		}
	}
	return copy(p, b.data[off:]), nil
}

func TestReadAroundSkipsOnlyBadSectors(t *testing.T) {
	data := noise(1, 64<<10+512)
	for name, c := range map[string]struct {
		sector    int
		bad, want []Extent
	}{
		"none":          {512, nil, nil},
		"first sector":  {512, []Extent{{8192, 1}}, []Extent{{8192, 512}}},
		"last sector":   {512, []Extent{{64<<10 + 511, 1}}, []Extent{{64 << 10, 512}}},
		"neighbours":    {512, []Extent{{10240, 1}, {10752, 1}, {12288, 5}}, []Extent{{10240, 1024}, {12288, 512}}},
		"large sectors": {4096, []Extent{{16384, 1}, {64 << 10, 1}}, []Extent{{16384, 4096}, {64 << 10, 512}}},
		"no sector":     {0, []Extent{{8704, 1}}, []Extent{{8704, 512}}},
		"elsewhere":     {512, []Extent{{0, 8192}}, nil},
		"everything":    {4096, []Extent{{0, 1 << 20}}, []Extent{{8192, 56<<10 + 512}}},
	} {
		p := make([]byte, 56<<10+512)
		bad, err := ReadAround(context.Background(), &broken{data: data, bad: c.bad}, p, 8192, c.sector)
		if err != nil || !slices.Equal(bad, c.want) {
			t.Errorf("%s: got %v, %v, want %v", name, bad, err, c.want)
		}
		want := slices.Clone(data[8192:])
		for _, e := range c.want {
			clear(want[e.Offset-8192 : e.End()-8192])
		}
		equal(t, name, p, want)
	}
}

func TestReadAroundToleratesOnlyUnreadableRanges(t *testing.T) {
	for _, cause := range []error{ErrResized, context.Canceled, unix.ENODEV} {
		src := &broken{data: make([]byte, 8192), bad: []Extent{{4096, 1}}, err: cause}
		if _, err := ReadAround(context.Background(), src, make([]byte, 8192), 0, 512); !errors.Is(err, cause) {
			t.Errorf("got %v, want %v", err, cause)
		}
	}
}

func TestReadErrorNamesDeviceAndOffset(t *testing.T) {
	err := &ReadError{Path: "/dev/vdb", Extent: Extent{1048576, 512}, Err: unix.EIO}
	if got, want := err.Error(), "read /dev/vdb at 1048576: input/output error"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if !errors.Is(err, unix.EIO) {
		t.Error("does not unwrap to its cause")
	}
}

// A loop device whose file was cut off behind its back gives real errors.
func TestReadErrorsOfARealDevice(t *testing.T) {
	dev, file := loopDisk(t, 1<<20, 512)
	want := noise(1, 1<<20)
	writeFile(t, dev, want, 0)
	src := open(t, dev)
	if err := os.Truncate(file, 512<<10); err != nil {
		t.Fatal(err)
	}
	p, err := AllocAligned(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer FreeAligned(p)
	n, err := src.ReadAt(context.Background(), p, 0)
	var e *ReadError
	if !errors.As(err, &e) || n >= len(p) || e.Path != dev || !errors.Is(err, unix.EIO) {
		t.Fatalf("ReadAt = %d, %v, want a ReadError", n, err)
	}
	bad, err := ReadAround(context.Background(), src, p, 0, 4096)
	if err != nil || len(bad) != 1 || bad[0] != (Extent{512 << 10, 512 << 10}) {
		t.Errorf("got %v, %v", bad, err)
	}
	clear(want[512<<10:])
	equal(t, dev, p, want)
}
