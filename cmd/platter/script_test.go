package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"platter/image/keys"
	"platter/image/repo"
	"platter/image/store/dir"
	"platter/image/store/s3"
	"platter/image/store/s3/s3test"
	"platter/image/store/sftp"
	"platter/image/store/sftp/sftptest"
	"platter/image/store/vfs"
	"platter/internal/quantity"
)

func TestMain(m *testing.M) {
	testscript.Main(apart{m}, map[string]func(){"platter": main, "launcher": launcher})
}

// apart keeps the records of what the tests run from those of this machine.
type apart struct{ *testing.M }

func (a apart) Run() int {
	state, err := os.MkdirTemp("", "platter-state-")
	if err == nil {
		defer os.RemoveAll(state)
		err = os.Setenv("PLATTER_STATE", state)
	}
	if err != nil {
		panic(err)
	}
	return a.M.Run()
}

// TestScripts runs the program itself. What the commands below do stands at
// each of them; the rest is testscript's.
func TestScripts(t *testing.T) {
	bucket := sync.OnceValue(func() *s3test.Server { return s3test.Start(t) })
	machine := sync.OnceValue(func() *sftptest.Server { return sftptest.Start(t) })
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireUniqueNames:  true,
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("PLATTER_REPOSITORY", filepath.Join(e.WorkDir, "repo"))
			e.Setenv("PLATTER_CATALOG", filepath.Join(e.WorkDir, "catalog"))
			e.Setenv("XDG_STATE_HOME", filepath.Join(e.WorkDir, "state"))
			e.Setenv("PLATTER_STATE", filepath.Join(e.WorkDir, "records"))
			e.Setenv(testAlgorithm, os.Getenv(testAlgorithm))
			return nil
		},
		Condition: func(name string) (bool, error) {
			if name == "loop" {
				return haveLoop(t), nil
			}
			if name == "root" {
				return os.Getuid() == 0, nil
			}
			if name == "trace" {
				return haveTrace(t), nil
			}
			return false, fmt.Errorf("no condition %q", name)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"status": scriptStatus,
			"random": scriptRandom,
			"poke":   scriptPoke,
			"damage": scriptDamage,
			"size":   scriptSize,
			"same":   scriptSame,
			"tree":   scriptTree,
			"json":   scriptJSON,
			"hold":   scriptHold,
			"await":  scriptAwait,
			"newer":  scriptNewer,
			"loop":   scriptLoop,
			"tmpfs":  scriptTmpfs,
			"mount":  scriptMount,
			"setenv": scriptSetenv,
			"sftp":   func(ts *testscript.TestScript, _ bool, args []string) { scriptSFTP(t, ts, machine(), args) },
			"s3":     func(ts *testscript.TestScript, _ bool, args []string) { scriptS3(t, ts, bucket(), args) },
		},
	})
}

// status N COMMAND... runs a command that must end with status N.
func scriptStatus(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status N command...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("status %d, want %d", got, want)
	}
}

// random FILE SIZE SEED fills a new file with bytes that depend on SEED.
func scriptRandom(ts *testscript.TestScript, neg bool, args []string) {
	n, err := quantity.ParseSize(args[1])
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), noise(args[2], n), 0o600))
}

// poke FILE OFFSET SIZE SEED writes such bytes into a file or device.
func scriptPoke(ts *testscript.TestScript, neg bool, args []string) {
	off, err := quantity.ParseSize(args[1])
	ts.Check(err)
	n, err := quantity.ParseSize(args[2])
	ts.Check(err)
	f, err := os.OpenFile(ts.MkAbs(args[0]), os.O_WRONLY, 0)
	ts.Check(err)
	_, err = f.WriteAt(noise(args[3], n), off)
	ts.Check(errors.Join(err, f.Sync(), f.Close()))
}

// damage REPOSITORY OFFSET flips a bit of the largest segment.
func scriptDamage(ts *testscript.TestScript, neg bool, args []string) {
	off, err := quantity.ParseSize(args[1])
	ts.Check(err)
	names, err := filepath.Glob(filepath.Join(ts.MkAbs(args[0]), "segments", "*", "*"))
	ts.Check(err)
	var largest string
	var size int64
	for _, name := range names {
		info, err := os.Stat(name)
		ts.Check(err)
		if info.Size() > size {
			largest, size = name, info.Size()
		}
	}
	f, err := os.OpenFile(largest, os.O_RDWR, 0)
	ts.Check(err)
	b := make([]byte, 1)
	_, err = f.ReadAt(b, off)
	ts.Check(err)
	b[0] ^= 1
	_, err = f.WriteAt(b, off)
	ts.Check(errors.Join(err, f.Close()))
}

func noise(seed string, n int64) []byte {
	b := make([]byte, n)
	if seed == "0" {
		return b
	}
	var key [32]byte
	copy(key[:], seed)
	_, _ = rand.NewChaCha8(key).Read(b)
	return b
}

// size FILE SIZE cuts or extends a file, with a hole.
func scriptSize(ts *testscript.TestScript, neg bool, args []string) {
	n, err := quantity.ParseSize(args[1])
	ts.Check(err)
	f, err := os.OpenFile(ts.MkAbs(args[0]), os.O_WRONLY|os.O_CREATE, 0o600)
	ts.Check(err)
	ts.Check(errors.Join(f.Truncate(n), f.Close()))
}

// same A B compares two files or devices up to the length of A; further bytes
// of B do not matter. After ! they must differ.
func scriptSame(ts *testscript.TestScript, neg bool, args []string) {
	a, err := os.ReadFile(ts.MkAbs(args[0]))
	ts.Check(err)
	b, err := os.ReadFile(ts.MkAbs(args[1]))
	ts.Check(err)
	if same := len(a) <= len(b) && bytes.Equal(a, b[:len(a)]); same == neg {
		ts.Fatalf("%s and %s: same is %v", args[0], args[1], same)
	}
}

// tree DIR FILE writes names, sizes and times of all below DIR into FILE.
func scriptTree(ts *testscript.TestScript, neg bool, args []string) {
	var list strings.Builder
	ts.Check(filepath.Walk(ts.MkAbs(args[0]), func(path string, info os.FileInfo, err error) error {
		if err == nil && !info.IsDir() {
			fmt.Fprintln(&list, path, info.Size(), info.ModTime().UnixNano())
		}
		return err
	}))
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(list.String()), 0o600))
}

// json FILE TYPE COUNT [KEY[=VALUE]...|KEY!=VALUE] checks that FILE holds nothing but
// objects, a line each, and that COUNT of them have the message_type TYPE and
// the keys and values that follow. Keys of nested objects are joined by dots.
// COUNT may be "some".
func scriptJSON(ts *testscript.TestScript, neg bool, args []string) {
	found := 0
	for line := range strings.Lines(ts.ReadFile(args[0])) {
		var object map[string]any
		if err := json.Unmarshal([]byte(line), &object); err != nil {
			ts.Fatalf("%v in %s", err, line)
		}
		if object["message_type"] == nil {
			ts.Fatalf("no message_type in %s", line)
		}
		if object["message_type"] != args[1] {
			continue
		}
		found++
		for _, want := range args[3:] {
			checkKey(ts, object, want, line)
		}
	}
	if want := args[2]; strconv.Itoa(found) != want && (want != "some" || found == 0) {
		ts.Fatalf("%d objects of type %s, want %s", found, args[1], want)
	}
}

func checkKey(ts *testscript.TestScript, object map[string]any, want, line string) {
	path, value, hasValue := strings.Cut(want, "=")
	path, not := strings.CutSuffix(path, "!")
	var at any = object
	for key := range strings.SplitSeq(path, ".") {
		m, ok := at.(map[string]any)
		if !ok || m[key] == nil {
			ts.Fatalf("no key %s in %s", path, line)
		}
		at = m[key]
	}
	if f, ok := at.(float64); ok {
		at = strconv.FormatFloat(f, 'f', -1, 64)
	}
	if hasValue && (fmt.Sprint(at) == value) == not {
		ts.Fatalf("%s is %v, want %s in %s", path, at, want, line)
	}
}

// hold CATALOG keeps the catalog's lock until the script ends.
func scriptHold(ts *testscript.TestScript, neg bool, args []string) {
	f, err := os.OpenFile(filepath.Join(ts.MkAbs(args[0]), "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	ts.Check(err)
	ts.Check(unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB))
	ts.Defer(func() { f.Close() })
}

// await PATTERN COMMAND... runs a command until what it prints matches.
func scriptAwait(ts *testscript.TestScript, neg bool, args []string) {
	want := regexp.MustCompile("(?m)" + args[0])
	var last string
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if err := ts.Exec(args[1], args[2:]...); err == nil {
			if last = ts.ReadFile("stdout"); want.MatchString(last) != neg {
				return
			}
		}
	}
	ts.Fatalf("%q never prints %q, but\n%s", args[1:], args[0], last)
}

// newer REPOSITORY gives the config the format version of a later program.
func scriptNewer(ts *testscript.TestScript, neg bool, args []string) {
	path := ts.MkAbs(args[0])
	st, err := dir.Open(path, vfs.OS())
	ts.Check(err)
	r, err := repo.Open(context.Background(), st)
	ts.Check(err)
	r.Config.Version++
	object, _, err := r.Keys.Seal(keys.KindConfig, "config", r.Config)
	ts.Check(errors.Join(err, st.Close()))
	ts.Check(os.WriteFile(filepath.Join(path, "config"), object, 0o600))
}

// s3 PREFIX [SEED] makes a bucket's PREFIX the repository, with the credentials
// for it. $S3 is then the name of the bucket, and $BUCKET the folder of its
// objects. With a SEED, one request in eight goes wrong.
func scriptS3(t *testing.T, ts *testscript.TestScript, server *s3test.Server, args []string) {
	url := server.URL
	if len(args) > 1 {
		seed, err := strconv.ParseUint(args[1], 10, 64)
		ts.Check(err)
		proxy := server.Proxy(t)
		proxy.Random(seed, 1.0/8, s3test.Passing())
		url = proxy.URL
	}
	ts.Setenv("S3", s3.Scheme+url+"/"+s3test.Bucket)
	ts.Setenv("BUCKET", filepath.Join(server.Dir, s3test.Bucket))
	ts.Setenv("PLATTER_REPOSITORY", ts.Getenv("S3")+"/"+args[0])
	ts.Setenv("AWS_ACCESS_KEY_ID", s3test.AccessKey)
	ts.Setenv("AWS_SECRET_ACCESS_KEY", s3test.SecretKey)
}

// sftp PATH makes a directory below $MACHINE, on a machine reached by ssh, the
// repository, with what is needed to log in there.
func scriptSFTP(t *testing.T, ts *testscript.TestScript, server *sftptest.Server, args []string) {
	ts.Setenv("MACHINE", server.Dir)
	ts.Setenv("PLATTER_REPOSITORY", sftp.Scheme+"//"+server.User+"@"+server.Address+"/"+filepath.Join(server.Dir, args[0]))
	ts.Setenv("SSH_AUTH_SOCK", "")
	ts.Setenv("PLATTER_SSH_KEY", server.Key)
	ts.Setenv("PLATTER_SSH_KNOWN_HOSTS", sftptest.KnownHosts(t, server.Address, server.HostKey))
}

// loop NAME FILE [ARGS...] attaches FILE to a loop device until the script ends
// and sets the variable NAME to its path.
func scriptLoop(ts *testscript.TestScript, neg bool, args []string) {
	out, err := exec.Command("losetup", append(append([]string{"--find", "--show"}, args[2:]...), ts.MkAbs(args[1]))...).Output()
	ts.Check(err)
	device := strings.TrimSpace(string(out))
	ts.Defer(func() { _ = exec.Command("losetup", "--detach", device).Run() })
	ts.Setenv(args[0], device)
}

// tmpfs DIR SIZE mounts a file system of so many bytes until the script ends.
func scriptTmpfs(ts *testscript.TestScript, neg bool, args []string) {
	n, err := quantity.ParseSize(args[1])
	ts.Check(err)
	mount(ts, "tmpfs", ts.MkAbs(args[0]), "tmpfs", fmt.Sprintf("size=%d", n))
}

// mount DEVICE DIR TYPE mounts a file system until the script ends.
func scriptMount(ts *testscript.TestScript, neg bool, args []string) {
	mount(ts, args[0], ts.MkAbs(args[1]), args[2], "")
}

func mount(ts *testscript.TestScript, source, dir, kind, options string) {
	ts.Check(os.MkdirAll(dir, 0o755))
	ts.Check(unix.Mount(source, dir, kind, 0, options))
	ts.Defer(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
}

// setenv NAME FILE [FIELD] sets a variable to a field of FILE's first line.
func scriptSetenv(ts *testscript.TestScript, neg bool, args []string) {
	fields := strings.Fields(ts.ReadFile(args[1]))
	n := 0
	if len(args) > 2 {
		var err error
		n, err = strconv.Atoi(args[2])
		ts.Check(err)
	}
	if n >= len(fields) {
		ts.Fatalf("%s has no field %d", args[1], n)
	}
	ts.Setenv(args[0], fields[n])
}

// haveLoop reports whether loop devices can be made here, and says why not.
func haveLoop(t *testing.T) bool {
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", file).CombinedOutput()
	if err != nil {
		t.Logf("NO LOOP DEVICES HERE, scripts that need them are skipped: %v %s", err, out)
		return false
	}
	_ = exec.Command("losetup", "--detach", strings.TrimSpace(string(out))).Run()
	return true
}

// TestWaysBackAreTried holds pages against the scripts that run their commands.
func TestWaysBackAreTried(t *testing.T) {
	for _, page := range []struct {
		name     string
		commands int
		others   string // that other tests try
	}{
		{"recovery", 15, ""},
		{"drill", 6, "platter boot web1/root; platter mount web1/root /mnt/look"},
	} {
		text, err := os.ReadFile("../../docs/" + page.name + ".md")
		if err != nil {
			t.Fatal(err)
		}
		script, err := os.ReadFile("testdata/script/" + page.name + ".txtar")
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for i, block := range strings.Split(string(text), "```sh\n") {
			block, _, _ = strings.Cut(block, "```")
			for line := range strings.Lines(block) {
				line = strings.TrimSpace(line)
				if i == 0 || !strings.HasPrefix(line, "platter ") || strings.Contains(page.others, line) {
					continue
				}
				if n++; !strings.Contains(string(script), " "+line+"\n") {
					t.Errorf("docs/%s.md says %q, and %s.txtar does not run it", page.name, line, page.name)
				}
			}
		}
		if n < page.commands {
			t.Errorf("%d commands in docs/%s.md", n, page.name)
		}
	}
}
