// Package socket is how other processes of a machine ask its agent: JSON over
// HTTP on a Unix socket, which root and one group may use.
//
//	GET  /v1/status                     agent.Status
//	POST /v1/jobs/NAME/run|stop
//	POST /v1/pause                      {"job": "", "until": TIME, "stop": false}
//	POST /v1/resume                     {"job": ""}
//	POST /v1/reload
//
// Answers that are not 2xx hold {"error": TEXT}.
package socket

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"platter/internal/agent"
)

// An Agent is one that is asked.
type Agent interface {
	Status(ctx context.Context) (agent.Status, error)
	RunNow(ctx context.Context, job string) error
	StopRun(ctx context.Context, job string) error
	Pause(ctx context.Context, job string, until time.Time, stop bool) error
	Resume(ctx context.Context, job string) error
	Reload(ctx context.Context) error
}

// A Server answers on a socket.
type Server struct {
	agent    Agent
	log      *slog.Logger
	group    int // that may ask beside root and this user; -1 for none
	listener *net.UnixListener
	http     *http.Server
}

// Limits of one request.
const (
	maxBody     = 64 << 10 // bytes
	requestTime = time.Minute
)

// Listen makes the socket at path, of a group that may use it (-1 for none). A
// socket that a dead agent left is taken; of one that lives the error wraps
// ErrInUse.
func Listen(path string, group int, a Agent, log *slog.Logger) (*Server, error) {
	l, err := listen(path, group)
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	s := &Server{agent: a, log: log, group: group, listener: l}
	s.http = &http.Server{
		Handler: s.handler(), ReadTimeout: requestTime, IdleTimeout: requestTime, MaxHeaderBytes: 8 << 10,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, peerKey{}, peerOf(c))
		},
	}
	return s, nil
}

// ErrInUse means that another agent answers at the path.
var ErrInUse = errors.New("another agent is there")

func listen(path string, group int) (*net.UnixListener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if c, err := net.Dial("unix", path); err == nil {
		return nil, errors.Join(ErrInUse, c.Close())
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	// Nobody else may connect before the mode is set.
	old := unix.Umask(0o177)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	unix.Umask(old)
	if err != nil {
		return nil, err
	}
	if group >= 0 {
		if err := errors.Join(os.Chown(path, -1, group), os.Chmod(path, 0o660)); err != nil {
			return nil, errors.Join(err, l.Close())
		}
	}
	return l, nil
}

// Serve answers until Close.
func (s *Server) Serve() error {
	if err := s.http.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("socket: %w", err)
	}
	return nil
}

// Close stops answering, and removes the socket.
func (s *Server) Close() error {
	err := s.http.Close()
	if closed := s.listener.Close(); !errors.Is(closed, net.ErrClosed) {
		err = errors.Join(err, closed)
	}
	return err
}

func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, r *http.Request) {
		status, err := s.agent.Status(r.Context())
		answer(w, status, err)
	})
	act := func(pattern string, f func(r *http.Request, body request) error) {
		mux.HandleFunc("POST "+pattern, func(w http.ResponseWriter, r *http.Request) {
			var body request
			err := decode(r, &body)
			if err == nil {
				err = f(r, body)
				s.log.Info("asked", "by_uid", peer(r).uid, "pid", peer(r).pid, "request", r.URL.Path, "about", body.Job, "error", text(err))
			}
			answer(w, struct{}{}, err)
		})
	}
	act("/v1/jobs/{job}/run", func(r *http.Request, _ request) error { return s.agent.RunNow(r.Context(), r.PathValue("job")) })
	act("/v1/jobs/{job}/stop", func(r *http.Request, _ request) error { return s.agent.StopRun(r.Context(), r.PathValue("job")) })
	act("/v1/pause", func(r *http.Request, b request) error { return s.agent.Pause(r.Context(), b.Job, b.Until, b.Stop) })
	act("/v1/resume", func(r *http.Request, b request) error { return s.agent.Resume(r.Context(), b.Job) })
	act("/v1/reload", func(r *http.Request, _ request) error { return s.agent.Reload(r.Context()) })
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p := peer(r); !s.allowed(p) {
			s.log.Warn("refused", "uid", p.uid, "pid", p.pid, "request", r.URL.Path)
			answer(w, nil, errRefused)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// A request is the body of any of them.
type request struct {
	Job   string    `json:"job,omitempty"`
	Until time.Time `json:"until,omitzero"`
	Stop  bool      `json:"stop,omitempty"`
}

var (
	errRefused = errors.New("only root and members of the group that the socket belongs to may ask the agent")
	errBody    = errors.New("the request cannot be read")
)

func decode(r *http.Request, to *request) error {
	if r.ContentLength == 0 {
		return nil
	}
	d := json.NewDecoder(http.MaxBytesReader(nil, r.Body, maxBody))
	d.DisallowUnknownFields()
	if err := d.Decode(to); err != nil {
		return fmt.Errorf("%w: %w", errBody, err)
	}
	return nil
}

func answer(w http.ResponseWriter, v any, err error) {
	code := http.StatusOK
	switch {
	case err == nil:
	case errors.Is(err, agent.ErrNoJob):
		code = http.StatusNotFound
	case errors.Is(err, errRefused):
		code = http.StatusForbidden
	case errors.Is(err, errBody):
		code = http.StatusBadRequest
	default:
		code = http.StatusConflict
	}
	if err != nil {
		v = failure{err.Error()}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(v)
}

type failure struct {
	Error string `json:"error"`
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

type peerKey struct{}

// credentials are those of the process that asks.
type credentials struct {
	uid, pid int
	groups   []int
	known    bool
}

// Peer says who asks, in the context that an Agent is asked with; "" where
// nobody does over a socket.
func Peer(ctx context.Context) string {
	p, ok := ctx.Value(peerKey{}).(credentials)
	if !ok {
		return ""
	}
	return fmt.Sprintf("uid %d, pid %d", p.uid, p.pid)
}

func peer(r *http.Request) credentials {
	p, _ := r.Context().Value(peerKey{}).(credentials)
	return p
}

// peerOf asks the kernel who is at the other end.
func peerOf(c net.Conn) (p credentials) {
	conn, ok := c.(*net.UnixConn)
	if !ok {
		return p
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return p
	}
	_ = raw.Control(func(fd uintptr) {
		u, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err != nil {
			return
		}
		p = credentials{uid: int(u.Uid), pid: int(u.Pid), groups: append(groupsOf(int(fd)), int(u.Gid)), known: true}
	})
	return p
}

func (s *Server) allowed(p credentials) bool {
	return p.known && (p.uid == 0 || p.uid == os.Getuid() || s.group >= 0 && slices.Contains(p.groups, s.group))
}
