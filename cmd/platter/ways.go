package main

import (
	"platter/block/snapshot"
	"platter/block/snapshot/lvm"
	"platter/cbt"
	"platter/cbt/live"
	"platter/cbt/thick"
	"platter/cbt/thin"
	"platter/cbt/trace"
	"platter/internal/job"
)

// ways is what this program knows to image a device by: the one place where
// still views and trackers are put together. The order is that of preference.
func ways() job.Ways {
	return job.Ways{
		Views: []snapshot.Provider{
			lvm.Thin{},
			lvm.Thick{},
			live.New(trace.DefaultDir),
		},
		Trackers: []cbt.Opener{
			thin.Opener{},
			thick.Opener{},
			live.Opener{},
		},
	}
}
