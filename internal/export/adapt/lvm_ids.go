package adapt

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"platter/block"
	"platter/block/command"
	"platter/block/lvm2"
	"platter/internal/export/files/kernel"
)

// A group is a volume group of LVM whose physical volumes are all on this disk.
type group struct {
	name    string
	id      string
	volumes []string // names of logical volumes
	parts   []*volume
}

// findGroups reads the groups of the disk. It refuses one that is not all here:
// its other disks would know it by its old name.
func (a *adapter) findGroups() (list []group, err error) {
	parts, groups := a.lvm()
	for _, name := range slices.Sorted(maps.Keys(groups)) {
		g := group{name: name}
		g.id, _ = groups[name]["id"].(string)
		volumes, _ := groups[name]["logical_volumes"].(lvm2.Section)
		g.volumes = slices.Sorted(maps.Keys(volumes))
		devices, _ := groups[name]["physical_volumes"].(lvm2.Section)
		for _, pv := range slices.Sorted(maps.Keys(devices)) {
			s, _ := devices[pv].(lvm2.Section)
			id, _ := s["id"].(string)
			v := parts[strings.ReplaceAll(id, "-", "")]
			if v == nil {
				return nil, refuse("a part of the volume group "+name+" is on another disk", "restore it without --new-ids")
			}
			g.parts = append(g.parts, v)
		}
		if !lvmName.MatchString(name) || len(name) > maxGroup {
			return nil, refuse(fmt.Sprintf("its volume group has the name %.40q", name), "restore it without --new-ids")
		}
		list = append(list, g)
	}
	return list, nil
}

// renewGroups gives volume groups new names and identities, and their physical
// volumes, by LVM's own tools: they see nothing but these, and no volume becomes a
// device.
func (a *adapter) renewGroups(groups []group) error {
	for _, g := range groups {
		if err := a.renewGroup(g); err != nil {
			return fmt.Errorf("new identity of volume group %s: %w", g.name, err)
		}
	}
	return nil
}

func (a *adapter) renewGroup(g group) error {
	now := g.name + "-" + randomUUID()[:4]
	var devices []string
	work := func() error {
		lvm := func(args ...string) error {
			_, err := command.Run(a.ctx, "lvm", append(args, "--driverloaded", "n", "--config", lvmConfig(devices))...)
			return err
		}
		for _, dev := range devices {
			if err := lvm("pvchange", "--uuid", dev); err != nil {
				return err
			}
		}
		if err := lvm("vgchange", "--uuid", g.name); err != nil {
			return err
		}
		return lvm("vgrename", g.name, now)
	}
	for _, v := range g.parts {
		inner := work
		work = func() error {
			return a.asFile(v, func(path string) (err error) {
				backing, err := os.OpenFile(path, os.O_RDWR, 0)
				if err != nil {
					return err
				}
				defer backing.Close()
				loop, err := kernel.Attach(backing)
				if err != nil {
					return err
				}
				defer func() { err = errors.Join(err, loop.Sync(), loop.Close()) }()
				devices = append(devices, loop.Name())
				return inner()
			})
		}
	}
	if err := work(); err != nil {
		return err
	}
	// Names of volumes as paths, and as the device mapper has them.
	for _, lv := range g.volumes {
		a.renamed[g.name+"/"+lv] = now + "/" + lv
		a.renamed[mapperName(g.name, lv)] = mapperName(now, lv)
	}
	_, after := a.lvm()
	if id, _ := after[now]["id"].(string); id != "" && id != g.id {
		a.renamed[g.id] = id
		a.report.IDs = append(a.report.IDs, block.IDChange{Old: g.id, New: id})
		a.changed("volume group %s is %s", g.name, now)
		return nil
	}
	return fmt.Errorf("LVM says that it is %s now, and it is not found", now)
}

// lvmConfig has LVM see nothing but some devices, and nothing of this machine.
func lvmConfig(devices []string) string {
	var filter strings.Builder
	for _, dev := range devices {
		fmt.Fprintf(&filter, "%q, ", "a|^"+dev+"$|")
	}
	return "devices { filter=[" + filter.String() + `"r|.*|"] use_devicesfile=0 obtain_device_list_from_udev=0 external_device_info_source="none" multipath_component_detection=0 }` +
		` global { use_lvmlockd=0 use_lvmpolld=0 } activation { udev_sync=0 udev_rules=0 monitoring=0 } backup { backup=0 archive=0 }`
}
