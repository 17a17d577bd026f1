package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"testing"

	"platter/block"
	"platter/catalog"
	"platter/image"
	"platter/image/keys"
	"platter/image/repo"
	"platter/internal/job"
)

func TestStatusOfOneError(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want int
	}{
		{nil, 0},
		{errors.New("read /dev/vdb at 1048576: input/output error"), 1},
		{fs.ErrNotExist, 1},
		{context.DeadlineExceeded, 1},
		{usagef("no rule"), 2},
		{job.ErrUsage, 2},
		{job.ErrConfirm, 2},
		{errIncomplete, 3},
		{repo.ErrNoRepository, 10},
		{catalog.ErrLocked, 11},
		{keys.ErrCredentials, 12},
		{keys.ErrNoDataKey, 12},
		{secretError("PLATTER_PASSWORD_FILE: no such file"), 12},
		{job.ErrDamaged, 13},
		{image.ErrCorrupt, 13},
		{block.ErrRefused, 14},
		{errInterrupted, 130},
	} {
		for name, err := range map[string]error{
			"plain": tc.err, "wrapped": fmt.Errorf("restore /dev/vdb: %w", tc.err), "advised": advise(tc.err, "do this"),
			"with a cause": fmt.Errorf("%w: %w", tc.err, fs.ErrPermission),
		} {
			if tc.err == nil {
				err = nil
			}
			if got := status(t.Context(), err); got != tc.want {
				t.Errorf("%s %v: status %d, want %d", name, tc.err, got, tc.want)
			}
		}
	}
}

func TestStatusOfSeveralErrorsIsTheWorst(t *testing.T) {
	order := []error{errInterrupted, job.ErrDamaged, block.ErrRefused, errors.New("input/output error"), errIncomplete}
	want := []int{130, 13, 14, 1, 3}
	for i := range order {
		for j := range order {
			err := errors.Join(fmt.Errorf("a: %w", order[i]), errors.Join(nil, fmt.Errorf("b: %w", order[j])))
			if got := status(t.Context(), err); got != want[min(i, j)] {
				t.Errorf("%v with %v: status %d, want %d", order[i], order[j], got, want[min(i, j)])
			}
		}
	}
}

func TestWhateverFailsAfterASignalIsInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errInterrupted)
	if got := status(ctx, fmt.Errorf("read: %w", context.Canceled)); got != exitInterrupted {
		t.Errorf("status %d, want %d", got, exitInterrupted)
	}
	if got := status(ctx, nil); got != exitDone {
		t.Errorf("done before the signal was heard: status %d, want %d", got, exitDone)
	}
}

func TestComplainPrintsEachErrorOnceWithItsAdvice(t *testing.T) {
	term, out, errs := screen()
	err := errors.Join(advise(errors.New("backup /dev/a\x1b: no"), "run %s", "this"), errors.New("backup /dev/b: no"))
	if got := complain(t.Context(), term, err); got != exitFailed {
		t.Errorf("status %d, want %d", got, exitFailed)
	}
	want := "platter: backup /dev/a\\x1b: no\n  run this\nplatter: backup /dev/b: no\n"
	if errs.String() != want || out.Len() > 0 {
		t.Errorf("printed %q and %q on stdout, want %q", errs, out, want)
	}
}

func TestComplainInJSONIsOneObjectOnStderr(t *testing.T) {
	term, out, errs := screen()
	term.json = true
	complain(t.Context(), term, fmt.Errorf("open\n\x1b[2J: %w", repo.ErrNoRepository))
	var got struct {
		Type    string `json:"message_type"`
		Code    int    `json:"code"`
		Message string `json:"message"`
	}
	if err := json.Unmarshal(errs.Bytes(), &got); err != nil || got.Type != "exit_error" || got.Code != exitNoRepository || got.Message == "" || out.Len() > 0 {
		t.Errorf("got %+v from %q, %v; stdout %q", got, errs, err, out)
	}
}
