package nbd

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"platter/block"
	"platter/block/nbd/protocol"
)

// A request is one that was sent, and what came back so far. It belongs to the
// receiver until done is closed.
type request struct {
	command uint16
	off     int64
	length  int64
	buf     []byte // of a read
	got     int64  // bytes of it
	context uint32 // of a block status
	status  []Status
	err     error
	done    chan struct{}
}

// A serverError is what the server says to one request.
type serverError struct {
	number uint32 // of Linux, such as 5 for an input/output error
	said   string
}

func (e *serverError) Error() string {
	if e.said == "" {
		return fmt.Sprintf("the server says error %d", e.number)
	}
	return fmt.Sprintf("the server says error %d: %.200q", e.number, e.said)
}

// do sends a request and waits for all of its reply.
func (c *Client) do(ctx context.Context, r *request) error {
	r.done = make(chan struct{})
	c.mu.Lock()
	if c.failed != nil {
		c.mu.Unlock()
		return c.failed
	}
	c.cookie++
	cookie := c.cookie
	c.pending[cookie] = r
	c.mu.Unlock()
	if err := c.send(r, cookie); err != nil {
		c.fail(err)
	}
	select {
	case <-r.done:
	case <-ctx.Done():
		c.fail(context.Cause(ctx))
		<-r.done
	}
	if r.err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return r.err
}

func (c *Client) send(r *request, cookie uint64) error {
	b := big.AppendUint32(make([]byte, 0, 28), protocol.MagicRequest)
	b = big.AppendUint16(b, 0)
	b = big.AppendUint16(b, r.command)
	b = big.AppendUint64(b, cookie)
	b = big.AppendUint64(b, uint64(r.off))
	b = big.AppendUint32(b, uint32(r.length))
	c.sending.Lock()
	defer c.sending.Unlock()
	_, err := c.conn.Write(b)
	return err
}

// fail ends the connection: what is pending fails when the receiver sees it.
func (c *Client) fail(err error) {
	c.mu.Lock()
	if c.failed == nil {
		c.failed = err
	}
	c.mu.Unlock()
	c.conn.Close()
}

// receive takes replies until the connection ends.
func (c *Client) receive() {
	in := bufio.NewReaderSize(c.conn, 64<<10)
	for {
		if err := c.reply(in); err != nil {
			if errors.Is(err, io.EOF) {
				err = fmt.Errorf("the server has closed the connection: %w", io.ErrUnexpectedEOF)
			}
			c.fail(err)
			break
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.pending {
		r.err = c.failed
		close(r.done)
	}
	c.pending = nil
	close(c.ended)
}

// reply takes one reply, or one chunk of it.
func (c *Client) reply(in io.Reader) error {
	var head [20]byte
	if _, err := io.ReadFull(in, head[:16]); err != nil {
		return err
	}
	switch big.Uint32(head[:]) {
	case protocol.MagicSimple:
		return c.simple(in, big.Uint64(head[8:]), big.Uint32(head[4:]))
	case protocol.MagicStructured:
		if !c.replies {
			return fmt.Errorf("a structured reply: %w", ErrProtocol)
		}
		if _, err := io.ReadFull(in, head[16:]); err != nil {
			return err
		}
		return c.chunk(in, big.Uint16(head[4:]), big.Uint16(head[6:]), big.Uint64(head[8:]), int64(big.Uint32(head[16:])))
	}
	return fmt.Errorf("a reply that begins with %x: %w", head[:4], ErrProtocol)
}

func (c *Client) find(cookie uint64) (*request, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.pending[cookie]
	if r == nil {
		return nil, fmt.Errorf("a reply to no request (%d): %w", cookie, ErrProtocol)
	}
	return r, nil
}

// finish ends a request, of which all must have come.
func (c *Client) finish(cookie uint64, r *request) {
	c.mu.Lock()
	delete(c.pending, cookie)
	c.mu.Unlock()
	switch {
	case r.err != nil:
	case r.command == protocol.CmdRead && r.got != r.length:
		r.err = fmt.Errorf("%d bytes of %d came: %w", r.got, r.length, ErrProtocol)
	case r.command == protocol.CmdStatus && len(r.status) == 0:
		r.err = fmt.Errorf("no block status came: %w", ErrProtocol)
	}
	close(r.done)
}

func (c *Client) simple(in io.Reader, cookie uint64, number uint32) error {
	r, err := c.find(cookie)
	if err != nil {
		return err
	}
	switch {
	case number != 0:
		r.err = &serverError{number, ""}
	case c.replies:
		return fmt.Errorf("a simple reply where structured ones were agreed on: %w", ErrProtocol)
	default:
		if _, err := io.ReadFull(in, r.buf); err != nil {
			return err
		}
		r.got = r.length
	}
	c.finish(cookie, r)
	return nil
}

// chunk takes one chunk of a structured reply, length bytes long.
func (c *Client) chunk(in io.Reader, flags, kind uint16, cookie uint64, length int64) error {
	r, err := c.find(cookie)
	if err != nil {
		return err
	}
	switch {
	case kind == protocol.ChunkNone && length == 0 && flags&protocol.ChunkDone != 0:
	case kind == protocol.ChunkData && r.command == protocol.CmdRead && length > 8:
		err = r.data(in, length-8)
	case kind == protocol.ChunkHole && r.command == protocol.CmdRead && length == 12:
		err = r.hole(in)
	case kind == protocol.ChunkStatus && r.command == protocol.CmdStatus && length >= 12 && length%8 == 4 && length <= mostExtent:
		err = r.blockStatus(in, length)
	case kind == protocol.ChunkError && length >= 6 || kind == protocol.ChunkErrorOffset && length >= 14:
		err = r.serverError(in, length)
	default:
		err = ErrProtocol
	}
	if err != nil {
		return fmt.Errorf("chunk of type %d and %d bytes: %w", kind, length, err)
	}
	if flags&protocol.ChunkDone != 0 {
		c.finish(cookie, r)
	}
	return nil
}

// part returns the place in the buffer of n bytes at the offset that comes
// next.
func (r *request) part(in io.Reader, n int64) ([]byte, error) {
	var b [8]byte
	if _, err := io.ReadFull(in, b[:]); err != nil {
		return nil, err
	}
	at := big.Uint64(b[:]) - uint64(r.off)
	if n < 0 || n > r.length-r.got || at > uint64(r.length-n) {
		return nil, fmt.Errorf("%d bytes at %d in reply to %d at %d: %w", n, big.Uint64(b[:]), r.length, r.off, ErrProtocol)
	}
	r.got += n
	return r.buf[at : at+uint64(n)], nil
}

func (r *request) data(in io.Reader, n int64) error {
	p, err := r.part(in, n)
	if err != nil {
		return err
	}
	_, err = io.ReadFull(in, p)
	return err
}

func (r *request) hole(in io.Reader) error {
	var b [12]byte
	if _, err := io.ReadFull(in, b[:]); err != nil {
		return err
	}
	p, err := r.part(bytes.NewReader(b[:8]), int64(big.Uint32(b[8:])))
	clear(p)
	return err
}

// blockStatus takes the extents of the context that was asked for.
func (r *request) blockStatus(in io.Reader, length int64) error {
	b := make([]byte, length)
	if _, err := io.ReadFull(in, b); err != nil {
		return err
	}
	if big.Uint32(b) != r.context {
		return nil
	}
	if r.status != nil {
		return ErrProtocol
	}
	total := int64(0)
	for b = b[4:]; len(b) > 0; b = b[8:] {
		n := int64(big.Uint32(b))
		if n == 0 || total >= r.length {
			return ErrProtocol
		}
		total += n
		r.status = append(r.status, Status{block.Extent{Length: n}, big.Uint32(b[4:])})
	}
	return nil
}

// serverError takes an error of this request; others go on.
func (r *request) serverError(in io.Reader, length int64) error {
	var b [6]byte
	if _, err := io.ReadFull(in, b[:]); err != nil {
		return err
	}
	n := int64(big.Uint16(b[4:]))
	if n > length-6 || length > mostText+14 {
		return ErrProtocol
	}
	said := make([]byte, length-6)
	if _, err := io.ReadFull(in, said); err != nil {
		return err
	}
	if r.err == nil {
		r.err = &serverError{big.Uint32(b[:]), string(said[:n])}
	}
	return nil
}
