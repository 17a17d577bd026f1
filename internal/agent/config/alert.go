package config

import (
	"fmt"
	"net"
	"net/mail"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// An Alert is a rule of what is worth one, for some volumes.
type Alert struct {
	Name     string
	Volumes  []string      // patterns; none for all
	LastGood time.Duration // older, and there is an alert; 0 for never
	Repeat   time.Duration // how often an alert that lasts is told again; 0 for never
	Changed  float64       // share of what is in use that may change from image to image
	Off      bool          // nothing is odd about any image
}

// DefaultAlert is the rule of volumes that no other is for.
func DefaultAlert() Alert { return Alert{Changed: 0.5} }

// alert is a table [alert.NAME].
type alert struct {
	Volumes   []string `toml:"volumes"`
	LastGood  *span    `toml:"last-good-image"`
	Repeat    *span    `toml:"repeat"`
	Changed   *share   `toml:"changed"`
	Anomalies *bool    `toml:"anomalies"`
}

func (in *alert) alert(f *file, name string) (a Alert, problems []*Problem) {
	a = DefaultAlert()
	a.Name, a.Volumes = name, in.Volumes
	in.LastGood.to(&a.LastGood)
	in.Repeat.to(&a.Repeat)
	if in.Changed != nil {
		a.Changed = float64(*in.Changed)
	}
	a.Off = in.Anomalies != nil && !*in.Anomalies
	if slices.Contains(in.Volumes, "") {
		problems = append(problems, f.problem([]string{"alert", name, "volumes"}, "alert.%s.volumes: an empty pattern matches nothing", name))
	}
	if a.Repeat != 0 && a.Repeat < time.Minute {
		problems = append(problems, f.problem([]string{"alert", name, "repeat"}, "alert.%s.repeat: want at least 1m", name))
	}
	return a, problems
}

// A share is one such as 50%.
type share float64

func (s *share) UnmarshalText(text []byte) error {
	var n float64
	if _, err := fmt.Sscanf(string(text), "%f%%", &n); err != nil || n <= 0 || n > 100 || !strings.HasSuffix(string(text), "%") {
		return fmt.Errorf("share %q: want one such as 50%%", text)
	}
	*s = share(n / 100)
	return nil
}

// A Notifier is somebody to tell. Of the paths none is looked at here.
type Notifier struct {
	Name, Kind string
	URL        string // or where the file says, which is read when it is needed
	URLFile    string // URLs of webhooks are secrets themselves
	TokenFile  string
	CAFile     string   // PEM, beside the system's authorities
	Jobs       []string // of healthchecks: only these; none for all
	// of mail
	Server       string // HOST:PORT
	Security     string // one of Securities
	User         string
	PasswordFile string
	From         string
	To           []string
}

// Kinds of notifiers.
const (
	Mail         = "mail"
	Slack        = "slack"
	Teams        = "teams"
	Ntfy         = "ntfy"
	Gotify       = "gotify"
	Webhook      = "webhook"
	Healthchecks = "healthchecks"
)

// NotifierKinds returns what a notifier may be.
func NotifierKinds() []string {
	return []string{Mail, Slack, Teams, Ntfy, Gotify, Webhook, Healthchecks}
}

// Securities of mail: TLS from the start, begun by STARTTLS, or none, which is
// for servers on this machine.
const (
	TLS      = "tls"
	StartTLS = "starttls"
	Plain    = "none"
)

// notifier is a table [notify.NAME]. A field with "for" is for these kinds
// only.
type notifier struct {
	Kind         string   `toml:"kind"`
	URL          string   `toml:"url" for:"slack teams ntfy gotify webhook healthchecks"`
	URLFile      string   `toml:"url-file" for:"slack teams ntfy gotify webhook healthchecks"`
	TokenFile    string   `toml:"token-file" for:"ntfy gotify webhook"`
	CAFile       string   `toml:"ca-file"`
	Jobs         []string `toml:"jobs" for:"healthchecks"`
	Server       string   `toml:"server" for:"mail"`
	Security     string   `toml:"security" for:"mail"`
	User         string   `toml:"user" for:"mail"`
	PasswordFile string   `toml:"password-file" for:"mail"`
	From         string   `toml:"from" for:"mail"`
	To           []string `toml:"to" for:"mail"`
}

func (in *notifier) notifier(f *file, name string) (Notifier, []*Problem) {
	n := Notifier{
		Name: name, Kind: in.Kind, URL: in.URL, URLFile: in.URLFile, TokenFile: in.TokenFile, CAFile: in.CAFile, Jobs: in.Jobs,
		Server: in.Server, Security: in.Security, User: in.User, PasswordFile: in.PasswordFile, From: in.From, To: in.To,
	}
	if n.Security == "" {
		n.Security = StartTLS
	}
	var problems []*Problem
	wrong := func(key, format string, args ...any) {
		path := []string{"notify", name}
		if key != "" {
			path = append(path, key)
		}
		problems = append(problems, f.problem(path, "%s: %s", strings.Join(path, "."), fmt.Sprintf(format, args...)))
	}
	if !jobName.MatchString(name) {
		wrong("", "a notifier's name has up to 64 letters, digits, dots, dashes and underscores")
	}
	if !slices.Contains(NotifierKinds(), n.Kind) {
		wrong("kind", "%q: want %s", n.Kind, strings.Join(NotifierKinds(), ", "))
		return n, problems
	}
	for key, field := range fields(in) {
		kinds := field.Tag.Get("for")
		if kinds != "" && f.meta.IsDefined("notify", name, key) && !slices.Contains(strings.Fields(kinds), n.Kind) {
			wrong(key, "a notifier of kind %s has no use for it", n.Kind)
		}
	}
	for key, path := range map[string]string{"url-file": n.URLFile, "token-file": n.TokenFile, "ca-file": n.CAFile, "password-file": n.PasswordFile} {
		if path != "" && !filepath.IsAbs(path) {
			wrong(key, "want a path from the root, not %q", path)
		}
	}
	if n.Kind == Mail {
		n.checkMail(wrong)
	} else {
		n.checkURL(wrong)
	}
	return n, problems
}

func (n *Notifier) checkURL(wrong func(key, format string, args ...any)) {
	switch {
	case n.URL == "" && n.URLFile == "":
		wrong("", "it has neither url nor url-file")
	case n.URL != "" && n.URLFile != "":
		wrong("url", "there is a url-file, too")
	case n.URL != "":
		if err := CheckURL(n.URL); err != nil {
			wrong("url", "%v", err)
		}
	}
	if n.Kind == Gotify && n.TokenFile == "" {
		wrong("", "gotify wants a token-file")
	}
}

// CheckURL refuses what is no URL to send messages to.
func CheckURL(text string) error {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		return fmt.Errorf("want an address that begins with https://")
	}
	if u.Scheme == "http" && !loopback(u.Hostname()) {
		return fmt.Errorf("want https: http is for servers on this machine")
	}
	return nil
}

// loopback reports whether a host is this machine itself.
func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func (n *Notifier) checkMail(wrong func(key, format string, args ...any)) {
	host, _, err := net.SplitHostPort(n.Server)
	switch {
	case err != nil:
		wrong("server", "%q: want HOST:PORT", n.Server)
	case !slices.Contains([]string{TLS, StartTLS, Plain}, n.Security):
		wrong("security", "%q: want tls, starttls or none", n.Security)
	case n.Security == Plain && !loopback(host):
		wrong("security", "none is for servers on this machine")
	}
	if (n.User == "") != (n.PasswordFile == "") {
		wrong("", "user and password-file belong together")
	}
	if len(n.To) == 0 {
		wrong("to", "nobody to send to")
	}
	for _, a := range append([]string{n.From}, n.To...) {
		if _, err := mail.ParseAddress(a); err != nil {
			wrong("from", "%q is no address of mail", a)
		}
	}
}

// Metrics say where they can be had.
type Metrics struct {
	Listen string // HOST:PORT of this machine; "" for nowhere
	File   string // for the textfile collector of node_exporter; "" for none
}

// metrics is the table [metrics].
type metrics struct {
	Listen   string `toml:"listen"`
	TextFile string `toml:"textfile"`
}

func (in *metrics) metrics(f *file) (m Metrics, problems []*Problem) {
	m = Metrics{Listen: in.Listen, File: in.TextFile}
	if host, _, err := net.SplitHostPort(m.Listen); m.Listen != "" && (err != nil || !loopback(host)) {
		problems = append(problems, f.problem([]string{"metrics", "listen"}, "metrics.listen: want an address of this machine alone, such as 127.0.0.1:9750"))
	}
	if m.File != "" && (!filepath.IsAbs(m.File) || !strings.HasSuffix(m.File, ".prom")) {
		problems = append(problems, f.problem([]string{"metrics", "textfile"}, "metrics.textfile: want a path from the root that ends with .prom"))
	}
	return m, problems
}
