package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"unicode"

	"pgregory.net/rapid"
)

// screen is a terminal for tests, with what it printed.
func screen() (t *terminal, out, err *bytes.Buffer) {
	out, err = new(bytes.Buffer), new(bytes.Buffer)
	return &terminal{in: strings.NewReader(""), out: out, err: err, width: func() int { return 80 }}, out, err
}

func TestNothingATerminalObeysIsPrinted(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		evil := rapid.OneOf(rapid.String(), rapid.Custom(func(rt *rapid.T) string {
			return string(rapid.SliceOf(rapid.Byte()).Draw(rt, "bytes"))
		}), rapid.SampledFrom([]string{"\x1b]0;owned\a", "\u009b31m", "a\rb", "x\ny", "\u202efdp", "\U000e0001", "\xff\x9b"})).Draw(rt, "text")
		term, out, errs := screen()
		term.printf("%s|%v\n", evil, errors.New(evil))
		term.notef("%s", evil)
		term.object("device", map[string]string{"name": evil, evil: "key"})
		var tb table
		tb.row(evil, 1)
		term.table(tb)
		for _, printed := range []string{out.String(), errs.String()} {
			for _, r := range strings.ReplaceAll(printed, "\n", "") {
				if !unicode.IsPrint(r) && r != '\ufffd' {
					rt.Fatalf("%q printed as %q, with %U", evil, printed, r)
				}
			}
		}
		if got := strings.Count(out.String(), "\n"); got != 3 {
			rt.Fatalf("%q made %d lines of 3:\n%s", evil, got, out)
		}
	})
}

func TestObjectIsOneLineOfJSONThatKeepsItsValues(t *testing.T) {
	want := map[string]any{"name": "\u009b\U000e0001<&>é\n\x7f", "n": 3.0}
	line, err := object("device", want)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(string(line), `{"message_type":"device",`) || strings.Count(string(line), "\n") != 1 {
		t.Errorf("got %q", line)
	}
	var got map[string]any
	if err := json.Unmarshal(line, &got); err != nil {
		t.Fatal(err)
	}
	if got["name"] != want["name"] || got["n"] != want["n"] || got["message_type"] != "device" {
		t.Errorf("got %q, want %q", got, want)
	}
	if line, err := object("empty", struct{}{}); err != nil || string(line) != `{"message_type":"empty"}`+"\n" {
		t.Errorf("empty object: %q, %v", line, err)
	}
	if line, err := object("list", []int{1}); err == nil {
		t.Errorf("a list was printed as an object: %q", line)
	}
}

func TestNoticesWipeTheLineOfProgress(t *testing.T) {
	term, _, errs := screen()
	term.redraw(strings.Repeat("é", 200))
	term.notef("notice")
	term.clear()
	want := "\r" + strings.Repeat("é", 79) + "\x1b[K" + "\r\x1b[K" + "notice\n"
	if got := errs.String(); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("no space left on device") }

func TestAResultThatCannotBePrintedIsRemembered(t *testing.T) {
	term, _, _ := screen()
	term.out = full{}
	term.printf("result\n")
	if term.broken == nil {
		t.Error("the failed write was forgotten")
	}
}

func TestAskTakesOneLineAndNoMore(t *testing.T) {
	term, _, errs := screen()
	in := strings.NewReader(" yes \nnext")
	term.in = in
	answer, err := term.ask(t.Context(), "go on? ")
	if answer != "yes" || err != nil || in.Len() != len("next") {
		t.Errorf("got %q, %v with %d bytes left", answer, err, in.Len())
	}
	if errs.String() != "go on? " {
		t.Errorf("asked %q", errs)
	}
	term.in = strings.NewReader("ye")
	if answer, err := term.ask(t.Context(), "go on? "); err == nil {
		t.Errorf("an answer cut short was taken as %q", answer)
	}
	term.in = strings.NewReader(strings.Repeat("y", 5000))
	if answer, err := term.ask(t.Context(), "go on? "); err == nil {
		t.Errorf("an answer without end was taken as %q", answer)
	}
}

func TestASignalEndsTheWaitForAnAnswer(t *testing.T) {
	term, _, errs := screen()
	in, out := io.Pipe()
	defer out.Close()
	term.in = in
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errInterrupted)
	if answer, err := term.ask(ctx, "go on? "); !errors.Is(err, errInterrupted) {
		t.Errorf("got %q, %v; want %v", answer, err, errInterrupted)
	}
	term.interrupt()
	if !strings.Contains(errs.String(), "stopping") {
		t.Errorf("printed %q", errs)
	}
}
