package sftp_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh/agent"

	"platter/image/store"
	"platter/image/store/sftp"
	"platter/image/store/sftp/sftptest"
	"platter/image/store/storetest"
)

func create(t testing.TB, config sftp.Config) *sftp.Store {
	t.Helper()
	s, err := sftp.Create(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestSuite(t *testing.T) {
	t.Parallel()
	server := sftptest.Start(t)
	n := 0
	storetest.Run(t, func(t *testing.T) store.Store {
		n++
		s, err := sftp.Create(t.Context(), server.Config(t, fmt.Sprintf("suite/%d", n)))
		if err != nil {
			t.Fatal(err)
		}
		return s
	})
}

func TestFilesAreTheUsersOwn(t *testing.T) {
	t.Parallel()
	server := sftptest.Start(t)
	s := create(t, server.Config(t, "own"))
	if err := s.Put(t.Context(), "a/b", []byte("x")); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]os.FileMode{"own": os.ModeDir | 0o700, "own/a": os.ModeDir | 0o700, "own/a/b": 0o600} {
		st, err := os.Stat(filepath.Join(server.Dir, name))
		if err != nil || st.Mode() != want {
			t.Errorf("%s: got mode %v, %v, want %v", name, st.Mode(), err, want)
		}
	}
	left, err := filepath.Glob(filepath.Join(server.Dir, "own", "*", ".*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}
	if _, err := sftp.Open(t.Context(), server.Config(t, "missing")); !sftp.Missing(err) {
		t.Errorf("got %v, want that there is no such directory", err)
	}
}

// Two stores claim names by connections of their own: one of them gets each.
func TestNamesAreClaimedByOne(t *testing.T) {
	t.Parallel()
	server := sftptest.Start(t)
	config := server.Config(t, "race")
	stores := []*sftp.Store{create(t, config), create(t, config), create(t, config)}
	for round := range 20 {
		name := fmt.Sprintf("images/%d", round)
		errs := make([]error, len(stores))
		var wg sync.WaitGroup
		for i, s := range stores {
			wg.Go(func() { errs[i] = s.Put(t.Context(), name, storetest.Bytes(uint64(i), 20_000)) })
		}
		wg.Wait()
		won := -1
		for i, err := range errs {
			switch {
			case err == nil && won < 0:
				won = i
			case !errors.Is(err, store.ErrExists):
				t.Fatalf("round %d: %v", round, errs)
			}
		}
		if got, err := stores[0].Get(t.Context(), name, 1<<20); err != nil || !bytes.Equal(got, storetest.Bytes(uint64(won), 20_000)) {
			t.Fatalf("round %d: %d won, and %d bytes are there, %v", round, won, len(got), err)
		}
	}
}

func TestServerWithoutLinksIsRefused(t *testing.T) {
	t.Parallel()
	server := sftptest.Start(t, "-P", "hardlink")
	s, err := sftp.Create(t.Context(), server.Config(t, "x"))
	if err == nil {
		s.Close()
		t.Fatal("a repository was made where nothing keeps two writers apart")
	}
	t.Log(err)
}

func wantText(t *testing.T, err error, words ...string) {
	t.Helper()
	for _, w := range words {
		if err == nil || !strings.Contains(err.Error(), w) {
			t.Errorf("got %v, want %q in it", err, w)
		}
	}
}

func open(t *testing.T, config sftp.Config) error {
	t.Helper()
	s, err := sftp.Open(t.Context(), config)
	if err == nil {
		s.Close()
	}
	return err
}

func TestWhoIsSpokenTo(t *testing.T) {
	t.Parallel()
	server := sftptest.Start(t)
	create(t, server.Config(t, "x"))

	c := server.Config(t, "x")
	c.KnownHosts = []string{filepath.Join(t.TempDir(), "none")}
	wantText(t, open(t, c), "the host key of 127.0.0.1 is in none of", "ssh-keyscan -p")

	c.KnownHosts = []string{sftptest.KnownHosts(t, server.Address, sftptest.NewKey(t).PublicKey())}
	wantText(t, open(t, c), "is not the one that", "something stands between")

	c = server.Config(t, "x")
	c.Identities = []string{sftptest.WriteKey(t, sftptest.NewKey(t), "")}
	wantText(t, open(t, c), "does not let "+server.User+" in by any key")

	c.Identities = []string{filepath.Join(t.TempDir(), "none")}
	wantText(t, open(t, c), "no key to log in", "PLATTER_SSH_KEY")

	locked := sftptest.NewKey(t)
	c.Identities = []string{sftptest.WriteKey(t, locked, "secret")}
	wantText(t, open(t, c), "has a passphrase", "ssh-agent")
}

func TestKeyOfAnAgent(t *testing.T) {
	t.Parallel()
	server := sftptest.Start(t)
	ring := agent.NewKeyring()
	text, err := os.ReadFile(server.Key)
	if err != nil {
		t.Fatal(err)
	}
	if err := ring.Add(agent.AddedKey{PrivateKey: sftptest.ReadKey(t, text)}); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "agent")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	var work sync.WaitGroup
	defer work.Wait()
	defer l.Close()
	work.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			work.Go(func() { _ = agent.ServeAgent(ring, conn) })
		}
	})
	c := server.Config(t, "agent")
	c.Identities, c.Agent = []string{filepath.Join(dir, "none")}, l.Addr().String()
	s := create(t, c)
	if err := s.Put(t.Context(), "x", []byte("x")); err != nil {
		t.Error(err)
	}
}

// A server that is not there is soon given up.
func TestAbsentServer(t *testing.T) {
	t.Parallel()
	server := sftptest.Start(t)
	proxy := server.Proxy(t)
	proxy.Fail(sftptest.Refuse, 0, false)
	c := server.At(t, proxy.Address, "x")
	c.Patience = 300 * time.Millisecond
	wantText(t, open(t, c), "open sftp:", "given up after", "connection lost")
}

const old, fresh, doomed = "d/old", "d/fresh", "d/doomed"

func content(seed uint64) []byte { return storetest.Bytes(seed, 150_000) }

// A deed is one operation and how to tell whether its result is true.
type deed struct {
	name  string
	do    func(context.Context, store.Store) error
	truth func(t *testing.T, direct store.Store, err error) string
}

func deeds() []deed {
	read := func(ctx context.Context, s store.Store) error {
		p := make([]byte, 90_000)
		if err := s.ReadAt(ctx, old, p, 777); err != nil {
			return err
		}
		if !bytes.Equal(p, content(1)[777:][:len(p)]) {
			return errors.New("other bytes")
		}
		return nil
	}
	list := func(ctx context.Context, s store.Store) error {
		var got []string
		err := s.List(ctx, "d/", func(o store.Info) error { got = append(got, o.Name); return nil })
		if err == nil && (len(got) < 2 || got[0] != doomed || got[len(got)-1] != old) {
			return fmt.Errorf("listed %q", got)
		}
		return err
	}
	none := func(*testing.T, store.Store, error) string { return "" }
	return []deed{
		{"put", func(ctx context.Context, s store.Store) error {
			return s.Put(ctx, fresh, content(2)[:100], content(2)[100:])
		}, func(t *testing.T, direct store.Store, err error) string {
			got, e := direct.Get(t.Context(), fresh, 1<<20)
			switch {
			case err == nil && !bytes.Equal(got, content(2)):
				return fmt.Sprintf("success, and there are %d bytes, %v", len(got), e)
			case errors.Is(err, store.ErrExists):
				return "said to be another's"
			case err != nil && !errors.Is(err, store.ErrNotDurable) && e == nil:
				return "an error that leaves an object"
			case e == nil && !bytes.Equal(got, content(2)):
				return "half an object is seen"
			}
			return ""
		}},
		{"put over another", func(ctx context.Context, s store.Store) error {
			if err := s.Put(ctx, old, content(3)); !errors.Is(err, store.ErrExists) {
				return fmt.Errorf("got %w", errors.Join(err, errWrong))
			}
			return nil
		}, func(t *testing.T, direct store.Store, err error) string {
			if got, e := direct.Get(t.Context(), old, 1<<20); !bytes.Equal(got, content(1)) {
				return fmt.Sprintf("it holds %d other bytes, %v", len(got), e)
			}
			return ""
		}},
		{"read", read, none},
		{"list", list, none},
		{"delete", func(ctx context.Context, s store.Store) error { return s.Delete(ctx, doomed) }, func(t *testing.T, direct store.Store, err error) string {
			if _, e := direct.Head(t.Context(), doomed); err == nil && e == nil {
				return "said to be deleted, and is there"
			}
			return ""
		}},
		{"now", func(ctx context.Context, s store.Store) error {
			now, err := s.Now(ctx)
			if err == nil && time.Since(now).Abs() > time.Minute {
				return fmt.Errorf("it is %s", now)
			}
			return err
		}, none},
	}
}

var errWrong = errors.New("no refusal")

// TestConnectionCutAnywhere cuts or stalls the connection after every so many
// bytes of every operation: it is made again, and says the truth.
func TestConnectionCutAnywhere(t *testing.T) {
	t.Parallel()
	server := sftptest.Start(t)
	steps := 12
	if testing.Short() {
		steps = 4
	}
	if os.Getenv("PLATTER_TEST_LONG") != "" {
		steps = 400
	}
	var wg sync.WaitGroup
	for i, d := range deeds() {
		wg.Go(func() {
			for step := range steps {
				cutOne(t, server, d, fmt.Sprintf("cut/%d/%d", i, step), sftptest.Cut, step, steps)
			}
		})
	}
	wg.Go(func() {
		for i, d := range deeds()[:3] {
			cutOne(t, server, d, fmt.Sprintf("stall/%d", i), sftptest.Stall, 1, 3)
		}
	})
	wg.Wait()
}

func cutOne(t *testing.T, server *sftptest.Server, d deed, name string, f sftptest.Fault, step, steps int) {
	direct, err := sftp.Create(t.Context(), server.Config(t, name))
	if err != nil {
		t.Error(err)
		return
	}
	defer direct.Close()
	proxy := server.Proxy(t)
	c := server.At(t, proxy.Address, name)
	c.Stall = time.Second
	s, err := sftp.Open(t.Context(), c)
	if err != nil {
		t.Error(err)
		return
	}
	defer s.Close()
	for i, object := range []string{old, doomed} {
		if err := direct.Put(t.Context(), object, content(uint64(i+1))); err != nil {
			t.Error(err)
			return
		}
	}
	// Operations of some length, and the last bytes of short ones.
	after := int64(1 + step*4800/steps)
	if d.name == "put" || d.name == "read" {
		after = int64(1 + step*160_000/steps)
	}
	proxy.Fail(f, after, true)
	err = d.do(t.Context(), s)
	proxy.Heal()
	what := d.truth(t, direct, err)
	if err != nil || what != "" {
		t.Errorf("%s, %v after %d bytes: %v %s", d.name, f, after, err, what)
	}
}

// TestConnectionThatStaysCut: an outage longer than patience gives a clear
// error and leaves nothing by half.
func TestConnectionThatStaysCut(t *testing.T) {
	t.Parallel()
	server := sftptest.Start(t)
	for i, d := range deeds() {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			name := fmt.Sprintf("gone/%d", i)
			direct := create(t, server.Config(t, name))
			proxy := server.Proxy(t)
			c := server.At(t, proxy.Address, name)
			c.Patience = 400 * time.Millisecond
			s := create(t, c)
			for i, object := range []string{old, doomed} {
				if err := direct.Put(t.Context(), object, content(uint64(i+1))); err != nil {
					t.Fatal(err)
				}
			}
			proxy.Fail(sftptest.Cut, 100, false)
			err := d.do(t.Context(), s)
			wantText(t, err, "connection lost", "given up after")
			if what := d.truth(t, direct, err); what != "" {
				t.Error(what)
			}
			proxy.Heal()
			if err := s.Put(t.Context(), "after", []byte("x")); err != nil {
				t.Errorf("once it is back: %v", err)
			}
		})
	}
}

// TestOutageIsOutlived: the server is gone for a while in the middle of many
// operations, and none fails.
func TestOutageIsOutlived(t *testing.T) {
	t.Parallel()
	server := sftptest.Start(t)
	proxy := server.Proxy(t)
	c := server.At(t, proxy.Address, "outage")
	s := create(t, c)
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range 6 {
				name := fmt.Sprintf("o/%d-%d", w, i)
				if err := s.Put(t.Context(), name, storetest.Bytes(uint64(i), 300_000)); err != nil {
					t.Error(err)
					return
				}
				if got, err := s.Get(t.Context(), name, 1<<20); err != nil || !bytes.Equal(got, storetest.Bytes(uint64(i), 300_000)) {
					t.Errorf("%s: %d bytes, %v", name, len(got), err)
				}
			}
		})
	}
	proxy.Fail(sftptest.Cut, 1_000_000, true)
	back := time.NewTimer(900 * time.Millisecond)
	proxy.CutAll()
	proxy.Fail(sftptest.Refuse, 0, false)
	<-back.C
	proxy.Heal()
	wg.Wait()
}

func TestLimits(t *testing.T) {
	t.Parallel()
	server := sftptest.Start(t)
	c := server.Config(t, "limits")
	c.UploadLimit, c.DownloadLimit = 1<<20, 1<<20
	s := create(t, c)
	start := time.Now()
	if err := s.Put(t.Context(), "x", storetest.Bytes(1, 400_000)); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(start); d < 250*time.Millisecond {
		t.Errorf("400 kB went up in %v at 1 MiB/s", d)
	}
	start = time.Now()
	if _, err := s.Get(t.Context(), "x", 1<<20); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(start); d < 250*time.Millisecond {
		t.Errorf("400 kB came down in %v at 1 MiB/s", d)
	}
}
