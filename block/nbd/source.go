package nbd

import (
	"context"
	"io"
	"sync"

	"platter/block"
)

// Source makes a client a device that is read. info describes it, but for its
// size and what is on it. Closing the source closes the client.
func Source(ctx context.Context, c *Client, info block.Info) block.Source {
	info.Size = c.Size()
	block.Examine(c.ReaderAt(ctx), &info)
	return &source{Client: c, info: info}
}

type source struct {
	*Client
	info block.Info

	mu    sync.Mutex
	known []Status // the last answer, in order
}

func (s *source) Info() block.Info { return s.info }

// Check returns why the connection has ended: what a server offers keeps its
// size while it is offered.
func (s *source) Check() error { return s.Err() }

// Data skips what the server says is zero.
func (s *source) Data(off int64) (block.Extent, error) {
	if off >= s.size {
		return block.Extent{}, io.EOF
	}
	if !s.Has(Allocation) {
		return block.Extent{Offset: off, Length: s.size - off}, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	data := block.Extent{Offset: -1}
	for off < s.size {
		list, err := s.at(off)
		if err != nil {
			return block.Extent{}, err
		}
		for _, st := range list {
			zero := st.Flags&StatusZero != 0
			switch {
			case zero && data.Offset >= 0:
				return data, nil
			case zero:
			case data.Offset < 0:
				data = block.Extent{Offset: max(off, st.Offset), Length: st.End() - max(off, st.Offset)}
			default:
				data.Length += st.Length
			}
			off = st.End()
		}
		// One answer is enough: what follows is told when it is asked for.
		if data.Offset >= 0 {
			return data, nil
		}
	}
	return block.Extent{}, io.EOF
}

// at returns what is known from off on, asking if nothing is.
func (s *source) at(off int64) ([]Status, error) {
	for i, st := range s.known {
		if st.Offset <= off && off < st.End() {
			return s.known[i:], nil
		}
	}
	list, err := s.status(context.Background(), Allocation, block.Extent{Offset: off, Length: s.size - off})
	s.known = list
	return list, err
}

// ReaderAt reads the export for who knows of no context but ctx.
func (c *Client) ReaderAt(ctx context.Context) io.ReaderAt { return readerAt{c, ctx} }

type readerAt struct {
	c   *Client
	ctx context.Context
}

func (r readerAt) ReadAt(p []byte, off int64) (int, error) { return r.c.ReadAt(r.ctx, p, off) }
