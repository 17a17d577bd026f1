package config

import (
	"fmt"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"platter/internal/agent/schedule"
)

// Kinds of jobs, named as the commands that do them.
const (
	Backup  = "backup"
	Verify  = "verify"
	Prune   = "prune"
	Collect = "gc"
	Boot    = "boot"
)

// Kinds returns what a job may be.
func Kinds() []string { return []string{Backup, Verify, Prune, Collect, Boot} }

// A Job is what is to be done again and again. Sizes are in bytes; zero values
// leave a thing to the command's own default.
type Job struct {
	Name       string
	Kind       string
	Repository string // name of one; "" for the agent's
	Devices    []string
	All        bool // every disk of the machine instead
	Volumes    []string
	// Flags are those of its command, each with its value, as in --audit=full.
	Flags []string

	Schedule schedule.Schedule // empty: only when it is asked for
	Zone     *time.Location    // nil for the agent's
	Jitter   *time.Duration    // nil for the agent's
	Window   schedule.Window
	// StopAtEnd stops a run whose window closes; it goes on when it opens.
	StopAtEnd bool
	Priority  string // one of Priorities

	Attempts    int           // in all, at least 1
	GiveUpAfter time.Duration // since a run was due, no further attempt is made
	StopAfter   time.Duration // one attempt is stopped; 0 for never

	Before, After, OnFailure string // hooks: paths of programs, "" for none
	HookTimeout              time.Duration

	at func(key, format string, args ...any) *Problem
}

// Priorities of a run among all else that the machine does.
const (
	Idle   = "idle"   // only what nobody else wants, of disks and of cores
	Low    = "low"    // after everybody else
	Normal = "normal" // like everybody else
)

// What a job does that says nothing.
const (
	DefaultAttempts    = 4
	DefaultGiveUpAfter = 6 * time.Hour
	DefaultHookTimeout = 5 * time.Minute
)

// job is a table [job.NAME]. A field with "for" is for jobs of these kinds
// only, one with "flag" is that flag of their command.
type job struct {
	Kind       string   `toml:"kind"`
	Repository string   `toml:"repository"`
	Devices    []string `toml:"devices" for:"backup"`
	Volumes    []string `toml:"volumes" for:"verify prune boot"`

	Schedule  schedule.Schedule `toml:"schedule"`
	TimeZone  *zone             `toml:"time-zone"`
	Jitter    *span             `toml:"jitter"`
	Window    schedule.Window   `toml:"window"`
	StopAtEnd bool              `toml:"stop-at-window-end"`

	Attempts    *int  `toml:"attempts"`
	GiveUpAfter *span `toml:"give-up-after"`
	StopAfter   *span `toml:"stop-after"`

	Priority      string `toml:"priority"`
	Memory        *size  `toml:"memory" flag:"memory"`
	LimitRead     *size  `toml:"limit-read" flag:"limit-read"`
	LimitWrite    *size  `toml:"limit-write" flag:"limit-write"`
	LimitUpload   *size  `toml:"limit-upload" flag:"limit-upload"`
	LimitDownload *size  `toml:"limit-download" flag:"limit-download"`
	LockWait      *span  `toml:"lock-wait" flag:"lock-wait"`
	RetryFor      *span  `toml:"retry-for" flag:"retry-for"`

	Volume             string   `toml:"volume" for:"backup" flag:"volume"`
	Tags               []string `toml:"tags" for:"backup" flag:"tag"`
	Tracker            string   `toml:"tracker" for:"backup" flag:"tracker"`
	Audit              string   `toml:"audit" for:"backup" flag:"audit"`
	Live               bool     `toml:"live" for:"backup" flag:"live"`
	AllowUnreadable    bool     `toml:"allow-unreadable" for:"backup" flag:"allow-unreadable"`
	RepositoryOnDevice bool     `toml:"repository-on-device" for:"backup" flag:"repository-on-device"`
	All                bool     `toml:"all" for:"backup" flag:"all"`
	AllBlocks          bool     `toml:"all-blocks" for:"backup" flag:"all-blocks"`
	BeforeImage        string   `toml:"before-image" for:"backup" flag:"before"`
	AfterImage         string   `toml:"after-image" for:"backup" flag:"after"`
	ImageHookLimit     *span    `toml:"image-hook-limit" for:"backup" flag:"hook-limit"`

	ReadData       bool   `toml:"read-data" for:"verify" flag:"read-data"`
	ReadDataSubset string `toml:"read-data-subset" for:"verify" flag:"read-data-subset"`

	MaxDelete string `toml:"max-delete" for:"prune gc" flag:"max-delete"`
	Grace     *span  `toml:"grace" for:"gc" flag:"grace"`
	MinAge    *span  `toml:"min-age" for:"gc" flag:"min-age"`
	MaxUnused string `toml:"max-unused" for:"gc" flag:"max-unused"`

	Firmware string `toml:"firmware" for:"boot" flag:"firmware"`
	Timeout  *span  `toml:"timeout" for:"boot" flag:"timeout"`

	Before      string `toml:"before"`
	After       string `toml:"after"`
	OnFailure   string `toml:"on-failure"`
	HookTimeout *span  `toml:"hook-timeout"`
}

// jobName is what names of jobs match: they are part of paths and of labels.
var jobName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// job returns the job, and all that is wrong with it.
func (in *job) job(f *file, name string) (*Job, []*Problem) {
	j := &Job{
		Name: name, Kind: in.Kind, Repository: in.Repository, Devices: in.Devices, All: in.All, Volumes: in.Volumes,
		Schedule: in.Schedule, Window: in.Window, StopAtEnd: in.StopAtEnd, Priority: in.Priority,
		Attempts: DefaultAttempts, GiveUpAfter: DefaultGiveUpAfter,
		Before: in.Before, After: in.After, OnFailure: in.OnFailure, HookTimeout: DefaultHookTimeout,
	}
	j.at = func(key, format string, args ...any) *Problem {
		path := []string{"job", name}
		if key != "" {
			path = append(path, key)
		}
		return f.problem(path, "%s: %s", strings.Join(path, "."), fmt.Sprintf(format, args...))
	}
	j.defaults(in)
	problems := append(j.check(), in.foreign(f, j)...)
	if len(problems) == 0 {
		j.Flags = in.flags()
	}
	return j, problems
}

func (j *Job) defaults(in *job) {
	if j.Kind == "" {
		j.Kind = Backup
	}
	if j.Priority == "" {
		j.Priority = Low
	}
	if in.TimeZone != nil {
		j.Zone = in.TimeZone.Location
	}
	if in.Attempts != nil {
		j.Attempts = *in.Attempts
	}
	in.GiveUpAfter.to(&j.GiveUpAfter)
	in.StopAfter.to(&j.StopAfter)
	in.HookTimeout.to(&j.HookTimeout)
	j.Jitter = (*time.Duration)(in.Jitter)
}

func (j *Job) check() (problems []*Problem) {
	wrong := func(bad bool, key, format string, args ...any) {
		if bad {
			problems = append(problems, j.at(key, format, args...))
		}
	}
	wrong(!jobName.MatchString(j.Name), "", "a job's name has up to 64 letters, digits, dots, dashes and underscores")
	wrong(!slices.Contains(Kinds(), j.Kind), "kind", "%q: want %s", j.Kind, strings.Join(Kinds(), ", "))
	wrong(j.Kind == Backup && len(j.Devices) == 0 && !j.All, "", "it names no devices; all = true takes every disk")
	wrong(len(j.Devices) > 0 && j.All, "all", "it names devices, too")
	wrong(j.Kind == Boot && len(j.Volumes) != 1, "", "want one volume, whose latest image is started")
	wrong(!slices.Contains([]string{Idle, Low, Normal}, j.Priority), "priority", "%q: want idle, low or normal", j.Priority)
	wrong(j.Attempts < 1 || j.Attempts > 1000, "attempts", "want a number from 1 to 1000")
	wrong(j.HookTimeout < time.Second, "hook-timeout", "want at least 1s")
	wrong(j.StopAfter != 0 && j.StopAfter < time.Minute, "stop-after", "want at least 1m")
	wrong(j.StopAtEnd && j.Window.String() == "", "stop-at-window-end", "there is no window")
	for _, d := range j.Devices {
		if problem := unstable(d); problem != "" {
			problems = append(problems, j.at("devices", "%q: %s", d, problem))
		}
	}
	for _, v := range j.Volumes {
		wrong(v == "" || strings.HasPrefix(v, "-"), "volumes", "%q is no name of a volume", v)
	}
	for _, h := range []struct{ key, path string }{{"before", j.Before}, {"after", j.After}, {"on-failure", j.OnFailure}} {
		wrong(h.path != "" && !filepath.IsAbs(h.path), h.key, "want the path of a program, from the root, not %q", h.path)
	}
	return problems
}

// kernelName matches names that the kernel gives to whatever disk it finds
// first.
var kernelName = regexp.MustCompile(`^/dev/(sd[a-z]+|vd[a-z]+|hd[a-z]+|xvd[a-z]+|nvme\d+n\d+|mmcblk\d+|dm-|md\d+|loop\d+|nbd\d+|zd\d+)`)

// unstable says why a path does not always mean the same device.
func unstable(path string) string {
	switch {
	case !filepath.IsAbs(path):
		return "want a path from the root"
	case path != filepath.Clean(path):
		return fmt.Sprintf("want it as %s", filepath.Clean(path))
	case kernelName.MatchString(path):
		return "such a name may mean another device after the next start: name it by one of /dev/disk/by-id, /dev/VG/LV or /dev/mapper"
	}
	return ""
}

// foreign are keys that a job of its kind has no use for.
func (in *job) foreign(f *file, j *Job) (problems []*Problem) {
	for key, field := range fields(in) {
		kinds := field.Tag.Get("for")
		if kinds != "" && f.meta.IsDefined("job", j.Name, key) && !slices.Contains(strings.Fields(kinds), j.Kind) {
			problems = append(problems, j.at(key, "a job of kind %s has no use for it, only %s", j.Kind, strings.Join(strings.Fields(kinds), " and ")))
		}
	}
	return problems
}

// fields iterates over the keys of a table.
func fields(table any) func(yield func(string, reflect.StructField) bool) {
	return func(yield func(string, reflect.StructField) bool) {
		t := reflect.TypeOf(table).Elem()
		for i := range t.NumField() {
			if !yield(t.Field(i).Tag.Get("toml"), t.Field(i)) {
				return
			}
		}
	}
}
