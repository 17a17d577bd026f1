package rounds

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"platter/vmtests/guest"
)

var (
	until = flag.Int("rounds", 100, "how many rounds there are in all")
	seed  = flag.Uint64("seed", 1, "what the rounds are drawn from")
)

// TestRounds goes on with rounds of everything that happens to a volume until the
// machine is to go off, or all are over. In each an image is made for one of two
// repositories and compared with a full read, byte for byte: nothing is missed.
//
// D12, D14.
func TestRounds(t *testing.T) {
	guest.Only(t)
	w := open(t, "/dev/vdb")
	w.stack = stacks()[*way]
	if w.state.Built {
		w.stack.assemble(w)
	} else {
		w.stack.build(w)
		w.state.Built = true
		w.save()
	}
	if w.state.Cut != "" {
		want, err := os.ReadFile(w.dir + "/want")
		w.must(err)
		w.left(w.state.Cut, want)
		w.state.Cut = ""
	}
	for w.state.Round < *until {
		if !w.round() {
			return
		}
		w.state.Round++
		w.save()
	}
	c := w.state.Counts
	fmt.Printf("rounds: %d, %d images compared, %d by the tracker, %d bytes changed; %s\n",
		*until, c["compared"], c["tracked"], int64(c["changed"])*sector, w.told())
	if c["tracked"] < *until/3 {
		t.Errorf("%d of %d rounds were tracked", c["tracked"], *until)
	}
	fmt.Println("rounds: done")
}

// told is all that was counted, in order.
func (w *world) told() string {
	var words []string
	for _, what := range slices.Sorted(maps.Keys(w.state.Counts)) {
		words = append(words, fmt.Sprintf("%s: %d", what, w.state.Counts[what]))
	}
	return strings.Join(words, ", ")
}

// round is one; on is false if the machine is to go off in the middle of it, and
// the next boot goes on with it.
func (w *world) round() (on bool) {
	r, back := w.state.Round, uint64(0)
	if w.state.Survived > r {
		back = 1 << 32
	}
	w.random = rand.New(rand.NewPCG(*seed, uint64(r)|back))
	w.upheaval()
	w.changes()
	repository := repositories[w.random.IntN(len(repositories))]
	if back == 0 {
		switch w.random.IntN(20) {
		case 0:
			w.rest("switched off")
			w.stack.off(w)
			return false
		case 1:
			w.rest("restarted")
			return false
		case 2:
			w.cut(repository)
		}
	}
	if w.random.IntN(6) == 0 {
		w.kill(repository)
		w.changes()
	}
	w.image(repository)
	return true
}

// rest sets down that the machine goes off in this round.
func (w *world) rest(how string) {
	w.Helper()
	w.count(how)
	w.state.Survived = w.state.Round + 1
	w.save()
}

// cut has the power fail: with writes that are in the kernel's cache, or in the
// middle of a run.
func (w *world) cut(repository string) {
	if w.random.IntN(2) == 0 {
		w.rest("power cut, with writes in the cache")
		d := w.device()
		for range 8 {
			w.change(d)
		}
		fmt.Println("rounds: cut")
		select {}
	}
	w.must(os.WriteFile(w.dir+"/want", w.read(w.stack.path), 0o600))
	w.state.Cut = repository
	w.rest("power cut, in a run")
	w.await(w.begin(repository))
	fmt.Println("rounds: cut")
	select {}
}

func (w *world) begin(repository string) *process {
	args := []string{"backup", w.stack.path, "--volume", volume}
	if w.random.IntN(2) == 0 {
		// So that nothing but the tracker can know.
		args = append(args, "--audit", "off")
	}
	return w.start(repository, args...)
}

// await waits for a step of a run, at most until it ends: for its still view, for
// its manifest, or for any moment.
func (w *world) await(p *process) {
	step := func() int { return -1 }
	before, limit := 0, 4*w.state.Took
	switch w.random.IntN(3) {
	case 0:
		if w.stack.views != nil {
			step = func() int { return w.stack.views(w) }
		}
	case 1:
		step = func() int {
			all, err := filepath.Glob(filepath.Join(p.repo, "images", "*", "*"))
			w.must(err)
			return len(all)
		}
	default:
		limit = time.Duration(w.random.Int64N(int64(w.state.Took) * 5 / 4))
	}
	before = step()
	for end := time.Now().Add(limit); step() == before && !p.over() && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(time.Duration(w.random.Int64N(int64(100 * time.Millisecond))))
}

// kill ends a run after a step, and looks at what it left.
func (w *world) kill(repository string) {
	want := w.read(w.stack.path)
	p := w.begin(repository)
	w.await(p)
	p.cmd.Process.Kill()
	<-p.ended
	w.count("killed")
	w.left(repository, want)
}

// left looks for the image that a run made which did not come to its end.
func (w *world) left(repository string, want []byte) {
	w.Helper()
	var ids []string
	for line := range bytes.Lines(w.platter(repository, "images")) {
		var m struct{ ID string }
		w.must(json.Unmarshal(line, &m))
		if m.ID != "" {
			ids = append(ids, m.ID)
		}
	}
	switch len(ids) - w.state.Images[repository] {
	case 0:
		w.count("ended before its image was there")
	case 1:
		w.count("ended after its image was there")
		w.state.Images[repository]++
		w.compare(repository, ids[len(ids)-1], want)
		w.differs(repository, want)
	default:
		w.Fatalf("round %d: repository %s has %d images, want %d or one more", w.state.Round, repository, len(ids), w.state.Images[repository])
	}
}

// image makes one, at times while the device is written to, and compares it.
func (w *world) image(repository string) {
	want, views := w.read(w.stack.path), 0
	while := w.stack.views != nil && w.random.IntN(3) == 0
	if while {
		views = w.stack.views(w)
	}
	start := time.Now()
	p := w.begin(repository)
	if while {
		for !p.over() && w.stack.views(w) == views {
			time.Sleep(time.Millisecond)
		}
		w.changes()
		w.count("written to during a run")
	}
	if err := <-p.ended; err != nil {
		w.Fatalf("round %d: backup: %v\n%s%s", w.state.Round, err, p.complaint.Bytes(), p.out.Bytes())
	}
	w.state.Took = time.Since(start)
	w.state.Images[repository]++
	m, err := p.summary()
	w.must(err)
	why := ""
	if tr := m.Image.Tracker; tr.Name == w.stack.tracker {
		w.count("tracked")
	} else {
		why = "full: " + numbers.ReplaceAllString(tr.Why, "…")
		w.count(why)
	}
	w.compare(repository, m.Image.ID, want)
	fmt.Printf("round %d: %s: read %d of %d, %d sectors changed %s\n", w.state.Round, repository, m.Image.Stats.Read, m.Image.Size, w.differs(repository, want), why)
}

// numbers are what differs from one reason to another of its kind.
var numbers = regexp.MustCompile(`platter-[0-9a-f]+|[0-9A-Za-z]+(-[0-9A-Za-z]+){6}|[0-9]+`)

// differs counts the sectors that changed since a repository's image before.
func (w *world) differs(repository string, now []byte) (n int) {
	w.Helper()
	last := filepath.Join(w.dir, repository, "last")
	was, err := os.ReadFile(last)
	if err == nil || !errors.Is(err, os.ErrNotExist) {
		w.must(err)
		for off := 0; off < len(now); off += sector {
			if off >= len(was) || !bytes.Equal(was[off:off+sector], now[off:off+sector]) {
				n++
			}
		}
	}
	w.must(os.WriteFile(last, now, 0o600))
	w.state.Counts["changed"] += n
	return n
}

// changes does a few things to the device, for good.
func (w *world) changes() {
	w.Helper()
	d := w.device()
	defer d.Close()
	for range w.random.IntN(6) {
		w.change(d)
	}
	w.must(d.settle())
}

// change does one of the things that happen to devices.
func (w *world) change(d *device) {
	w.Helper()
	length := min([]int64{1, 511, 512, 513, 4096, 65536, 300_000, d.size / 3}[w.random.IntN(8)], d.size)
	off := w.random.Int64N(d.size - length + 1)
	b := make([]byte, length)
	switch w.random.IntN(8) {
	case 0:
		w.must(d.erase(unix.FALLOC_FL_ZERO_RANGE, off/sector*sector, max(sector, length/sector*sector)))
		return
	case 1:
		w.must(d.erase(unix.FALLOC_FL_PUNCH_HOLE, off/sector*sector, max(sector, length/sector*sector)))
		return
	case 2: // zeros, written
	case 3:
		off = d.size - length
		fallthrough
	default:
		for i := range b {
			b[i] = byte(w.random.Uint32())
		}
	}
	_, err := d.WriteAt(b, off)
	w.must(err)
}

// upheaval is what happens to volumes now and then.
func (w *world) upheaval() {
	w.Helper()
	switch w.random.IntN(12) {
	case 0:
		w.stack.resize(w, (8<<20+w.random.Int64N(16<<20))/sector*sector)
	case 1:
		w.thereAndBack()
	case 2, 3:
		if w.stack.revert != nil {
			w.stack.revert(w)
		}
	}
}

// thereAndBack makes the device smaller, has another take what it gave up, and
// makes it as large as it was.
func (w *world) thereAndBack() {
	w.Helper()
	if w.stack.give == nil {
		return // dm-era forgets what lay beyond, and says so
	}
	d := w.device()
	size := d.size
	w.must(d.Close())
	w.stack.resize(w, size/2)
	w.stack.give(w)
	w.stack.resize(w, size)
	w.count("smaller and back")
}
