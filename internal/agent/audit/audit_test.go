package audit

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// newLog returns a log of n entries, whose journal is the head that is told.
func newLog(t *testing.T, n int) (l *Log, journal *Head) {
	t.Helper()
	journal = new(Head)
	l = In(t.TempDir())
	l.journal = func(_ string, h Head) error { *journal = h; return nil }
	l.told = func(string) *Head { return journal }
	for range n {
		add(t, l)
	}
	return l, journal
}

func add(t *testing.T, l *Log) {
	t.Helper()
	if err := l.Add(Entry{Act: "restore", Phase: Began, Subjects: []string{"db1/root", "/dev/sdz"}}); err != nil {
		t.Fatal(err)
	}
}

func verify(t *testing.T, l *Log) *Report {
	t.Helper()
	r, err := l.Verify()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestAWholeLogHasNoProblem(t *testing.T) {
	l, journal := newLog(t, 0)
	if r := verify(t, l); r.Entries != 0 || len(r.Problems) > 0 {
		t.Errorf("an empty log: %+v", r)
	}
	for n := 1; n <= 3; n++ {
		add(t, l)
		r := verify(t, l)
		if r.Entries != n || len(r.Problems) > 0 || r.Head.Seq != uint64(n) || r.Head != *journal {
			t.Errorf("%d entries: %+v", n, r)
		}
	}
	list, err := l.Entries()
	if err != nil || len(list) != 3 || list[2].Act != "restore" || list[2].Who.UID != os.Getuid() || list[2].Who.PID != os.Getpid() {
		t.Errorf("%+v, %v", list, err)
	}
	info, err := os.Stat(l.path())
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

func TestEveryKindOfTamperingIsNamed(t *testing.T) {
	for _, c := range []struct {
		name   string
		tamper func(lines [][]byte) [][]byte
		want   string
		line   int
	}{
		{"a word changed", func(l [][]byte) [][]byte {
			l[2] = bytes.Replace(l[2], []byte("restore"), []byte("nothing"), 1)
			return l
		}, "not as it was written (entry 3", 3},
		{"a hash changed", func(l [][]byte) [][]byte { l[1][len(l[1])-3] ^= 1; return l }, "not as it was written (entry 2", 2},
		{"one removed", func(l [][]byte) [][]byte { return slices.Delete(l, 1, 2) }, "entry 2 is missing", 2},
		{"two removed", func(l [][]byte) [][]byte { return slices.Delete(l, 1, 3) }, "entries 2 to 3 are missing", 2},
		{"the first removed", func(l [][]byte) [][]byte { return l[1:] }, "entry 1 is missing", 1},
		{"two swapped", func(l [][]byte) [][]byte { l[1], l[2] = l[2], l[1]; return l }, "entry 2 is missing before", 2},
		{"one twice", func(l [][]byte) [][]byte { return slices.Insert(l, 3, l[2]) }, "entry 3 stands here again", 4},
		{"a foreign line", func(l [][]byte) [][]byte { return slices.Insert(l, 2, []byte("{}")) }, "not as it was written", 3},
		{"one forged with a hash of its own", func(l [][]byte) [][]byte {
			e, _ := decode(l[2])
			e.Act = "nothing"
			l[2], _, _ = encode(&e)
			return l
		}, "entry 4 does not follow", 4},
		{"the last forged so", func(l [][]byte) [][]byte {
			e, _ := decode(l[4])
			e.Act = "nothing"
			l[4], _, _ = encode(&e)
			return l
		}, "the head beside the log has another hash of entry 5", 5},
		{"the end cut off", func(l [][]byte) [][]byte { return l[:3] }, "its end was cut off", 0},
		{"all gone", func([][]byte) [][]byte { return nil }, "its end was cut off", 0},
	} {
		l, _ := newLog(t, 5)
		b, err := os.ReadFile(l.path())
		if err != nil {
			t.Fatal(err)
		}
		lines := c.tamper(bytes.Split(bytes.TrimSuffix(b, []byte("\n")), []byte("\n")))
		text := bytes.Join(lines, []byte("\n"))
		if len(lines) > 0 {
			text = append(text, '\n')
		}
		if err := os.WriteFile(l.path(), text, 0o600); err != nil {
			t.Fatal(err)
		}
		named := func(r *Report) bool {
			return slices.ContainsFunc(r.Problems, func(p Problem) bool { return strings.Contains(p.Text, c.want) && p.Line == c.line })
		}
		if r := verify(t, l); !named(r) {
			t.Errorf("%s: got %+v, want %q in line %d", c.name, r.Problems, c.want, c.line)
		}
		// What is added later does not cover it up.
		add(t, l)
		if r := verify(t, l); len(r.Problems) == 0 {
			t.Errorf("%s, and one added: no problem", c.name)
		}
	}
}

func TestAHeadThatWasSetBackWithTheLogIsNoticedByTheJournal(t *testing.T) {
	l, journal := newLog(t, 2)
	before := map[string][]byte{}
	for _, name := range []string{current, headName} {
		before[name], _ = os.ReadFile(filepath.Join(l.dir, name))
	}
	add(t, l)
	told := *journal
	for name, b := range before {
		if err := os.WriteFile(filepath.Join(l.dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r := verify(t, l)
	if len(r.Problems) != 1 || !strings.Contains(r.Problems[0].Text, "the journal says that there is an entry 3") {
		t.Errorf("got %+v", r.Problems)
	}
	// Written on differently: the journal of today knows the new head, but one
	// of the time before does not fit.
	if err := l.Add(Entry{Act: "other"}); err != nil {
		t.Fatal(err)
	}
	*journal = told
	if r := verify(t, l); len(r.Problems) != 1 || !strings.Contains(r.Problems[0].Text, "written anew") {
		t.Errorf("got %+v", r.Problems)
	}
	// Without a head at all.
	l, _ = newLog(t, 2)
	if err := os.Remove(filepath.Join(l.dir, headName)); err != nil {
		t.Fatal(err)
	}
	if r := verify(t, l); len(r.Problems) != 1 || !strings.Contains(r.Problems[0].Text, "is missing") {
		t.Errorf("got %+v", r.Problems)
	}
}

func TestACrashAtAnyPointLeavesALogThatGoesOn(t *testing.T) {
	l, _ := newLog(t, 2)
	l.told = nil
	old, _ := os.ReadFile(l.path())
	oldHead, _ := os.ReadFile(filepath.Join(l.dir, headName))
	add(t, l)
	whole, _ := os.ReadFile(l.path())
	for n := len(old); n <= len(whole); n += 7 {
		write := func(name string, b []byte) {
			if err := os.WriteFile(filepath.Join(l.dir, name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		write(current, whole[:n])
		write(headName, oldHead)
		if r := verify(t, l); len(r.Problems) > 0 {
			t.Fatalf("cut at %d: %+v", n, r.Problems)
		}
		add(t, l)
		if r := verify(t, l); len(r.Problems) > 0 || r.Entries < 3 {
			t.Fatalf("cut at %d, and one added: %+v", n, r)
		}
	}
}

func TestRotationKeepsTheChain(t *testing.T) {
	l, _ := newLog(t, 0)
	l.largest = 1000
	for range 20 {
		add(t, l)
	}
	files, _ := filepath.Glob(filepath.Join(l.dir, "audit-*.jsonl"))
	if len(files) < 3 {
		t.Fatalf("%d files", len(files))
	}
	if r := verify(t, l); r.Entries != 20 || len(r.Problems) > 0 {
		t.Errorf("%+v", r)
	}
	if err := os.Remove(files[1]); err != nil {
		t.Fatal(err)
	}
	if r := verify(t, l); len(r.Problems) != 1 || !strings.Contains(r.Problems[0].Text, "missing") {
		t.Errorf("%+v", r)
	}
}

func TestManyWritersMakeOneChain(t *testing.T) {
	l, _ := newLog(t, 0)
	l.journal, l.told = nil, nil
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 5 {
				if err := l.Add(Entry{Act: "pin"}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	if r := verify(t, l); r.Entries != 40 || len(r.Problems) > 0 {
		t.Errorf("%+v", r)
	}
}

func TestJournalLines(t *testing.T) {
	h := Head{7, strings.Repeat("ab", 32)}
	if got := parseJournal([]byte(`{"MESSAGE":"x","PLATTER_AUDIT_SEQ":"7","PLATTER_AUDIT_HASH":"` + h.Hash + `"}` + "\n")); got == nil || *got != h {
		t.Errorf("got %v", got)
	}
	for _, bad := range []string{"", "{}", "nonsense", `{"PLATTER_AUDIT_SEQ":"-1","PLATTER_AUDIT_HASH":"` + h.Hash + `"}`, `{"PLATTER_AUDIT_SEQ":"1","PLATTER_AUDIT_HASH":"ab"}`} {
		if got := parseJournal([]byte(bad)); got != nil {
			t.Errorf("%q: got %v", bad, got)
		}
	}
}
