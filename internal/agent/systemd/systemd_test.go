package systemd

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestTheManagerHearsWhatTheProtocolSays(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	listener, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_USEC", "30000000")
	t.Setenv("WATCHDOG_PID", "")
	m, err := Connect()
	if err != nil || m.Watchdog != 30*time.Second {
		t.Fatalf("%+v, %v", m, err)
	}
	if _, there := os.LookupEnv("NOTIFY_SOCKET"); there {
		t.Error("children would inherit the socket")
	}
	for _, c := range []struct {
		tell func() error
		want string
	}{
		{func() error { return m.Ready("3 jobs\nREADY=0") }, "READY=1\nSTATUS=3 jobs; READY=0"},
		{func() error { return m.Status("idle") }, "STATUS=idle"},
		{m.Alive, "WATCHDOG=1"},
		{m.Reloading, "RELOADING=1\nMONOTONIC_USEC="},
		{m.Stopping, "STOPPING=1"},
	} {
		if err := c.tell(); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 1024)
		n, err := listener.Read(b)
		if err != nil || !strings.HasPrefix(string(b[:n]), c.want) {
			t.Errorf("got %q, %v, want %q", b[:n], err, c.want)
		}
	}
}

func TestWithoutAManagerNothingIsSaid(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	m, err := Connect()
	if m != nil || err != nil {
		t.Fatalf("%+v, %v", m, err)
	}
	if err := m.Ready("x"); err != nil {
		t.Error(err)
	}
	t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "none"))
	if _, err := Connect(); err == nil {
		t.Error("a socket that is not there is no error")
	}
}
