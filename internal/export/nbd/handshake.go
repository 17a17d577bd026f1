package nbd

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strings"

	"platter/block/nbd/protocol"
)

// A handshake is a client that has not chosen the export yet.
type handshake struct {
	server     *Server
	conn       net.Conn
	r          *bufio.Reader
	secure     bool
	noZeroes   bool
	structured bool
	contexts   []Context // by their number
}

// run returns nil when the client goes on to transmission.
func (h *handshake) run(ctx context.Context) error {
	var hello [18]byte
	binary.BigEndian.PutUint64(hello[0:], protocol.MagicInit)
	binary.BigEndian.PutUint64(hello[8:], protocol.MagicOption)
	binary.BigEndian.PutUint16(hello[16:], protocol.HandshakeFixed|protocol.HandshakeNoZeroes)
	if _, err := h.conn.Write(hello[:]); err != nil {
		return err
	}
	var answer [4]byte
	if _, err := io.ReadFull(h.r, answer[:]); err != nil {
		return err
	}
	flags := binary.BigEndian.Uint32(answer[:])
	if flags&^(protocol.HandshakeFixed|protocol.HandshakeNoZeroes) != 0 {
		return fmt.Errorf("handshake: unknown flags %#x", flags)
	}
	h.noZeroes = flags&protocol.HandshakeNoZeroes != 0
	for range maxOptions {
		if done, err := h.option(ctx); done || err != nil {
			return err
		}
	}
	return fmt.Errorf("handshake: more than %d options", maxOptions)
}

// option answers one option. done means that transmission begins.
func (h *handshake) option(ctx context.Context) (done bool, err error) {
	var head [16]byte
	if _, err := io.ReadFull(h.r, head[:]); err != nil {
		return false, err
	}
	if m := binary.BigEndian.Uint64(head[:]); m != protocol.MagicOption {
		return false, fmt.Errorf("handshake: option with magic %#x", m)
	}
	opt, length := binary.BigEndian.Uint32(head[8:]), binary.BigEndian.Uint32(head[12:])
	if length > maxOption {
		return false, fmt.Errorf("handshake: option %d of %d bytes", opt, length)
	}
	data := make([]byte, length)
	if _, err := io.ReadFull(h.r, data); err != nil {
		return false, err
	}
	if h.server.TLS != nil && !h.secure && opt != protocol.OptStartTLS && opt != protocol.OptAbort {
		if opt == protocol.OptExportName {
			return false, fmt.Errorf("handshake: client without TLS")
		}
		return false, h.reply(opt, protocol.RepTLSNeeded, []byte("this server wants TLS"))
	}
	switch opt {
	case protocol.OptExportName:
		return h.exportName(string(data))
	case protocol.OptAbort:
		_ = h.reply(opt, protocol.RepAck, nil) // the client may be gone already
		return false, errGone
	case protocol.OptList:
		return false, h.list(opt, data)
	case protocol.OptStartTLS:
		return false, h.startTLS(ctx, opt, data)
	case protocol.OptInfo, protocol.OptGo:
		ok, err := h.info(opt, data)
		return ok && opt == protocol.OptGo, err
	case protocol.OptStructured:
		if len(data) > 0 {
			return false, h.reply(opt, protocol.RepInvalid, nil)
		}
		h.structured = true
		return false, h.reply(opt, protocol.RepAck, nil)
	case protocol.OptListContext, protocol.OptSetContext:
		return false, h.metaContext(ctx, opt, data)
	}
	return false, h.reply(opt, protocol.RepUnsup, nil)
}

func (h *handshake) reply(opt, kind uint32, data []byte) error {
	b := make([]byte, 20, 20+len(data))
	binary.BigEndian.PutUint64(b[0:], protocol.MagicReply)
	binary.BigEndian.PutUint32(b[8:], opt)
	binary.BigEndian.PutUint32(b[12:], kind)
	binary.BigEndian.PutUint32(b[16:], uint32(len(data)))
	_, err := h.conn.Write(append(b, data...))
	return err
}

// exportName is the old way to choose: there is no answer that says no.
func (h *handshake) exportName(name string) (bool, error) {
	if name != "" {
		return false, fmt.Errorf("handshake: no export %q", name)
	}
	b := binary.BigEndian.AppendUint64(nil, uint64(h.server.Device.Size()))
	b = binary.BigEndian.AppendUint16(b, h.server.flags())
	if !h.noZeroes {
		b = append(b, make([]byte, 124)...)
	}
	_, err := h.conn.Write(b)
	return err == nil, err
}

func (h *handshake) list(opt uint32, data []byte) error {
	if len(data) > 0 {
		return h.reply(opt, protocol.RepInvalid, nil)
	}
	if err := h.reply(opt, protocol.RepServer, make([]byte, 4)); err != nil { // a name of no length
		return err
	}
	return h.reply(opt, protocol.RepAck, nil)
}

func (h *handshake) startTLS(ctx context.Context, opt uint32, data []byte) error {
	switch {
	case len(data) > 0 || h.secure:
		return h.reply(opt, protocol.RepInvalid, nil)
	case h.server.TLS == nil:
		return h.reply(opt, protocol.RepPolicy, []byte("this server has no TLS"))
	}
	if err := h.reply(opt, protocol.RepAck, nil); err != nil {
		return err
	}
	// What came in clear behind the request could be anybody's.
	if h.r.Buffered() > 0 {
		return fmt.Errorf("handshake: data in clear behind the request for TLS")
	}
	c := tls.Server(h.conn, h.server.TLS)
	if err := c.HandshakeContext(ctx); err != nil {
		return err
	}
	*h = handshake{server: h.server, conn: c, r: bufio.NewReaderSize(c, 64<<10), secure: true, noZeroes: h.noZeroes}
	return nil
}

// info answers INFO and GO. ok means that the export is there.
func (h *handshake) info(opt uint32, data []byte) (ok bool, err error) {
	name, rest, ok := cutString(data)
	if !ok || len(rest) < 2 || len(rest) != 2+2*int(binary.BigEndian.Uint16(rest)) {
		return false, h.reply(opt, protocol.RepInvalid, nil)
	}
	if name != "" {
		return false, h.reply(opt, protocol.RepUnknown, []byte("there is one export, and its name is empty"))
	}
	export := binary.BigEndian.AppendUint16(nil, protocol.InfoExport)
	export = binary.BigEndian.AppendUint64(export, uint64(h.server.Device.Size()))
	export = binary.BigEndian.AppendUint16(export, h.server.flags())
	if err := h.reply(opt, protocol.RepInfo, export); err != nil {
		return false, err
	}
	sizes := binary.BigEndian.AppendUint16(nil, protocol.InfoBlockSize)
	for _, n := range []uint32{1, preferred, maxRequest} {
		sizes = binary.BigEndian.AppendUint32(sizes, n)
	}
	if err := h.reply(opt, protocol.RepInfo, sizes); err != nil {
		return false, err
	}
	return true, h.reply(opt, protocol.RepAck, nil)
}

// cutString splits off a string that its length in 4 bytes stands before.
func cutString(data []byte) (s string, rest []byte, ok bool) {
	if len(data) < 4 {
		return "", nil, false
	}
	n := binary.BigEndian.Uint32(data)
	if int64(n) > int64(len(data)-4) {
		return "", nil, false
	}
	return string(data[4 : 4+n]), data[4+n:], true
}

// metaContext answers what kinds of block status there are, and lets the
// client choose.
func (h *handshake) metaContext(ctx context.Context, opt uint32, data []byte) error {
	name, rest, ok := cutString(data)
	if !ok || len(rest) < 4 || opt == protocol.OptSetContext && !h.structured {
		return h.reply(opt, protocol.RepInvalid, nil)
	}
	count := binary.BigEndian.Uint32(rest)
	rest = rest[4:]
	if count > maxContexts {
		return h.reply(opt, protocol.RepTooBig, nil)
	}
	var queries []string
	for range count {
		var q string
		if q, rest, ok = cutString(rest); !ok {
			return h.reply(opt, protocol.RepInvalid, nil)
		}
		queries = append(queries, q)
	}
	if len(rest) > 0 {
		return h.reply(opt, protocol.RepInvalid, nil)
	}
	if name != "" {
		return h.reply(opt, protocol.RepUnknown, nil)
	}
	found, err := h.find(ctx, opt, queries)
	if err != nil {
		return h.reply(opt, protocol.RepInvalid, []byte(err.Error()))
	}
	for i, c := range found {
		id := uint32(0)
		if opt == protocol.OptSetContext {
			id = uint32(i)
		}
		if err := h.reply(opt, protocol.RepContext, append(binary.BigEndian.AppendUint32(nil, id), c.Name...)); err != nil {
			return err
		}
	}
	if opt == protocol.OptSetContext {
		h.contexts = found
	}
	return h.reply(opt, protocol.RepAck, nil)
}

// find returns the contexts that queries ask for. To list, no query asks for
// all, and one that ends in a colon for all of a kind.
func (h *handshake) find(ctx context.Context, opt uint32, queries []string) (found []Context, err error) {
	base := allocation(h.server.Device)
	if opt == protocol.OptListContext && len(queries) == 0 {
		return []Context{base}, nil
	}
	for _, q := range queries {
		switch {
		case q == base.Name, opt == protocol.OptListContext && q == "base:":
			found = append(found, base)
		case h.server.Find != nil && !strings.HasSuffix(q, ":"):
			c, err := h.server.Find(ctx, q)
			if err != nil {
				return nil, err
			}
			if c != nil {
				found = append(found, *c)
			}
		}
	}
	return found, nil
}
