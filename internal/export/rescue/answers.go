package rescue

import (
	"encoding/pem"
	"fmt"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"
)

// Answers are what a medium is told, so that it asks nothing.
type Answers struct {
	// Mount is a file system that is mounted on /mnt/repository, to be read: by
	// path, LABEL=… or UUID=…. Empty means none.
	Mount      string `toml:"mount"`
	Network    string `toml:"network"`    // dhcp, dhcp INTERFACE, or INTERFACE ADDRESS/BITS [GATEWAY [DNS...]]; empty where none is needed
	Repository string `toml:"repository"` // as for --repo
	Image      string `toml:"image"`      // as for platter restore
	// Target is a disk by its path, "serial:" and its serial number, "only" for
	// the only disk that there is beside the medium, or of a set VOLUME=TARGET
	// for each.
	Target []string `toml:"target"`
	// Then is what comes after the restore: reboot, poweroff or shell.
	Then string `toml:"then"`
	// Authority is the certificate of who signed the server's, in PEM, where
	// others do not know it.
	Authority   string            `toml:"authority"`
	Environment map[string]string `toml:"environment"` // PLATTER_… and AWS_… variables
}

// Thens are what may come after a restore.
func Thens() []string { return []string{"reboot", "poweroff", "shell"} }

// ParseAnswers reads answers in TOML. Of nothing it makes none, which is no
// mistake.
func ParseAnswers(b []byte) (*Answers, error) {
	a := &Answers{}
	meta, err := toml.Decode(string(b), a)
	if err != nil {
		return nil, fmt.Errorf("answers: %w", err)
	}
	if unknown := meta.Undecoded(); len(unknown) > 0 {
		return nil, fmt.Errorf("answers: %s: nobody knows this key", unknown[0])
	}
	return a, a.check()
}

func (a *Answers) check() error {
	if a.Then != "" && !slices.Contains(Thens(), a.Then) {
		return fmt.Errorf("answers: then = %q: want one of %s", a.Then, strings.Join(Thens(), ", "))
	}
	if block, _ := pem.Decode([]byte(a.Authority)); a.Authority != "" && (block == nil || block.Type != "CERTIFICATE") {
		return fmt.Errorf("answers: authority: want a certificate in PEM")
	}
	for name := range a.Environment {
		if !strings.HasPrefix(name, "PLATTER_") && !strings.HasPrefix(name, "AWS_") {
			return fmt.Errorf("answers: environment: %s: want PLATTER_… or AWS_…", name)
		}
	}
	return nil
}

// Override applies what the kernel's command line says: platter.KEY=VALUE for
// any key but the environment. In values that are several words, commas stand for
// spaces. It returns the file with answers that platter.answers names, if it does.
func (a *Answers) Override(line string) (file string, err error) {
	for word := range strings.FieldsSeq(line) {
		key, value, _ := strings.Cut(word, "=")
		if key, ok := strings.CutPrefix(key, "platter."); ok {
			switch key {
			case "answers":
				file = value
			case "mount":
				a.Mount = value
			case "network":
				a.Network = strings.ReplaceAll(value, ",", " ")
			case "repository":
				a.Repository = value
			case "image":
				a.Image = value
			case "target":
				a.Target = strings.Split(value, ",")
			case "then":
				a.Then = value
			default:
				return "", fmt.Errorf("kernel's command line: platter.%s: nobody knows this key", key)
			}
		}
	}
	return file, a.check()
}

// Unattended reports whether the answers are enough to restore by.
func (a *Answers) Unattended() bool {
	return a.Repository != "" && a.Image != "" && len(a.Target) > 0
}
