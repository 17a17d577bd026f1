package firsthour

import (
	"bufio"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
)

// A post is the mail server of the machine: it keeps the headings of letters.
type post struct {
	mu       sync.Mutex
	headings []string
}

func newPost(t *testing.T) *post {
	t.Helper()
	l, err := net.Listen("tcp", "localhost:25")
	if err != nil {
		t.Fatal(err)
	}
	p := &post{}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { defer c.Close(); p.serve(t, c) })
		}
	})
	t.Cleanup(func() { l.Close(); all.Wait() })
	return p
}

func (p *post) serve(t *testing.T, c net.Conn) {
	in, letter := bufio.NewScanner(c), false
	say := func(text string) { fmt.Fprint(c, text+"\r\n") }
	say("220 guest")
	for in.Scan() {
		line := in.Text()
		word, _, _ := strings.Cut(line, " ")
		switch {
		case letter && line == ".":
			letter = false
			say("250 taken")
		case letter:
			if heading, ok := strings.CutPrefix(line, "Subject: "); ok {
				t.Log("mail: " + heading)
				p.mu.Lock()
				p.headings = append(p.headings, heading)
				p.mu.Unlock()
			}
		case strings.EqualFold(word, "DATA"):
			letter = true
			say("354 go on")
		case strings.EqualFold(word, "QUIT"):
			say("221 bye")
			return
		default:
			say("250 guest")
		}
	}
}

// has reports whether a letter with words in its heading has come.
func (p *post) has(words string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.ContainsFunc(p.headings, func(h string) bool { return strings.Contains(h, words) })
}
