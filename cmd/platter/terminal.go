package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"text/tabwriter"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// A terminal is where one invocation prints and asks. Results go to out, all
// that is told meanwhile to err. It is safe for concurrent use.
//
// Strings from devices, manifests and stores are anybody's: every argument is
// made harmless before it is printed. Formats are this program's own.
type terminal struct {
	mu      sync.Mutex
	in      io.Reader
	out     io.Writer
	err     io.Writer
	json    bool       // results as JSON, one object a line
	quiet   bool       // no progress, no summaries
	verbose bool       // more notices
	live    bool       // err is a terminal: progress may be redrawn
	asks    bool       // in is a terminal too: questions may be asked
	full    bool       // out and in are one: the whole screen may be drawn
	width   func() int // of err, in columns
	// hidden calls ask, then reads a line of in that the screen does not show.
	hidden func(ctx context.Context, ask func()) ([]byte, error)
	drawn  bool  // a line of progress is on the screen
	broken error // first write to out that failed
}

// newTerminal is the terminal of the process.
func newTerminal() *terminal {
	live := term.IsTerminal(int(os.Stderr.Fd())) && os.Getenv("TERM") != "dumb"
	return &terminal{
		in: os.Stdin, out: os.Stdout, err: os.Stderr,
		live: live,
		asks: term.IsTerminal(int(os.Stderr.Fd())) && term.IsTerminal(int(os.Stdin.Fd())),
		full: live && term.IsTerminal(int(os.Stdout.Fd())) && term.IsTerminal(int(os.Stdin.Fd())),
		width: func() int {
			columns, _, err := term.GetSize(int(os.Stderr.Fd()))
			if err != nil || columns < 20 {
				return 80
			}
			return columns
		},
		hidden: hiddenLine,
	}
}

// printf prints a result for people. The caller sees to the line's end.
func (t *terminal) printf(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.wipe()
	t.wrote(fmt.Fprintf(t.out, format, harmless(args)...))
}

// Write prints a result that its writer has made harmless.
func (t *terminal) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.wipe()
	n, err := t.out.Write(p)
	t.wrote(n, err)
	return n, err
}

// notef tells people something beside the result; one line, without its end.
func (t *terminal) notef(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.wipe()
	fmt.Fprintf(t.err, format+"\n", harmless(args)...)
}

// summaryf is a result that --quiet leaves out.
func (t *terminal) summaryf(format string, args ...any) {
	if !t.quiet {
		t.printf(format, args...)
	}
}

// object prints v, which marshals to a JSON object, as one line that begins
// with its message_type.
func (t *terminal) object(kind string, v any) {
	line, err := object(kind, v)
	t.mu.Lock()
	defer t.mu.Unlock()
	if err != nil {
		t.wrote(0, err)
		return
	}
	t.wipe()
	t.wrote(t.out.Write(line))
}

// redraw puts a line of progress in place of the last one. The line is this
// program's own and harmless already.
func (t *terminal) redraw(line string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.width() - 1; utf8.RuneCountInString(line) > n {
		line = string([]rune(line)[:n])
	}
	fmt.Fprintf(t.err, "\r%s\x1b[K", line)
	t.drawn = true
}

// clear takes the line of progress off the screen.
func (t *terminal) clear() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.wipe()
}

func (t *terminal) wipe() {
	if t.drawn {
		fmt.Fprint(t.err, "\r\x1b[K")
		t.drawn = false
	}
}

func (t *terminal) wrote(_ int, err error) {
	if err != nil && t.broken == nil {
		t.broken = fmt.Errorf("print the result: %w", err)
	}
}

// ask puts a question and returns the line that answers it. When ctx ends, so
// does the wait.
func (t *terminal) ask(ctx context.Context, question string) (string, error) {
	t.mu.Lock()
	t.wipe()
	fmt.Fprint(t.err, question)
	t.mu.Unlock()
	type reply struct {
		text string
		err  error
	}
	// A read of a terminal cannot be called off: when nobody answers, it ends
	// with the process.
	replies := make(chan reply, 1)
	go func() {
		text, err := readLine(t.in)
		replies <- reply{text, err}
	}()
	select {
	case r := <-replies:
		return r.text, r.err
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}

// secret puts a question and returns the line that answers it, which the screen
// does not show.
func (t *terminal) secret(ctx context.Context, question string) ([]byte, error) {
	answer, err := t.hidden(ctx, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.wipe()
		fmt.Fprint(t.err, question)
	})
	fmt.Fprintln(t.err)
	if err != nil && ctx.Err() == nil {
		err = fmt.Errorf("read the answer: %w", err)
	}
	return answer, err
}

// hiddenLine reads a line from the terminal without echo, which is off before
// ask is called: nobody types quicker than that. When it returns, also because
// ctx ended, the terminal is as it was.
func hiddenLine(ctx context.Context, ask func()) ([]byte, error) {
	fd := int(os.Stdin.Fd())
	before, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, err
	}
	quiet := *before
	quiet.Lflag &^= unix.ECHO
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &quiet); err != nil {
		return nil, err
	}
	ask()
	type reply struct {
		text []byte
		err  error
	}
	replies := make(chan reply, 1)
	go func() {
		text, err := term.ReadPassword(fd)
		replies <- reply{text, err}
	}()
	select {
	case r := <-replies:
		return r.text, errors.Join(r.err, unix.IoctlSetTermios(fd, unix.TCSETS, before))
	case <-ctx.Done():
		return nil, errors.Join(context.Cause(ctx), unix.IoctlSetTermios(fd, unix.TCSETS, before))
	}
}

// readLine reads one line, a byte at a time: what follows it is not ours.
func readLine(r io.Reader) (string, error) {
	var line []byte
	for b := make([]byte, 1); len(line) < 1024; {
		n, err := r.Read(b)
		if n == 1 && b[0] == '\n' {
			return strings.TrimSpace(string(line)), nil
		}
		line = append(line, b[:n]...)
		if err != nil {
			return "", fmt.Errorf("read the answer: %w", err)
		}
	}
	return "", errors.New("read the answer: it does not end")
}

// interrupt tells of a signal. It waits for nobody, so that a second signal is
// heard even while somebody is stuck printing.
func (t *terminal) interrupt() {
	if t.mu.TryLock() {
		defer t.mu.Unlock()
		t.wipe()
	}
	fmt.Fprint(t.err, "platter: stopping; once more to stop at once\n")
}

// A table is lined up by columns when it is printed. Its cells are harmless.
type table struct{ rows [][]string }

func (b *table) row(cells ...any) {
	row := make([]string, len(cells))
	for i, c := range harmless(cells) {
		row[i] = fmt.Sprint(c)
	}
	b.rows = append(b.rows, row)
}

func (t *terminal) table(b table) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.wipe()
	w := tabwriter.NewWriter(t.out, 0, 8, 2, ' ', 0)
	for _, row := range b.rows {
		fmt.Fprintln(w, strings.Join(row, "\t"))
	}
	t.wrote(0, w.Flush())
}

// object is v as one line of JSON with the key message_type first.
func object(kind string, v any) ([]byte, error) {
	var body bytes.Buffer
	e := json.NewEncoder(&body)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, fmt.Errorf("encode %s: %w", kind, err)
	}
	rest, ok := bytes.CutPrefix(bytes.TrimSpace(body.Bytes()), []byte("{"))
	if !ok {
		return nil, fmt.Errorf("encode %s: %T is not an object", kind, v)
	}
	line := fmt.Appendf(nil, `{"message_type":%q`, kind)
	if !bytes.HasPrefix(rest, []byte("}")) {
		line = append(line, ',')
	}
	return append(escapeJSON(append(line, rest...)), '\n'), nil
}

// escapeJSON writes what a terminal might obey as \u escapes. Outside strings
// JSON has no such characters.
func escapeJSON(line []byte) []byte {
	if bytes.IndexFunc(line, hostile) < 0 {
		return line
	}
	var b []byte
	for _, r := range string(line) {
		switch {
		case !hostile(r):
			b = utf8.AppendRune(b, r)
		case r > 0xffff:
			r -= 0x10000
			b = fmt.Appendf(b, `\u%04x\u%04x`, 0xd800+r>>10, 0xdc00+r&0x3ff)
		default:
			b = fmt.Appendf(b, `\u%04x`, r)
		}
	}
	return b
}

// hostile reports whether a terminal might do anything but show r.
func hostile(r rune) bool { return !unicode.IsPrint(r) }

// harmless makes strings, errors and Stringers among args safe to print.
func harmless(args []any) []any {
	safe := make([]any, len(args))
	for i, a := range args {
		switch a := a.(type) {
		case string:
			safe[i] = clean(a)
		case error:
			safe[i] = clean(strings.ReplaceAll(a.Error(), "\n", "; "))
		case fmt.Stringer:
			safe[i] = clean(a.String())
		default:
			safe[i] = a
		}
	}
	return safe
}

// clean writes every character that a terminal might obey, and every byte
// that is no character, as an escape.
func clean(s string) string {
	if utf8.ValidString(s) && strings.IndexFunc(s, hostile) < 0 {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[0])
		case !hostile(r):
			b.WriteRune(r)
		case r < 0x80:
			fmt.Fprintf(&b, `\x%02x`, r)
		default:
			fmt.Fprintf(&b, `\u{%x}`, r)
		}
		s = s[n:]
	}
	return b.String()
}
