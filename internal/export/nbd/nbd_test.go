package nbd

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	mrand "math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"platter/block"
	disks "platter/block/nbd"
	"platter/block/nbd/protocol"
	"platter/image"
	"platter/image/reader"
)

// memory is a disk that can be read, and written through writable.
type memory struct {
	mu   sync.RWMutex
	data []byte
	bad  block.Extent // cannot be read
}

type writable struct{ *memory }

var errBad = errors.New("segments/ab/abcd is damaged")

func (m *memory) Size() int64 { return int64(len(m.data)) }

func (m *memory) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if off < m.bad.End() && m.bad.Offset < off+int64(len(p)) {
		return 0, errBad
	}
	return copy(p, m.data[off:]), nil
}

func (m *memory) Stretches(_ context.Context, off, length int64, most int) (list []reader.Stretch, err error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	for at := off; at < off+length; {
		next := min(at/4096*4096+4096, off+length)
		zero := image.IsZero(m.data[at:next])
		if n := len(list); n > 0 && list[n-1].Zero == zero {
			list[n-1].Length += next - at
		} else if n == most {
			return list, nil
		} else {
			list = append(list, reader.Stretch{Extent: block.Extent{Offset: at, Length: next - at}, Zero: zero})
		}
		at = next
	}
	return list, nil
}

func (m writable) WriteAt(_ context.Context, p []byte, off int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	copy(m.data[off:], p)
	return nil
}

func (m writable) Zero(_ context.Context, off, length int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.data[off : off+length])
	return nil
}

func (m writable) Flush(context.Context) error { return nil }

// serve offers a disk on a unix socket until the test ends.
func serve(t testing.TB, s *Server) (socket string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "nbd") // t.TempDir may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	socket = filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		os.RemoveAll(dir)
	})
	return socket
}

// disk has data, holes and an odd tail.
func disk(size int) []byte {
	rng := mrand.New(mrand.NewPCG(1, uint64(size)))
	p := make([]byte, size)
	for at := 0; at < size; at += 64 << 10 {
		if rng.IntN(3) > 0 {
			for i := at; i < min(at+64<<10, size); i++ {
				p[i] = byte(rng.Uint32())
			}
		}
	}
	return p
}

// tool runs a client from Debian's packages.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func TestClientsReadTheDisk(t *testing.T) {
	want := disk(9<<20 + 512)
	uri := "nbd+unix:///?socket=" + serve(t, &Server{Device: &memory{data: want}})
	dir := t.TempDir()
	for name, copy := range map[string][]string{
		"nbdcopy":         {"nbdcopy", uri},
		"nbdcopy, simple": {"nbdcopy", "--synchronous", "--connections=1", uri},
		"qemu-img":        {"qemu-img", "convert", "-f", "raw", "-O", "raw", "-W", "-m", "8", uri},
	} {
		out := filepath.Join(dir, strings.ReplaceAll(name, ", ", "-"))
		tool(t, copy[0], append(copy[1:], out)...)
		if got, err := os.ReadFile(out); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s read another disk: %d bytes, %v", name, len(got), err)
		}
	}
	same := filepath.Join(dir, "nbdcopy")
	tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", uri, same)
	tool(t, "nbdkit", "-r", "-U", "-", "nbd", "uri="+uri, "--run", "nbdcopy $uri "+filepath.Join(dir, "through-nbdkit"))
	tool(t, "cmp", same, filepath.Join(dir, "through-nbdkit"))
	info := tool(t, "nbdinfo", uri)
	for _, say := range []string{"export-size: 9437696", "is_read_only: true", "can_multi_conn: true", "base:allocation", "block_size_maximum: 33554432"} {
		if !strings.Contains(info, say) {
			t.Errorf("nbdinfo does not say %q:\n%s", say, info)
		}
	}
	checkMap(t, tool(t, "nbdinfo", "--map", uri), want)
}

// The client that disks of machines are read by reads this server's, too.
func TestOwnClientReadsTheDisk(t *testing.T) {
	want := disk(9<<20 + 512)
	socket := serve(t, &Server{Device: &memory{data: want, bad: block.Extent{Offset: 5 << 20, Length: 4096}}})
	for _, contexts := range [][]string{nil, {disks.Allocation}} {
		c, err := disks.Dial(t.Context(), "unix", socket, disks.Options{Contexts: contexts})
		if err != nil {
			t.Fatal(err)
		}
		src := disks.Source(t.Context(), c, block.Info{})
		got := make([]byte, len(want))
		for off := int64(0); ; {
			e, err := src.Data(off)
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			for off = e.Offset; off < e.End(); off += 4096 {
				n, err := src.ReadAt(t.Context(), got[off:min(off+4096, e.End())], off)
				bad := (*block.ReadError)(nil)
				if off == 5<<20 && errors.As(err, &bad) && bad.Offset == off {
					copy(got[off:], want[off:off+4096])
				} else if err != nil || int64(n) != min(4096, e.End()-off) {
					t.Fatalf("read at %d: %d, %v", off, n, err)
				}
			}
			off = e.End()
		}
		if !bytes.Equal(got, want) {
			t.Errorf("contexts %q: another disk was read", contexts)
		}
		if err := src.Close(); err != nil {
			t.Error(err)
		}
	}
}

// checkMap compares what nbdinfo --map prints with the disk.
func checkMap(t *testing.T, text string, want []byte) {
	t.Helper()
	end := 0
	for line := range strings.Lines(text) {
		var off, length, flags int
		if n, _ := fmt.Sscan(line, &off, &length, &flags); n != 3 || off != end {
			t.Fatalf("map line %q after %d", line, end)
		}
		for at := off; at < off+length; at += 64 << 10 {
			if zero := image.IsZero(want[at:min(at+64<<10, len(want))]); zero != (flags == StatusHole|StatusZero) {
				t.Errorf("byte %d: flags %d, zero %v", at, flags, zero)
			}
		}
		end = off + length
	}
	if end != len(want) {
		t.Errorf("the map ends at %d of %d", end, len(want))
	}
}

func TestClientsWriteTheDisk(t *testing.T) {
	d := &memory{data: disk(4 << 20)}
	uri := "nbd+unix:///?socket=" + serve(t, &Server{Device: writable{d}})
	want := bytes.Clone(d.data)
	tool(t, "qemu-io", "-f", "raw", uri, "-c", "write -P 0x5a 4097 70000", "-c", "write -z 1M 300k", "-c", "discard 2M 64k",
		"-c", "write -f -P 7 3M 1", "-c", "flush", "-c", "read -P 0x5a 4097 70000")
	for i := range 70000 {
		want[4097+i] = 0x5a
	}
	clear(want[1<<20 : 1<<20+300<<10])
	clear(want[2<<20 : 2<<20+64<<10])
	want[3<<20] = 7
	if !bytes.Equal(d.data, want) {
		t.Error("the disk is not what was written")
	}
	from := filepath.Join(t.TempDir(), "from")
	if err := os.WriteFile(from, disk(4<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	tool(t, "nbdcopy", from, uri)
	tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", from, uri)
}

func TestReadersMayNotWrite(t *testing.T) {
	d := &memory{data: disk(1 << 20)}
	before := bytes.Clone(d.data)
	c := dial(t, serve(t, &Server{Device: d}), true)
	for _, kind := range []uint16{protocol.CmdWrite, protocol.CmdTrim, protocol.CmdWriteZeroes} {
		data := []byte(nil)
		if kind == protocol.CmdWrite {
			data = make([]byte, 4096)
		}
		if code := c.ask(0, kind, 0, 4096, data); code != protocol.ErrPerm {
			t.Errorf("request %d: error %d, want %d", kind, code, protocol.ErrPerm)
		}
	}
	if !bytes.Equal(d.data, before) {
		t.Error("the disk was written to")
	}
}

func TestDamageIsToldToClientAndLog(t *testing.T) {
	for _, structured := range []bool{false, true} {
		logged := make(chan error, 1)
		s := &Server{Device: &memory{data: disk(1 << 20), bad: block.Extent{Offset: 65536, Length: 1}}, Log: func(err error) { logged <- err }}
		c := dial(t, serve(t, s), structured)
		if code := c.ask(protocol.CmdFlagDF*b(structured), protocol.CmdRead, 65536, 4096, nil); code != protocol.ErrIO {
			t.Errorf("structured %v: error %d, want %d", structured, code, protocol.ErrIO)
		}
		if err := <-logged; !errors.Is(err, errBad) {
			t.Errorf("logged %v", err)
		}
		if code := c.ask(protocol.CmdFlagDF*b(structured), protocol.CmdRead, 0, 4096, nil); code != 0 {
			t.Errorf("structured %v: error %d after a failed request", structured, code)
		}
	}
}

func b(set bool) uint16 {
	if set {
		return 1
	}
	return 0
}

func TestRequestsThatCannotBeMeant(t *testing.T) {
	c := dial(t, serve(t, &Server{Device: writable{&memory{data: disk(1 << 20)}}}), true)
	for name, q := range map[string]struct {
		flags, kind uint16
		off         uint64
		length      uint32
		want        uint32
	}{
		"read past the end":    {0, protocol.CmdRead, 1 << 20, 1, protocol.ErrInval},
		"read across the end":  {0, protocol.CmdRead, 1<<20 - 1, 2, protocol.ErrInval},
		"read that wraps":      {0, protocol.CmdRead, 1<<64 - 1, 2, protocol.ErrInval},
		"negative offset":      {0, protocol.CmdRead, 1 << 63, 2, protocol.ErrInval},
		"read of too much":     {0, protocol.CmdRead, 0, maxRequest + 1, protocol.ErrInval}, // beyond this disk, too,
		"zero past the end":    {0, protocol.CmdWriteZeroes, 1 << 20, 1, protocol.ErrNoSpace},
		"trim past the end":    {0, protocol.CmdTrim, 1 << 20, 1 << 31, protocol.ErrInval},
		"unknown request":      {0, 99, 0, 0, protocol.ErrInval},
		"unknown flag":         {1 << 9, protocol.CmdRead, 0, 1, protocol.ErrInval},
		"status nobody chose":  {0, protocol.CmdStatus, 0, 4096, protocol.ErrInval},
		"status of no length":  {0, protocol.CmdStatus, 0, 0, protocol.ErrInval},
		"cache past the end":   {0, protocol.CmdCache, 1 << 20, 5, protocol.ErrInval},
		"flush with odd range": {0, protocol.CmdFlush, 77, 5, 0},
		"read of nothing":      {protocol.CmdFlagDF, protocol.CmdRead, 5, 0, 0},
	} {
		if code := c.ask(q.flags, q.kind, q.off, q.length, nil); code != q.want {
			t.Errorf("%s: error %d, want %d", name, code, q.want)
		}
	}
}

func TestBrokenClientsAreLeft(t *testing.T) {
	socket := serve(t, &Server{Device: &memory{data: disk(1 << 20)}})
	option := func(kind, length uint32, data []byte) []byte {
		p := binary.BigEndian.AppendUint64(nil, protocol.MagicOption)
		p = binary.BigEndian.AppendUint32(p, kind)
		return append(binary.BigEndian.AppendUint32(p, length), data...)
	}
	hello := []byte{0, 0, 0, 3}
	for name, say := range map[string][]byte{
		"flags":            {0xff, 0, 0, 3},
		"magic":            append(bytes.Clone(hello), make([]byte, 16)...),
		"endless option":   append(bytes.Clone(hello), option(protocol.OptGo, 1<<31, nil)...),
		"no such export":   append(bytes.Clone(hello), option(protocol.OptExportName, 3, []byte("abc"))...),
		"request magic":    append(append(bytes.Clone(hello), option(protocol.OptExportName, 0, nil)...), make([]byte, 28)...),
		"too many options": append(bytes.Clone(hello), bytes.Repeat(option(protocol.OptStructured, 0, nil), maxOptions+1)...),
	} {
		c, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		go func() { _, _ = c.Write(say) }()
		if err := c.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: the server goes on talking", name)
		}
		c.Close()
	}
	// Others are not harmed.
	if code := dial(t, socket, false).ask(0, protocol.CmdRead, 0, 512, nil); code != 0 {
		t.Errorf("a good client got error %d", code)
	}
}

func TestTLSComesFirst(t *testing.T) {
	dir := t.TempDir()
	config := certificates(t, dir)
	want := disk(1 << 20)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- (&Server{Device: &memory{data: want}, TLS: config}).Serve(ctx, l) }()
	defer func() { stop(); <-done }()
	out := filepath.Join(dir, "out")
	if text, err := exec.CommandContext(t.Context(), "nbdcopy", "nbd://"+l.Addr().String(), out).CombinedOutput(); err == nil {
		t.Errorf("a client without TLS was served: %s", text)
	}
	tool(t, "nbdcopy", "nbds://"+l.Addr().String()+"?tls-certificates="+dir, out)
	if got, err := os.ReadFile(out); err != nil || !bytes.Equal(got, want) {
		t.Errorf("read by TLS: %d bytes, %v", len(got), err)
	}
}

// certificates makes an authority, and a server for 127.0.0.1, in files that
// libnbd knows.
func certificates(t *testing.T, dir string) *tls.Config {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "127.0.0.1"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if err := os.WriteFile(filepath.Join(dir, "ca-cert.pem"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, MinVersion: tls.VersionTLS12}
}

func TestContextsAreFoundByName(t *testing.T) {
	s := &Server{Device: &memory{data: disk(1 << 20)}, Find: func(_ context.Context, name string) (*Context, error) {
		if name != "test:half" {
			return nil, nil
		}
		return &Context{name, func(_ context.Context, off, length int64, _ int) ([]Status, error) {
			if off >= 512<<10 {
				return []Status{{length, 1}}, nil
			}
			return []Status{{min(length, 512<<10-off), 0}}, nil
		}}, nil
	}}
	uri := "nbd+unix:///?socket=" + serve(t, s)
	if got := strings.Fields(tool(t, "nbdinfo", "--map=test:half", uri)); len(got) < 6 || got[1] != "524288" || got[5] != "1" {
		t.Errorf("map of test:half: %v", got)
	}
	if out, err := exec.CommandContext(t.Context(), "nbdinfo", "--map=test:other", uri).CombinedOutput(); err == nil {
		t.Errorf("map of an unknown context: %s", out)
	}
}

// A client is a plain one that says what it is told to.
type client struct {
	t *testing.T
	net.Conn
	structured bool
	cookie     uint64
}

// dial goes through the handshake.
func dial(t *testing.T, socket string, structured bool) *client {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	c := &client{t: t, Conn: conn, structured: structured}
	c.read(18)
	c.write([]byte{0, 0, 0, 3})
	if structured {
		c.write(binary.BigEndian.AppendUint64(nil, protocol.MagicOption), []byte{0, 0, 0, protocol.OptStructured, 0, 0, 0, 0})
		c.read(20)
	}
	c.write(binary.BigEndian.AppendUint64(nil, protocol.MagicOption), []byte{0, 0, 0, protocol.OptExportName, 0, 0, 0, 0})
	c.read(10)
	return c
}

func (c *client) read(n int) []byte {
	c.t.Helper()
	p := make([]byte, n)
	if _, err := io.ReadFull(c, p); err != nil {
		c.t.Fatal(err)
	}
	return p
}

func (c *client) write(parts ...[]byte) {
	c.t.Helper()
	if _, err := c.Write(bytes.Join(parts, nil)); err != nil {
		c.t.Fatal(err)
	}
}

// ask sends a request and returns the error of the answer, whose data is
// dropped.
func (c *client) ask(flags, kind uint16, off uint64, length uint32, data []byte) uint32 {
	c.t.Helper()
	c.cookie++
	q := binary.BigEndian.AppendUint32(nil, protocol.MagicRequest)
	q = binary.BigEndian.AppendUint16(q, flags)
	q = binary.BigEndian.AppendUint16(q, kind)
	q = binary.BigEndian.AppendUint64(q, c.cookie)
	q = binary.BigEndian.AppendUint64(q, off)
	c.write(binary.BigEndian.AppendUint32(q, length), data)
	if !c.structured {
		head := c.read(16)
		code := binary.BigEndian.Uint32(head[4:])
		if code == 0 && kind == protocol.CmdRead {
			c.read(int(length))
		}
		return code
	}
	for {
		head := c.read(20)
		if got := binary.BigEndian.Uint64(head[8:]); got != c.cookie {
			c.t.Fatalf("answer to %d, want %d", got, c.cookie)
		}
		payload := c.read(int(binary.BigEndian.Uint32(head[16:])))
		if binary.BigEndian.Uint16(head[6:]) == protocol.ChunkError {
			return binary.BigEndian.Uint32(payload)
		}
		if binary.BigEndian.Uint16(head[4:])&protocol.ChunkDone != 0 {
			return 0
		}
	}
}

func FuzzHandshake(f *testing.F) {
	f.Add([]byte{0, 0, 0, 3})
	go1 := append([]byte{0, 0, 0, 3}, binary.BigEndian.AppendUint64(nil, protocol.MagicOption)...)
	f.Add(append(go1, 0, 0, 0, protocol.OptGo, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0))
	f.Fuzz(func(t *testing.T, said []byte) {
		s := &Server{Device: &memory{data: make([]byte, 1<<16)}}
		l := newPipe(said)
		ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
		defer stop()
		go func() { <-l.closed; stop() }()
		_ = s.Serve(ctx, l)
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			t.Fatal("the server does not leave a client that has said all")
		}
	})
}

// pipe is a listener with one client, who says something and hangs up.
type pipe struct {
	conn   chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newPipe(said []byte) *pipe {
	p := &pipe{conn: make(chan net.Conn, 1), closed: make(chan struct{})}
	here, there := net.Pipe()
	p.conn <- there
	go func() {
		defer close(p.closed)
		done := make(chan struct{})
		go func() { _, _ = io.Copy(io.Discard, here); close(done) }()
		_, _ = here.Write(said)
		here.Close()
		<-done
	}()
	return p
}

func (p *pipe) Accept() (net.Conn, error) {
	if c, ok := <-p.conn; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}

func (p *pipe) Close() error {
	p.once.Do(func() { close(p.conn) })
	return nil
}

func (p *pipe) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }
