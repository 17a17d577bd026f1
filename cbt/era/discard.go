package era

import (
	"errors"
	"os"
	"strconv"
	"strings"
)

// Discards are how much a device was told to give back. Of a discard dm-era
// may mark the first block only, so no history goes on across one.
type Discards struct {
	Possible bool   `json:"discards"` // the device below takes them
	Boot     string `json:"boot"`     // what counts since
	Requests int64  `json:"requests"` // merged ones too
}

// discardsAt is the place in a device's stat of the number of discards, then
// merged ones.
const discardsAt = 11

func (s *stack) discards() Discards {
	d := Discards{Possible: s.attr("queue/discard_max_hw_bytes") != "0"}
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	d.Boot = strings.TrimSpace(string(boot))
	f := strings.Fields(s.attr("stat"))
	if len(f) < discardsAt+2 {
		d.Possible = true
		return d
	}
	for _, n := range f[discardsAt : discardsAt+2] {
		v, _ := strconv.ParseInt(n, 10, 64)
		d.Requests += v
	}
	return d
}

// since returns an error if there may have been discards between p and d.
func (d Discards) since(p Discards) error {
	const why = "dm-era may mark only the first block of a discard"
	switch {
	case !p.Possible && !d.Possible:
		return nil
	case p.Boot != d.Boot:
		return errors.New("the machine was started anew, and there may have been discards before that: " + why)
	case p.Requests != d.Requests:
		return errors.New("there were discards: " + why + " (mount without discard, and let fstrim leave the device out)")
	}
	return nil
}
