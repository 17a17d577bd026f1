// Package event is what the agent tells of its jobs: every time that a job was
// due ends in a run, or is told to have been skipped or missed.
package event

import "time"

// A Kind says what happened.
type Kind string

// Kinds of events. For every time that a job is due there is, in the end, one
// Finished that is Final, or it is counted by one Skipped or one Missed.
const (
	Started  Kind = "started"  // an attempt at a run
	Finished Kind = "finished" // an attempt, well or not
	Skipped  Kind = "skipped"  // due while an earlier run of the job was not over yet
	Missed   Kind = "missed"   // due while nobody was there; one run catches up on all of them
	Clock    Kind = "clock"    // the machine's clock was set by more than a minute
	Trouble  Kind = "trouble"  // what the agent must remember cannot be saved; without an Error it can again
)

// An Event is one of them.
type Event struct {
	Kind Kind      `json:"event"`
	At   time.Time `json:"at"` // by the machine's clock
	Job  string    `json:"job,omitempty"`
	Does string    `json:"kind,omitempty"` // backup, verify, prune, gc or boot
	// Devices and Volumes are those that the config names.
	Devices []string `json:"devices,omitempty"`
	Volumes []string `json:"volumes,omitempty"`
	// Due is when the schedule wanted the run; zero for one asked for by hand.
	// Of several that were skipped or missed it is the first, and Last the last.
	Due   time.Time `json:"due,omitzero"`
	Last  time.Time `json:"last,omitzero"`
	Count int       `json:"count,omitempty"` // of times skipped or missed

	// Of Started and Finished.
	Run     string `json:"run,omitempty"`     // the same for both
	Attempt int    `json:"attempt,omitempty"` // from 1

	// Of Finished.
	Exit   int           `json:"exit"`             // status of the command; -1 if it could not be started or was killed
	Error  string        `json:"error,omitempty"`  // what went wrong; of all others the reason, if there is one
	Final  bool          `json:"final,omitempty"`  // there will be no further attempt
	Images []string      `json:"images,omitempty"` // made, in hex
	Took   time.Duration `json:"took_ns,omitempty"`
	// Next is when the job is due again, or tried again; zero for never.
	Next time.Time `json:"next,omitzero"`
}

// An Observer is told of events, one at a time and in their order. It must not
// take long: nothing is started meanwhile.
type Observer interface {
	Observe(Event)
}
