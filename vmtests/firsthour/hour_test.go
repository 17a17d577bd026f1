package firsthour

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"platter/vmtests/guest"
)

// An hour is a machine and what its operator types.
type hour struct {
	*testing.T
	page    []block  // that are yet to be done
	exports []string // lines that hold for all that comes
	mail    *post
}

// disk is the one that is imaged, by a name that stays.
const disk = "/dev/disk/by-id/virtio-guest2"

// TestFirstHour does what the page says, in its order and its words, and what a
// night and a day bring in between.
func TestFirstHour(t *testing.T) {
	guest.Only(t)
	h := &hour{T: t, page: read(t, "first-hour.md"), mail: newPost(t)}
	h.machine()
	h.sh("cp platter.deb platter_0_amd64.deb")
	h.types("apt-get install ./platter_*.deb")
	h.types("platter init")
	h.types("platter backup " + disk)
	h.writes("/etc/platter/platter.toml")
	h.types("systemctl enable --now platter-agent")
	h.ended("nightly", "")
	h.agentHasNoRights()
	h.night()
	h.volume()
	h.idle()
	h.types("platter backup " + disk + " ||")
	h.told("over: failed: ")
	h.restores()
	h.doctor()
	h.hangs()
}

// machine makes the disks what the page takes for granted.
func (h *hour) machine() {
	h.Helper()
	h.sh(`
systemctl is-system-running --wait || { systemctl --failed; exit 1; }
mkfs.ext4 -q /dev/vdb
mkdir -p /mnt/backup /srv/data /mnt/volume
echo "/dev/disk/by-id/virtio-guest1 /mnt/backup ext4 defaults 0 2" >>/etc/fstab
mkfs.ext4 -q /dev/vdc
mount /mnt/backup
mount /dev/vdc /srv/data
head -c 20000000 /dev/urandom >/srv/data/old
pvcreate -q /dev/vdd
vgcreate -q vg0 /dev/vdd
lvcreate -q -n data -L 64M vg0
mkfs.ext4 -q /dev/vg0/data
mount /dev/vg0/data /mnt/volume
head -c 5000000 /dev/urandom >/mnt/volume/file`)
}

// types has the next block of the page typed, which must hold some words.
func (h *hour) types(words string) {
	h.Helper()
	b := h.next("sh", words)
	h.sh(b)
	for line := range strings.Lines(b) {
		if strings.HasPrefix(line, "export ") {
			h.exports = append(h.exports, line)
		}
	}
}

// writes puts the next block of the page into a file.
func (h *hour) writes(path string) {
	h.Helper()
	if err := os.WriteFile(path, []byte(h.next("toml", "[job.nightly]")), 0o644); err != nil {
		h.Fatal(err)
	}
}

func (h *hour) next(language, words string) string {
	h.Helper()
	if len(h.page) == 0 {
		h.Fatalf("the page has come to its end, before %q", words)
	}
	b := h.page[0]
	h.page = h.page[1:]
	if b.language != language || !strings.Contains(b.text, words) {
		h.Fatalf("the page has %q where %s with %q was looked for", b.text, language, words)
	}
	return b.text
}

// sh runs a script that must succeed, and returns what it printed.
func (h *hour) sh(script string) string {
	h.Helper()
	out, err := h.try(script)
	if err != nil {
		h.Fatalf("%s\n%s%v%s", script, out, err, h.journal())
	}
	return out
}

func (h *hour) try(script string) (string, error) {
	var complaint bytes.Buffer
	cmd := exec.CommandContext(h.Context(), "bash", "-ec", strings.Join(h.exports, "")+script)
	cmd.Stderr = &complaint
	began := time.Now()
	out, err := cmd.Output()
	h.Logf("%s $ %s\n%s%s", time.Since(began).Round(time.Millisecond), strings.TrimSpace(script), out, complaint.Bytes())
	return string(out), err
}

func (h *hour) journal() string {
	out, _ := exec.Command("journalctl", "--no-pager", "-o", "short-monotonic", "-n", "40", "-u", "platter-*").CombinedOutput()
	return "\n" + string(out)
}

// patience is how long something may take that is to come by itself.
const patience = 10 * time.Minute

// awaits looks until a thing has come.
func (h *hour) awaits(what string, there func() bool) {
	h.Helper()
	began := time.Now() // its clock that nobody sets is what counts
	for !there() {
		if time.Since(began) > patience {
			h.Fatalf("%s: not within %v%s", what, patience, h.journal())
		}
		time.Sleep(time.Second)
	}
	h.Logf("%s %s", time.Since(began).Round(time.Second), what)
}

// told waits for a letter with words in its heading.
func (h *hour) told(words string) {
	h.Helper()
	h.awaits("a mail with "+words, func() bool { return h.mail.has(words) })
}

// A status is what is looked at of a job.
type status struct {
	State string
	Run   *struct {
		Due, At time.Time
	}
	Last *struct {
		Run   string
		Exit  int
		Error string
	}
}

func (h *hour) job(name string) status {
	h.Helper()
	out, err := exec.Command("platter", "job", "list", "--json").Output()
	if err != nil {
		return status{} // an agent that is being started
	}
	var all struct {
		Jobs []struct {
			Name string
			status
		}
	}
	if err := json.Unmarshal(out, &all); err != nil {
		h.Fatalf("%v: %s", err, out)
	}
	for _, j := range all.Jobs {
		if j.Name == name {
			return j.status
		}
	}
	return status{}
}

// ended waits for a run of a job after another one, which must go well, and
// returns which it was.
func (h *hour) ended(job, before string) string {
	h.Helper()
	var s status
	h.awaits("the run of "+job, func() bool { s = h.job(job); return s.Last != nil && s.Last.Run != before })
	if s.Last.Exit != 0 {
		h.Fatalf("the run of %s ended with %d: %s%s", job, s.Last.Exit, s.Last.Error, h.journal())
	}
	return s.Last.Run
}

// idle waits until no job runs: the repository is about to be taken away.
func (h *hour) idle() {
	h.Helper()
	h.awaits("all jobs", func() bool {
		out, err := exec.Command("platter", "job", "list", "--json").Output()
		return err == nil && !regexp.MustCompile(`"state":"(running|waiting)"`).Match(out)
	})
}

// doctor ends with status 3 where there is something to be mended.
func (h *hour) doctor() {
	h.Helper()
	_, err := h.try(h.next("sh", "platter doctor"))
	if exit := (*exec.ExitError)(nil); err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 3) {
		h.Error(err)
	}
}

// An imaged is the newest image of a volume. Sizes are in bytes.
type imaged struct {
	ID      string
	Volume  string
	Tracker string
	Size    int64
	Read    int64 `json:"read_bytes"`
	Fuzzy   bool
}

func (h *hour) latest(volume string) (m imaged) {
	h.Helper()
	for line := range strings.Lines(h.sh("platter images --json")) {
		var one imaged
		if err := json.Unmarshal([]byte(line), &one); err != nil {
			h.Fatal(err)
		}
		if strings.Contains(one.Volume, volume) {
			m = one
		}
	}
	if m.ID == "" {
		h.Fatalf("there is no image of %s", volume)
	}
	return m
}

// agentHasNoRights looks at what the agent may do, and what a run may.
func (h *hour) agentHasNoRights() {
	h.Helper()
	pid := strings.TrimSpace(h.sh("systemctl show -P MainPID platter-agent"))
	rights := h.sh("cat /proc/" + pid + "/status")
	for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"} {
		if !regexp.MustCompile(set + `:\s+0000000000000000\n`).MatchString(rights) {
			h.Errorf("the agent has rights: %s", rights)
		}
	}
	// What the agent could do if somebody else spoke through it: a shell in its
	// place, with its namespaces, its devices and its rights.
	as := func(script string) string {
		out, err := exec.Command("bash", "-c", `echo $$ >/sys/fs/cgroup/system.slice/platter-agent.service/cgroup.procs
exec nsenter --target `+pid+` --mount setpriv --bounding-set=-all --inh-caps=-all --no-new-privs bash -c '`+script+`' 2>&1`).CombinedOutput()
		h.Logf("in the agent's place $ %s\n%s%v", script, out, err)
		return string(out)
	}
	for script, want := range map[string]string{
		"head -c 512 /dev/vdc | wc -c":                     "Operation not permitted",
		"head -c 512 /dev/vg0/data | wc -c":                "Operation not permitted",
		"mknod /var/lib/platter/x b 254 32":                "Operation not permitted",
		"mount -o remount,rw /":                            "denied",
		"echo x >/etc/x":                                   "Read-only file system",
		"echo x >/mnt/backup/repo/config":                  "Read-only file system",
		"ls /run/dbus":                                     "No such file",
		"systemctl start nothing":                          "connect",
		"cd /var/lib/platter && touch x && rm x && echo y": "y\n",
	} {
		if got := as(script); !strings.Contains(got, want) {
			h.Errorf("%s in the agent's place gives %q, want %q", script, got, want)
		}
	}
	for _, unit := range []string{"platter-agent.service", "platter-run@.service"} {
		out, _ := h.try("systemd-analyze security --no-pager " + unit + " | tail -n 1")
		h.Log(out)
	}
}

// night lets a day and a half go by: the image has grown too old, which is told;
// the run that was due is caught up, reads what changed, and ends that.
func (h *hour) night() {
	h.Helper()
	before := h.job("nightly").Last.Run
	h.sh("head -c 1000000 /dev/urandom >/srv/data/new; sync; date -s '+37 hours'")
	h.told("late: ")
	var at time.Time
	h.awaits("the run that is due", func() bool {
		s := h.job("nightly")
		if s.Run != nil {
			at = s.Run.At
		}
		return !at.IsZero()
	})
	if wait := time.Until(at); wait > 0 {
		h.sh(fmt.Sprintf("date -s @%d", at.Unix()+1))
	}
	h.ended("nightly", before)
	h.told("over: late: ")
	m := h.latest("guest2")
	if m.Tracker != "trace" || m.Fuzzy || m.Read > m.Size/4 {
		h.Errorf("the night's image: %+v", m)
	}
	// That the clock was set is an alert too, which a person ends.
	h.told("clock: ")
	h.sh(`platter alerts --json | sed -n 's/.*"id":\([0-9]*\),"kind":"clock".*/\1/p' | xargs platter alerts ack`)
	h.told("over: clock: ")
}

// volume images a logical volume by its snapshot, under the rights that runs
// have.
func (h *hour) volume() {
	h.Helper()
	h.sh(`printf '[job.volume]\ndevices = ["/dev/vg0/data"]\n' >/etc/platter/conf.d/volume.toml
systemctl reload platter-agent
platter job run volume`)
	run := h.ended("volume", "")
	h.sh("head -c 100000 /dev/urandom >/mnt/volume/more; sync; platter job run volume")
	h.ended("volume", run)
	m := h.latest("vg0/data")
	if m.Tracker == "full" || m.Fuzzy || m.Read > m.Size/2 {
		h.Errorf("the image of the volume: %+v", m)
	}
	if left := h.sh("lvs --noheadings -o lv_name"); !strings.Contains(left, "data") {
		h.Errorf("volumes: %s", left)
	}
}

// restores compares the last image of the disk, which stands still now, with
// what the page has restored.
func (h *hour) restores() {
	h.Helper()
	before := h.job("nightly").Last.Run
	h.sh("umount /srv/data; platter job run nightly")
	h.ended("nightly", before)
	if m := h.latest(""); m.ID != h.latest("guest2").ID {
		h.Fatalf("the latest image is of %s", m.Volume)
	}
	// A machine within this one would take too long: other tests boot images.
	script := h.next("sh", "platter restore latest")
	h.sh(regexp.MustCompile(`(?m)^platter boot .*$`).ReplaceAllString(script, ""))
	h.sh("cmp /dev/vdc /mnt/backup/again.img")
}

// hangs stops the agent as a deadlock would: the service manager ends it, and
// starts another.
func (h *hour) hangs() {
	h.Helper()
	h.sh(`mkdir -p /run/systemd/system/platter-agent.service.d
printf '[Service]\nWatchdogSec=10s\nRestartSec=1s\n' >/run/systemd/system/platter-agent.service.d/test.conf
systemctl daemon-reload
systemctl restart platter-agent
sleep 15
test "$(systemctl show -P NRestarts platter-agent)" = 0
kill -STOP $(systemctl show -P MainPID platter-agent)`)
	h.awaits("another agent", func() bool {
		out, _ := exec.Command("systemctl", "show", "-P", "NRestarts", "platter-agent").Output()
		return strings.TrimSpace(string(out)) == "1" && h.job("nightly").Last != nil
	})
}

// A block is code on a page.
type block struct{ language, text string }

var fence = regexp.MustCompile("(?ms)^```(\\w*)\n(.*?)^```$")

// read returns the code of a page, for this machine's disk.
func read(t *testing.T, path string) (all []block) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("/run/test", path))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range fence.FindAllStringSubmatch(string(b), -1) {
		all = append(all, block{m[1], strings.ReplaceAll(m[2], "/dev/disk/by-id/ID", disk)})
	}
	return all
}
