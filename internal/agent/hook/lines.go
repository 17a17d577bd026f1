package hook

import "bytes"

// Lines is a writer that hands on what is written to it line by line, without
// line ends. It belongs to one goroutine.
type Lines struct {
	Max  int          // bytes; the rest of a longer line is dropped
	Each func([]byte) // may keep nothing of its argument
	line []byte
}

// Write never fails.
func (l *Lines) Write(p []byte) (int, error) {
	n := len(p)
	for {
		text, rest, ended := bytes.Cut(p, []byte("\n"))
		l.line = append(l.line, text[:min(len(text), l.Max-len(l.line))]...)
		if !ended {
			return n, nil
		}
		l.Each(l.line)
		l.line, p = l.line[:0], rest
	}
}

// Flush hands on a last line that has no end.
func (l *Lines) Flush() {
	if len(l.line) > 0 {
		l.Each(l.line)
		l.line = l.line[:0]
	}
}
