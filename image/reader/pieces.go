package reader

import (
	"container/list"
	"sync"
)

// A piece is a part of an image that is read and kept as a whole.
type piece struct {
	index int64
	ready chan struct{} // closed when data and err are set
	data  []byte        // nil: zeros
	err   error
	place *list.Element // in recent, once it is ready
}

// pieces keeps those used last, within a number of bytes. Each is loaded once,
// however many ask for it.
type pieces struct {
	limit int64

	mu      sync.Mutex
	used    int64
	byIndex map[int64]*piece
	recent  *list.List // of *piece, last used first
}

// pieceOverhead is what a piece costs beside its data, in bytes.
const pieceOverhead = 256

func newPieces(limit int64) *pieces {
	return &pieces{limit: limit, byIndex: make(map[int64]*piece), recent: list.New()}
}

// claim returns n pieces from first on, and of these the ones that are nobody's
// yet: the caller loads them, and says done.
func (c *pieces) claim(first, n int64) (all, mine []*piece) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := first; i < first+n; i++ {
		pc := c.byIndex[i]
		if pc == nil {
			pc = &piece{index: i, ready: make(chan struct{})}
			c.byIndex[i] = pc
			mine = append(mine, pc)
		} else if pc.place != nil {
			c.recent.MoveToFront(pc.place)
		}
		all = append(all, pc)
	}
	return all, mine
}

// done gives pieces that are loaded to those who wait. Those that failed are
// forgotten, so that the next one tries again.
func (c *pieces) done(list []*piece) {
	c.mu.Lock()
	for _, pc := range list {
		if pc.err != nil {
			delete(c.byIndex, pc.index)
			continue
		}
		pc.place = c.recent.PushFront(pc)
		c.used += int64(len(pc.data)) + pieceOverhead
	}
	for c.used > c.limit && c.recent.Len() > 0 {
		old := c.recent.Remove(c.recent.Back()).(*piece)
		delete(c.byIndex, old.index)
		c.used -= int64(len(old.data)) + pieceOverhead
	}
	c.mu.Unlock()
	for _, pc := range list {
		close(pc.ready)
	}
}

// streams recognises readers that read on from where they were, several at
// once, and says how far to be ahead of each.
type streams struct {
	limit int64 // bytes

	mu   sync.Mutex
	list [8]stream
	turn int
}

type stream struct {
	end    int64 // where its last read ended
	window int64 // how far to be ahead, 0 for a stranger
	loaded int64 // up to where it was read ahead
}

// slack is how far a read may begin from where the one before ended: readers
// that keep several requests under way have them overtake each other.
const slack = 1 << 20

// next takes note of a read and returns what to load ahead of its stream: from
// before to, or nothing.
func (s *streams) next(off, length int64) (from, to int64) {
	if s.limit <= 0 {
		return 0, 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.list {
		st := &s.list[i]
		if st.end == 0 || off < st.end-slack || off > st.end+slack {
			continue
		}
		if off+length <= st.end {
			return 0, 0 // overtaken by another
		}
		st.end = off + length
		st.window = min(max(2*st.window, 4*length, minPiece), s.limit)
		if st.loaded-st.end > st.window/2 {
			return 0, 0 // far enough
		}
		from, to = max(st.loaded, st.end), st.end+st.window
		st.loaded = to
		return from, to
	}
	s.list[s.turn] = stream{end: off + length}
	s.turn = (s.turn + 1) % len(s.list)
	return 0, 0
}
