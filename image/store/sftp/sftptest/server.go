// Package sftptest starts an OpenSSH server that tests of stores run against,
// and a proxy that cuts its connections.
package sftptest

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
	"golang.org/x/sys/unix"

	"platter/image/store/sftp"
)

// A Server runs until the test that started it ends. It lets this process's
// user in by one key.
type Server struct {
	Address string // 127.0.0.1:PORT
	User    string
	Key     string        // file of the private key
	HostKey ssh.PublicKey // its own
	Dir     string        // an empty folder
	temp    string
}

// Start starts a server on 127.0.0.1. flags are those of its sftp-server(8).
func Start(t testing.TB, flags ...string) *Server {
	t.Helper()
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{Dir: t.TempDir(), temp: t.TempDir(), User: me.Username}
	host, own := NewKey(t), NewKey(t)
	s.HostKey = host.PublicKey()
	s.Key = WriteKey(t, own, "")
	for range 5 { // whoever takes the port first
		if err = s.run(t, WriteKey(t, host, ""), own.PublicKey(), flags); err == nil {
			return s
		}
	}
	t.Fatalf("start sshd (Debian package openssh-server): %v", err)
	return nil
}

func (s *Server) run(t testing.TB, hostKey string, own ssh.PublicKey, flags []string) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s.Address = l.Addr().String()
	l.Close()
	_, port, _ := net.SplitHostPort(s.Address)
	allowed := filepath.Join(s.temp, "authorized_keys")
	config := filepath.Join(s.temp, "sshd_config")
	text := fmt.Sprintf("ListenAddress 127.0.0.1\nPort %s\nHostKey %s\nAuthorizedKeysFile %s\nStrictModes no\nUsePAM no\n"+
		"PasswordAuthentication no\nPermitRootLogin prohibit-password\nPidFile none\nMaxStartups 200\nMaxSessions 50\n"+
		"Subsystem sftp internal-sftp %s\n", port, hostKey, allowed, strings.Join(flags, " "))
	if err := os.WriteFile(allowed, ssh.MarshalAuthorizedKey(own), 0o600); err != nil {
		return err
	}
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return err
	}
	if os.Getuid() == 0 {
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil { // which its service would make
			return err
		}
	}
	var said bytes.Buffer
	cmd := exec.Command("/usr/sbin/sshd", "-D", "-e", "-f", config)
	cmd.Stderr = &said
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL, Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait()
	}()
	stop := func() {
		_ = cmd.Process.Kill()
		<-ended
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for range 1000 {
		if conn, err := net.Dial("tcp", s.Address); err == nil {
			conn.Close()
			t.Cleanup(stop)
			return nil
		}
		select {
		case <-ended:
			return fmt.Errorf("it ended: %s", &said)
		case <-tick.C:
		}
	}
	stop()
	return fmt.Errorf("no answer: %s", &said)
}

// Config returns what opens a store in the folder Dir/name of the server.
func (s *Server) Config(t testing.TB, name string) sftp.Config {
	return s.At(t, s.Address, name)
}

// At is Config by way of a proxy at another address.
func (s *Server) At(t testing.TB, address, name string) sftp.Config {
	t.Helper()
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	c := sftp.Config{
		User: s.User, Host: host, Path: filepath.Join(s.Dir, name), Identities: []string{s.Key}, Agent: "none",
		KnownHosts: []string{KnownHosts(t, address, s.HostKey)},
	}
	if _, err := fmt.Sscan(port, &c.Port); err != nil {
		t.Fatal(err)
	}
	return c
}

// KnownHosts writes a file that says which key a server has.
func KnownHosts(t testing.TB, address string, key ssh.PublicKey) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "known_hosts")
	line := knownhosts.Line([]string{knownhosts.Normalize(address)}, key)
	if err := os.WriteFile(path, []byte(line+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// A Key is a private one.
type Key struct {
	ssh.Signer
	Private ed25519.PrivateKey
}

// NewKey makes a key.
func NewKey(t testing.TB) Key {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return Key{signer, private}
}

// WriteKey writes a key to a file, under a passphrase unless it is empty.
func WriteKey(t testing.TB, key Key, passphrase string) string {
	t.Helper()
	var block *pem.Block
	var err error
	if passphrase == "" {
		block, err = ssh.MarshalPrivateKey(key.Private, "test")
	} else {
		block, err = ssh.MarshalPrivateKeyWithPassphrase(key.Private, "test", []byte(passphrase))
	}
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// ReadKey is the private key in the text of a file.
func ReadKey(t testing.TB, text []byte) any {
	t.Helper()
	key, err := ssh.ParseRawPrivateKey(text)
	if err != nil {
		t.Fatal(err)
	}
	return key
}
