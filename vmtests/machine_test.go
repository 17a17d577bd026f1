package vmtests

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"platter/vmtests/qemu"
)

// A live is a running machine that is imaged into two repositories.
type live struct {
	*testing.T
	rng     *rand.Rand
	dir     string
	disk    string
	machine *qemu.Live
	size    int64
	repos   []*repo
	images  map[*repo]int
	counts  map[string]int
	took    time.Duration
}

func newLive(t *testing.T, seed uint64) *live {
	t.Helper()
	l := &live{
		T: t, rng: rand.New(rand.NewPCG(seed, 9)), dir: t.TempDir(), size: 16 << 20,
		images: map[*repo]int{}, counts: map[string]int{}, took: time.Second,
	}
	t.Logf("seed %d", seed)
	l.disk = filepath.Join(l.dir, "disk.qcow2")
	l.tool("qemu-img", "create", "-q", "-f", "qcow2", l.disk, fmt.Sprint(l.size))
	l.machine = qemu.StartLive(t, l.disk, "qcow2")
	l.repos = []*repo{newRepo(t), newRepo(t)}
	return l
}

func (l *live) tool(name string, args ...string) string {
	l.Helper()
	out, err := exec.CommandContext(l.Context(), name, args...).CombinedOutput()
	if err != nil {
		l.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func (l *live) io(format string, args ...any) {
	l.Helper()
	if err := l.machine.IO(fmt.Sprintf(format, args...)); err != nil {
		l.Fatal(err)
	}
}

// write writes data by way of the machine.
func (l *live) write(off int64, b []byte) {
	l.Helper()
	path := filepath.Join(l.dir, "data")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		l.Fatal(err)
	}
	l.io("write -s %s %d %d", path, off, len(b))
}

// change does a few things to the disk.
func (l *live) change() {
	l.Helper()
	for range 1 + l.rng.IntN(6) {
		length := min([]int64{1, 511, 512, 513, 4096, 65536, 300_000}[l.rng.IntN(7)], l.size)
		off := l.rng.Int64N(l.size - length + 1)
		switch l.rng.IntN(8) {
		case 0:
			off = l.size - length
		case 1:
			l.io("write -z %d %d", off, length)
			continue
		case 2:
			l.io("discard %d %d", off/512*512, max(length, 200_000)/512*512)
			continue
		}
		b := make([]byte, length)
		for i := range b {
			b[i] = byte(l.rng.Uint32())
		}
		l.write(off, b)
	}
	l.io("flush")
}

// read returns what the disk holds, as another QEMU sees it.
func (l *live) read() []byte {
	l.Helper()
	l.io("flush")
	out := filepath.Join(l.dir, "read.raw")
	l.tool("qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", l.disk, out)
	b, err := os.ReadFile(out)
	if err != nil {
		l.Fatal(err)
	}
	return b
}

// device is what the program is told to image.
func (l *live) device() string { return "qemu:" + l.machine.Socket }

// backup images the disk and returns what was reported.
func (l *live) backup(r *repo, args ...string) tracked {
	l.Helper()
	out := r.run(append([]string{"backup", l.device(), "--volume", "live/disk"}, args...)...)
	l.images[r]++
	var m tracked
	for line := range strings.Lines(out) {
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			l.Fatal(err)
		}
		if m.Type == "summary" {
			return m
		}
	}
	l.Fatalf("no summary in %q", out)
	return m
}

// A tracked is what a report says of how changes were known.
type tracked struct {
	Type  string `json:"message_type"`
	Image struct {
		ID      string
		Size    int64
		Stats   struct{ Read int64 }
		Tracker struct{ Name, Why, View, History string }
	}
}

// compare restores an image and compares it with what the disk held.
func (l *live) compare(r *repo, id string, want []byte) {
	l.Helper()
	out := filepath.Join(l.dir, "restored.raw")
	os.Remove(out)
	r.run("restore", id, out, "--yes")
	got, err := os.ReadFile(out)
	if err != nil {
		l.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		l.Fatalf("image %.8s, of %d bytes, is not what the disk of %d held", id, len(got), len(want))
	}
}

// expect fails unless an image was made by a tracker, or not, for a reason.
func (l *live) expect(m tracked, name, why string) {
	l.Helper()
	tr := m.Image.Tracker
	if tr.Name != name || !strings.Contains(tr.Why, why) || tr.View != "qemu" || tr.History != "qemu-bitmap" {
		l.Errorf("got %+v, want tracker %s because of %q", tr, name, why)
	}
}

// restart starts the machine again, upon the same disk.
func (l *live) restart() {
	l.Helper()
	l.machine = qemu.StartLive(l.T, l.disk, "qcow2")
}

// A running machine is imaged in full, then what it writes, through stops and
// crashes; what its bitmap cannot vouch for is compared, and the report says
// why.
func TestMachineIsImagedWhileItRuns(t *testing.T) {
	l := newLive(t, 1)
	r := l.repos[0]
	l.change()
	l.write(0, bytes.Repeat([]byte{7}, 8<<20))
	l.expect(l.backup(r), "full", "first image")

	l.write(3<<20, []byte("changed"))
	m := l.backup(r)
	l.expect(m, "qemu-bitmap", "")
	// The first and last MiB are read in any case, and a thirtieth of the rest.
	if m.Image.Stats.Read > 1<<20 {
		t.Errorf("%d bytes were read, and 7 had changed", m.Image.Stats.Read)
	}
	l.compare(r, m.Image.ID, l.read())

	l.write(4<<20, []byte("before the machine is off"))
	l.machine.Quit()
	l.restart()
	m = l.backup(r)
	l.expect(m, "qemu-bitmap", "")
	l.compare(r, m.Image.ID, l.read())

	l.write(5<<20, []byte("before a crash"))
	l.io("flush")
	l.machine.Kill()
	l.restart()
	m = l.backup(r)
	l.expect(m, "full", "was killed")
	l.compare(r, m.Image.ID, l.read())

	l.machine.Quit()
	l.restart()
	l.write(6<<20, []byte("before a crash with a bitmap on the disk"))
	l.io("flush")
	l.machine.Kill()
	l.restart()
	m = l.backup(r)
	l.expect(m, "full", "inconsistent")
	l.compare(r, m.Image.ID, l.read())

	for _, b := range l.bitmaps() {
		args := map[string]string{"node": "node0", "name": b}
		if err := l.machine.Do("block-dirty-bitmap-remove", args, nil); err != nil {
			t.Fatal(err)
		}
	}
	l.expect(l.backup(r), "full", "has no bitmap")
	l.expect(l.backup(r), "qemu-bitmap", "")
	if all := l.bitmaps(); len(all) != 1 {
		t.Errorf("the machine has the bitmaps %q, want one", all)
	}
}

// bitmaps of the disk.
func (l *live) bitmaps() (names []string) {
	l.Helper()
	var all []struct {
		Inserted struct {
			Bitmaps []struct{ Name string } `json:"dirty-bitmaps"`
		}
	}
	if err := l.machine.Do("query-block", nil, &all); err != nil {
		l.Fatal(err)
	}
	for _, d := range all {
		for _, b := range d.Inserted.Bitmaps {
			names = append(names, b.Name)
		}
	}
	return names
}

// D12, D14: through stops, crashes, other sizes and killed runs of two
// repositories, each image is what a full read gives.
func TestRoundsOfAMachine(t *testing.T) {
	until := 6
	if vm() {
		until = rounds()
	} else if testing.Short() {
		t.Skip("a machine that is imaged again and again")
	}
	l := newLive(t, 2)
	for round := range until {
		l.upheaval()
		l.change()
		want := l.read()
		r := l.repos[l.rng.IntN(2)]
		if l.rng.IntN(4) == 0 {
			l.kill(r, want)
			continue
		}
		start := time.Now()
		m := l.backup(r)
		l.took = time.Since(start)
		if m.Image.Tracker.Name == "qemu-bitmap" {
			l.counts["tracked"]++
		} else {
			l.counts["full: "+numbers.ReplaceAllString(m.Image.Tracker.Why, "…")]++
		}
		l.Logf("round %d: read %d of %d, %s %s", round, m.Image.Stats.Read, m.Image.Size, m.Image.Tracker.Name, m.Image.Tracker.Why)
		l.compare(r, m.Image.ID, want)
	}
	t.Logf("%d rounds: %v", until, l.counts)
	if l.counts["tracked"] < until/4 {
		t.Errorf("%d of %d rounds were tracked", l.counts["tracked"], until)
	}
}

// numbers are what differs from one reason to another of its kind.
var numbers = regexp.MustCompile(`platter-[0-9a-f]+|[0-9]+`)

// kill ends a run at any moment, and looks at what it left.
func (l *live) kill(r *repo, want []byte) {
	l.Helper()
	cmd := exec.Command(binary, "backup", l.device(), "--volume", "live/disk", "--repo", r.dir, "--catalog", r.catalog, "--json")
	if err := cmd.Start(); err != nil {
		l.Fatal(err)
	}
	time.Sleep(time.Duration(l.rng.Int64N(int64(l.took) * 5 / 4)))
	cmd.Process.Kill()
	cmd.Wait()
	l.counts["killed"]++
	ids := imagesOf(l.T, r)
	if n := len(ids) - l.images[r]; n == 1 {
		l.counts["killed after its image was there"]++
		l.images[r]++
		l.compare(r, ids[len(ids)-1], want)
	} else if n != 0 {
		l.Fatalf("%d images, want %d or one more", len(ids), l.images[r])
	}
}

func imagesOf(t *testing.T, r *repo) (ids []string) {
	t.Helper()
	for line := range strings.Lines(r.run("images")) {
		var m struct{ ID string }
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatal(err)
		}
		if m.ID != "" {
			ids = append(ids, m.ID)
		}
	}
	return ids
}

// upheaval is what disks of machines go through now and then.
func (l *live) upheaval() {
	l.Helper()
	switch l.rng.IntN(16) {
	case 0:
		l.counts["stopped"]++
		l.machine.Quit()
		l.restart()
	case 1:
		l.counts["crashed"]++
		l.change()
		l.machine.Kill()
		l.restart()
	case 2:
		size := (8<<20 + l.rng.Int64N(16<<20)) / 512 * 512
		err := l.machine.Do("block_resize", map[string]any{"node-name": "node0", "size": size}, nil)
		if err != nil {
			l.counts["resize refused"]++
			l.Log(err)
			return
		}
		l.counts["resized"]++
		l.size = size
	case 3:
		l.revert()
	}
}

// revert goes back to a snapshot within the disk, or makes one, while the machine
// is off.
func (l *live) revert() {
	l.Helper()
	l.machine.Quit()
	defer l.restart()
	if !strings.Contains(l.tool("qemu-img", "snapshot", "-l", l.disk), "back") {
		l.tool("qemu-img", "snapshot", "-c", "back", l.disk)
		return
	}
	out, err := exec.CommandContext(l.Context(), "qemu-img", "snapshot", "-a", "back", l.disk).CombinedOutput()
	if err != nil {
		l.counts["revert refused"]++
		l.Logf("%s", out)
		return
	}
	l.counts["reverted"]++
	var info struct {
		Size int64 `json:"virtual-size"`
	}
	if err := json.Unmarshal([]byte(l.tool("qemu-img", "info", "--output", "json", l.disk)), &info); err != nil {
		l.Fatal(err)
	}
	l.size = info.Size
}
