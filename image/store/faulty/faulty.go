// Package faulty is a store with faults made to order, for tests: it passes
// operations on to another store, fails or damages those it was told to, and
// keeps a record of all.
//
// Nothing is random: a rule says which call of which kind on which names.
package faulty

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"platter/image/store"
)

// Kind is a kind of operation.
type Kind string

// The operations of a store.
const (
	Any    Kind = "" // in rules and counts
	Put    Kind = "put"
	ReadAt Kind = "read"
	Get    Kind = "get"
	Head   Kind = "head"
	List   Kind = "list"
	Delete Kind = "delete"
	Now    Kind = "now"
)

// An Op is one operation on record.
type Op struct {
	Kind   Kind
	Name   string // of the object, or the prefix of a List; empty for Now
	Offset int64  // of a ReadAt
	Size   int64  // bytes put, asked for or got
	Err    error  // what the caller was told
}

// String returns "put segments/ab/x" and the like.
func (o Op) String() string {
	s := strings.TrimSpace(string(o.Kind) + " " + o.Name)
	if o.Err != nil {
		s += ": " + o.Err.Error()
	}
	return s
}

// A Rule makes operations fail. Its zero value matches every operation.
type Rule struct {
	Kind   Kind   // Any for all
	Prefix string // what the name begins with
	// Nth is which of the matching operations fails, from 1, counted from
	// when the rule was made; 0 for all of them.
	Nth int
	// After lets the operation have its effect and tells of an error all the
	// same, as when an answer is lost.
	After bool
	// Err is wrapped by the error returned; ErrInjected if nil.
	Err error
	// Damage, if set, does not fail the operation, but returns what a ReadAt
	// or Get read as Damage changes it. It may change p in place and return
	// it, or less of it: a ReadAt then fails with io.ErrUnexpectedEOF.
	Damage func(p []byte) []byte
}

// ErrInjected is the error of rules that name none.
var ErrInjected = errors.New("injected fault")

// A Store passes operations on to another store. It is safe for concurrent
// use; then which operation is the nth is up to the scheduler.
type Store struct {
	under store.Store

	mu    sync.Mutex
	ops   []Op
	rules []*rule
	room  int64 // bytes that may still be put; negative for no bound
	skew  time.Duration
	hook  func(Op)
}

type rule struct {
	Rule
	seen int
}

var _ store.Store = (*Store)(nil)

// New returns a Store over under that has no faults yet.
func New(under store.Store) *Store { return &Store{under: under, room: -1} }

// Fail adds a rule. The first rule that matches an operation decides; all that
// match count it.
func (s *Store) Fail(r Rule) {
	if r.Err == nil {
		r.Err = ErrInjected
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rules = append(s.rules, &rule{Rule: r})
}

// SetRoom lets n more bytes be put. A Put of more than is left fails with
// store.ErrFull and takes nothing. Negative n ends that.
func (s *Store) SetRoom(n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.room = n
}

// SetSkew adds d to the store's clock as Now tells it.
func (s *Store) SetSkew(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.skew = d
}

// Before calls f with each operation before it begins; nil ends that. f may
// use the store underneath, so as to do something between two steps of what is
// tested.
func (s *Store) Before(f func(Op)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hook = f
}

// Heal removes all rules, the bound on room and the skew.
func (s *Store) Heal() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rules, s.room, s.skew = nil, -1, 0
}

// Ops returns the record of finished operations, in the order in which they
// ended.
func (s *Store) Ops() []Op {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Op(nil), s.ops...)
}

// Count returns how many operations of a kind, or Any, on names that begin
// with prefix are on record.
func (s *Store) Count(kind Kind, prefix string) int {
	n := 0
	for _, op := range s.Ops() {
		if op.matches(kind, prefix) {
			n++
		}
	}
	return n
}

// Forget empties the record.
func (s *Store) Forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ops = nil
}

func (o Op) matches(kind Kind, prefix string) bool {
	return (kind == Any || kind == o.Kind) && strings.HasPrefix(o.Name, prefix)
}

// begin returns the rule that decides on op, nil if none does.
func (s *Store) begin(op Op) *rule {
	s.mu.Lock()
	hook := s.hook
	s.mu.Unlock()
	if hook != nil {
		hook(op)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var decides *rule
	for _, r := range s.rules {
		if !op.matches(r.Kind, r.Prefix) {
			continue
		}
		r.seen++
		if decides == nil && (r.Nth == 0 || r.Nth == r.seen) {
			decides = r
		}
	}
	return decides
}

func (s *Store) end(op Op, err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	op.Err = err
	s.ops = append(s.ops, op)
	return err
}

// do runs f as op unless a rule says otherwise.
func (s *Store) do(op Op, f func(*rule) error) error {
	r := s.begin(op)
	if r == nil || r.Damage != nil {
		return s.end(op, f(r))
	}
	if r.After {
		if err := f(nil); err != nil {
			return s.end(op, err)
		}
	}
	return s.end(op, fmt.Errorf("%s: %w", op, r.Err))
}

// Location returns that of the store underneath.
func (s *Store) Location() string { return s.under.Location() }

// Close closes the store underneath.
func (s *Store) Close() error { return s.under.Close() }

// Now implements store.Store.
func (s *Store) Now(ctx context.Context) (now time.Time, err error) {
	err = s.do(Op{Kind: Now}, func(*rule) error {
		now, err = s.under.Now(ctx)
		return err
	})
	if err != nil {
		return time.Time{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return now.Add(s.skew), nil
}
