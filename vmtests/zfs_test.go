package vmtests

import (
	"archive/tar"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"testing"

	"platter/vmtests/guest"
)

var recordZFS = flag.Bool("record-zfs", false, "record the streams of zfs send in cbt/zfs/testdata again")

// Streams as they are in testdata, where every machine tests them, are recorded in
// a guest.
func TestZFSStreamsInAGuest(t *testing.T) {
	if !*recordZFS && !vm() {
		t.Skip("SKIPPED, a guest that records what is recorded already: make vm")
	}
	s, disk := guest.OpenZFS(t), guest.Disk(t, 64<<20)
	s.Test(t, guest.Boot{ZFS: true, Disks: []string{guest.Disk(t, 256<<20), disk}},
		guest.Tests{Package: "platter/cbt/zfs", Args: "-test.run TestRecord$"})
	f, err := os.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	names := 0
	for in := tar.NewReader(f); ; names++ {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(in)
		if err != nil {
			t.Fatal(err)
		}
		if len(b) == 0 {
			t.Errorf("%s is empty", h.Name)
		}
		if !*recordZFS {
			continue
		}
		if err := os.WriteFile(filepath.Join("../cbt/zfs/testdata", filepath.Base(h.Name)), b, 0o644); err != nil {
			t.Error(err)
		}
	}
	if names == 0 {
		t.Error("nothing was recorded")
	}
}

// The views of ZFS, a story of its tracker, and the disks of pools, in one boot.
func TestZFSInAGuest(t *testing.T) {
	if !vm() {
		t.Skip("SKIPPED, minutes of a guest: make vm")
	}
	guest.OpenZFS(t).Test(t, guest.Boot{ZFS: true, Disks: []string{guest.Disk(t, 512<<20), guest.Disk(t, 256<<20)}},
		guest.Tests{Package: "platter/block/snapshot/zfs"},
		guest.Tests{Package: "platter/vmtests/volumes", Args: "-test.run=Pools"},
		guest.Tests{Package: "platter/cbt/zfs", Args: "-test.run='Suite/first'"},
	)
}

// Every story of the suite, on ZFS.
func TestZFSSuiteInAGuest(t *testing.T) {
	if !vm() {
		t.Skip("SKIPPED, an hour of a guest: make vm")
	}
	guest.OpenZFS(t).Test(t, guest.Boot{ZFS: true, Disks: []string{guest.Disk(t, 512<<20)}},
		guest.Tests{Package: "platter/cbt/zfs", Args: "-test.timeout 4h -test.run='Suite|Flaws'"})
}
