// Package libvirt takes still views of the disks of running virtual machines that
// libvirt manages, by libvirt's own backups: what a machine overwrites meanwhile
// QEMU first copies to a file of libvirt's, and offers the disks as they were by
// NBD.
//
// With each backup a checkpoint begins, by which libvirt knows later what was
// written since. Checkpoints are removed only when images that were made later are
// durable. Their names begin with platter- and say for whom, and by which process,
// they were made. All is asked of virsh; this package remembers nothing.
package libvirt

import (
	"context"
	"encoding/xml"
	"fmt"
	"os"
	"strings"

	"platter/block"
	"platter/block/snapshot"
)

// Method is the name of these views in manifests and reports.
const Method = "libvirt"

// Provider takes such views.
type Provider struct{}

var (
	_ snapshot.Joint    = Provider{}
	_ snapshot.Looker   = Provider{}
	_ snapshot.Splitter = Provider{}
)

// Name implements snapshot.Provider.
func (Provider) Name() string { return Method }

// Fits implements snapshot.Provider.
func (Provider) Fits(ctx context.Context, d block.Device) snapshot.Fit {
	of, _, mine := place(d.Path)
	if !mine {
		return snapshot.Fit{}
	}
	found, err := find(ctx, of)
	if err != nil {
		return snapshot.Fit{Why: err.Error()}
	}
	if !found.Running {
		return snapshot.Fit{Why: "domain " + found.Name + " does not run: name the file or the device of its disk instead"}
	}
	if os.Geteuid() != 0 {
		return snapshot.Fit{Why: "what libvirt offers only root may read"}
	}
	if why := snapshot.Roomy(d.Size); why != "" {
		return snapshot.Fit{Why: why}
	}
	return snapshot.Fit{
		OK: true, Why: "a disk of a running domain",
		Cost: "what the machine overwrites meanwhile is copied to " + snapshot.ScratchDir(),
	}
}

// A label is a name of something of ours: platter-ID-CONSUMER-RUN.
type label struct{ id, tag, run string }

const prefix = snapshot.Prefix + "-"

func (l label) String() string { return prefix + l.id + "-" + l.tag + "-" + l.run }

// read returns what a name says, if it is one of ours.
func read(name string) (l label, ok bool) {
	rest, ok := strings.CutPrefix(name, prefix)
	words := strings.SplitN(rest, "-", 3)
	if !ok || len(words) != 3 || len(words[0]) != 16 || len(words[1]) != 16 {
		return l, false
	}
	return label{words[0], words[1], words[2]}, true
}

// checkpoints lists those of ours, the oldest first.
func checkpoints(ctx context.Context, domain string) ([]label, error) {
	out, err := virsh(ctx, "checkpoint-list", "--domain", domain, "--name", "--topological")
	if err != nil {
		return nil, err
	}
	var all []label
	for _, name := range strings.Fields(string(out)) {
		if l, ok := read(name); ok {
			all = append(all, l)
		}
	}
	return all, nil
}

// remove removes a checkpoint. What was written since goes to the account of the
// one before. Of one that libvirt cannot remove, as when its bitmaps are gone,
// only the name is.
func remove(ctx context.Context, domain string, l label) error {
	if _, err := virsh(ctx, "checkpoint-delete", "--domain", domain, "--checkpointname", l.String()); err != nil {
		_, err = virsh(ctx, "checkpoint-delete", "--domain", domain, "--checkpointname", l.String(), "--metadata")
		return err
	}
	return nil
}

// Snapshots finds none that anybody but this package may remove: one checkpoint is
// for all disks of a domain that were imaged together.
func (Provider) Snapshots(context.Context, block.Device) ([]snapshot.Snapshot, error) {
	return nil, nil
}

// Remove has nothing to remove.
func (Provider) Remove(context.Context, snapshot.Snapshot) error { return nil }

// What virsh is told of a backup, and what it tells.
type (
	backupXML struct {
		XMLName xml.Name    `xml:"domainbackup"`
		Mode    string      `xml:"mode,attr"`
		Server  serverXML   `xml:"server"`
		Disks   []backupped `xml:"disks>disk"`
	}
	serverXML struct {
		Transport string `xml:"transport,attr"`
		Socket    string `xml:"socket,attr"`
	}
	backupped struct {
		Name         string   `xml:"name,attr"`
		Backup       string   `xml:"backup,attr"`
		Type         string   `xml:"type,attr,omitempty"`
		Mode         string   `xml:"backupmode,attr,omitempty"`
		Incremental  string   `xml:"incremental,attr,omitempty"`
		ExportName   string   `xml:"exportname,attr,omitempty"`
		ExportBitmap string   `xml:"exportbitmap,attr,omitempty"`
		Scratch      *scratch `xml:"scratch"`
	}
	scratch struct {
		File string `xml:"file,attr"`
	}
	checkpointXML struct {
		XMLName xml.Name `xml:"domaincheckpoint"`
		Name    string   `xml:"name"`
		Disks   []marked `xml:"disks>disk"`
	}
	marked struct {
		Name       string `xml:"name,attr"`
		Checkpoint string `xml:"checkpoint,attr"`
	}
)

// bitmap is the name that the bitmap of a disk is exported by.
const bitmap = "written"

// backup is a backup of libvirt's: one for all disks that are imaged together, and
// one at a time for a domain. It belongs to one goroutine.
type backup struct {
	domain *domain
	label  label
	views  []*View
	open   int // views that are not closed
	kept   int
}

// socket is where QEMU listens: nobody else may enter the folder.
func (b *backup) socket() string { return "/var/lib/libvirt/qemu/" + b.label.String() + ".nbd" }

func (b *backup) scratch(target string) string {
	return snapshot.ScratchDir() + "/" + b.label.String() + "." + target
}

// begin is the moment: libvirt begins the backup, and the checkpoint.
func (b *backup) begin(ctx context.Context) error {
	plan := backupXML{Mode: "pull", Server: serverXML{"unix", b.socket()}}
	mark := checkpointXML{Name: b.label.String()}
	for _, k := range b.domain.Disks {
		disk, at := backupped{Name: k.Target, Backup: "no"}, marked{k.Target, "no"}
		for _, v := range b.views {
			if v.target == k.Target {
				disk = backupped{
					Name: k.Target, Backup: "yes", Type: "file", Mode: "full", ExportName: k.Target,
					Scratch: &scratch{b.scratch(k.Target)},
				}
				if v.since != "" {
					disk.Mode, disk.Incremental, disk.ExportBitmap = "incremental", v.since, bitmap
				}
				if at.Checkpoint = "bitmap"; k.Format != "qcow2" {
					at.Checkpoint = "no" // libvirt keeps bitmaps in qcow2 alone
				}
			}
		}
		plan.Disks, mark.Disks = append(plan.Disks, disk), append(mark.Disks, at)
	}
	what, err := xml.Marshal(plan)
	if err != nil {
		return err
	}
	from, err := xml.Marshal(mark)
	if err != nil {
		return err
	}
	return withFile(what, func(what string) error {
		if !b.marks() {
			_, err := virsh(ctx, "backup-begin", "--domain", b.domain.UUID, "--backupxml", what)
			return err
		}
		return withFile(from, func(from string) error {
			_, err := virsh(ctx, "backup-begin", "--domain", b.domain.UUID, "--backupxml", what, "--checkpointxml", from)
			return err
		})
	})
}

// marks reports whether any of the disks can have a bitmap.
func (b *backup) marks() bool {
	for _, v := range b.views {
		if v.Persistent() {
			return true
		}
	}
	return false
}

// clear ends what a dead run left. Backups of others are refused.
func clear(ctx context.Context, domain string) error {
	out, err := virsh(ctx, "backup-dumpxml", "--domain", domain)
	if err != nil {
		return nil // there is none
	}
	var left backupXML
	if err := xml.Unmarshal(out, &left); err != nil {
		return fmt.Errorf("read what libvirt says of a backup of domain %s: %w", domain, err)
	}
	base := left.Server.Socket[strings.LastIndexByte(left.Server.Socket, '/')+1:]
	if l, ok := read(strings.TrimSuffix(base, ".nbd")); !ok || snapshot.Running(l.run) {
		return fmt.Errorf("another backup of domain %s is under way: wait for it, or end it: virsh domjobabort %s", domain, domain)
	}
	_, err = virsh(ctx, "domjobabort", "--domain", domain)
	return err
}
