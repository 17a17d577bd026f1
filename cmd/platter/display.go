package main

import (
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// A display is the whole of a terminal, until it is closed.
type display struct {
	out    io.Writer
	before unix.Termios
	keys   chan byte // that were pressed
}

// What a terminal does at these: another page, no cursor, and back.
const (
	enterScreen = "\x1b[?1049h\x1b[?25l\x1b[2J"
	leaveScreen = "\x1b[?25h\x1b[?1049l"
)

// openDisplay takes the terminal of the process. Keys are not echoed and come at
// once; those that send signals still do.
func openDisplay(out io.Writer) (*display, error) {
	s := &display{out: out, keys: make(chan byte)}
	fd := int(os.Stdin.Fd())
	now, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, err
	}
	s.before = *now
	now.Lflag &^= unix.ECHO | unix.ICANON
	now.Cc[unix.VMIN], now.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, now); err != nil {
		return nil, err
	}
	if _, err := io.WriteString(out, enterScreen); err != nil {
		return nil, errors.Join(err, s.close())
	}
	// A read of a terminal cannot be called off: it ends with the process.
	go func() {
		b := make([]byte, 1)
		for {
			if n, err := os.Stdin.Read(b); n != 1 || err != nil {
				return
			}
			s.keys <- b[0]
		}
	}()
	return s, nil
}

// draw replaces what is on the screen by lines that are harmless.
func (s *display) draw(lines []string) {
	columns, rows, err := term.GetSize(int(os.Stdout.Fd()))
	if err != nil || columns < 1 || rows < 1 { // a serial line does not say
		columns, rows = 80, 24
	}
	_, _ = io.WriteString(s.out, fit(lines, columns, rows))
}

// close gives the terminal back as it was.
func (s *display) close() error {
	_, err := io.WriteString(s.out, leaveScreen)
	return errors.Join(err, unix.IoctlSetTermios(int(os.Stdin.Fd()), unix.TCSETS, &s.before))
}
