package rounds

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"platter/vmtests/guest"
)

var way = flag.String("way", "", "the stack: thin, thick, era or zfs")

// phase is which boot of the story this is, from 1.
var phase = flag.Int("phase", 1, "which boot of the story this is")

// TestStory images a volume over three boots: one that ends in order, one by a
// power cut, and one more. What the report says, and what is read, is looked at
// each time.
//
// D12, D14: an image is what a full read gives; a history goes on where it can,
// and ends with a reason where it cannot.
func TestStory(t *testing.T) {
	guest.Only(t)
	s := stacks()[*way]
	w := open(t, "/dev/vdb")
	w.stack = s
	if *phase == 1 {
		s.build(w)
		w.firstBoot()
	} else {
		s.assemble(w)
	}
	switch *phase {
	case 2:
		w.write(3<<20, "before the power cut")
		w.tells("", s.tracker, "") // since the boot before
		w.write(4<<20, "and after the image")
		fmt.Println("rounds: cut")
		select {}
	case 3:
		w.tells("", s.tracker, "")
		w.endings()
	}
}

func (w *world) firstBoot() {
	w.write(0, string(bytes.Repeat([]byte("full"), 2<<20)))
	w.tells("", "full", "first image")
	w.write(1<<20+5, "changed")
	m := w.tells("", w.stack.tracker, "")
	// What a tracker says is unchanged is read in part all the same: the first
	// and last MiB are, and a thirtieth; of ZFS, holes there as if they had changed.
	if m.Image.Stats.Read > 2<<20 {
		w.Errorf("%d bytes were read for 7 that had changed", m.Image.Stats.Read)
	}
	w.listed()
	w.write(2<<20, "before the reboot")
}

// write puts text on the device for good.
func (w *world) write(off int64, text string) {
	w.Helper()
	d := w.device()
	defer d.Close()
	_, err := d.WriteAt([]byte(text), off)
	w.must(err)
	w.must(d.settle())
}

// tells images the device, and fails unless the report says that it was by a
// tracker, or why not. The image is compared with the device.
func (w *world) tells(asked, name, why string) imaged {
	w.Helper()
	args := []string{"backup", w.stack.path, "--volume", volume}
	if asked != "" {
		args = append(args, "--tracker", asked)
	}
	p := w.start("a", args...)
	if err := <-p.ended; err != nil {
		w.Fatalf("platter %s: %v\n%s%s", strings.Join(args, " "), err, p.complaint.Bytes(), p.out.Bytes())
	}
	m, err := p.summary()
	w.must(err)
	tr := m.Image.Tracker
	if tr.Name != name || !strings.Contains(tr.Why, why) || why == "" && tr.Why != "" {
		w.Errorf("got %+v, want tracker %s because of %q", tr, name, why)
	}
	w.compare("a", m.Image.ID, w.read(w.stack.path))
	return m
}

// listed looks for the volume in what devices says.
func (w *world) listed() {
	w.Helper()
	for line := range bytes.Lines(w.platter("a", "devices")) {
		var d struct{ Path, Name, How string }
		w.must(json.Unmarshal(line, &d))
		if d.Name == strings.TrimPrefix(strings.TrimPrefix(w.stack.path, "/dev/"), "zvol/") || d.Name == "dm/"+filepath.Base(w.stack.path) {
			return
		}
	}
	w.Errorf("%s is in no line of %s", w.stack.path, w.platter("a", "devices"))
}

// endings are what a history does not outlive, and each is told.
func (w *world) endings() {
	// One that is only not asked goes on.
	w.tells("full", "full", "")
	w.tells("", w.stack.tracker, "")
	switch w.stack.tracker {
	case "lvm-thin", "lvm-thick":
		for name := range strings.FieldsSeq(w.tool("lvs", "--noheadings", "-o", "lv_name", "@platter")) {
			w.tool("lvremove", "--yes", "--force", "vg/"+name)
		}
		w.tells("", "full", "is gone")
	case "zfs":
		name := w.tool("zfs", "list", "-H", "-t", "snapshot", "-o", "name", "pool/lv")
		// Another one of the same name.
		w.tool("zfs", "release", "platter", name)
		w.tool("zfs", "destroy", name)
		w.tool("zfs", "snapshot", "-o", "platter:consumer=x", "-o", "platter:run=x", name)
		w.tells("", "full", "another one")
		w.tells("", w.stack.tracker, "")
		name = w.tool("zfs", "list", "-H", "-t", "snapshot", "-o", "name", "-S", "createtxg", "pool/lv")
		name, _, _ = strings.Cut(name, "\n")
		w.tool("zfs", "release", "platter", name)
		w.tool("zfs", "destroy", name)
		w.tells("", "full", "is gone")
	case "dm-era":
		w.tool("dmsetup", "remove", "era")
		w.tool("busybox", "dd", "if=/dev/zero", "of=/dev/vg/meta", "bs=4096", "count=1", "conv=fsync")
		w.stack.assemble(w)
		// The new metadata counts eras anew, and soon beyond the old ones.
		for range 40 {
			w.tool("dmsetup", "message", "era", "0", "checkpoint")
		}
		w.tells("", "full", "made anew")
	}
	w.tells("", w.stack.tracker, "")
	w.stack.resize(w, 20<<20)
	w.tells("", "full", "bytes")
	w.tells("", w.stack.tracker, "")
	// In place, onto a volume that held something else.
	target := "/dev/vg/target"
	if w.stack.tracker == "zfs" {
		w.tool("zfs", "create", "-s", "-b", "8k", "-V", "20m", "pool/target")
		w.link("pool/target")
		target = "/dev/zvol/pool/target"
		w.refuses("/dev/vda", "/dev/vda1")
	} else {
		w.tool("lvcreate", "--yes", "--wipesignatures", "n", "--size", "20m", "--name", "target", "vg")
	}
	w.tool("busybox", "dd", "if=/dev/urandom", "of="+target, "bs=1M", "count=20", "conv=fsync")
	w.platter("a", "restore", volume, target, "--yes")
	if !bytes.Equal(w.read(target), w.read(w.stack.path)) {
		w.Error("the volume that was restored to is another")
	}
}

// refuses restores to disks of an imported pool, each of which is refused before a
// byte is written.
func (w *world) refuses(disks ...string) {
	w.Helper()
	w.tool("zpool", "sync", "pool")
	const stat, sectorsWritten = "/sys/block/vda/stat", 6
	before, err := os.ReadFile(stat)
	w.must(err)
	for _, disk := range disks {
		p := w.start("a", "restore", volume, disk, "--yes")
		var status *exec.ExitError
		if err := <-p.ended; !errors.As(err, &status) || status.ExitCode() != 14 || !strings.Contains(p.complaint.String(), "zpool export") {
			w.Errorf("restore to %s, a disk of a pool: %v, want exit status 14 and advice: %s", disk, err, p.complaint.Bytes())
		}
	}
	after, err := os.ReadFile(stat)
	w.must(err)
	if was, is := strings.Fields(string(before))[sectorsWritten], strings.Fields(string(after))[sectorsWritten]; was != is {
		w.Errorf("restores that were refused: %s sectors had been written to the disk, now it is %s", was, is)
	}
}
