package notify

import (
	"bufio"
	"crypto/tls"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"platter/internal/agent/config"
)

// A post is a mail server on this machine that keeps what it gets.
type post struct {
	net.Listener
	config   *tls.Config
	implicit bool // TLS from the first byte
	offers   string
	mu       sync.Mutex
	letters  []letterGot
	refuse   bool
}

type letterGot struct {
	from, to, auth, data string
	tls                  bool
}

// newPost starts a server whose certificate is in the file that it returns.
func newPost(t *testing.T, implicit bool, offers string) (*post, string) {
	t.Helper()
	donor := httptest.NewTLSServer(http.NotFoundHandler())
	donor.Close()
	ca := file(t, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: donor.Certificate().Raw})))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &post{Listener: l, config: &tls.Config{Certificates: donor.TLS.Certificates}, implicit: implicit, offers: offers}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { p.serve(c) })
		}
	})
	t.Cleanup(func() { l.Close(); all.Wait() })
	return p, ca
}

func (p *post) serve(c net.Conn) {
	defer func() { c.Close() }()
	var got letterGot
	if p.implicit {
		c, got.tls = tls.Server(c, p.config), true
	}
	r := bufio.NewReader(c)
	say := func(format string, args ...any) { fmt.Fprintf(c, format+"\r\n", args...) }
	say("220 post")
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		line = strings.TrimSpace(line)
		verb, rest, _ := strings.Cut(line, " ")
		switch strings.ToUpper(verb) {
		case "EHLO":
			say("250-post")
			if !got.tls && p.config != nil && strings.Contains(p.offers, "STARTTLS") {
				say("250-STARTTLS")
			}
			if got.tls {
				say("250-AUTH PLAIN")
			}
			say("250 8BITMIME")
		case "STARTTLS":
			say("220 go on")
			c, got.tls = tls.Server(c, p.config), true
			r = bufio.NewReader(c)
		case "AUTH":
			b, _ := base64.StdEncoding.DecodeString(strings.TrimPrefix(rest, "PLAIN "))
			got.auth = string(b)
			if p.refuse {
				say("535 wrong password")
				continue
			}
			say("235 welcome")
		case "MAIL":
			got.from = rest
			say("250 ok")
		case "RCPT":
			got.to += rest + ";"
			say("250 ok")
		case "DATA":
			say("354 go on")
			for {
				line, err := r.ReadString('\n')
				if err != nil {
					return
				}
				if line == ".\r\n" {
					break
				}
				got.data += line
			}
			p.mu.Lock()
			p.letters = append(p.letters, got)
			p.mu.Unlock()
			say("250 taken")
		case "QUIT":
			say("221 bye")
			return
		default:
			say("250 ok")
		}
	}
}

func TestMailGoesByTLSByStartTLSAndInClearToThisMachine(t *testing.T) {
	m := Message{ID: "1-raised", Title: "platter on db1: late: db1/root", Body: "the last good image is of Monday\n.\nend", Urgent: true}
	for _, c := range []struct {
		security string
		implicit bool
		offers   string
		user     bool
		sent     int
	}{
		{config.TLS, true, "", true, 1},
		{config.StartTLS, false, "STARTTLS", true, 1},
		{config.StartTLS, false, "", true, 0}, // somebody between took the offer away
		{config.Plain, false, "", false, 1},
	} {
		p, ca := newPost(t, c.implicit, c.offers)
		n := config.Notifier{
			Name: "mail", Kind: config.Mail, Server: p.Addr().String(), Security: c.security, CAFile: ca,
			From: "platter@example.org", To: []string{"alice@example.org", "bob@example.org"},
		}
		if c.user {
			n.User, n.PasswordFile = "platter", file(t, "s3cret\n")
		}
		o, _ := newOutbox(t)
		o.mustPut(t, m, n)
		r := o.mustDeliver(t, n)
		p.mu.Lock()
		letters := p.letters
		p.mu.Unlock()
		if r.Sent != c.sent || len(letters) != c.sent {
			t.Errorf("%s %q: %+v, %d letters", c.security, c.offers, r, len(letters))
			continue
		}
		if c.sent == 0 {
			continue
		}
		got := letters[0]
		for _, want := range []string{
			"Subject: " + m.Title, "From: <platter@example.org>", "Message-ID: <platter-1-raised-", "Auto-Submitted: auto-generated",
			"the last good image is of Monday\r\n..\r\nend", "Importance: high",
		} {
			if !strings.Contains(got.data, want) {
				t.Errorf("%s: no %q in\n%s", c.security, want, got.data)
			}
		}
		if !strings.Contains(got.to, "alice") || !strings.Contains(got.to, "bob") || got.tls != (c.security != config.Plain) {
			t.Errorf("%s: %+v", c.security, got)
		}
		if c.user && got.auth != "\x00platter\x00s3cret" {
			t.Errorf("%s: logged in with %q", c.security, got.auth)
		}
	}
}

func TestMailThatIsRefusedWaits(t *testing.T) {
	p, ca := newPost(t, true, "")
	p.refuse = true
	n := config.Notifier{
		Name: "mail", Kind: config.Mail, Server: p.Addr().String(), Security: config.TLS, CAFile: ca,
		From: "platter@example.org", To: []string{"alice@example.org"}, User: "platter", PasswordFile: file(t, "s3cret"),
	}
	o, _ := newOutbox(t)
	o.mustPut(t, Message{ID: "a", Title: "t"}, n)
	if r := o.mustDeliver(t, n); len(r.Failed) != 1 || !strings.Contains(r.Failed[0].Problem, "wrong password") {
		t.Errorf("%+v", r)
	}
	n.CAFile = ""
	o, _ = newOutbox(t)
	o.mustPut(t, Message{ID: "a", Title: "t"}, n)
	if r := o.mustDeliver(t, n); len(r.Failed) != 1 || !strings.Contains(r.Failed[0].Problem, "certificate") {
		t.Errorf("%+v", r)
	}
}
