// Package s3test starts a server for S3 that tests of stores run against, and
// a proxy that makes it fail.
//
// The server is versitygw, which keeps objects as files. It is built from
// source once and kept among what tests download.
package s3test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"golang.org/x/sys/unix"

	"platter/image/store/s3"
)

// What every Server is asked with.
const (
	AccessKey = "platter-test"
	SecretKey = "platter-test-secret"
	Bucket    = "bucket"
	region    = "us-east-1"
)

const module = "github.com/versity/versitygw"

// A Server runs until the test that started it ends.
type Server struct {
	URL string // http://127.0.0.1:PORT
	Dir string // holds the objects, each in a file: Dir/Bucket/KEY
	pid int
}

// Start starts a server on 127.0.0.1 with an empty Bucket. Building it for the
// first time takes minutes. flags are those of its folder of objects.
func Start(t testing.TB, flags ...string) *Server {
	t.Helper()
	binary, err := Binary(t.Context())
	if err != nil {
		t.Fatalf("build the server for S3: %v", err)
	}
	s := &Server{Dir: t.TempDir()}
	for range 5 { // whoever takes the port first
		if err = s.run(t, binary, flags); err == nil {
			return s
		}
	}
	t.Fatalf("start %s: %v", binary, err)
	return nil
}

func (s *Server) run(t testing.TB, binary string, flags []string) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	address := l.Addr().String()
	l.Close()
	var said strings.Builder
	args := append([]string{"--port", address, "--quiet", "--keep-alive", "posix"}, flags...)
	cmd := exec.Command(binary, append(args, s.Dir)...)
	cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY="+AccessKey, "ROOT_SECRET_KEY="+SecretKey)
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
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
	s.URL = "http://" + address
	if err := s.ready(t.Context(), ended); err != nil {
		stop()
		return fmt.Errorf("%w: %s", err, &said)
	}
	s.pid = cmd.Process.Pid
	t.Cleanup(stop)
	return nil
}

// CPU returns the seconds of processor time that the server has used.
func (s *Server) CPU() float64 { return cpuOf(fmt.Sprint(s.pid)) }

// CPU returns those of this process.
func CPU() float64 { return cpuOf("self") }

// cpuOf reads fields 14 and 15 of /proc/PID/stat (proc(5)), hundredths.
func cpuOf(pid string) float64 {
	b, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	var user, system float64
	fmt.Sscan(fields[11], &user)
	fmt.Sscan(fields[12], &system)
	return (user + system) / 100
}

// ready waits for the server and makes the bucket.
func (s *Server) ready(ctx context.Context, ended <-chan struct{}) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	client, err := s.client()
	if err != nil {
		return err
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := client.MakeBucket(ctx, Bucket, minio.MakeBucketOptions{Region: region})
		if err == nil {
			return nil
		}
		select {
		case <-ended:
			return errors.New("the server ended")
		case <-ctx.Done():
			return err
		case <-tick.C:
		}
	}
}

// client speaks to the server itself, past any proxy.
func (s *Server) client() (*minio.Client, error) {
	return minio.New(strings.TrimPrefix(s.URL, "http://"), &minio.Options{
		Creds: credentials.NewStaticV4(AccessKey, SecretKey, ""), Region: region, MaxRetries: 1,
		BucketLookup: minio.BucketLookupPath, Transport: &http.Transport{DisableKeepAlives: true},
	})
}

// Config returns what opens a store on the server, of keys below prefix.
func (s *Server) Config(prefix string) s3.Config {
	return Config(s.URL, prefix)
}

// Config is that of a store on the server, or the proxy, at url.
func Config(url, prefix string) s3.Config {
	return s3.Config{Endpoint: url, Bucket: Bucket, Prefix: prefix, Region: region, AccessKey: AccessKey, SecretKey: SecretKey}
}

// Binary returns the path of the server's program, and builds it where it is
// not there yet.
func Binary(ctx context.Context) (string, error) {
	root, err := moduleRoot(ctx)
	if err != nil {
		return "", err
	}
	modfile := filepath.Join(root, "internal", "tools", "go.mod")
	mod, err := os.ReadFile(modfile)
	if err != nil {
		return "", err
	}
	version := regexp.MustCompile(regexp.QuoteMeta(module) + ` (v[0-9.]+)`).FindSubmatch(mod)
	if version == nil {
		return "", fmt.Errorf("%s names no version of %s", modfile, module)
	}
	cache, err := cacheDir()
	if err != nil {
		return "", err
	}
	path := filepath.Join(cache, fmt.Sprintf("versitygw-%s-%s", version[1], runtime.GOARCH))
	unlock, err := lock(path + ".lock")
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	return path, build(ctx, root, path)
}

func build(ctx context.Context, root, path string) error {
	temp := path + ".new"
	cmd := exec.CommandContext(ctx, "go", "build", "-modfile=internal/tools/go.mod", "-trimpath", "-ldflags=-s -w", "-o", temp, module+"/cmd/versitygw")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, out)
	}
	return os.Rename(temp, path)
}

func moduleRoot(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("go env GOMOD: %w", err)
	}
	return filepath.Dir(strings.TrimSpace(string(out))), nil
}

// cacheDir keeps what tests download and build.
func cacheDir() (string, error) {
	dir := os.Getenv("PLATTER_CACHE")
	if dir == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return "", err
		}
		dir = filepath.Join(user, "platter-tests")
	}
	return dir, os.MkdirAll(dir, 0o755)
}

// lock keeps the tests of other packages out meanwhile.
func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	for {
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX); err != unix.EINTR {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return func() { f.Close() }, nil
}
