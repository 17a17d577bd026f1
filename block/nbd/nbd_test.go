package nbd

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"platter/block"
	"platter/block/nbd/protocol"
)

// disk has data, holes and an odd tail.
func disk(size int) []byte {
	rng := rand.New(rand.NewPCG(1, uint64(size)))
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

// start runs a server until the test ends. %s in an argument is its socket.
func start(t *testing.T, name string, args ...string) (socket string) {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skip("SKIPPED, this needs ", name)
	}
	dir, err := os.MkdirTemp("", "nbd") // t.TempDir may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket = filepath.Join(dir, "s")
	for i := range args {
		args[i] = strings.ReplaceAll(args[i], "%s", socket)
	}
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), path, args...)
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if c, err := net.Dial("unix", socket); err == nil {
			c.Close()
			return socket
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not listen: %s", name, said.Bytes())
		}
	}
}

func dial(t *testing.T, socket string, o Options) *Client {
	t.Helper()
	c, err := Dial(t.Context(), "unix", socket, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func file(t *testing.T, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(int64(len(content))); err != nil {
		t.Fatal(err)
	}
	for at := 0; at < len(content); at += 64 << 10 {
		part := content[at:min(at+64<<10, len(content))]
		if len(bytes.Trim(part, "\x00")) > 0 {
			if _, err := f.WriteAt(part, int64(at)); err != nil {
				t.Fatal(err)
			}
		}
	}
	return path
}

// readAll reads a source the way runs do: what may be data, in pieces, many at
// once.
func readAll(t *testing.T, src block.Source) []byte {
	t.Helper()
	got := make([]byte, src.Info().Size)
	var all sync.WaitGroup
	for off := int64(0); ; {
		e, err := src.Data(off)
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		for at := e.Offset; at < e.End(); at += 100 << 10 {
			p := got[at:min(at+100<<10, e.End())]
			all.Go(func() {
				if n, err := src.ReadAt(t.Context(), p, at); err != nil || n != len(p) {
					t.Errorf("read %d at %d: %d, %v", len(p), at, n, err)
				}
			})
		}
		off = e.End()
	}
	all.Wait()
	return got
}

func TestReadsFromRealServers(t *testing.T) {
	want := disk(5<<20 + 512)
	path := file(t, want)
	for name, args := range map[string][]string{
		"qemu-nbd": {"-t", "-r", "-f", "raw", "-e", "4", "-k", "%s", path},
		"nbdkit":   {"-f", "-r", "-U", "%s", "file", path},
	} {
		t.Run(name, func(t *testing.T) {
			socket := start(t, name, args...)
			for _, contexts := range [][]string{nil, {Allocation}, {"none:such"}} {
				c := dial(t, socket, Options{Contexts: contexts})
				if c.Size() != int64(len(want)) || !c.ReadOnly() {
					t.Fatalf("%d bytes, read-only %v", c.Size(), c.ReadOnly())
				}
				if c.Has(Allocation) != (len(contexts) > 0 && contexts[0] == Allocation) {
					t.Errorf("asked for %q: allocation %v", contexts, c.Has(Allocation))
				}
				if got := readAll(t, Source(t.Context(), c, block.Info{})); !bytes.Equal(got, want) {
					t.Errorf("contexts %q: another disk was read", contexts)
				}
			}
		})
	}
}

// What servers say of zeros saves reading them.
func TestDataSkipsZeros(t *testing.T) {
	want := disk(5 << 20)
	c := dial(t, start(t, "qemu-nbd", "-t", "-r", "-f", "raw", "-k", "%s", file(t, want)), Options{Contexts: []string{Allocation}})
	src := Source(t.Context(), c, block.Info{})
	read := int64(0)
	for e, err := src.Data(0); err != io.EOF; e, err = src.Data(e.End()) {
		if err != nil {
			t.Fatal(err)
		}
		read += e.Length
	}
	data := int64(0)
	for at := 0; at < len(want); at += 64 << 10 {
		if len(bytes.Trim(want[at:at+64<<10], "\x00")) > 0 {
			data += 64 << 10
		}
	}
	if read != data {
		t.Errorf("%d bytes are to be read, %d are no zeros", read, data)
	}
}

func TestErrorsOfTheServer(t *testing.T) {
	socket := start(t, "nbdkit", "-f", "-r", "-U", "%s", "eval", "get_size=echo 1048576",
		`pread=if [ "$4" -ge 524288 ]; then echo EIO the disk is bad >&2; exit 1; fi; dd if=/dev/zero count="$3" iflag=count_bytes 2>/dev/null`)
	for _, contexts := range [][]string{nil, {Allocation}} {
		c := dial(t, socket, Options{Contexts: contexts})
		p := make([]byte, 4096)
		_, err := c.ReadAt(t.Context(), p, 524288)
		bad := (*block.ReadError)(nil)
		if !errors.As(err, &bad) || bad.Offset != 524288 || bad.Length != 4096 {
			t.Errorf("got %v, want a *block.ReadError at 524288", err)
		}
		if _, err := c.ReadAt(t.Context(), p, 0); err != nil {
			t.Errorf("after an error the connection is of no more use: %v", err)
		}
	}
	if _, err := Dial(t.Context(), "unix", start(t, "qemu-nbd", "-t", "-x", "a", "-f", "raw", "-k", "%s", file(t, disk(1<<20))), Options{Export: "b"}); err == nil {
		t.Error("there is an export that there is not")
	}
}

// A server that says what it may not say, or goes away, is an error of all that
// is asked, and never a crash or a wait without end.
func FuzzServer(f *testing.F) {
	hello := func(size uint64) []byte {
		b := big.AppendUint64(nil, protocol.MagicInit)
		b = big.AppendUint64(b, protocol.MagicOption)
		b = big.AppendUint16(b, protocol.HandshakeFixed)
		reply := func(option, kind uint32, body []byte) {
			b = big.AppendUint64(b, protocol.MagicReply)
			b = big.AppendUint32(big.AppendUint32(big.AppendUint32(b, option), kind), uint32(len(body)))
			b = append(b, body...)
		}
		reply(protocol.OptStructured, protocol.RepAck, nil)
		reply(protocol.OptSetContext, protocol.RepContext, append(big.AppendUint32(nil, 7), Allocation...))
		reply(protocol.OptSetContext, protocol.RepAck, nil)
		reply(protocol.OptGo, protocol.RepInfo, big.AppendUint16(big.AppendUint64(big.AppendUint16(nil, protocol.InfoExport), size), 3))
		reply(protocol.OptGo, protocol.RepAck, nil)
		return b
	}
	chunk := func(kind uint16, body []byte) []byte {
		b := big.AppendUint16(big.AppendUint32(nil, protocol.MagicStructured), protocol.ChunkDone)
		b = big.AppendUint64(big.AppendUint16(b, kind), 1)
		return append(big.AppendUint32(b, uint32(len(body))), body...)
	}
	f.Add([]byte{})
	f.Add(hello(1 << 20))
	f.Add(append(hello(1<<20), chunk(protocol.ChunkData, make([]byte, 8+4096))...))
	f.Add(append(hello(1<<20), chunk(protocol.ChunkData, big.AppendUint64(nil, 1<<63))...))
	f.Add(append(hello(1<<20), chunk(protocol.ChunkHole, big.AppendUint32(make([]byte, 8), 1<<31))...))
	f.Add(append(hello(1<<20), chunk(protocol.ChunkStatus, []byte{0, 0, 0, 7, 0, 16, 0, 0, 0, 0, 0, 3})...))
	f.Add(append(hello(1<<20), chunk(protocol.ChunkError, []byte{0, 0, 0, 5, 0, 2, 'n', 'o'})...))
	f.Add(append(hello(1<<63-1), chunk(protocol.ChunkNone, nil)...))
	f.Fuzz(func(t *testing.T, said []byte) {
		ours, theirs := net.Pipe()
		go io.Copy(io.Discard, theirs)
		go func() {
			theirs.Write(said)
			theirs.Close()
		}()
		c, err := New(t.Context(), ours, Options{Contexts: []string{Allocation}})
		if err != nil {
			return
		}
		defer c.Close()
		p := make([]byte, 4096)
		_, _ = c.ReadAt(t.Context(), p, 0)
		list, err := c.status(t.Context(), Allocation, block.Extent{Length: c.Size()})
		for _, s := range list {
			if err != nil || s.Length <= 0 || s.End() > c.Size() {
				t.Errorf("status %v of %d bytes, %v", s, c.Size(), err)
			}
		}
	})
}

func TestContextEndsAWait(t *testing.T) {
	c := dial(t, start(t, "nbdkit", "-f", "-r", "-U", "%s", "--filter=delay", "null", "1M", "rdelay=600"), Options{})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.ReadAt(ctx, make([]byte, 512), 0); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want %v", err, context.DeadlineExceeded)
	}
}
