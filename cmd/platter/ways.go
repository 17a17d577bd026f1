package main

import "platter/internal/job"

// ways is what this program knows to image a device by: the one place where
// still views and trackers are put together. The order is that of preference.
func ways() job.Ways {
	return job.Ways{}
}
