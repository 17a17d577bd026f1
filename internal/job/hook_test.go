package job

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"platter/block/snapshot"
)

// lines returns those of a file that hooks write to.
func lines(t *testing.T, path string) []string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(b)), "\n")
}

// D60: hooks stand around the moment of the image: what the first one writes to
// the device is in it, what the last one writes is not.
func TestHooksStandAroundTheMoment(t *testing.T) {
	t.Setenv("PLATTER_PASSWORD", "secret")
	r, env := seeded(t, 50), newEnv(t, 4<<10)
	d := newTracked(t, 1<<20, r)
	log := filepath.Join(t.TempDir(), "log")
	say := `echo "$PLATTER_HOOK $PLATTER_OUTCOME $PLATTER_DEVICES $PLATTER_VOLUMES $PLATTER_PASSWORD" >>` + log
	write := func(text string) string {
		return "printf " + text + " | dd of=" + d.path + " conv=notrunc status=none; " + say
	}
	m := d.backup(env, BackupOptions{Volume: "v", Hooks: Hooks{Before: write("flushed"), After: write("goes-on")}})
	if got := string(content(t, env, m)[:7]); got != "flushed" || m.Tracker.View != "copy" {
		t.Errorf("the image by %s begins with %q", m.Tracker.View, got)
	}
	if got := string(d.content()[:7]); got != "goes-on" {
		t.Errorf("the device begins with %q", got)
	}
	want := []string{"before  " + d.path + " host/v ", "after taken " + d.path + " host/v "}
	for i := range want {
		want[i] = strings.TrimSpace(want[i])
	}
	got := lines(t, log)
	for i := range got {
		got[i] = strings.TrimSpace(got[i])
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}

	// A device without a snapshot has to be still until it is read.
	d.unfit = "it is Sunday"
	m = d.backup(env, BackupOptions{Volume: "v", Hooks: Hooks{Before: write("flushed"), After: write("goes-on")}})
	if got := string(content(t, env, m)[:7]); got != "flushed" || m.Tracker.View != snapshot.Direct || m.Fuzzy {
		t.Errorf("the image by %s begins with %q, fuzzy %v", m.Tracker.View, got, m.Fuzzy)
	}
	if got := string(d.content()[:7]); got != "goes-on" {
		t.Errorf("the device begins with %q", got)
	}
}

// D60: without what is to come first there is no image, unless that is allowed;
// what is to come after is done in any case; neither takes for ever.
func TestHooksThatFail(t *testing.T) {
	r, env := seeded(t, 51), newEnv(t, 4<<10)
	d := newTracked(t, 1<<20, r)
	log := filepath.Join(t.TempDir(), "log")
	after := "echo $PLATTER_OUTCOME >>" + log
	for _, c := range []struct {
		hooks Hooks
		want  string // in the error
	}{
		{Hooks{Before: "echo no database >&2; exit 3", After: after}, "exit status 3: no database"},
		{Hooks{Before: "sleep 100 & sleep 100", After: after, Limit: 50 * time.Millisecond}, "longer than 50ms"},
	} {
		_, err := Backup(t.Context(), env, BackupOptions{Devices: []string{d.path}, Ways: d.ways(), Hooks: c.hooks})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v, want %q", err, c.want)
		}
		c.hooks.MayFail = true
		m := d.backup(env, BackupOptions{Hooks: c.hooks})
		if len(m.Warnings) != 1 || !strings.Contains(m.Warnings[0], c.want) {
			t.Errorf("warnings %q, want %q", m.Warnings, c.want)
		}
	}
	if got, want := lines(t, log), []string{"failed", "taken", "failed", "taken"}; !slices.Equal(got, want) {
		t.Errorf("after: %q, want %q", got, want)
	}
	if len(d.copies) != 1 {
		t.Errorf("%d snapshots are there, want that of the image", len(d.copies))
	}
	// A snapshot that cannot be taken, a hook that fails after it, and a dry run.
	m := d.backup(env, BackupOptions{Hooks: Hooks{After: "exit 1"}})
	if len(m.Warnings) != 1 || !strings.Contains(m.Warnings[0], "exit status 1") {
		t.Errorf("warnings %q", m.Warnings)
	}
	d.backup(env, BackupOptions{DryRun: true, Hooks: Hooks{Before: "exit 1", After: after}})
	if n := len(lines(t, log)); n != 4 {
		t.Errorf("a dry run ran hooks: %d lines", n)
	}
}
