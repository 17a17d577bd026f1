package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Names that both ends of a bucket know.
const (
	bucket    = "bench"
	accessKey = "bench"
	secretKey = "bench-secret"
)

// bucketTools are platter and a peer with their repositories in a bucket, on a
// server for S3 that shares the machine with them.
func bucketTools(platter string) []tool {
	p := platterTool(platter, func(p places) string { return "s3:" + p.url + "/platter" }, "--no-encryption")
	p.name, p.server = "platter s3", true
	r := resticTool(func(p places) string { return "s3:" + p.url + "/restic" })
	r.name, r.server = "restic s3", true
	keys := []string{"AWS_ACCESS_KEY_ID=" + accessKey, "AWS_SECRET_ACCESS_KEY=" + secretKey, "AWS_DEFAULT_REGION=us-east-1"}
	p.env, r.env = append(p.env, keys...), append(r.env, keys...)
	return []tool{p, r}
}

// serve starts a server for S3 over a folder, until stop. It reads and writes
// past the page cache, and makes no MD5 of what it gets: both would be most of
// what is measured, and on a real server are another machine's.
func serve(ctx context.Context, program, dir string) (url string, stop func(), err error) {
	if err := os.MkdirAll(filepath.Join(dir, bucket), 0o700); err != nil {
		return "", nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	address := l.Addr().String()
	l.Close()
	cmd := exec.CommandContext(ctx, program, "--port", address, "--quiet", "--keep-alive", "posix", "--data-integrity-etag", "--enable-odirect", dir)
	cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY="+accessKey, "ROOT_SECRET_KEY="+secretKey)
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	var said strings.Builder
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		return "", nil, err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait()
	}()
	stop = func() {
		_ = cmd.Process.Kill()
		<-ended
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if conn, err := net.Dial("tcp", address); err == nil {
			conn.Close()
			return "http://" + address + "/" + bucket, stop, nil
		}
		select {
		case <-ended:
			return "", nil, fmt.Errorf("%s: it ended: %s", program, &said)
		case <-ctx.Done():
			return "", nil, errors.Join(ctx.Err(), fmt.Errorf("%s: no answer", program))
		case <-tick.C:
		}
	}
}
