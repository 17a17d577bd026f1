package job

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"

	"platter/block/snapshot"
	"platter/block/snapshot/libvirt"
	"platter/cbt"
	"platter/cbt/bitmap"
	"platter/image"
	managed "platter/vmtests/libvirt"
)

// guests is a domain with two disks, what they hold, and its images.
type guests struct {
	*testing.T
	env    *Env
	domain *managed.Domain
	ways   Ways
	disks  [2][]byte
	number byte // written last
}

// write writes so many bytes at a place of a disk.
func (g *guests) write(disk, off, n int) {
	g.Helper()
	g.number++
	if err := g.domain.IO(disk, fmt.Sprintf("write -P %d %d %d", g.number, off, n)); err != nil {
		g.Fatal(err)
	}
	for i := range n {
		g.disks[disk][off+i] = g.number
	}
}

// backup images the domain, and proves that the images are its disks.
func (g *guests) backup() (list []*image.Manifest) {
	g.Helper()
	reports, err := Backup(g.Context(), g.env, BackupOptions{Devices: []string{"libvirt:" + g.domain.Name}, Ways: g.ways})
	if err != nil {
		g.Fatal(err)
	}
	if len(reports) != 2 || !reports[0].Together {
		g.Fatalf("%d images, together %v", len(reports), reports[0].Together)
	}
	for i, r := range reports {
		if !bytes.Equal(content(g.T, g.env, r.Image), g.disks[i]) {
			g.Errorf("the image of disk %d is not what it held: tracker %s, %s", i, r.Image.Tracker.Name, r.Image.Tracker.Why)
		}
		list = append(list, r.Image)
	}
	return list
}

func (g *guests) tracked(list []*image.Manifest) {
	g.Helper()
	for _, m := range list {
		if m.Tracker.Name != bitmap.LibvirtName {
			g.Errorf("%s: compared by %s: %s", m.Volume, m.Tracker.Name, m.Tracker.Why)
		}
	}
}

func (g *guests) compared(list []*image.Manifest, why string) {
	g.Helper()
	for _, m := range list {
		if m.Tracker.Name == bitmap.LibvirtName || !strings.Contains(m.Tracker.Why, why) {
			g.Errorf("%s: by %s: %q, want every block compared because %q", m.Volume, m.Tracker.Name, m.Tracker.Why, why)
		}
	}
}

func (g *guests) checkpoints() []string {
	g.Helper()
	return strings.Fields(g.domain.Do("checkpoint-list", g.domain.Name, "--name"))
}

// All disks of a domain are imaged as of one moment, and only what was written is
// read the next time; what a run that failed or died has seen is not lost; a
// checkpoint that cannot be relied on is noticed.
func TestDomainsAreImagedByLibvirt(t *testing.T) {
	sweep(t)
	if os.Getenv("PLATTER_TEST_VM") == "" {
		t.Skip("SKIPPED, a machine: make vm")
	}
	const size = 8 << 20
	g := &guests{T: t, env: newEnv(t, 64<<10), domain: managed.Start(t, 2, size)}
	g.ways = Ways{Views: []snapshot.Provider{libvirt.Provider{}}, Trackers: []cbt.Opener{bitmap.Libvirt{}}}
	for i := range g.disks {
		g.disks[i] = make([]byte, size)
		g.write(i, 1<<20, 3<<20)
	}
	g.compared(g.backup(), "first image")

	g.write(0, 5<<20, 4096)
	list := g.backup()
	g.tracked(list)
	if n := list[0].Stats.Read; n != 64<<10 {
		t.Errorf("read %d bytes of the first disk, want the block that was written to", n)
	}
	if n := list[1].Stats.Read; n != 0 {
		t.Errorf("read %d bytes of the second disk, want none", n)
	}
	if got := g.checkpoints(); len(got) != 1 {
		t.Errorf("checkpoints %q, want one", got)
	}

	// A run that fails, and one that dies.
	for _, run := range []string{snapshot.ThisProcess(), "00000000-1-1-1"} {
		g.write(0, 6<<20, 4096)
		v := g.view(run)
		g.write(1, 6<<20, 4096)
		if run == snapshot.ThisProcess() {
			if err := v.Close(); err != nil {
				t.Fatal(err)
			}
		}
		g.write(0, 7<<20, 4096)
		g.tracked(g.backup())
	}

	// One disk alone leaves what the other's next image needs.
	g.write(0, 2<<20, 4096)
	g.write(1, 2<<20, 4096)
	reports, err := Backup(t.Context(), g.env, BackupOptions{Devices: []string{"libvirt:" + g.domain.Name + ":vda"}, Ways: g.ways})
	if err != nil {
		t.Fatal(err)
	}
	g.tracked([]*image.Manifest{reports[0].Image})
	g.write(0, 3<<20, 4096)
	g.tracked(g.backup())

	// Somebody removes the checkpoint; the machine is killed.
	for _, name := range g.checkpoints() {
		g.domain.Do("checkpoint-delete", g.domain.Name, name)
	}
	g.write(1, 4<<20, 4096)
	g.compared(g.backup(), "no checkpoint")
	g.write(0, 0, 4096)
	for i := range g.disks {
		if err := g.domain.IO(i, "flush"); err != nil {
			t.Fatal(err)
		}
	}
	g.domain.Crash()
	g.domain.Boot()
	g.compared(g.backup(), "libvirt")
	g.write(1, 0, 4096)
	g.tracked(g.backup())
}

// view takes a view of the first disk as a run does.
func (g *guests) view(run string) snapshot.View {
	g.Helper()
	name := "libvirt:" + g.domain.Name + ":vda"
	d, _, err := libvirt.Provider{}.Look(g.Context(), name)
	if err != nil {
		g.Fatal(err)
	}
	v, err := libvirt.Provider{}.Take(g.Context(), d, snapshot.Options{Consumer: snapshot.Consumer{Repository: "r", Volume: "v"}, Run: run})
	if err != nil {
		g.Fatal(err)
	}
	return v
}
