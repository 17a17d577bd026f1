package qemu

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os/exec"
	"regexp"
	"strings"
	"sync"
)

// A process is a running machine. Its serial port is read by one goroutine
// and looked at by await; serial belongs to the caller of await and stop.
type process struct {
	cmd        *exec.Cmd
	in         io.Writer
	chunks     chan []byte
	done       chan struct{} // closed to end the reader
	serial     bytes.Buffer
	complaints bytes.Buffer // QEMU's own, whole once it has stopped
	stopped    sync.Once
}

// read passes on what the serial port says until it closes.
func (p *process) read(out io.Reader) {
	defer close(p.chunks)
	for {
		b := make([]byte, 4096)
		n, err := out.Read(b)
		if err != nil {
			return
		}
		select {
		case p.chunks <- b[:n]:
		case <-p.done:
			return
		}
	}
}

// await returns when the port has shown n login prompts, the last of them
// being the last thing it said.
func (p *process) await(ctx context.Context, n int) (string, error) {
	for {
		if prompt, ok := prompt(plain(p.serial.Bytes()), n); ok {
			return prompt, nil
		}
		if err := p.more(ctx); err != nil {
			return "", err
		}
	}
}

// typed types lines, each when its time has come.
func (p *process) typed(ctx context.Context, lines []Line) error {
	seen := 0
	for _, l := range lines {
		if err := p.until(ctx, l.After, &seen); err != nil {
			return fmt.Errorf("before %q was typed: %w", l.Text, err)
		}
		if _, err := io.WriteString(p.in, l.Text+"\r"); err != nil {
			return err
		}
	}
	return nil
}

// until returns when the port has said a text, after the first seen bytes of what
// it said, which grow by that.
func (p *process) until(ctx context.Context, text string, seen *int) error {
	for {
		said := plain(p.serial.Bytes())
		if i := strings.Index(said[min(*seen, len(said)):], text); i >= 0 {
			*seen += i + len(text)
			return nil
		}
		if err := p.more(ctx); err != nil {
			return err
		}
	}
}

// more waits for what the port says next.
func (p *process) more(ctx context.Context) error {
	select {
	case b, ok := <-p.chunks:
		if !ok {
			if ctx.Err() != nil { // stopped by us: say why
				return context.Cause(ctx)
			}
			return errStopped
		}
		p.serial.Write(b)
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// stop kills the machine and waits until it is gone.
func (p *process) stop() {
	p.stopped.Do(func() {
		close(p.done)
		p.cmd.Process.Kill()
		for range p.chunks {
		}
		p.cmd.Wait() // killed: its status says nothing
	})
}

// loginPrompt is a line that ends in a prompt: a host's name, "login:" and no
// more. A message that happens to hold the word is not one.
var loginPrompt = regexp.MustCompile(`(?m)^[A-Za-z0-9][A-Za-z0-9.-]* login:[ ]*$`)

// prompt returns the prompt that serial ends in, if it is the nth or later.
func prompt(serial string, n int) (string, bool) {
	all := loginPrompt.FindAllStringIndex(serial, -1)
	if len(all) < n || all[len(all)-1][1] != len(serial) {
		return "", false
	}
	last := all[len(all)-1]
	return string(bytes.TrimSpace([]byte(serial[last[0]:last[1]]))), true
}

// terminalCodes are the escape sequences that firmware and boot loaders send,
// and carriage returns.
var terminalCodes = regexp.MustCompile(`\x1b\[[0-9;?=]*[ -/]*[@-~]|\x1b[()][0-9A-B]|\x1b[@-Z\\^_=>78cM]|\r|\x00`)

// plain removes terminal codes.
func plain(b []byte) string { return terminalCodes.ReplaceAllString(string(b), "") }
