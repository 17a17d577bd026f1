package block

import (
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// settled is how long ago a file must have been written to for its times to
// tell a later write from that one.
const settled = time.Second

// Moment implements Observer. Nothing that could change the bytes without
// changing the name is tolerated: another boot, counters that are turned off,
// a file written to just now.
func (s *source) Moment() (string, bool) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil || s.Live() {
		return "", false
	}
	what, ok := s.deviceMoment()
	if s.info.Kind == KindFile {
		what, ok = s.fileMoment(time.Now())
	}
	return fmt.Sprintf("%s boot %s", what, strings.TrimSpace(string(boot))), ok
}

func (s *source) fileMoment(now time.Time) (string, bool) {
	st, err := s.buffered.stat()
	if err != nil {
		return "", false
	}
	// Of the two only ctime cannot be set back.
	newest := max(st.Mtim.Nano(), st.Ctim.Nano())
	if age := now.Sub(time.Unix(0, newest)); age < settled {
		return "", false
	}
	return fmt.Sprintf("file %x:%d of %d bytes, written %d, changed %d", st.Dev, st.Ino, st.Size, st.Mtim.Nano(), st.Ctim.Nano()), true
}

func (s *source) deviceMoment() (string, bool) {
	counted := s.node.attr("queue/iostats")
	if counted == "" {
		counted = s.node.attr("../queue/iostats") // a partition's is its disk's
	}
	if counted != "1" || s.node.seq == "" {
		return "", false
	}
	return fmt.Sprintf("device %d:%d, disk %s, of %d bytes, writes %s",
		unix.Major(s.node.dev), unix.Minor(s.node.dev), s.node.seq, s.info.Size, s.mark.writes), true
}
