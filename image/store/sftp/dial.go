package sftp

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
	"golang.org/x/crypto/ssh/knownhosts"
	"golang.org/x/time/rate"
)

const dialTimeout = 15 * time.Second

// A conn is one connection to the server, with its SFTP session.
type conn struct {
	ssh    *ssh.Client
	client *sftp.Client
	ended  chan struct{}
	once   sync.Once
	work   sync.WaitGroup
}

func (c *conn) has(extension string) bool {
	_, ok := c.client.HasExtension(extension)
	return ok
}

func (c *conn) alive() bool {
	select {
	case <-c.ended:
		return false
	default:
		return true
	}
}

// close ends the connection; requests still running fail.
func (c *conn) close() {
	c.once.Do(func() {
		close(c.ended)
		_ = c.ssh.Close()
	})
}

// end closes it and waits until nothing of it runs any more.
func (c *conn) end() {
	c.close()
	_ = c.client.Close()
	c.work.Wait()
}

// dial connects. Its errors wrap errLost where another time may go better.
func dial(config *Config) (*conn, error) {
	params, agent, err := config.client()
	if err != nil {
		return nil, err
	}
	if agent != nil {
		defer agent.Close()
	}
	raw, err := net.DialTimeout("tcp", config.address(), dialTimeout)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errLost, err)
	}
	line := &limited{Conn: raw, stall: config.Stall, up: limiter(config.UploadLimit), down: limiter(config.DownloadLimit)}
	transport, channels, requests, err := ssh.NewClientConn(line, config.address(), params)
	if err != nil {
		raw.Close()
		return nil, config.refused(err)
	}
	c := &conn{ssh: ssh.NewClient(transport, channels, requests), ended: make(chan struct{})}
	c.client, err = sftp.NewClient(c.ssh, sftp.UseConcurrentWrites(true))
	if err != nil {
		c.ssh.Close()
		return nil, fmt.Errorf("%w: begin sftp: %w", errLost, err)
	}
	c.work.Go(func() {
		_ = c.ssh.Wait()
		c.close()
	})
	c.work.Go(func() { c.keep(config.Stall / 3) })
	return c, nil
}

// keep asks now and then, so that a connection on which nothing comes back is
// known to be dead.
func (c *conn) keep(every time.Duration) {
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-c.ended:
			return
		case <-t.C:
			if _, _, err := c.ssh.SendRequest("keepalive@openssh.com", true, nil); err != nil {
				c.close()
				return
			}
		}
	}
}

// refused says what to do about a handshake that failed.
func (c *Config) refused(err error) error {
	var key *knownhosts.KeyError
	var revoked *knownhosts.RevokedError
	switch {
	case errors.As(err, &revoked):
		return fmt.Errorf("the host key of %s is revoked: %w", c.Host, err)
	case errors.As(err, &key) && len(key.Want) == 0:
		return fmt.Errorf("the host key of %s is in none of %s: compare it with the server's own, then add it by ssh-keyscan -p %d %s, or log in once with ssh: %w",
			c.Host, strings.Join(c.knownHosts(), ", "), c.Port, c.Host, err)
	case errors.As(err, &key):
		return fmt.Errorf("the host key of %s is not the one that %s:%d has: either the server was set up anew, or something stands between: %w",
			c.Host, key.Want[0].Filename, key.Want[0].Line, err)
	case strings.Contains(err.Error(), "unable to authenticate"):
		return fmt.Errorf("%s does not let %s in by any key of the ssh-agent or of %s: %w", c.Host, c.User, strings.Join(c.identities(), ", "), err)
	case strings.Contains(err.Error(), "no common algorithm"):
		return err
	}
	return fmt.Errorf("%w: %w", errLost, err)
}

// client is how to speak to the server. The agent, if there is one, is closed
// by the caller once connected.
func (c *Config) client() (*ssh.ClientConfig, net.Conn, error) {
	check, algorithms, err := c.hostKeys()
	if err != nil {
		return nil, nil, err
	}
	var signers []ssh.Signer
	var socket net.Conn
	if path := c.agent(); path != "" {
		if socket, err = net.DialTimeout("unix", path, dialTimeout); err == nil {
			if signers, err = agent.NewClient(socket).Signers(); err != nil {
				signers = nil // whoever forgot its keys may still have files
			}
		}
	}
	own, problem := c.keys()
	if signers = append(own, signers...); len(signers) == 0 {
		if socket != nil {
			socket.Close()
		}
		return nil, nil, errors.Join(fmt.Errorf("no key to log in to %s with: start an ssh-agent, or name a key file in PLATTER_SSH_KEY", c.Host), problem)
	}
	return &ssh.ClientConfig{
		User: c.User, Auth: []ssh.AuthMethod{ssh.PublicKeys(signers...)},
		HostKeyCallback: check, HostKeyAlgorithms: algorithms, Timeout: dialTimeout,
	}, socket, nil
}

func (c *Config) agent() string {
	if c.Agent == "none" {
		return ""
	}
	if c.Agent != "" {
		return c.Agent
	}
	return os.Getenv("SSH_AUTH_SOCK")
}

func home(name string) string {
	dir, err := os.UserHomeDir()
	if err != nil {
		return name
	}
	return filepath.Join(dir, ".ssh", name)
}

func (c *Config) identities() []string {
	if len(c.Identities) > 0 {
		return c.Identities
	}
	if file := os.Getenv("PLATTER_SSH_KEY"); file != "" {
		return []string{file}
	}
	return []string{home("id_ed25519"), home("id_ecdsa"), home("id_rsa")}
}

// keys reads the files of private keys that are there.
func (c *Config) keys() (signers []ssh.Signer, problem error) {
	for _, file := range c.identities() {
		text, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		var signer ssh.Signer
		if err == nil {
			signer, err = ssh.ParsePrivateKey(text)
		}
		if missing := (*ssh.PassphraseMissingError)(nil); errors.As(err, &missing) {
			err = errors.New("it has a passphrase: give it to an ssh-agent (ssh-add)")
		}
		if err != nil {
			problem = errors.Join(problem, fmt.Errorf("key file %s: %w", file, err))
			continue
		}
		signers = append(signers, signer)
	}
	return signers, problem
}

func (c *Config) knownHosts() []string {
	if len(c.KnownHosts) > 0 {
		return c.KnownHosts
	}
	if file := os.Getenv("PLATTER_SSH_KNOWN_HOSTS"); file != "" {
		return []string{file}
	}
	return []string{home("known_hosts"), "/etc/ssh/ssh_known_hosts"}
}

// hostKeys says which keys the server may have: those that known_hosts has for
// it, and no others. It is asked for one of these kinds.
func (c *Config) hostKeys() (ssh.HostKeyCallback, []string, error) {
	files := slices.DeleteFunc(c.knownHosts(), func(file string) bool {
		_, err := os.Stat(file)
		return errors.Is(err, fs.ErrNotExist)
	})
	check, err := knownhosts.New(files...)
	if err != nil {
		return nil, nil, fmt.Errorf("read known hosts: %w", err)
	}
	var known *knownhosts.KeyError
	if err := check(c.address(), &net.TCPAddr{}, nobody{}); !errors.As(err, &known) {
		return check, nil, nil
	}
	var algorithms []string
	for _, k := range known.Want {
		if kind := k.Key.Type(); kind == ssh.KeyAlgoRSA {
			algorithms = append(algorithms, ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256)
		} else {
			algorithms = append(algorithms, kind)
		}
	}
	return check, algorithms, nil
}

// nobody is a key that no server has.
type nobody struct{}

func (nobody) Type() string                        { return "none" }
func (nobody) Marshal() []byte                     { return nil }
func (nobody) Verify([]byte, *ssh.Signature) error { return errors.New("nobody's key") }

// limited is a connection that keeps to a rate in each direction, and ends when
// nothing comes for so long.
type limited struct {
	net.Conn
	stall    time.Duration
	up, down *rate.Limiter
}

const burst = 64 << 10

func limiter(perSecond int64) *rate.Limiter {
	if perSecond <= 0 {
		return nil
	}
	return rate.NewLimiter(rate.Limit(perSecond), burst)
}

func (l *limited) Read(p []byte) (int, error) {
	if l.down != nil {
		p = p[:min(len(p), burst)]
	}
	if err := l.SetReadDeadline(time.Now().Add(l.stall)); err != nil {
		return 0, err
	}
	n, err := l.Conn.Read(p)
	if l.down != nil && n > 0 {
		_ = l.down.WaitN(context.Background(), n)
	}
	return n, err
}

func (l *limited) Write(p []byte) (done int, err error) {
	for len(p) > 0 && err == nil {
		n := len(p)
		if l.up != nil {
			n = min(n, burst)
			_ = l.up.WaitN(context.Background(), n)
		}
		if err = l.SetWriteDeadline(time.Now().Add(l.stall)); err == nil {
			n, err = l.Conn.Write(p[:n])
			done, p = done+n, p[n:]
		}
	}
	return done, err
}
