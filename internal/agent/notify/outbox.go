// Package notify tells people and services what happened: by mail, webhooks
// and pings.
//
// What is to be told is put into an outbox on disk, and stays there until it
// was taken: a restart or a server that is away loses nothing. The outbox is
// bounded; what is given up is counted and told.
package notify

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"platter/internal/agent/config"
	"platter/internal/durable"
)

// A Message is what is told to one notifier.
type Message struct {
	ID       string          `json:"id"` // the same for the same message: it is put into the outbox once
	Title    string          `json:"title,omitempty"`
	Body     string          `json:"body,omitempty"`
	Urgent   bool            `json:"urgent,omitempty"`
	Ping     string          `json:"ping,omitempty"` // of healthchecks: start, success or fail
	Job      string          `json:"job,omitempty"`
	Data     json.RawMessage `json:"data,omitempty"` // for programs
	Notifier string          `json:"notifier"`

	Created  time.Time `json:"created"`
	Attempts int       `json:"attempts,omitempty"`
	Next     time.Time `json:"next,omitzero"`     // not tried before
	Problem  string    `json:"problem,omitempty"` // of the last attempt
}

// Pings of healthchecks.
const (
	PingStart   = "start"
	PingSuccess = "success"
	PingFail    = "fail"
)

// An Outbox holds what was not told yet.
type Outbox struct {
	dir  string
	now  func() time.Time
	most int // messages
}

// Bounds of an outbox.
const (
	maxMessages = 1000
	attemptTime = 30 * time.Second
	firstPause  = time.Minute
	longPause   = time.Hour
	giveUpAfter = 3 * 24 * time.Hour
	staleStart  = time.Hour // a ping that a run began says nothing after that
)

// In returns the outbox in a machine's state folder.
func In(dir string) *Outbox {
	return &Outbox{dir: filepath.Join(dir, "outbox"), now: time.Now, most: maxMessages}
}

// Put puts a message into the outbox for each notifier that wants it. One that
// is there already stays as it is.
func (o *Outbox) Put(m Message, notifiers []config.Notifier) error {
	for _, n := range notifiers {
		if !wants(&n, &m) {
			continue
		}
		m.Notifier, m.Created = n.Name, o.now()
		if err := o.put(&m); err != nil {
			return fmt.Errorf("outbox: %w", err)
		}
	}
	return nil
}

// wants reports whether a message is for a notifier: pings are for those that
// count runs, all else is for people.
func wants(n *config.Notifier, m *Message) bool {
	if (n.Kind == config.Healthchecks) != (m.Ping != "") {
		return false
	}
	return m.Ping == "" || len(n.Jobs) == 0 || slices.Contains(n.Jobs, m.Job)
}

func (o *Outbox) put(m *Message) error {
	if err := os.MkdirAll(o.dir, 0o700); err != nil {
		return err
	}
	if _, err := os.Stat(o.path(m)); err == nil {
		return nil
	}
	return o.write(m)
}

func (o *Outbox) path(m *Message) string {
	return filepath.Join(o.dir, strings.ReplaceAll(m.Notifier+"-"+m.ID, "/", "_")+".json")
}

func (o *Outbox) write(m *Message) error {
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return durable.Replace(o.path(m), text)
}

// Waiting returns what was not told yet, oldest first.
func (o *Outbox) Waiting() ([]Message, error) {
	entries, err := os.ReadDir(o.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("outbox: %w", err)
	}
	var list []Message
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".json") || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		var m Message
		text, err := os.ReadFile(filepath.Join(o.dir, e.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // told meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("outbox: %w", err)
		}
		if json.Unmarshal(text, &m) == nil {
			list = append(list, m)
		}
	}
	slices.SortFunc(list, func(a, b Message) int {
		return cmp.Or(a.Created.Compare(b.Created), strings.Compare(a.ID, b.ID))
	})
	return list, nil
}

// A Report says what became of messages.
type Report struct {
	Sent    int
	Waiting int
	GivenUp []Message // after too long, for being too many, or with nobody to send them
	Failed  []Message // that will be tried again
}

// Deliver tells what is due. Messages of a notifier keep their order: where one
// fails, those behind it wait. While another process delivers it does nothing.
func (o *Outbox) Deliver(ctx context.Context, notifiers []config.Notifier) (*Report, error) {
	r := new(Report)
	if _, err := os.Stat(o.dir); errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	lock, err := os.OpenFile(filepath.Join(o.dir, ".lock"), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("outbox: %w", err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return r, nil
	}
	list, err := o.Waiting()
	if err != nil {
		return nil, err
	}
	behind := map[string]bool{} // notifiers that do not answer
	for i := range list {
		m := &list[i]
		if ctx.Err() != nil || behind[m.Notifier] && len(list)-i <= o.most {
			r.Waiting++
			continue
		}
		if err := o.deliver(ctx, m, notifiers, len(list)-i > o.most, r); err != nil {
			return r, fmt.Errorf("outbox: %w", err)
		}
		if _, err := os.Stat(o.path(m)); err == nil {
			behind[m.Notifier] = true
			r.Waiting++
		}
	}
	return r, nil
}

// deliver makes one attempt at a message that is due.
func (o *Outbox) deliver(ctx context.Context, m *Message, notifiers []config.Notifier, tooMany bool, r *Report) error {
	now := o.now()
	i := slices.IndexFunc(notifiers, func(n config.Notifier) bool { return n.Name == m.Notifier })
	switch {
	case m.Ping == PingStart && now.Sub(m.Created) > staleStart:
		return os.Remove(o.path(m))
	case i < 0:
		m.Problem = "it is no longer in the config"
		fallthrough
	case tooMany, now.Sub(m.Created) > giveUpAfter:
		r.GivenUp = append(r.GivenUp, *m)
		return os.Remove(o.path(m))
	case m.Next.After(now) && m.Next.Sub(now) <= longPause: // else the clock was set back
		return nil
	}
	attempt, cancel := context.WithTimeout(ctx, attemptTime)
	defer cancel()
	if err := send(attempt, &notifiers[i], m); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		m.Attempts++
		m.Problem = err.Error()
		m.Next = now.Add(min(firstPause<<min(m.Attempts-1, 10), longPause))
		r.Failed = append(r.Failed, *m)
		return o.write(m)
	}
	r.Sent++
	return os.Remove(o.path(m))
}
