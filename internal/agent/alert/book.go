// Package alert knows what is wrong with the backups of this machine, and says
// each thing once.
//
// A Book holds the alerts across restarts. A condition that begins to hold
// raises an alert, one that ends resolves it; while it lasts nothing is said
// again, unless a rule wants it repeated. What is found odd about an image
// never ends by itself: it suspends pruning of its volume until somebody says
// that it is right.
package alert

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"platter/internal/agent/lines"
)

// A Kind of alert says what is wrong.
type Kind string

// Kinds of alerts.
const (
	Late     Kind = "late"     // no good image for too long
	Failed   Kind = "failed"   // a run
	Skipped  Kind = "skipped"  // a run that was due was not made
	Damaged  Kind = "damaged"  // a verification found damage
	Unbooted Kind = "unbooted" // no system came up on an image
	Tracker  Kind = "tracker"  // one missed a write
	Changed  Kind = "changed"  // far more than is usual
	Entropy  Kind = "entropy"  // what is new cannot be compressed, unlike before
	Dedupe   Kind = "dedupe"   // what is new was never seen, unlike before
	Shrunk   Kind = "shrunk"   // an image holds far less than the last
	Clock    Kind = "clock"    // dates of images do not follow each other
	Unsent   Kind = "unsent"   // messages were given up
)

// Kinds returns every kind of alert there is.
func Kinds() []Kind {
	return []Kind{Late, Failed, Skipped, Damaged, Unbooted, Tracker, Changed, Entropy, Dedupe, Shrunk, Clock, Unsent}
}

// Suspends reports whether alerts of a kind suspend the pruning of their
// volume, and stay until they are acknowledged.
func (k Kind) Suspends() bool {
	return k == Changed || k == Entropy || k == Dedupe || k == Shrunk || k == Clock || k == Tracker
}

// A Condition is something that may be wrong.
type Condition struct {
	Kind    Kind   `json:"kind"`
	Subject string `json:"subject"` // volume, job or repository
	Text    string `json:"text"`
	Remedy  string `json:"remedy,omitempty"`
}

func (c *Condition) key() string { return string(c.Kind) + " " + c.Subject }

// An Alert is a condition that was found to hold.
type Alert struct {
	ID int `json:"id"` // from 1, never used twice
	Condition
	Raised   time.Time `json:"raised"`
	Told     time.Time `json:"told"` // last, that it holds
	Resolved time.Time `json:"resolved,omitzero"`
	Acked    time.Time `json:"acknowledged,omitzero"`
	By       string    `json:"by,omitempty"` // who acknowledged it
}

// Open reports whether the alert's condition still holds.
func (a *Alert) Open() bool { return a.Resolved.IsZero() }

// A What says what became of an alert.
type What string

// What becomes of alerts.
const (
	WasRaised   What = "raised"
	WasResolved What = "resolved"
	Repeated    What = "repeated"
)

// A Change is something to tell people.
type Change struct {
	Alert Alert     `json:"alert"`
	What  What      `json:"what"`
	Time  time.Time `json:"time"`
}

// ID is the same for the same change, even where a crash made it happen again.
func (c *Change) ID() string {
	id := fmt.Sprintf("%d-%s", c.Alert.ID, c.What)
	if c.What == Repeated {
		id += c.Alert.Told.UTC().Format("-20060102T150405")
	}
	return id
}

// A Book holds the alerts of one machine.
type Book struct {
	path string
	now  func() time.Time
	// tell takes changes over before they are kept: after a crash in between
	// they come once more, under the same ID. It may be nil.
	tell func([]Change) error
}

// FileName is the name of the file in the state folder.
const FileName = "alerts.jsonl"

// keepResolved is how long alerts are kept that are over.
const keepResolved = 90 * 24 * time.Hour

// In returns the book in a machine's state folder. No file is made yet. Tell
// takes over what is to be told to people, and may be nil.
func In(dir string, tell func([]Change) error) *Book {
	return &Book{path: filepath.Join(dir, FileName), now: time.Now, tell: tell}
}

// List returns the alerts, those that are over too, oldest first.
func (b *Book) List() ([]Alert, error) {
	all, err := lines.Read(b.path)
	if err != nil {
		return nil, fmt.Errorf("alerts: %w", err)
	}
	return parse(all)
}

func parse(all [][]byte) (list []Alert, err error) {
	for i, line := range all {
		var a Alert
		if err := json.Unmarshal(line, &a); err != nil {
			return nil, fmt.Errorf("alerts: line %d: %w", i+1, err)
		}
		list = append(list, a)
	}
	return list, nil
}

// Update lets change work on the alerts, and keeps and tells what came of it.
func (b *Book) Update(change func(*Update)) ([]Change, error) {
	changes, err := b.update(change)
	if err != nil {
		return nil, fmt.Errorf("alerts: %w", err)
	}
	return changes, nil
}

func (b *Book) update(change func(*Update)) ([]Change, error) {
	f, err := lines.Open(b.path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	all, err := f.Lines()
	if err != nil {
		return nil, err
	}
	u := &Update{now: b.now()}
	if u.list, err = parse(all); err != nil {
		return nil, err
	}
	for _, a := range u.list {
		u.last = max(u.last, a.ID)
	}
	change(u)
	if len(u.changes) > 0 && b.tell != nil {
		if err := b.tell(u.changes); err != nil {
			return nil, err
		}
	}
	if !u.touched {
		return nil, nil
	}
	u.forget()
	var text [][]byte
	for _, a := range u.list {
		line, err := json.Marshal(a)
		if err != nil {
			return nil, err
		}
		text = append(text, line)
	}
	return u.changes, f.Replace(text)
}

// An Update is work on the alerts, which nobody else does meanwhile.
type Update struct {
	now     time.Time
	list    []Alert
	last    int // ID
	changes []Change
	touched bool
}

// open returns the alert of a condition that has not ended, or nil.
func (u *Update) open(c *Condition) *Alert {
	i := slices.IndexFunc(u.list, func(a Alert) bool { return a.Open() && a.key() == c.key() })
	if i < 0 {
		return nil
	}
	return &u.list[i]
}

// Raise says that a condition holds. An alert there is keeps its text, but for
// what was acknowledged and comes again: that is raised anew.
func (u *Update) Raise(c Condition, repeat time.Duration) {
	a := u.open(&c)
	if a != nil && c.Kind.Suspends() && !a.Acked.IsZero() {
		a.Resolved, u.touched = u.now, true
		a = nil
	}
	switch {
	case a == nil:
		u.last++
		u.list = append(u.list, Alert{ID: u.last, Condition: c, Raised: u.now, Told: u.now})
		u.say(u.list[len(u.list)-1], WasRaised)
	case repeat > 0 && a.Acked.IsZero() && u.now.Sub(a.Told) >= repeat:
		a.Told, a.Text = u.now, c.Text
		u.say(*a, Repeated)
	}
}

// Resolve says that a condition does not hold.
func (u *Update) Resolve(kind Kind, subject string) {
	if a := u.open(&Condition{Kind: kind, Subject: subject}); a != nil {
		a.Resolved = u.now
		u.say(*a, WasResolved)
	}
}

// ResolveOthers ends all of a kind but those of the subjects given.
func (u *Update) ResolveOthers(kind Kind, subjects []string) {
	for i := range u.list {
		if a := &u.list[i]; a.Kind == kind && a.Open() && !slices.Contains(subjects, a.Subject) {
			a.Resolved = u.now
			u.say(*a, WasResolved)
		}
	}
}

// Acknowledge says that somebody knows of an alert. What suspends pruning ends
// with that. It reports whether there is such an open alert.
func (u *Update) Acknowledge(id int, by string) bool {
	i := slices.IndexFunc(u.list, func(a Alert) bool { return a.ID == id && a.Open() })
	if i < 0 {
		return false
	}
	a := &u.list[i]
	if a.Acked.IsZero() {
		a.Acked, a.By, u.touched = u.now, by, true
	}
	if a.Kind.Suspends() {
		a.Resolved = u.now
		u.say(*a, WasResolved)
	}
	return true
}

func (u *Update) say(a Alert, what What) {
	u.changes = append(u.changes, Change{a, what, u.now})
	u.touched = true
}

// forget drops what is long over, but not the last ID, which is the newest.
func (u *Update) forget() {
	u.list = slices.DeleteFunc(u.list, func(a Alert) bool {
		return a.ID != u.last && !a.Open() && u.now.Sub(a.Resolved) > keepResolved
	})
}

// Everything is the subject of alerts that are of every volume.
const Everything = "*"

// Held returns why the pruning of volumes is suspended, by volume, or of
// Everything.
func Held(list []Alert) map[string]string {
	held := map[string]string{}
	for _, a := range list {
		if a.Open() && a.Kind.Suspends() {
			held[a.Subject] = strings.TrimPrefix(held[a.Subject]+"; ", "; ") +
				fmt.Sprintf("suspended by alert %d: %s", a.ID, a.Text)
		}
	}
	return held
}
