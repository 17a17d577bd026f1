package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"

	"platter/block/nbd/protocol"
)

// Bounds, in bytes.
const (
	mostRead   = 32 << 20 // what servers take if they do not say
	mostStatus = 1 << 31  // of one question
	mostReply  = 64 << 10 // to an option
	mostText   = 4096     // of an error
	mostExtent = 8 << 20  // of one chunk of block status
)

var big = binary.BigEndian

// greet agrees with the server on what is to come.
func (c *Client) greet(o Options) error {
	var hello [18]byte
	if _, err := io.ReadFull(c.conn, hello[:]); err != nil {
		return fmt.Errorf("wait for the server's first words: %w", err)
	}
	if big.Uint64(hello[:]) != protocol.MagicInit || big.Uint64(hello[8:]) != protocol.MagicOption {
		return fmt.Errorf("it begins with %q: %w", hello[:], ErrProtocol)
	}
	flags := big.Uint16(hello[16:])
	if flags&protocol.HandshakeFixed == 0 {
		return fmt.Errorf("no fixed newstyle handshake (flags %#x): %w", flags, errors.ErrUnsupported)
	}
	mine := uint32(protocol.HandshakeFixed | flags&protocol.HandshakeNoZeroes)
	if _, err := c.conn.Write(big.AppendUint32(nil, mine)); err != nil {
		return err
	}
	if len(o.Contexts) > 0 {
		if err := c.askContexts(o); err != nil {
			return err
		}
	}
	return c.enter(o.Export)
}

// askContexts asks for kinds of block status, which come by structured replies
// only. A server that has none is let be.
func (c *Client) askContexts(o Options) error {
	err := c.option(protocol.OptStructured, nil, func(uint32, []byte) error { return ErrProtocol })
	if refused := (*refusal)(nil); errors.As(err, &refused) {
		return nil
	}
	if err != nil {
		return err
	}
	c.replies = true
	body := text(nil, o.Export)
	body = big.AppendUint32(body, uint32(len(o.Contexts)))
	asked := map[string]bool{}
	for _, name := range o.Contexts {
		body = text(body, name)
		asked[name] = true
	}
	err = c.option(protocol.OptSetContext, body, func(kind uint32, b []byte) error {
		if kind != protocol.RepContext || len(b) < 4 {
			return ErrProtocol
		}
		if name := string(b[4:]); asked[name] {
			c.contexts[name] = big.Uint32(b)
		}
		return nil
	})
	if refused := (*refusal)(nil); errors.As(err, &refused) && refused.kind == protocol.RepUnsup {
		return nil
	}
	return err
}

// enter chooses the export and ends the handshake.
func (c *Client) enter(export string) error {
	body := text(nil, export)
	body = big.AppendUint16(body, 1) // what else is wanted
	body = big.AppendUint16(body, protocol.InfoBlockSize)
	known := false
	err := c.option(protocol.OptGo, body, func(kind uint32, b []byte) error {
		if kind != protocol.RepInfo || len(b) < 2 {
			return ErrProtocol
		}
		switch info := b[2:]; big.Uint16(b) {
		case protocol.InfoExport:
			if len(info) != 10 || big.Uint64(info) > math.MaxInt64 {
				return ErrProtocol
			}
			c.size, c.flags, known = int64(big.Uint64(info)), big.Uint16(info[8:]), true
		case protocol.InfoBlockSize:
			if len(info) != 12 {
				return ErrProtocol
			}
			smallest, most := big.Uint32(info), big.Uint32(info[8:])
			// Sources read in pieces of 4096 bytes.
			if smallest > 4096 {
				return fmt.Errorf("reads of %d bytes and more: %w", smallest, errors.ErrUnsupported)
			}
			if most >= 4096 {
				c.most = min(c.most, int64(most)/4096*4096)
			}
		}
		return nil
	})
	if err == nil && !known {
		err = fmt.Errorf("the server does not say how large it is: %w", ErrProtocol)
	}
	return err
}

// text is a string after its length.
func text(b []byte, s string) []byte {
	return append(big.AppendUint32(b, uint32(len(s))), s...)
}

// A refusal is what the server says to an option that it does not grant.
type refusal struct {
	kind uint32
	said string
}

func (r *refusal) Error() string {
	return fmt.Sprintf("the server refuses (error %d): %s", r.kind&^uint32(protocol.RepError), r.said)
}

// option asks for an option and passes on the replies before the last.
func (c *Client) option(number uint32, body []byte, each func(kind uint32, body []byte) error) error {
	b := big.AppendUint64(nil, protocol.MagicOption)
	b = big.AppendUint32(b, number)
	b = big.AppendUint32(b, uint32(len(body)))
	if _, err := c.conn.Write(append(b, body...)); err != nil {
		return err
	}
	for {
		kind, body, err := c.optionReply(number)
		switch {
		case err != nil:
			return err
		case kind == protocol.RepAck:
			return nil
		case kind&protocol.RepError != 0:
			return &refusal{kind, fmt.Sprintf("%.200q", body)}
		}
		if err := each(kind, body); err != nil {
			return fmt.Errorf("reply %d to option %d: %w", kind, number, err)
		}
	}
}

func (c *Client) optionReply(number uint32) (kind uint32, body []byte, err error) {
	var head [20]byte
	if _, err := io.ReadFull(c.conn, head[:]); err != nil {
		return 0, nil, fmt.Errorf("wait for a reply to option %d: %w", number, err)
	}
	length := big.Uint32(head[16:])
	if big.Uint64(head[:]) != protocol.MagicReply || big.Uint32(head[8:]) != number || length > mostReply {
		return 0, nil, fmt.Errorf("reply %x to option %d: %w", head, number, ErrProtocol)
	}
	body = make([]byte, length)
	_, err = io.ReadFull(c.conn, body)
	return big.Uint32(head[12:]), body, err
}
