package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"platter/block"
	"platter/catalog"
	"platter/image"
	"platter/image/keys"
	"platter/image/repo"
	"platter/image/store/s3"
	"platter/internal/job"
)

// Exit statuses. README.md lists them for operators; they never change.
const (
	exitDone         = 0
	exitFailed       = 1
	exitUsage        = 2
	exitIncomplete   = 3 // done, but data is missing, fuzzy or untrusted
	exitNoRepository = 10
	exitLocked       = 11
	exitCredentials  = 12
	exitDamage       = 13
	exitRefused      = 14
	exitInterrupted  = 130
)

var (
	// errIncomplete: the work is done, but an image lacks data or is fuzzy.
	errIncomplete = errors.New("incomplete")
	// errInterrupted is the cause of a context that a signal ended.
	errInterrupted = errors.New("interrupted")
)

// causes says which error gives which status. Where several apply, the first
// in this order wins; an error that wraps none of them is exitFailed, which
// has its place before exitIncomplete.
var causes = [...]struct {
	status int
	errs   []error
}{
	{exitInterrupted, []error{errInterrupted}},
	{exitDamage, []error{job.ErrDamaged, image.ErrCorrupt}},
	{exitRefused, []error{block.ErrRefused}},
	{exitCredentials, []error{keys.ErrCredentials, keys.ErrNoDataKey, keys.ErrRights}},
	{exitLocked, []error{catalog.ErrLocked}},
	{exitNoRepository, []error{repo.ErrNoRepository, s3.ErrNoBucket}},
	{exitUsage, []error{job.ErrUsage, job.ErrConfirm}},
	{exitFailed, nil},
	{exitIncomplete, []error{errIncomplete, job.ErrNotBooted}},
}

// status is the exit status for what a command returned. With ctx ended by a
// signal, whatever failed then failed because of it.
func status(ctx context.Context, err error) int {
	if err == nil {
		return exitDone
	}
	if errors.Is(context.Cause(ctx), errInterrupted) {
		return exitInterrupted
	}
	worst := len(causes)
	for _, e := range parts(err) {
		worst = min(worst, rank(e))
	}
	return causes[worst].status
}

// rank is the place in causes of one error.
func rank(err error) int {
	failed := 0
	for i, c := range causes {
		if c.status == exitFailed {
			failed = i
		}
		for _, e := range c.errs {
			if errors.Is(err, e) {
				return i
			}
		}
	}
	return failed
}

// parts takes errors.Join apart. Other errors that wrap several are one error
// with several properties.
func parts(err error) []error {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return []error{err}
	}
	var list []error
	var lines []string
	for _, e := range joined.Unwrap() {
		list = append(list, parts(e)...)
		lines = append(lines, e.Error())
	}
	if err.Error() != strings.Join(lines, "\n") {
		return []error{err}
	}
	return list
}

// An advised error carries what to do about it, for a line of its own.
type advised struct {
	error
	advice string
}

func (a advised) Unwrap() error { return a.error }

// advise adds what to do to an error.
func advise(err error, format string, args ...any) error {
	return advised{err, fmt.Sprintf(format, args...)}
}

// usagef is a mistake in the command line.
func usagef(format string, args ...any) error {
	return marked{fmt.Sprintf(format, args...), job.ErrUsage}
}

// incompletef is work that is done, yet not all of it can be trusted.
func incompletef(format string, args ...any) error {
	return marked{fmt.Sprintf(format, args...), errIncomplete}
}

// A marked error is of a kind, which its text need not say.
type marked struct {
	text string
	kind error
}

func (m marked) Error() string   { return m.text }
func (m marked) Is(e error) bool { return e == m.kind }

// complain prints what went wrong, once, and returns the exit status.
func complain(ctx context.Context, t *terminal, err error) int {
	code := status(ctx, err)
	if err == nil {
		return code
	}
	t.clear()
	if t.json {
		line, _ := object("exit_error", struct {
			Code    int    `json:"code"`
			Message string `json:"message"`
		}{code, oneLine(ctx, err)})
		t.err.Write(line)
		return code
	}
	for _, e := range parts(err) {
		t.notef("platter: %s", oneLine(ctx, e))
		if a := (advised{}); errors.As(e, &a) {
			t.notef("  %s", a.advice)
		}
	}
	return code
}

// oneLine is the text of an error, joined ones by semicolons.
func oneLine(ctx context.Context, err error) string {
	if cause := context.Cause(ctx); cause != nil && errors.Is(err, context.Canceled) {
		return cause.Error()
	}
	return strings.ReplaceAll(err.Error(), "\n", "; ")
}
