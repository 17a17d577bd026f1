package job

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"platter/block"
	"platter/image"
)

// A LeftOut is a device of this machine that is not imaged with all others.
type LeftOut struct {
	Device string `json:"device"`
	Why    string `json:"why"`
}

// Disks returns the disks of this machine, to be imaged as a set, and what is
// left out of that: what is no disk of its own, and disks that the repository
// lies on, unless onDevice. Partitions are parts of disks.
func Disks(env *Env, onDevice bool) (disks []string, left []LeftOut, err error) {
	devices, err := block.Devices()
	if err != nil {
		return nil, nil, fmt.Errorf("list devices: %w", err)
	}
	for _, d := range devices {
		if d.Disk != "" {
			continue
		}
		why := notOfAll(d)
		if why == "" && !onDevice {
			why, err = holdsRepository(env, d.Path)
		}
		if err != nil {
			return nil, nil, err
		}
		if why == "" {
			disks = append(disks, d.Path)
		} else {
			left = append(left, LeftOut{d.Path, why})
		}
	}
	return disks, left, nil
}

// notOfAll says why a device is none of the machine's disks, "" if it is one.
func notOfAll(d block.Device) string {
	name := filepath.Base(d.Path)
	switch {
	case d.How == block.Unreadable:
		return "it cannot be read: " + d.Why
	case d.Kind == block.KindLoop:
		return "it shows a file, which is on a disk"
	case d.Kind != block.KindDisk:
		return "it is built upon disks"
	case strings.HasPrefix(name, "sr"), strings.HasPrefix(name, "fd"):
		return "it is a drive for media that come and go"
	case strings.HasPrefix(name, "nbd"):
		return "it is a disk of the network"
	}
	return ""
}

func holdsRepository(env *Env, device string) (why string, err error) {
	place := env.Repo.Store.Location()
	if !filepath.IsAbs(place) {
		return "", nil
	}
	carries, err := block.Carries(device, place)
	if err != nil || !carries {
		return "", err
	}
	return "the repository lies on it: to image it all the same, say --repository-on-device", nil
}

// A DeviceWay is how a device would be imaged.
type DeviceWay struct {
	block.Device
	View    string `json:"view"`    // method of the still view, "" for none
	Tracker string `json:"tracker"` // full where every block is compared
	Because string `json:"because"`
	Cost    string `json:"cost,omitempty"`
	// NotBy are the better ways, and why they do not fit.
	NotBy []image.Passed `json:"not_by,omitempty"`
}

// Look says how a device would be imaged, without changing anything.
func (w Ways) Look(ctx context.Context, d block.Device) DeviceWay {
	way := DeviceWay{Device: d, Because: d.Why}
	if d.How == block.Unreadable {
		return way
	}
	fit, passed := w.choose(ctx, d, "auto", false)
	way.NotBy = passed
	if len(fit) > 0 {
		way.View, way.Tracker, way.Because, way.Cost = fit[0].method(), fit[0].tracker(), fit[0].fit.Why, fit[0].fit.Cost
	}
	return way
}
