package audit

import (
	"os"
	"os/user"
	"strconv"
	"strings"
)

// A Who says who did something.
type Who struct {
	UID  int    `json:"uid"`
	User string `json:"user,omitempty"`
	Sudo string `json:"sudo,omitempty"` // who called sudo, by its word
	// Login is who logged in to this session, as the kernel keeps it; nil for
	// services and where the kernel does not.
	Login *int   `json:"login,omitempty"`
	PID   int    `json:"pid,omitempty"`
	Peer  string `json:"peer,omitempty"` // who asked over a socket
	Job   string `json:"job,omitempty"`  // of the agent's config
}

// Me says who runs this process.
func Me() Who {
	w := Who{UID: os.Getuid(), PID: os.Getpid(), Sudo: os.Getenv("SUDO_USER"), Job: os.Getenv("PLATTER_JOB")}
	if u, err := user.LookupId(strconv.Itoa(w.UID)); err == nil {
		w.User = u.Username
	}
	text, err := os.ReadFile("/proc/self/loginuid")
	if err != nil {
		return w
	}
	const unset = 1<<32 - 1
	if id, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 32); err == nil && id != unset {
		n := int(id)
		w.Login = &n
	}
	return w
}
