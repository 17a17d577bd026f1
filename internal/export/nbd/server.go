package nbd

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"platter/block/nbd/protocol"
	"platter/internal/export"
)

// A Server offers one Device under the empty name.
type Server struct {
	Device export.Device // a Writer is offered for writing
	// Find returns the context of a name that is not base:allocation, or nil
	// if there is none. It may be nil itself.
	Find func(ctx context.Context, name string) (*Context, error)
	// TLS, if it is there, is asked of every client before anything else.
	TLS *tls.Config
	// MaxConnections is how many clients may be connected at once; 0 means 64.
	MaxConnections int
	// Log is told of requests that failed on this side, and of clients that
	// broke the protocol, one call at a time. It may be nil.
	Log func(error)

	buffers *semaphore.Weighted
	logging sync.Mutex
}

// handshakeTime bounds a handshake, so that silent clients do not take all
// connections.
const handshakeTime = 30 * time.Second

// Serve answers clients of l until ctx ends, closes l, and returns when all of
// them are gone. Requests under way when ctx ends are not answered.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	s.buffers = semaphore.NewWeighted(maxBuffers)
	limit := s.MaxConnections
	if limit == 0 {
		limit = 64
	}
	places := make(chan struct{}, limit)
	var all sync.WaitGroup
	defer all.Wait()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	defer l.Close()
	for {
		select {
		case places <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		c, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("nbd: accept: %w", err)
		}
		all.Go(func() {
			defer func() { <-places }()
			if err := s.serve(ctx, c); err != nil && ctx.Err() == nil {
				s.log(fmt.Errorf("nbd: client %s: %w", clientName(c), err))
			}
		})
	}
}

func clientName(c net.Conn) string {
	if a := c.RemoteAddr().String(); a != "" && a != "@" {
		return a
	}
	return "on " + c.LocalAddr().String()
}

func (s *Server) log(err error) {
	if s.Log != nil {
		s.logging.Lock()
		defer s.logging.Unlock()
		s.Log(err)
	}
}

// errGone means that a client left in an orderly way.
var errGone = errors.New("gone")

// serve talks to one client, and closes c.
func (s *Server) serve(ctx context.Context, c net.Conn) error {
	h := &handshake{server: s, conn: c, r: bufio.NewReaderSize(c, 64<<10)}
	defer func() { h.conn.Close() }()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	if err := c.SetDeadline(time.Now().Add(handshakeTime)); err != nil {
		return err
	}
	err := h.run(ctx)
	if err == nil {
		if err = h.conn.SetDeadline(time.Time{}); err != nil {
			return err
		}
		t := &transmission{server: s, conn: h.conn, r: h.r, structured: h.structured, contexts: h.contexts}
		err = t.run(ctx)
	}
	if errors.Is(err, errGone) || errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// flags are the transmission flags of the device.
func (s *Server) flags() uint16 {
	f := uint16(protocol.FlagHas | protocol.FlagFlush | protocol.FlagDF | protocol.FlagMultiConn | protocol.FlagCache)
	if _, ok := s.Device.(export.Writer); ok {
		return f | protocol.FlagFUA | protocol.FlagTrim | protocol.FlagWriteZeroes
	}
	return f | protocol.FlagReadOnly
}
