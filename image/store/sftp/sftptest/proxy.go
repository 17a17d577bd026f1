package sftptest

import (
	"net"
	"sync"
	"testing"
)

// A Fault is what a Proxy does to connections.
type Fault int

// Faults.
const (
	None   Fault = iota
	Refuse       // new connections end at once
	Cut          // the connection ends
	Stall        // nothing passes any more
)

// A Proxy stands before a server and counts bytes.
type Proxy struct {
	Address string
	server  string
	work    sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]bool
	fault Fault
	left  int64 // bytes until the fault, in both directions together
	once  bool  // it heals by itself
	total int64
	ended bool
}

// Proxy starts a proxy before the server. It ends with the test.
func (s *Server) Proxy(t testing.TB) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{Address: l.Addr().String(), server: s.Address, conns: map[net.Conn]bool{}}
	p.work.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			p.work.Go(func() { p.serve(conn) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		p.mu.Lock()
		p.ended = true
		p.mu.Unlock()
		p.CutAll()
		p.work.Wait()
	})
	return p
}

// Fail lets so many more bytes pass before the fault comes. With once, new
// connections are good again.
func (p *Proxy) Fail(f Fault, after int64, once bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault, p.left, p.once = f, after, once
}

// Heal ends all faults.
func (p *Proxy) Heal() { p.Fail(None, 0, false) }

// Total is how many bytes have passed.
func (p *Proxy) Total() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.total
}

// CutAll ends all connections.
func (p *Proxy) CutAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.Close()
	}
}

func (p *Proxy) keep(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended || p.fault == Refuse {
		return false
	}
	p.conns[c] = true
	return true
}

func (p *Proxy) serve(client net.Conn) {
	defer client.Close()
	if !p.keep(client) {
		return
	}
	server, err := net.Dial("tcp", p.server)
	if err != nil || !p.keep(server) {
		return
	}
	defer server.Close()
	var both sync.WaitGroup
	both.Go(func() { p.copy(server, client) })
	both.Go(func() { p.copy(client, server) })
	both.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, client)
	delete(p.conns, server)
}

// copy passes on until an end or a fault.
func (p *Proxy) copy(to, from net.Conn) {
	defer to.Close()
	defer from.Close()
	buf := make([]byte, 32<<10)
	for stalled := false; ; {
		n, err := from.Read(buf)
		if stalled && err == nil {
			continue // until somebody loses patience
		}
		pass, fault := p.pass(int64(n))
		if _, e := to.Write(buf[:pass]); err != nil || e != nil || fault == Cut {
			return
		}
		stalled = fault == Stall
	}
}

// pass returns how many of n bytes may pass, and what comes then.
func (p *Proxy) pass(n int64) (int64, Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.total += n
	if p.fault == None || p.fault == Refuse {
		return n, None
	}
	if p.left -= n; p.left > 0 {
		return n, None
	}
	fault := p.fault
	if p.once {
		p.fault = None
	}
	return max(0, n+p.left), fault
}
