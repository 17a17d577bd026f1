package main

import (
	"errors"
	"strings"
	"testing"

	"platter/image"
	"platter/internal/job"
)

func TestForgedObjectsEndWithStatus3(t *testing.T) {
	r := &job.VerifyReport{Forged: []job.Forgery{{Object: "pins/aa", Problem: "not signed by a writer who may"}}}
	err := forged(r)
	if got := status(t.Context(), err); got != exitIncomplete {
		t.Errorf("status %d, want %d: %v", got, exitIncomplete, err)
	}
	// Damage is worse, and both are said.
	both := errors.Join(job.ErrDamaged, err)
	if got := status(t.Context(), both); got != exitDamage || !strings.Contains(both.Error(), "1 object written by somebody") {
		t.Errorf("status %d of %v, want %d", got, both, exitDamage)
	}
	if err := forged(new(job.VerifyReport)); err != nil || found(new(job.VerifyReport)) != "no damage" {
		t.Errorf("nothing is forged: %v", err)
	}
}

func TestWritersAreShownWhereAVolumeHasSeveral(t *testing.T) {
	one := &image.Manifest{Volume: "web1/root", Writer: strings.Repeat("ab", 32)}
	agent := &image.Manifest{Volume: "web1/root", Writer: strings.Repeat("cd", 32), WriteOnly: true}
	other := &image.Manifest{Volume: "db1/root", Writer: strings.Repeat("ab", 32)}
	several := severalLines([]*image.Manifest{one, agent, other})
	if len(several) != 1 || !several["web1/root"] {
		t.Errorf("several writers made images of %v, want web1/root", several)
	}
	if a, b := writerText(one), writerText(agent); a != "writer abababab" || b != "writer cdcdcdcd, who cannot read" {
		t.Errorf("%q and %q", a, b)
	}
}
