package sftp

import (
	"errors"
	"fmt"
	"net"
	"os/user"
	"path"
	"strconv"
	"strings"
)

// Scheme begins the name of a repository that is reached by ssh.
const Scheme = "sftp:"

const grammar = "want sftp:[USER@]HOST:PATH or sftp://[USER@]HOST[:PORT]/PATH"

// Parse reads the name of a repository:
//
//	sftp:[USER@]HOST:PATH          PATH absolute, or from the user's home on
//	sftp://[USER@]HOST[:PORT]/PATH PATH from the home; //PATH is absolute
//	sftp:[USER@]HOST[:PORT]/PATH   PATH absolute
//
// A HOST with colons stands in brackets. Without USER it is this process's.
func Parse(name string) (Config, error) {
	rest, ok := strings.CutPrefix(name, Scheme)
	if !ok {
		return Config{}, fmt.Errorf("%s: %s", name, grammar)
	}
	c, err := parse(rest)
	if err == nil {
		err = c.check()
	}
	if err != nil {
		// Its text may hold a secret, which belongs nowhere.
		return Config{}, fmt.Errorf("sftp: %w: %s", err, grammar)
	}
	return c, nil
}

func parse(rest string) (c Config, err error) {
	url := strings.HasPrefix(rest, "//")
	rest = strings.TrimPrefix(rest, "//")
	// A user's name may hold an @, a host's may not.
	slash := strings.IndexByte(rest, '/')
	if slash < 0 {
		slash = len(rest)
	}
	if i := strings.LastIndexByte(rest[:slash], '@'); i >= 0 {
		c.User, rest = rest[:i], rest[i+1:]
		if c.User == "" {
			return c, errors.New("no user before the @")
		}
	}
	if rest, err = c.host(rest); err != nil {
		return c, err
	}
	after, colon := strings.CutPrefix(rest, ":")
	number, where, _ := strings.Cut(after, "/")
	port, numeric := strconv.Atoi(number)
	switch {
	case colon && numeric == nil && strings.Contains(after, "/"):
		c.Port, c.Path = port, "/"+where
	case colon && !url:
		c.Path = after
	case colon:
		return c, fmt.Errorf("port %q", number)
	default:
		c.Path = rest
	}
	if url {
		c.Path = strings.TrimPrefix(c.Path, "/")
	}
	return c, nil
}

// host takes the host off the front.
func (c *Config) host(rest string) (string, error) {
	if inner, ok := strings.CutPrefix(rest, "["); ok {
		host, rest, ok := strings.Cut(inner, "]")
		if !ok {
			return "", errors.New("a bracket is not closed")
		}
		c.Host = host
		return rest, nil
	}
	end := strings.IndexAny(rest, ":/")
	if end < 0 {
		return "", errors.New("no path")
	}
	c.Host = rest[:end]
	return rest[end:], nil
}

func (c *Config) check() error {
	switch {
	case c.Host == "" || strings.ContainsAny(c.Host, " @\"'\\%") || strings.HasPrefix(c.Host, "-"):
		return errors.New("no host")
	case strings.ContainsAny(c.User, ":/ \x00"):
		return errors.New("a user's name holds no colon or slash; passwords belong nowhere in a name")
	case c.Port < 0 || c.Port > 65535:
		return fmt.Errorf("port %d", c.Port)
	case c.Path == "" || strings.ContainsRune(c.Path, 0):
		return errors.New("no path")
	}
	return nil
}

// fill sets what a name need not say.
func (c *Config) fill() error {
	if c.Port == 0 {
		c.Port = 22
	}
	if c.User == "" {
		me, err := user.Current()
		if err != nil {
			return fmt.Errorf("whose account: %w", err)
		}
		c.User = me.Username
	}
	c.Path = path.Clean(c.Path)
	return c.check()
}

// location is what Parse reads.
func (c *Config) location() string {
	host := c.Host
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if c.User != "" {
		host = c.User + "@" + host
	}
	port := c.Port
	if port == 0 {
		port = 22
	}
	// The short form where it cannot be taken for another.
	if port == 22 && (strings.HasPrefix(c.Path, "/") || !strings.ContainsAny(c.Path, "@/")) {
		return Scheme + host + ":" + c.Path
	}
	return Scheme + "//" + host + ":" + strconv.Itoa(port) + "/" + c.Path
}

func (c *Config) address() string { return net.JoinHostPort(c.Host, strconv.Itoa(c.Port)) }
