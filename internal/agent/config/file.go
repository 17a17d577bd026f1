package config

import (
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/BurntSushi/toml"

	"platter/retention"
)

// A file is one that was parsed.
type file struct {
	name, text string
	meta       toml.MetaData
	tables     []toml.Key // that may be defined once in all files
	policies   []retention.Rule
	agent      *agent // nil where the file has no such table
	repos      []Repository
	jobs       []*Job
	alerts     []Alert
	notifiers  []Notifier
	metrics    Metrics
}

// content is what a file may hold.
type content struct {
	Agent      agent                 `toml:"agent"`
	Repository map[string]repository `toml:"repository"`
	Job        map[string]job        `toml:"job"`
	Policy     map[string]policy     `toml:"policy"`
	Alert      map[string]alert      `toml:"alert"`
	Notify     map[string]notifier   `toml:"notify"`
	Metrics    metrics               `toml:"metrics"`
}

// named are the tables of which there are several, each with a name.
var named = []string{"repository", "job", "policy", "alert", "notify"}

// parse reads one file. The error joins all problems found.
func parse(name, text string) (*file, error) {
	f := &file{name: name, text: text}
	var c content
	var err error
	if f.meta, err = toml.Decode(text, &c); err != nil {
		return nil, f.syntax(err)
	}
	problems := f.unknown()
	for _, key := range f.meta.Keys() {
		switch {
		case !slices.Contains(named, key[0]):
			if f.meta.Type(key[0]) == "Hash" && f.table(key[:1]) {
				problems = append(problems, f.single(key[0], &c)...)
			}
		case len(key) == 1 && f.meta.Type(key...) != "Hash":
			problems = append(problems, f.problem(key, "%s: want tables [%s.NAME]", key, key))
		case len(key) > 1 && f.table(key[:2]):
			problems = append(problems, f.several(key[0], key[1], &c)...)
		}
	}
	return f, errors.Join(sortProblems(problems)...)
}

// single takes a table of which there is one.
func (f *file) single(table string, c *content) []*Problem {
	switch table {
	case "agent":
		f.agent = &c.Agent
	case "metrics":
		var problems []*Problem
		f.metrics, problems = c.Metrics.metrics(f)
		return problems
	}
	return nil
}

// several takes a table of those that have names.
func (f *file) several(table, name string, c *content) (problems []*Problem) {
	switch table {
	case "policy":
		p := c.Policy[name]
		rule, problem := p.rule(name)
		if problem != "" {
			problems = append(problems, f.problem([]string{table, name}, "%s", problem))
		}
		f.policies = append(f.policies, rule)
	case "repository":
		r := c.Repository[name]
		repo, list := r.repository(f, name)
		problems = append(problems, list...)
		f.repos = append(f.repos, repo)
	case "job":
		in := c.Job[name]
		j, list := in.job(f, name)
		problems = append(problems, list...)
		f.jobs = append(f.jobs, j)
	case "alert":
		in := c.Alert[name]
		a, list := in.alert(f, name)
		problems = append(problems, list...)
		f.alerts = append(f.alerts, a)
	case "notify":
		in := c.Notify[name]
		n, list := in.notifier(f, name)
		problems = append(problems, list...)
		f.notifiers = append(f.notifiers, n)
	}
	return problems
}

// mismatch is the text of the library's errors that come without a position.
var mismatch = regexp.MustCompile(`^toml: line (\d+) \(last key "(.*)"\): (?s:(.*))$`)

// table adds a table to those of the file, and reports whether it is new: a
// key may stand for its table, as in policy.daily.keep-last = 7.
func (f *file) table(key toml.Key) bool {
	if slices.ContainsFunc(f.tables, func(k toml.Key) bool { return slices.Equal(k, key) }) {
		return false
	}
	f.tables = append(f.tables, key)
	return true
}

// syntax is a problem that stops a file from being read at all.
func (f *file) syntax(err error) error {
	if e, ok := errors.AsType[toml.ParseError](err); ok {
		text := strings.TrimPrefix(e.Message, "toml: ")
		if e.LastKey != "" {
			text = e.LastKey + ": " + text
		}
		return f.at(e.Position.Start, text)
	}
	p := &Problem{File: f.name, Line: 1, Column: 1, Text: strings.TrimPrefix(err.Error(), "toml: ")}
	if m := mismatch.FindStringSubmatch(err.Error()); m != nil {
		p.Line, _ = strconv.Atoi(m[1])
		p.Column, p.Text = f.indent(p.Line), m[2]+": "+m[3]
	}
	return p
}

// at is a problem at an offset in bytes.
func (f *file) at(offset int, text string) *Problem {
	before := f.text[:min(max(offset, 0), len(f.text))]
	start := strings.LastIndexByte(before, '\n') + 1
	return &Problem{File: f.name, Line: strings.Count(before, "\n") + 1, Column: len(before) - start + 1, Text: text}
}

// indent returns the column in which a line begins.
func (f *file) indent(line int) int {
	text := strings.Split(f.text, "\n")[line-1]
	return len(text) - len(strings.TrimLeft(text, " \t")) + 1
}

// unknown returns a problem for every key that nobody knows, but not for those
// inside of such a table.
func (f *file) unknown() (list []*Problem) {
	var last string
	for _, key := range f.meta.Undecoded() {
		name := key.String()
		if last != "" && strings.HasPrefix(name, last+".") {
			continue
		}
		last = name
		list = append(list, f.problem(key, "unknown key %s", name))
	}
	return list
}

// problem is one with a key, whose line it names.
func (f *file) problem(key []string, format string, args ...any) *Problem {
	p := &Problem{File: f.name, Line: 1, Column: 1, Text: fmt.Sprintf(format, args...)}
	if line, ok := f.locate(key); ok {
		p.Line, p.Column = line, f.indent(line)
	}
	return p
}

// locate returns the line of a key. The library tells that only of a value
// that does not fit: so the text is decoded once more, into a type in which
// exactly that value does not.
func (f *file) locate(key []string) (line int, ok bool) {
	into := reflect.TypeFor[misfit]()
	for i := len(key) - 1; i >= 0; i-- {
		into = reflect.StructOf([]reflect.StructField{{
			Name: "K", Type: into, Tag: reflect.StructTag("toml:" + strconv.Quote(key[i])),
		}})
	}
	_, err := toml.Decode(f.text, reflect.New(into).Interface())
	e, ok := errors.AsType[toml.ParseError](err)
	return e.Position.Line, ok && e.Position.Line > 0
}

// misfit is what no value fits into.
type misfit struct{}

func (*misfit) UnmarshalTOML(any) error { return errors.New("found") }
