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
	rows := imageTable([]*image.Manifest{one, agent, other}, new(job.Notes))
	text := func(n int) string { return strings.Join(rows.rows[n], " ") }
	if !strings.Contains(text(2), "by writer cdcdcdcd, who cannot read") || !strings.Contains(text(1), "by writer abababab") || strings.Contains(text(3), "by writer") {
		t.Errorf("rows %q", rows)
	}
}
