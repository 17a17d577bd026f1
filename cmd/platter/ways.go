package main

import (
	"platter/block/snapshot"
	"platter/block/snapshot/libvirt"
	"platter/block/snapshot/lvm"
	"platter/block/snapshot/qemu"
	"platter/block/snapshot/reflink"
	"platter/block/snapshot/zfs"
	"platter/cbt"
	"platter/cbt/bitmap"
	"platter/cbt/era"
	"platter/cbt/live"
	trackreflink "platter/cbt/reflink"
	"platter/cbt/thick"
	"platter/cbt/thin"
	"platter/cbt/trace"
	trackzfs "platter/cbt/zfs"
	"platter/internal/job"
)

// ways is what this program knows to image a device by: the one place where
// still views and trackers are put together. The order is that of preference.
func ways() job.Ways {
	return job.Ways{
		Views: []snapshot.Provider{
			lvm.Thin{},
			lvm.Thick{},
			zfs.Provider{},
			reflink.New(),
			era.New(trace.DefaultDir),
			qemu.Provider{},
			libvirt.Provider{},
			live.New(trace.DefaultDir),
		},
		Trackers: []cbt.Opener{
			thin.Opener{},
			thick.Opener{},
			trackzfs.Opener{},
			trackreflink.New(),
			era.Opener{},
			bitmap.Opener{},
			bitmap.Libvirt{},
			live.Opener{},
		},
	}
}
