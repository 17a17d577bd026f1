package libvirt

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"

	"platter/block"
	"platter/block/command"
)

// scheme begins the names of disks: libvirt:DOMAIN or libvirt:DOMAIN:DISK.
const scheme = "libvirt:"

// agentChannel is the name of the channel to a guest agent.
const agentChannel = "org.qemu.guest_agent.0"

// A domain is a machine as libvirt describes it.
type domain struct {
	Name    string
	UUID    string
	Disks   []disk
	Running bool
	Agent   bool // is there, and connected
}

// A disk is named by where the guest has it, such as vda.
type disk struct{ Target, Format string }

// virsh runs a command of libvirt's own shell.
func virsh(ctx context.Context, args ...string) ([]byte, error) {
	return command.Run(ctx, "virsh", append([]string{"--connect", "qemu:///system", "--quiet"}, args...)...)
}

// place takes a name apart. A domain whose name has a colon goes by its UUID.
func place(name string) (domain, disk string, ok bool) {
	rest, ok := strings.CutPrefix(name, scheme)
	if !ok {
		return "", "", false
	}
	domain, disk, _ = strings.Cut(rest, ":")
	return domain, disk, true
}

// find asks for a domain.
func find(ctx context.Context, name string) (*domain, error) {
	if name == "" {
		return nil, errors.New("want libvirt:DOMAIN or libvirt:DOMAIN:DISK")
	}
	out, err := virsh(ctx, "dumpxml", "--domain", name)
	if err != nil {
		return nil, err
	}
	d, err := parse(out)
	if err != nil {
		return nil, fmt.Errorf("read what libvirt says of domain %s: %w", name, err)
	}
	return d, nil
}

func parse(out []byte) (*domain, error) {
	var said struct {
		ID      string `xml:"id,attr"`
		Name    string `xml:"name"`
		UUID    string `xml:"uuid"`
		Devices struct {
			Disk []struct {
				Device string `xml:"device,attr"`
				Driver struct {
					Type string `xml:"type,attr"`
				} `xml:"driver"`
				Target struct {
					Dev string `xml:"dev,attr"`
				} `xml:"target"`
				ReadOnly *struct{} `xml:"readonly"`
			} `xml:"disk"`
			Channel []struct {
				Target struct {
					Name  string `xml:"name,attr"`
					State string `xml:"state,attr"`
				} `xml:"target"`
			} `xml:"channel"`
		} `xml:"devices"`
	}
	if err := xml.Unmarshal(out, &said); err != nil {
		return nil, err
	}
	d := &domain{Name: said.Name, UUID: said.UUID, Running: said.ID != ""}
	if !nameOf.MatchString(d.UUID) {
		return nil, fmt.Errorf("UUID %q", d.UUID)
	}
	for _, k := range said.Devices.Disk {
		if k.Device != "disk" && k.Device != "" || k.ReadOnly != nil {
			continue
		}
		if !nameOf.MatchString(k.Target.Dev) {
			return nil, fmt.Errorf("a disk of the name %q", k.Target.Dev)
		}
		d.Disks = append(d.Disks, disk{k.Target.Dev, k.Driver.Type})
	}
	for _, c := range said.Devices.Channel {
		d.Agent = d.Agent || c.Target.Name == agentChannel && c.Target.State == "connected"
	}
	return d, nil
}

// nameOf is what names of disks look like, and UUIDs: nothing that XML or a shell
// takes for more.
var nameOf = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)

func (d *domain) targets() (names []string) {
	for _, k := range d.Disks {
		names = append(names, k.Target)
	}
	return names
}

// disk returns the disk of a name, or the only one there is.
func (d *domain) disk(name string) (*disk, error) {
	for i := range d.Disks {
		if d.Disks[i].Target == name || name == "" && len(d.Disks) == 1 {
			return &d.Disks[i], nil
		}
	}
	switch {
	case len(d.Disks) == 0:
		return nil, fmt.Errorf("domain %s has no disk", d.Name)
	case name == "":
		return nil, fmt.Errorf("domain %s has several disks: name one of %s after another colon", d.Name, strings.Join(d.targets(), ", "))
	}
	return nil, fmt.Errorf("domain %s has no disk %q, only %s", d.Name, name, strings.Join(d.targets(), ", "))
}

// Split returns the names of all disks of a domain that has several.
func (Provider) Split(ctx context.Context, name string) ([]string, error) {
	of, one, mine := place(name)
	if !mine || one != "" {
		return nil, nil
	}
	d, err := find(ctx, of)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if len(d.Disks) < 2 {
		return nil, nil
	}
	var names []string
	for _, t := range d.targets() {
		names = append(names, scheme+of+":"+t)
	}
	return names, nil
}

// Look describes a disk of a domain.
func (Provider) Look(ctx context.Context, name string) (_ block.Device, mine bool, err error) {
	of, one, mine := place(name)
	if !mine {
		return block.Device{}, false, nil
	}
	d, err := find(ctx, of)
	if err != nil {
		return block.Device{}, true, fmt.Errorf("%s: %w", name, err)
	}
	k, err := d.disk(one)
	if err != nil {
		return block.Device{}, true, fmt.Errorf("%s: %w", name, err)
	}
	size, err := capacity(ctx, of, k.Target)
	if err != nil {
		return block.Device{}, true, fmt.Errorf("%s: %w", name, err)
	}
	info := block.Info{
		Path: name, Kind: block.KindVM, Size: size, LogicalSector: 512, PhysicalSector: 512,
		Name: "libvirt/" + plain(d.Name) + "/" + k.Target, Identity: "libvirt:" + d.UUID + "/" + k.Target, Model: "QEMU " + k.Format,
	}
	return block.Device{Info: info, How: block.Live, Why: "a virtual machine writes to it"}, true, nil
}

// unfitRunes are not for the names of volumes.
var unfitRunes = regexp.MustCompile(`[^A-Za-z0-9._+-]+`)

func plain(s string) string { return strings.Trim(unfitRunes.ReplaceAllString(s, "-"), "-") }

// capacity returns the size of a disk in bytes.
func capacity(ctx context.Context, domain, target string) (int64, error) {
	out, err := virsh(ctx, "domblkinfo", "--domain", domain, "--device", target)
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(out) {
		if f := strings.Fields(string(line)); len(f) == 2 && f[0] == "Capacity:" {
			return strconv.ParseInt(f[1], 10, 64)
		}
	}
	return 0, fmt.Errorf("virsh domblkinfo says no capacity of %s", target)
}

// withFile calls f with the path of a file that holds text, for virsh to read.
func withFile(text []byte, f func(path string) error) error {
	file, err := os.CreateTemp("", "platter-libvirt-")
	if err != nil {
		return err
	}
	defer os.Remove(file.Name())
	_, err = file.Write(text)
	if err = errors.Join(err, file.Close()); err != nil {
		return err
	}
	return f(file.Name())
}
