package block

import (
	"fmt"
	"strings"
)

// identify fills in kind, name and identity of a block device.
func (s system) identify(n node, info *Info) {
	info.Name = n.name
}

// examine fills in what the device holds.
func (s *source) examine() error { return nil }

// fileName turns the absolute path of a file into a device's name.
func fileName(abs string) string { return escape(strings.TrimPrefix(abs, "/")) }

// escape writes every byte that a name may not have as +XX, in hex.
func escape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '.', c == '_', c == '/', c == '-':
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "+%02x", c)
		}
	}
	return b.String()
}
