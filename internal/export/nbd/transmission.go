package nbd

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"platter/block/nbd/protocol"
	"platter/internal/export"
)

// A transmission is a client that reads and writes.
type transmission struct {
	server     *Server
	conn       net.Conn
	r          *bufio.Reader
	structured bool
	contexts   []Context

	mu sync.Mutex // of what is sent
}

// A request as it comes: magic (4), flags (2), type (2), cookie (8), offset
// (8), length (4).
type request struct {
	flags, kind uint16
	cookie      uint64
	off         int64
	length      int64
	data        []byte // of a write
	held        int64  // bytes of the server's buffers that it takes
}

// An nbdError is an error that the client is told by its number.
type nbdError struct {
	code uint32
	text string
}

func (e nbdError) Error() string { return e.text }

// run answers requests, several at once, until the client leaves.
func (t *transmission) run(ctx context.Context) (err error) {
	ctx, stop := context.WithCancel(ctx)
	var all sync.WaitGroup
	places := make(chan struct{}, inFlight)
	defer func() {
		if !errors.Is(err, errGone) {
			stop() // nobody waits for what is under way
		}
		all.Wait()
		stop()
	}()
	for {
		q, err := t.next(ctx)
		if err != nil {
			return err
		}
		if q.kind == protocol.CmdDisconnect {
			return errGone
		}
		places <- struct{}{}
		all.Go(func() {
			defer func() { <-places }()
			defer t.server.buffers.Release(q.held)
			if err := t.answer(ctx, q); err != nil {
				t.conn.Close() // which ends the loop above
			}
		})
	}
}

// next reads a request, and waits until there is memory for its data.
func (t *transmission) next(ctx context.Context) (*request, error) {
	var head [28]byte
	if _, err := io.ReadFull(t.r, head[:]); err != nil {
		return nil, err
	}
	if m := binary.BigEndian.Uint32(head[:]); m != protocol.MagicRequest {
		return nil, fmt.Errorf("request with magic %#x", m)
	}
	q := &request{
		flags: binary.BigEndian.Uint16(head[4:]), kind: binary.BigEndian.Uint16(head[6:]),
		cookie: binary.BigEndian.Uint64(head[8:]),
		off:    int64(binary.BigEndian.Uint64(head[16:])), length: int64(binary.BigEndian.Uint32(head[24:])),
	}
	if q.kind != protocol.CmdRead && q.kind != protocol.CmdWrite {
		return q, nil
	}
	if q.length > maxRequest {
		if q.kind == protocol.CmdWrite {
			return nil, fmt.Errorf("write of %d bytes, more than the %d that were offered", q.length, maxRequest)
		}
		return q, nil
	}
	if err := t.server.buffers.Acquire(ctx, q.length); err != nil {
		return nil, err
	}
	q.held = q.length
	if q.kind == protocol.CmdWrite {
		q.data = make([]byte, q.length)
		if _, err := io.ReadFull(t.r, q.data); err != nil {
			t.server.buffers.Release(q.held)
			return nil, err
		}
	}
	return q, nil
}

// answer does what a request asks for. The error is that of the connection.
func (t *transmission) answer(ctx context.Context, q *request) error {
	if err := t.check(q); err != nil {
		return t.fail(q, err)
	}
	switch q.kind {
	case protocol.CmdRead:
		return t.read(ctx, q)
	case protocol.CmdStatus:
		return t.status(ctx, q)
	case protocol.CmdCache:
		return t.done(q, t.cache(ctx, q))
	}
	return t.done(q, t.change(ctx, q))
}

// check refuses what cannot be meant.
func (t *transmission) check(q *request) error {
	size := t.server.Device.Size()
	_, writes := t.server.Device.(export.Writer)
	var known uint16
	switch q.kind {
	case protocol.CmdRead:
		known = protocol.CmdFlagDF
	case protocol.CmdFlush, protocol.CmdCache:
	case protocol.CmdStatus:
		known = protocol.CmdFlagOne
	case protocol.CmdWrite, protocol.CmdTrim:
		known = protocol.CmdFlagFUA
	case protocol.CmdWriteZeroes:
		known = protocol.CmdFlagFUA | protocol.CmdFlagNoHole
	default:
		return nbdError{protocol.ErrInval, fmt.Sprintf("request of type %d", q.kind)}
	}
	switch {
	case q.flags&^known != 0:
		return nbdError{protocol.ErrInval, fmt.Sprintf("request of type %d with flags %#x", q.kind, q.flags)}
	case !writes && (q.kind == protocol.CmdWrite || q.kind == protocol.CmdTrim || q.kind == protocol.CmdWriteZeroes):
		return nbdError{protocol.ErrPerm, "the disk is offered for reading only"}
	case q.kind == protocol.CmdFlush:
		return nil
	case q.off < 0 || q.off > size || q.length > size-q.off:
		code := uint32(protocol.ErrInval)
		if q.kind == protocol.CmdWrite || q.kind == protocol.CmdWriteZeroes {
			code = protocol.ErrNoSpace
		}
		return nbdError{code, fmt.Sprintf("%d bytes at %d of a disk of %d", q.length, q.off, size)}
	case q.kind == protocol.CmdRead && q.length > maxRequest:
		return nbdError{protocol.ErrOverflow, fmt.Sprintf("read of %d bytes, at most %d are offered", q.length, maxRequest)}
	case q.kind == protocol.CmdStatus && (!t.structured || len(t.contexts) == 0 || q.length == 0):
		return nbdError{protocol.ErrInval, "block status that was not negotiated"}
	}
	return nil
}

func (t *transmission) change(ctx context.Context, q *request) error {
	w, ok := t.server.Device.(export.Writer)
	if !ok {
		return nil // only a flush comes here, and there is nothing to flush
	}
	var err error
	switch q.kind {
	case protocol.CmdWrite:
		err = w.WriteAt(ctx, q.data, q.off)
	case protocol.CmdTrim, protocol.CmdWriteZeroes:
		err = w.Zero(ctx, q.off, q.length)
	}
	if err == nil && (q.kind == protocol.CmdFlush || q.flags&protocol.CmdFlagFUA != 0) {
		err = w.Flush(ctx)
	}
	return err
}

// cache reads what the client says it will want soon.
func (t *transmission) cache(ctx context.Context, q *request) error {
	var p [4096]byte
	for off := q.off; off < q.off+min(q.length, maxRequest); off += preferred {
		n := min(int64(len(p)), q.off+q.length-off)
		if _, err := t.server.Device.ReadAt(ctx, p[:n], off); err != nil {
			return err
		}
	}
	return nil
}

func (t *transmission) read(ctx context.Context, q *request) error {
	if !t.structured || q.flags&protocol.CmdFlagDF != 0 {
		data := make([]byte, q.length)
		if _, err := t.server.Device.ReadAt(ctx, data, q.off); err != nil && len(data) > 0 {
			return t.fail(q, err)
		}
		if t.structured {
			return t.chunk(q, protocol.ChunkDone, protocol.ChunkData, offsetOf(q.off), data)
		}
		return t.send(simpleReply(q, 0), data)
	}
	return t.sparseRead(ctx, q)
}

// sparseRead answers a read with chunks of data and of holes.
func (t *transmission) sparseRead(ctx context.Context, q *request) error {
	const most = 64
	end := q.off + q.length
	list, err := t.server.Device.Stretches(ctx, q.off, q.length, most)
	if err != nil {
		return t.fail(q, err)
	}
	for at, i := q.off, 0; at < end; i++ {
		to, zero := end, false
		if i < len(list) {
			to, zero = list[i].End(), list[i].Zero
		}
		if zero {
			err = t.chunk(q, 0, protocol.ChunkHole, binary.BigEndian.AppendUint32(offsetOf(at), uint32(to-at)))
		} else {
			data := make([]byte, to-at)
			if _, readErr := t.server.Device.ReadAt(ctx, data, at); readErr != nil {
				return t.fail(q, readErr)
			}
			err = t.chunk(q, 0, protocol.ChunkData, offsetOf(at), data)
		}
		if err != nil {
			return err
		}
		at = to
	}
	return t.chunk(q, protocol.ChunkDone, protocol.ChunkNone)
}

// status answers with a chunk for each context that was chosen.
func (t *transmission) status(ctx context.Context, q *request) error {
	most := maxStatuses
	if q.flags&protocol.CmdFlagOne != 0 {
		most = 1
	}
	for i, c := range t.contexts {
		list, err := c.Status(ctx, q.off, q.length, most)
		if err == nil && len(list) == 0 {
			err = fmt.Errorf("%s has nothing to say of %d bytes at %d", c.Name, q.length, q.off)
		}
		if err != nil {
			return t.fail(q, err)
		}
		b := binary.BigEndian.AppendUint32(nil, uint32(i))
		for _, s := range list {
			b = binary.BigEndian.AppendUint32(b, uint32(s.Length))
			b = binary.BigEndian.AppendUint32(b, s.Flags)
		}
		if err := t.chunk(q, 0, protocol.ChunkStatus, b); err != nil {
			return err
		}
	}
	return t.chunk(q, protocol.ChunkDone, protocol.ChunkNone)
}

// done answers a request that has no data to give.
func (t *transmission) done(q *request, err error) error {
	if err != nil {
		return t.fail(q, err)
	}
	if t.structured {
		return t.chunk(q, protocol.ChunkDone, protocol.ChunkNone)
	}
	return t.send(simpleReply(q, 0))
}

// fail tells the client that its request failed, and the log if that is no
// fault of the client.
func (t *transmission) fail(q *request, err error) error {
	code, text := uint32(protocol.ErrIO), "input/output error"
	var e nbdError
	switch {
	case errors.As(err, &e):
		code, text = e.code, e.text
	case errors.Is(err, context.Canceled):
		code, text = protocol.ErrShutdown, "the server is shutting down"
	default:
		t.server.log(fmt.Errorf("nbd: %d bytes at %d: %w", q.length, q.off, err))
	}
	if !t.structured {
		return t.send(simpleReply(q, code))
	}
	b := binary.BigEndian.AppendUint32(nil, code)
	b = binary.BigEndian.AppendUint16(b, uint16(len(text)))
	return t.chunk(q, protocol.ChunkDone, protocol.ChunkError, append(b, text...))
}

func offsetOf(off int64) []byte { return binary.BigEndian.AppendUint64(nil, uint64(off)) }

func simpleReply(q *request, code uint32) []byte {
	b := binary.BigEndian.AppendUint32(nil, protocol.MagicSimple)
	b = binary.BigEndian.AppendUint32(b, code)
	return binary.BigEndian.AppendUint64(b, q.cookie)
}

// chunk sends a part of a structured reply.
func (t *transmission) chunk(q *request, flags, kind uint16, parts ...[]byte) error {
	length := 0
	for _, p := range parts {
		length += len(p)
	}
	b := binary.BigEndian.AppendUint32(nil, protocol.MagicStructured)
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint16(b, kind)
	b = binary.BigEndian.AppendUint64(b, q.cookie)
	b = binary.BigEndian.AppendUint32(b, uint32(length))
	return t.send(append([][]byte{b}, parts...)...)
}

func (t *transmission) send(parts ...[]byte) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	buffers := net.Buffers(parts)
	_, err := buffers.WriteTo(t.conn)
	return err
}
