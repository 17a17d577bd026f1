package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"platter/image/store/s3"
	"platter/image/store/s3/s3test"
)

// D41: a backup goes on when the network comes back: nothing of it reaches the
// bucket for a while, in the middle of its segments.
func TestBackupOutlivesAnOutage(t *testing.T) {
	server := s3test.Start(t)
	proxy := server.Proxy(t)
	v := &victim{T: t, home: t.TempDir(), path: s3.Scheme + proxy.URL + "/" + s3test.Bucket + "/outage"}
	t.Setenv("AWS_ACCESS_KEY_ID", s3test.AccessKey)
	t.Setenv("AWS_SECRET_ACCESS_KEY", s3test.SecretKey)
	v.must("init", "--no-encryption", "-q")
	disk := noise("outage", 40<<20)
	if err := os.WriteFile(filepath.Join(v.home, "disk"), disk, 0o600); err != nil {
		t.Fatal(err)
	}
	stored := func() bool {
		for _, line := range proxy.Seen() {
			if strings.HasPrefix(line, "PUT ") && strings.Contains(line, "/segments/") {
				return true
			}
		}
		return false
	}
	p := v.start("backup", "-q", "--memory", "128MiB", "--volume", "host/disk", "disk")
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for began := time.Now(); !stored(); <-tick.C {
		if time.Since(began) > time.Minute {
			t.Fatal("no segment was stored")
		}
	}
	proxy.Fail(s3test.Rule{Fault: s3test.ResetBefore})
	back := time.AfterFunc(1500*time.Millisecond, proxy.Heal)
	defer back.Stop()
	if out, err := p.wait(); err != nil {
		t.Fatalf("backup: %v\n%s", err, out)
	}
	refused := 0
	for _, line := range proxy.Seen() {
		if strings.HasSuffix(line, s3test.ResetBefore.String()) {
			refused++
		}
	}
	if refused == 0 {
		t.Error("the network was not missed")
	}
	v.must("restore", "-q", "--no-read-back", "host/disk", "out")
	got, err := os.ReadFile(filepath.Join(v.home, "out"))
	if err != nil || string(got) != string(disk) {
		t.Errorf("the image is not what the disk held (%v)", err)
	}
	t.Logf("%d requests were refused", refused)
}

// must runs a command that has to end well.
func (v *victim) must(args ...string) {
	v.Helper()
	if out, err := v.start(args...).wait(); err != nil {
		v.Fatalf("platter %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}
