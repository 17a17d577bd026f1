package audit

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"platter/internal/agent/lines"
)

// A Problem is a place where the log is not what was written.
type Problem struct {
	File string `json:"file"`
	Line int    `json:"line"` // from 1; 0 for the file as a whole
	Text string `json:"problem"`
}

// A Report is what a verification found.
type Report struct {
	Entries int  `json:"entries"` // that are as they were written
	Head    Head `json:"head"`    // of the last one
	// Journal reports whether the journal had a head to compare with.
	Journal  bool      `json:"journal"`
	Problems []Problem `json:"problems,omitempty"`
}

// Entries returns what the log holds, oldest first; what was tampered with is
// left out.
func (l *Log) Entries() (list []Entry, err error) {
	err = l.each(func(_ string, _ int, line []byte) {
		if e, ok := decode(line); ok {
			list = append(list, e)
		}
	})
	return list, err
}

// each calls f for every line of every file, oldest first.
func (l *Log) each(f func(file string, number int, line []byte)) error {
	old, err := filepath.Glob(filepath.Join(l.dir, "audit-*.jsonl"))
	if err != nil {
		return err
	}
	slices.Sort(old)
	for _, path := range append(old, l.path()) {
		list, err := lines.Read(path)
		if err != nil {
			return fmt.Errorf("audit log: %w", err)
		}
		for i, line := range list {
			f(path, i+1, line)
		}
	}
	return nil
}

// Verify checks that every entry is there, as it was written and where it was.
// Nobody is kept from adding meanwhile: the head is read first.
func (l *Log) Verify() (*Report, error) {
	kept, err := l.head()
	if err != nil {
		return nil, fmt.Errorf("audit log: %w", err)
	}
	v := verifier{report: &Report{}, want: Head{Hash: firstPrev}}
	if l.told != nil {
		v.told = l.told(l.dir)
	}
	if _, err := os.Stat(filepath.Join(l.dir, headName)); err != nil {
		kept.Hash = "" // there is none to compare with
	}
	v.kept = kept
	if err := l.each(v.line); err != nil {
		return nil, err
	}
	v.end(l)
	return v.report, nil
}

// A verifier walks along the chain.
type verifier struct {
	report     *Report
	want       Head  // the entry before: what the next one must name
	kept       Head  // that the file has; its Hash empty without one
	told       *Head // that the journal has; nil without one
	lost       bool  // a line could not be read: what comes next cannot be linked to it
	sawKept    bool
	sawJournal bool
}

func (v *verifier) line(file string, number int, line []byte) {
	problem := func(format string, args ...any) {
		v.report.Problems = append(v.report.Problems, Problem{file, number, fmt.Sprintf(format, args...)})
	}
	e, ok := decode(line)
	if !ok {
		problem("this line is not as it was written (entry %d should be here)", v.want.Seq+1)
		v.want.Seq++
		v.lost = true
		return
	}
	switch {
	case e.Seq == v.want.Seq+1 && (v.lost || e.Prev == v.want.Hash):
		v.report.Entries++
	case e.Seq == v.want.Seq+1:
		problem("entry %d does not follow from the one before it: that one was replaced, or this one", e.Seq)
	case e.Seq > v.want.Seq+1:
		problem("%s missing before this line", span(v.want.Seq+1, e.Seq-1))
	default:
		problem("entry %d stands here again, or at the wrong place; entry %d should", e.Seq, v.want.Seq+1)
		return
	}
	v.want, v.lost = Head{e.Seq, e.Hash}, false
	v.compare(problem, "the head beside the log", e, &v.kept, &v.sawKept)
	if v.told != nil {
		v.compare(problem, "the journal", e, v.told, &v.sawJournal)
	}
}

func span(first, last uint64) string {
	if first == last {
		return fmt.Sprintf("entry %d is", first)
	}
	return fmt.Sprintf("entries %d to %d are", first, last)
}

// compare holds an entry against a head that was kept.
func (v *verifier) compare(problem func(string, ...any), who string, e Entry, h *Head, saw *bool) {
	if h.Hash == "" || e.Seq != h.Seq {
		return
	}
	*saw = true
	if e.Hash != h.Hash {
		problem("%s has another hash of entry %d: the log was written anew", who, e.Seq)
	}
}

// end is for heads that no entry was met for.
func (v *verifier) end(l *Log) {
	r := v.report
	r.Head, r.Journal = v.want, v.told != nil
	missing := func(who string, seq uint64) {
		r.Problems = append(r.Problems, Problem{l.path(), 0, fmt.Sprintf("%s says that there is an entry %d, and the log ends with entry %d: its end was cut off", who, seq, v.want.Seq)})
	}
	switch {
	case v.kept.Hash == "" && v.want.Seq > 0:
		r.Problems = append(r.Problems, Problem{filepath.Join(l.dir, headName), 0, "the head beside the log is missing"})
	case v.kept.Seq > v.want.Seq:
		missing("the head beside the log", v.kept.Seq)
	}
	if v.told != nil && v.told.Seq > v.want.Seq {
		missing("the journal", v.told.Seq)
	}
}
