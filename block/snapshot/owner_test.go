package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"platter/block"
)

func TestRunningTellsDeadProcesses(t *testing.T) {
	me := ThisProcess()
	if !Running(me) {
		t.Fatalf("%s is this process, and does not run", me)
	}
	cmd := exec.Command("true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	words := strings.Split(me, "-")
	name := func(boot, ns, pid, start string) string { return strings.Join([]string{boot, ns, pid, start}, "-") }
	ended := fmt.Sprint(cmd.Process.Pid)
	for run, want := range map[string]bool{
		name(words[0], words[1], ended, words[3]):      false, // ended
		name(words[0], words[1], words[2], "1"):        false, // the number was another's before
		name("00000000", words[1], words[2], words[3]): false, // of another boot
		name("00000000", "1", ended, "1"):              false,
		name(words[0], "1", ended, "1"):                true, // of a container, perhaps
		name(words[0], words[1], "x", words[3]):        true,
		"":                                             true,
		"some":                                         true,
	} {
		if got := Running(run); got != want {
			t.Errorf("%q: got %v, want %v", run, got, want)
		}
	}
}

func TestTagsOfConsumersDiffer(t *testing.T) {
	tags := map[string]Consumer{}
	for _, c := range []Consumer{{"ab", "c/d"}, {"a", "bc/d"}, {"ab", "c/e"}, {"ac", "c/d"}} {
		if was, ok := tags[c.Tag()]; ok || len(c.Tag()) != 16 {
			t.Errorf("%v and %v have the tag %s", was, c, c.Tag())
		}
		tags[c.Tag()] = c
	}
}

// shelf is a provider that has snapshots and removes them.
type shelf struct {
	Provider
	all   []Snapshot
	stuck string
}

func (*shelf) Name() string { return "shelf" }

func (s *shelf) Snapshots(context.Context, block.Device) ([]Snapshot, error) { return s.all, nil }

func (s *shelf) Remove(_ context.Context, x Snapshot) error {
	if x.ID == s.stuck {
		return errors.New("stuck")
	}
	s.all = slices.DeleteFunc(slices.Clone(s.all), func(y Snapshot) bool { return x.ID == y.ID })
	return nil
}

// D50: what a dead run left behind goes; what the next image is compared with,
// what other consumers keep, and what is in use stays.
func TestCleanRemovesLeftovers(t *testing.T) {
	mine, other := Consumer{"a", "h/v"}, Consumer{"b", "h/v"}
	dead, alive := "00000000-1-1-1", ThisProcess()
	p := &shelf{all: []Snapshot{
		{ID: "base", Tag: mine.Tag(), Run: dead, Kept: true},
		{ID: "older", Tag: mine.Tag(), Run: dead, Kept: true},
		{ID: "left", Tag: mine.Tag(), Run: dead},
		{ID: "stuck", Tag: mine.Tag(), Run: dead},
		{ID: "twin", Tag: mine.Tag(), Run: alive},
		{ID: "others", Tag: other.Tag(), Run: dead, Kept: true},
		{ID: "others left", Tag: other.Tag(), Run: dead},
		{ID: "others now", Tag: other.Tag(), Run: alive},
	}, stuck: "stuck"}
	removed, err := Clean(t.Context(), p, block.Device{}, mine, "base")
	if err == nil || len(removed) != 3 {
		t.Errorf("removed %v, %v; want 3 and an error for the one that is stuck", removed, err)
	}
	var left []string
	for _, s := range p.all {
		left = append(left, s.ID)
	}
	if want := []string{"base", "stuck", "twin", "others", "others now"}; !slices.Equal(left, want) {
		t.Errorf("left %v, want %v", left, want)
	}
	// A base that could not be marked any more is one all the same.
	p.all = []Snapshot{{ID: "base", Tag: mine.Tag(), Run: dead}}
	if removed, err := Clean(t.Context(), p, block.Device{}, mine, "base"); err != nil || len(removed) > 0 {
		t.Errorf("removed %v, %v; want nothing", removed, err)
	}
}
