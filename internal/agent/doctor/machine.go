package doctor

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/dustin/go-humanize"
	"golang.org/x/sys/unix"

	"platter/block/snapshot"
	"platter/block/snapshot/reflink"
	"platter/cbt/trace"
)

// modes looks for folders that others may write to or read, and for secrets
// that they may read.
func (e *exam) modes() {
	for _, path := range []string{e.State, filepath.Join(e.State, "catalog"), e.Path} {
		e.mode(path, 0o077, "chmod go= "+path)
	}
	for _, path := range e.Files {
		e.mode(path, 0o022, "chmod go-w "+path)
	}
	for _, path := range e.Secrets {
		e.mode(path, 0o077, "chmod go= "+path)
	}
}

// mode finds a path of which others may do more than they should. What is not
// there is in order.
func (e *exam) mode(path string, bad fs.FileMode, remedy string) {
	info, err := os.Stat(path)
	if path == "" || err != nil {
		return
	}
	if got := info.Mode().Perm(); got&bad != 0 {
		e.find(remedy, "%s has mode %04o: others may read it, or write to it", path, got)
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid != 0 && int(st.Uid) != os.Getuid() {
		e.find("chown "+strconv.Itoa(os.Getuid())+" "+path, "%s belongs to uid %d", path, st.Uid)
	}
}

// What must be free.
const (
	freeShare = 0.05
	freeBytes = 1 << 30
)

func (e *exam) space() {
	for _, path := range []string{e.State, e.Path} {
		var st unix.Statfs_t
		if path == "" || unix.Statfs(path, &st) != nil || st.Blocks == 0 {
			continue
		}
		free, all := st.Bavail*uint64(st.Bsize), st.Blocks*uint64(st.Bsize)
		if free < freeBytes || float64(free) < freeShare*float64(all) {
			e.find("make room: platter prune and platter gc for a repository, or a larger disk", "%s: %s of %s are free", path, humanize.IBytes(free), humanize.IBytes(all))
		}
		if st.Files > 0 && float64(st.Ffree) < freeShare*float64(st.Files) {
			e.find("remove files, or make the file system anew with more inodes", "%s: %d of %d inodes are free", path, st.Ffree, st.Files)
		}
	}
}

func (e *exam) tracer() {
	if os.Getuid() != 0 {
		e.skip("only root may ask the tracer")
		return
	}
	t, err := trace.Open(trace.DefaultDir)
	if errors.Is(err, trace.ErrStopped) {
		e.skip("no tracer is running; disks with nothing underneath are compared in full")
		return
	}
	if err != nil {
		e.find("platter tracker stop, then platter tracker run", "the tracer does not answer: %v", err)
		return
	}
	defer t.Close()
	s, err := t.Status()
	if err != nil {
		e.find("platter tracker stop, then platter tracker run", "the tracer does not answer: %v", err)
		return
	}
	for _, d := range s.Disks {
		if d.Lost != "" {
			e.find("nothing: the next image of it is compared in full, and a history begins", "%s: its history is lost: %s", d.Disk, d.Lost)
		}
	}
	if s.Missed > 0 {
		e.find("nothing: images whose history has one are compared in full; if it happens often, report it", "the tracer missed %d events", s.Missed)
	}
}

// A snapshot of a volume is kept until the next image replaces it.
const (
	oldSnapshot  = 14 * 24 * time.Hour
	fullSnapshot = 90 // percent
)

func (e *exam) snapshots() {
	if os.Getuid() != 0 {
		e.skip("only root may ask LVM")
		return
	}
	if _, err := exec.LookPath("lvs"); err != nil {
		e.skip("there is no LVM here")
		return
	}
	out, err := exec.CommandContext(e.ctx, "lvs", "--reportformat", "json", "--config", "report{time_format=\"%s\"}",
		"-o", "lv_full_name,lv_time,data_percent", "--select", "lv_tags=platter").Output()
	if err != nil {
		e.skip("lvs: %v", err)
		return
	}
	e.judgeSnapshots(out)
}

func (e *exam) judgeSnapshots(out []byte) {
	var report struct {
		Report []struct {
			LV []struct {
				Name string `json:"lv_full_name"`
				Time string `json:"lv_time"`
				Full string `json:"data_percent"`
			} `json:"lv"`
		} `json:"report"`
	}
	if err := json.Unmarshal(out, &report); err != nil {
		e.skip("lvs: %v", err)
		return
	}
	for _, r := range report.Report {
		for _, lv := range r.LV {
			made, _ := strconv.ParseInt(lv.Time, 10, 64)
			age := e.Now().Sub(time.Unix(made, 0))
			full, _ := strconv.ParseFloat(lv.Full, 64)
			switch remedy := "lvremove " + lv.Name + ", if its volume is no longer imaged"; {
			case age > oldSnapshot:
				e.find(remedy, "snapshot %s is %d days old: the next image should have replaced it", lv.Name, int(age.Hours()/24))
			case full > fullSnapshot:
				e.find("image the volume, which makes a new one; "+remedy, "snapshot %s is %.0f %% full", lv.Name, full)
			}
		}
	}
}

// copies looks for those of files (reflinks, see docs/tracking.md) beside the
// files that the config has imaged.
func (e *exam) copies() {
	if e.Config == nil {
		e.skip("there is no config that names files")
		return
	}
	seen := map[string]bool{}
	for _, j := range e.Config.Jobs {
		for _, path := range j.Devices {
			info, err := os.Stat(path)
			if err != nil || !info.Mode().IsRegular() {
				continue
			}
			real, err := filepath.EvalSymlinks(path)
			folder := filepath.Dir(real)
			if err != nil || seen[folder] {
				continue
			}
			seen[folder] = true
			list, err := reflink.InFolder(folder)
			if err != nil {
				e.find("see the message", "%v", err)
			}
			for _, s := range list {
				e.judgeCopy(folder, s)
			}
		}
	}
}

func (e *exam) judgeCopy(folder string, s snapshot.Snapshot) {
	age := e.Now().Sub(s.Time)
	switch remedy := "platter snapshots --remove " + folder; {
	case !s.Kept && !snapshot.Running(s.Run):
		e.find(remedy, "%s was left behind by a run that died", s.Name)
	case s.Kept && age > oldSnapshot:
		e.find(remedy+" --kept, if its file is no longer imaged", "%s is %d days old: the next image should have replaced it", s.Name, int(age.Hours()/24))
	}
}
