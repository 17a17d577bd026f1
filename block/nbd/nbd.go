// Package nbd reads disks that a server offers by the network block device
// protocol: QEMU, nbdkit, qemu-nbd, Platter itself.
//
// The protocol is the NBD project's doc/proto.md. This client speaks the fixed
// newstyle handshake with GO, simple and structured replies, and block status.
// Lengths and offsets that the server says are checked before memory is spent
// or touched; a server that breaks the protocol loses its connection.
package nbd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"platter/block"
	"platter/block/nbd/protocol"
)

var (
	// ErrProtocol means that the server said what it may not say.
	ErrProtocol = errors.New("the server breaks the protocol")
	// ErrNoContext means that the server does not know a kind of block status.
	ErrNoContext = errors.New("no such block status")
)

// Allocation is the kind of block status that tells of holes and zeros.
const Allocation = "base:allocation"

// Flags of Allocation, and the flag of a dirty bitmap of QEMU.
const (
	StatusHole  = 1 << 0 // not allocated
	StatusZero  = 1 << 1 // reads as zeros
	StatusDirty = 1 << 0
)

// Options say what is wanted of a server.
type Options struct {
	Export   string   // its name
	Contexts []string // kinds of block status, such as Allocation
}

// A Client is a connection to one export. It is safe for concurrent use. Once
// anything but a request fails, all that it is asked fails with that error.
type Client struct {
	conn     net.Conn
	name     string // of the export, for errors
	size     int64
	flags    uint16
	most     int64             // bytes of one read
	contexts map[string]uint32 // by name, those that the server knows
	replies  bool              // structured ones

	sending sync.Mutex

	mu      sync.Mutex
	pending map[uint64]*request
	cookie  uint64
	failed  error
	ended   chan struct{} // closed when nothing is received any more
}

// Dial connects to a server, as net.Dial.
func Dial(ctx context.Context, network, address string, o Options) (*Client, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return New(ctx, conn, o)
}

// New speaks with a server through a connection, which it owns: it is closed
// with the client, and when New fails.
func New(ctx context.Context, conn net.Conn, o Options) (*Client, error) {
	c := &Client{
		conn: conn, name: o.Export, most: mostRead, contexts: map[string]uint32{},
		pending: map[uint64]*request{}, ended: make(chan struct{}),
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	err := c.greet(o)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, errors.Join(fmt.Errorf("open the NBD export %q: %w", o.Export, err), closed(conn))
	}
	go c.receive()
	return c, nil
}

// closed closes what may be closed already.
func closed(conn net.Conn) error {
	if err := conn.Close(); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// Size returns the size of the export in bytes.
func (c *Client) Size() int64 { return c.size }

// ReadOnly reports whether the server lets nobody write to the export.
func (c *Client) ReadOnly() bool { return c.flags&protocol.FlagReadOnly != 0 }

// Has reports whether the server knows a kind of block status.
func (c *Client) Has(name string) bool {
	_, ok := c.contexts[name]
	return ok
}

// ReadAt fills p from off. What the server cannot read gives a
// *block.ReadError. When ctx ends, the connection does: the server may be about
// to fill p.
func (c *Client) ReadAt(ctx context.Context, p []byte, off int64) (n int, err error) {
	if off < 0 || off > c.size {
		return 0, fmt.Errorf("read NBD export %q at %d: it has %d bytes", c.name, off, c.size)
	}
	want := p
	if int64(len(p)) > c.size-off {
		want = p[:c.size-off]
	}
	for n < len(want) {
		part := want[n:min(len(want), n+int(c.most))]
		if err := c.do(ctx, &request{command: protocol.CmdRead, off: off + int64(n), length: int64(len(part)), buf: part}); err != nil {
			return n, c.unreadable(err, block.Extent{Offset: off + int64(n), Length: int64(len(part))})
		}
		n += len(part)
	}
	if len(want) < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// unreadable makes an error of the server's disk one of the device.
func (c *Client) unreadable(err error, e block.Extent) error {
	if said := (*serverError)(nil); errors.As(err, &said) && said.number == protocol.ErrIO {
		return &block.ReadError{Path: c.name, Extent: e, Err: err}
	}
	return fmt.Errorf("read NBD export %q at %d: %w", c.name, e.Offset, err)
}

// A Status is the meaning of Flags for an extent.
type Status struct {
	block.Extent
	Flags uint32
}

// Walk calls each with the block status of an extent, piece by piece from its
// start to its end.
func (c *Client) Walk(ctx context.Context, name string, e block.Extent, each func(Status) error) error {
	for off := e.Offset; off < e.End(); {
		list, err := c.status(ctx, name, block.Extent{Offset: off, Length: e.End() - off})
		if err != nil {
			return err
		}
		for _, s := range list {
			if err := each(s); err != nil {
				return err
			}
			off = s.End()
		}
	}
	return nil
}

// Dirty calls each with what a context of QEMU's dirty bitmaps calls written.
func (c *Client) Dirty(ctx context.Context, bitmap string, each func(block.Extent)) error {
	return c.Walk(ctx, bitmap, block.Extent{Length: c.size}, func(s Status) error {
		if s.Flags&StatusDirty != 0 {
			each(s.Extent)
		}
		return nil
	})
}

// status returns the block status of the first part of an extent, at least
// some of it, as much as the server tells at once.
func (c *Client) status(ctx context.Context, name string, e block.Extent) ([]Status, error) {
	id, ok := c.contexts[name]
	if !ok {
		return nil, fmt.Errorf("block status %s of NBD export %q: %w", name, c.name, ErrNoContext)
	}
	e.Length = min(e.Length, mostStatus, c.size-e.Offset)
	r := &request{command: protocol.CmdStatus, off: e.Offset, length: e.Length, context: id}
	if err := c.do(ctx, r); err != nil {
		return nil, fmt.Errorf("block status %s of NBD export %q at %d: %w", name, c.name, e.Offset, err)
	}
	off := e.Offset
	for i := range r.status {
		s := &r.status[i]
		// The last one may go on beyond what was asked for.
		s.Offset, s.Length = off, min(s.Length, e.End()-off)
		if off = s.End(); off == e.End() {
			return r.status[:i+1], nil
		}
	}
	return r.status, nil
}

// Close says goodbye and closes the connection.
func (c *Client) Close() error {
	_ = c.send(&request{command: protocol.CmdDisconnect}, 0) // it is over in any case
	err := closed(c.conn)
	<-c.ended
	return err
}

// Err returns why the connection has ended, nil while it is there.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.failed
}
