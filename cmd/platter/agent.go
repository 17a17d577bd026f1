package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	_ "time/tzdata" // a bare machine knows no zone

	"golang.org/x/sys/unix"

	"platter/internal/agent"
	"platter/internal/agent/config"
	"platter/internal/agent/event"
	"platter/internal/agent/owned"
	"platter/internal/agent/socket"
	"platter/internal/agent/systemd"
	"platter/internal/agent/watch"
)

// agentGroup may ask the agent.
const agentGroup = "platter"

// A service is the agent and what is around it.
type service struct {
	*agent.Agent
	call    *call
	manager *systemd.Manager
	log     *slog.Logger
	watch   *watch.Watch
	config  atomic.Pointer[config.Config] // that was read last
}

func runAgent(ctx context.Context, c *call, _ []string) error {
	hangup := make(chan os.Signal, 1)
	signal.Reset(unix.SIGHUP) // it ends other commands
	signal.Notify(hangup, unix.SIGHUP)
	defer signal.Stop(hangup)
	manager, err := systemd.Connect()
	if err != nil {
		return err
	}
	s := &service{call: c, manager: manager, log: c.logger()}
	server, err := socket.Listen(c.opts.socketFile(), groupID(agentGroup), s, s.log)
	if errors.Is(err, socket.ErrInUse) {
		return advise(err, "stop that one first: systemctl stop platter-agent")
	}
	if err != nil {
		return err
	}
	// What the last agent left is for this one: no other runs.
	if s.Agent, err = s.make(); err != nil {
		return errors.Join(adviseNoConfig(err, c.opts.configFile()), server.Close())
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	served := make(chan error, 1)
	go func() { served <- server.Serve() }()
	ran := make(chan error, 1)
	go func() { ran <- s.Run(ctx) }()
	watched := make(chan struct{})
	go func() { defer close(watched); s.watch.Run(ctx) }()
	defer func() { stop(); <-watched }()
	s.audit(ctx, "agent start")
	defer s.audit(context.WithoutCancel(ctx), "agent stop")
	s.log.Info("the agent runs", "config", c.opts.configFile(), "state", c.opts.stateDir(), "socket", c.opts.socketFile(), "version", versionText())
	s.told(manager.Ready("running"))
	for {
		select {
		case <-hangup:
			if err := s.Reload(ctx); err != nil {
				s.log.Error("the config is not read again; all stays as it was", "error", err.Error())
			}
		case <-ctx.Done():
			s.told(manager.Stopping())
			return errors.Join(<-ran, server.Close(), <-served)
		case err := <-served:
			stop()
			return errors.Join(err, <-ran)
		}
	}
}

// make makes the agent.
func (s *service) make() (*agent.Agent, error) {
	o := s.call.opts
	runner, err := s.call.runner(s.log)
	if err != nil {
		return nil, err
	}
	s.watch = &watch.Watch{State: o.stateDir(), Version: versionText(), Config: s.config.Load, Warn: func(text string) { s.log.Warn(text) }}
	return agent.New(agent.Options{
		Config: o.configFile(), State: o.agentDir(), Machine: machineID(), Log: s.log, Load: s.load, Runner: runner,
		Observe:    s.observe,
		Alive:      func() { s.told(s.manager.Alive()) },
		AliveEvery: s.watchdog(),
	})
}

// agentDir is what the agent remembers.
func (o *options) agentDir() string { return filepath.Join(o.stateDir(), "agent") }

// watchdog is half of what the service manager allows, 0 for no matter.
func (s *service) watchdog() time.Duration {
	if s.manager == nil {
		return 0
	}
	return s.manager.Watchdog / 2
}

// observe is told of everything that becomes of jobs.
func (s *service) observe(e event.Event) {
	s.watch.Observe(e)
	switch e.Kind {
	case event.Started:
		s.told(s.manager.Status("job " + e.Job + " runs"))
	case event.Finished:
		s.told(s.manager.Status(fmt.Sprintf("job %s ended with status %d", e.Job, e.Exit)))
	}
}

// told logs that the service manager could not be told something.
func (s *service) told(err error) {
	if err != nil {
		s.log.Warn(err.Error())
	}
}

// Reload reads the config again, and lets the service manager know.
func (s *service) Reload(ctx context.Context) error {
	s.told(s.manager.Reloading())
	err := s.Agent.Reload(ctx)
	s.audit(ctx, "config reload")
	if err == nil {
		s.log.Info("the config was read again")
	}
	s.told(s.manager.Ready("running"))
	return err
}

// load reads the config, and keeps the last that could be read.
func (s *service) load(path string) (*config.Config, error) {
	c, err := loadOwned(path)
	if err == nil {
		s.config.Store(c)
	}
	return c, err
}

// loadOwned reads the config, and refuses files that somebody else may change:
// they say what root runs.
func loadOwned(path string) (*config.Config, error) {
	c, err := config.Load(path)
	if err != nil {
		return nil, err
	}
	for _, f := range c.Files {
		if _, err := owned.Check(f); err != nil {
			return nil, fmt.Errorf("the config %s is not used: %w", f, err)
		}
	}
	return c, nil
}

func adviseNoConfig(err error, path string) error {
	if errors.Is(err, fs.ErrNotExist) {
		return advise(err, "write %s, or name another with --config; docs/agent.md shows one", path)
	}
	return adviseConfig(err)
}

// logger writes the agent's log: the journal has times of its own.
func (c *call) logger() *slog.Logger {
	opts := &slog.HandlerOptions{}
	if c.opts.verbose {
		opts.Level = slog.LevelDebug
	}
	if os.Getenv("JOURNAL_STREAM") != "" {
		opts.ReplaceAttr = func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) == 0 && a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		}
	}
	if c.opts.json {
		return slog.New(slog.NewJSONHandler(c.term.err, opts))
	}
	return slog.New(slog.NewTextHandler(c.term.err, opts))
}

// machineID tells this machine from others, for the places of its jobs.
func machineID() string {
	if b, err := os.ReadFile("/etc/machine-id"); err == nil && len(b) > 0 {
		return strings.TrimSpace(string(b))
	}
	host, _ := os.Hostname()
	return host
}

// groupID returns the number of a group, -1 if there is none.
func groupID(name string) int {
	g, err := user.LookupGroup(name)
	if err != nil || os.Getuid() != 0 {
		return -1
	}
	id, err := strconv.Atoi(g.Gid)
	if err != nil {
		return -1
	}
	return id
}

// socketFile is where the agent is asked: where somebody says, or in the
// system's place or the user's.
func (o *options) socketFile() string {
	const name = "agent.sock"
	switch dir := os.Getenv("XDG_RUNTIME_DIR"); {
	case o.socket != "":
		return o.socket
	case os.Getuid() == 0:
		return filepath.Join("/run/platter", name)
	case filepath.IsAbs(dir):
		return filepath.Join(dir, "platter", name)
	}
	return filepath.Join(o.stateDir(), name)
}
