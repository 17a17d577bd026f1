// Package layering holds the import arrows of the tree as data. Its test fails
// on an arrow that is not in the table, and on a folder that the tree has no
// place for.
//
// The table is the tree's design in short: read it from the bottom, a disk, to
// the top, a command. Who needs an arrow that points up has a type in the
// wrong place: move the type down, or take an interface where it is used.
package layering

// A Layer says which packages of this module others may import. Patterns mean
// what they mean to the go command: "image" is the one package, "image/..."
// that and all below it. The line that names a package most closely counts.
type Layer struct {
	Packages string // one pattern
	Imports  string // patterns, separated by spaces
	What     string // the packages in a few words
}

const underJob = "block/... cbt/... image/... catalog/... retention internal/export/..."

// Table returns the layers from the bottom up. A line names only packages
// that lines above it are about.
func Table() []Layer {
	return []Layer{
		{"block/fat", "", "a FAT filesystem laid out anew"},
		{"block", "block/fat", "a disk: devices, extents, reads and writes"},
		{"block/snapshot", "block", "still views of a disk"},
		{"block/command", "", "tools of the system, run in one way"},
		{"block/nbd/protocol", "", "the numbers that both ends know"},
		{"block/nbd", "block block/nbd/protocol", "disks that servers offer"},
		{"block/qmp", "", "words with a running QEMU"},
		{"block/freeze", "block", "filesystems held still for a moment"},
		{"block/snapshot/zfs", "block block/snapshot block/command block/freeze", "views that a filesystem is better held still for"},
		{"block/...", "block block/snapshot block/command block/nbd block/qmp", "one method of taking them each, and what they need"},

		{"cbt", "block block/snapshot", "what changed since a generation"},
		{"cbt/xmllist", "", "lists of the tools of thin provisioning"},
		{"cbt/thin", "cbt cbt/xmllist block/...", "a tracker that such a tool tells"},
		{"cbt/...", "cbt block/...", "one tracker each"},
		{"cbt/live", "cbt cbt/trace block/...", "views of what nothing holds still, made by a tracker"},

		{"cbt/era", "cbt cbt/live cbt/trace cbt/xmllist block/...", "a tracker whose views another may make"},

		{"image", "block", "what a backup is: block ID, map, manifest"},
		{"image/store", "", "where objects live"},
		{"image/store/vfs", "image/store", "the file system below a directory"},
		{"image/store/retry", "image/store", "what a network fails is tried again"},
		{"image/store/...", "image/store image/store/vfs image/store/retry", "one store each, and their suite"},
		{"image/store/sftp", "image/store image/store/vfs image/store/retry image/store/dir", "a directory by way of ssh"},
		{"image/store/location", "image/store image/store/vfs image/store/dir image/store/s3 image/store/sftp", "the store of a name"},
		{"image/store/s3/s3test", "image/store image/store/s3", "a server for the tests of one, and its faults"},
		{"image/store/sftp/sftptest", "image/store image/store/sftp", "an ssh server for the tests of one, and its faults"},
		{"image/keys", "image", "what seals objects and names blocks"},
		{"image/segment", "image image/store image/keys", "many blocks in one object"},
		{"image/repo", "image image/store image/keys image/segment", "store, config and keys together"},
		{"image/...", "block image image/store image/keys image/segment image/repo", "what reads images"},

		{"catalog/...", "block image/...", "what we have: an index that can be rebuilt"},
		{"retention", "", "what we keep: pure policy"},
		{"internal/export", "image/...", "what an image is when it is offered as a disk"},
		{"internal/export/...", "block/... image/... internal/export", "one way to offer it each"},
		{"internal/export/files/tree", "block", "what a filesystem is to those who read it"},
		{"internal/export/files/ext", "block internal/export/files/tree", "ext2, ext3 and ext4"},
		{"internal/export/files/fat", "block internal/export/files/tree", "FAT"},
		{"internal/export/files/kernel", "block internal/export internal/export/mount internal/export/files/tree", "what the running kernel reads"},
		{"internal/export/files", "block internal/export internal/export/files/tree internal/export/files/ext internal/export/files/fat internal/export/files/kernel", "files out of an image"},

		{"internal/export/rescue/...", "", "what its parts are made with"},
		{"internal/export/rescue/ramfs", "internal/export/rescue/cpio", "programs and libraries for one"},
		{"internal/export/adapt", "block block/command block/lvm2 image/reader internal/export internal/export/files internal/export/files/tree internal/export/files/fat internal/export/files/kernel internal/export/mount internal/export/rescue/cpio internal/export/rescue/grub", "systems that start on other hardware"},
		{"internal/export/rescue", "block/... internal/export/rescue/apt internal/export/rescue/cpio internal/export/rescue/grub internal/export/rescue/ramfs", "a medium that starts bare machines"},

		{"internal/quantity", "", "sizes and lengths of time as people type them"},
		{"internal/durable", "", "files that no crash takes away"},

		{"internal/job/...", underJob + " internal/durable", "one run of something"},
		{"internal/agent/lines", "internal/durable", "files of lines that processes share"},
		{"internal/agent/audit", "internal/agent/lines", "who did what, in a chain"},
		{"internal/agent/history", "image image/repo internal/agent/lines", "what ran here, and how it ended"},
		{"internal/agent/schedule", "internal/quantity", "when a job is due: pure reckoning"},
		{"internal/agent/event", "", "what the agent tells of its jobs"},
		{"internal/agent/owned", "", "files in nobody else's hands"},
		{"internal/agent/systemd", "", "who started the agent"},
		{"internal/agent/hook", "internal/agent/owned", "an operator's programs"},
		{"internal/agent/config", "retention internal/quantity internal/agent/schedule", "what the agent is told, read from files"},
		{"internal/agent", "internal/durable internal/agent/config internal/agent/schedule internal/agent/event", "jobs on a schedule, beside the disks"},
		{"internal/agent/child", "internal/agent internal/agent/config internal/agent/hook internal/agent/owned", "runs as processes of their own"},
		{"internal/agent/launch", "internal/agent internal/agent/config", "runs by a process with more rights"},
		{"internal/agent/socket", "internal/agent", "asking an agent that runs"},
		{"internal/agent/alert", "retention internal/agent/lines internal/agent/history internal/agent/config", "what is wrong, said once"},
		{"internal/agent/notify", "internal/durable internal/agent/config", "telling people and services"},
		{"internal/agent/metrics", "internal/agent/config internal/agent/alert internal/agent/audit internal/agent/history internal/agent/notify", "how the records look to Prometheus"},
		{"internal/agent/doctor", "block/snapshot block/snapshot/reflink cbt/trace image/keys image/store image/repo internal/agent/config internal/agent/alert internal/agent/audit internal/agent/history internal/agent/notify", "what will go wrong"},
		{"internal/agent/watch", "internal/agent/config internal/agent/event internal/agent/metrics internal/agent/alert internal/agent/audit internal/agent/history internal/agent/notify", "alerts of what runs, and who is told"},
		{"internal/agent/...", underJob + " internal/quantity internal/job/...", "what else the agent needs"},
		{"internal/server/...", underJob + " internal/job/...", "the appliance for many agents"},

		{"cmd/...", underJob + " internal/quantity internal/job/... internal/agent/... internal/server/...", "arguments in, one call, a report out"},

		{"internal/layering", "", "this table"},
		{"internal/package/...", "", "the Debian package, and what is in it"},
		{"internal/bench/workload", "", "a disk on two nights"},
		{"internal/bench", "internal/bench/workload", "the benchmark: runs the program, imports none of it"},
		{"internal/bench/nights", "", "the benchmark of trackers"},
		{"internal/bench/agent", "", "the benchmark of the agent"},
		{"vmtests/...", underJob + " internal/job/... internal/agent/... internal/server/...", "whole machines"},
	}
}

// TestAids are the packages that only test files and other aids may import:
// the suites, the models that stand in for the real thing, and what sets up
// devices. Every test may, beside what its package may import.
const TestAids = "cbt/cbttest image/store/storetest image/store/crashfs image/store/faulty image/store/mem image/store/s3/s3test image/store/sftp/sftptest vmtests/..."

// Folders are the top-level folders there are, beside those of a dot. What
// make builds goes to bin, which is not kept.
const Folders = "block catalog cbt cmd docs image internal retention vmtests bin .*"

// NoFolders are names that say nothing of what is inside.
const NoFolders = "util utils common helper helpers misc"
