package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func seconds(all ...float64) (samples []sample) {
	for _, s := range all {
		samples = append(samples, sample{Wall: time.Duration(s * float64(time.Second)), Peak: 100 * mib})
	}
	return samples
}

func TestTargetsCompareMedians(t *testing.T) {
	r := &report{tools: tools("platter", "key"), samples: map[string]map[string][]sample{
		"platter": {full: seconds(6, 100, 5), restore: seconds(4)},
		"borg":    {full: seconds(10, 9, 11), restore: seconds(20), restoreSp: seconds(15)},
		"restic":  {restore: seconds(12)},
	}}
	reached := map[string]bool{}
	for _, target := range r.targets() {
		reached[target.what] = target.reached
	}
	if !reached["full backup, wall"] { // 6 of 10
		t.Error("full backup: 0.60 × borg was not taken for ≤ 0.65")
	}
	if reached["restore to a sparse file, wall"] { // 4 of restic's 12
		t.Error("restore: 0.33 × the fastest peer was taken for ≤ 0.30")
	}
	if !reached["peak memory, all steps"] {
		t.Error("100 MiB was not taken for ≤ 256 MiB")
	}
}

func TestFastestRestoreIsAPeersThatDedupes(t *testing.T) {
	r := &report{tools: tools("platter", "key"), samples: map[string]map[string][]sample{
		"platter": {restore: seconds(1)}, "qemu-img": {restore: seconds(2)},
		"borg": {restore: seconds(9), restoreSp: seconds(7)}, "restic": {restore: seconds(8)},
	}}
	if name, d := r.fastestRestore(); name != "borg" || d != 7*time.Second {
		t.Errorf("got %s with %v, want borg with 7s", name, d)
	}
}

func TestMedianIsTheLowerOfTwo(t *testing.T) {
	for _, test := range []struct{ all, want time.Duration }{{1, 1}, {2, 1}, {3, 2}, {4, 2}} {
		var all []time.Duration
		for i := time.Duration(1); i <= test.all; i++ {
			all = append(all, i)
		}
		if got := median(all); got != test.want {
			t.Errorf("median of 1 to %d: got %d, want %d", test.all, got, test.want)
		}
	}
}

func TestReplaceSectionKeepsTheRestOfThePage(t *testing.T) {
	page := filepath.Join(t.TempDir(), "page.md")
	if err := replaceSection(page, "made anew"); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"first", "second"} {
		if err := os.WriteFile(page, []byte("before\n"+beginMark+"\nold\n"+endMark+"\nafter\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := replaceSection(page, text); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(page)
		if want := "before\n" + beginMark + "\n\n" + text + "\n\n" + endMark + "\nafter\n"; err != nil || string(got) != want {
			t.Errorf("got %q, %v, want %q", got, err, want)
		}
	}
	if err := os.WriteFile(page, []byte("no markers\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := replaceSection(page, "text"); err == nil || !strings.Contains(err.Error(), "lacks the lines") {
		t.Errorf("page without markers: got error %v, want one that names them", err)
	}
}

func TestMeasureCountsWhatAProcessUsed(t *testing.T) {
	s, _, err := measure(t.Context(), command{args: []string{"dd", "if=/dev/zero", "of=/dev/null", "bs=1M", "count=64"}})
	if err != nil {
		t.Fatal(err)
	}
	if s.Wall <= 0 || s.Peak <= 0 {
		t.Errorf("wall %v, peak %d, want both above zero", s.Wall, s.Peak)
	}
	if s.Read < 64*mib {
		t.Errorf("read %d bytes, want at least %d", s.Read, 64*mib)
	}
	if _, _, err := measure(t.Context(), command{args: []string{"false"}}); err == nil {
		t.Error("a command that failed gave no error")
	}
}
