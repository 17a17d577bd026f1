package main

import (
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/pflag"

	"platter/image/repo"
	"platter/image/store/retry"
	"platter/internal/job"
)

// options holds every flag of every command; those of other commands than the
// one that runs keep their defaults. Sizes are in bytes.
type options struct {
	// of every command
	repo, catalog string
	state         string
	memory        int64
	lockWait      time.Duration
	limitRead     int64 // per second, 0 for none
	limitWrite    int64
	retryFor      time.Duration
	limitUpload   int64
	limitDownload int64
	json          bool
	quiet         bool
	verbose       bool
	help          bool

	dryRun    bool
	failed    bool
	list      bool
	verifyLog bool

	blockSize    int64
	noEncryption bool

	// of init and key
	keyFile       string
	recipients    []string
	noRecoveryKey bool
	passphrase    bool
	label         string
	writeOnly     bool

	volume          string
	tags            []string
	tracker         string
	audit           string
	live            bool
	onDevice        bool
	together        bool
	allBlocks       bool
	all             bool // also of alerts
	hooks           job.Hooks
	remove, kept    bool // snapshots
	allowUnreadable bool
	replaceDevice   bool

	// of images offered as disks
	overlay        string
	writable       bool
	unix, listen   string
	tlsCertificate string
	tlsKey         string
	tlsClients     string
	format         string
	firmware, bus  string
	vmMemory       int64
	timeout        time.Duration
	answers        string
	tree           string
	unattended     bool
	picture        string
	emulate        bool

	// of files
	to, tar   string
	cat, deep bool
	kernel    bool

	yes        bool
	inPlace    bool
	compareAll bool
	grow       bool
	adapt      bool // also of boot
	newIDs     bool
	reset      []string
	noReadBack bool

	readData bool
	subset   float64

	keepLast, keepHourly, keepDaily, keepWeekly, keepMonthly, keepYearly int
	keepWithin                                                           time.Duration

	grace, minAge time.Duration
	maxDelete     float64
	maxUnused     float64

	config     string
	pruneShare float64 // of a volume's images that one prune may forget, or
	pruneCount int     // this many in all
	deleted    bool
	lost       bool
	reason     string
	hold       bool
	until      time.Time

	socket   string // of the agent
	launcher string // socket of what starts its runs; "" for itself
	pauseFor time.Duration
	stopRuns bool
}

func defaults() *options {
	return &options{
		repo: filepath.Join(dataDir(), "repo"), memory: 256 * mib, lockWait: 5 * time.Minute, retryFor: retry.DefaultPatience,
		blockSize: repo.DefaultBlockSize, tracker: "auto", audit: job.AuditAuto, format: job.ExportFormats()[0],
		bus: "virtio", vmMemory: 1024 * mib, timeout: 5 * time.Minute,
		grace: day, minAge: day, maxDelete: 0.5, maxUnused: 0.05,
		pruneShare: 0.5,
		hooks:      job.Hooks{Limit: job.DefaultHookLimit},
	}
}

const systemDir = "/var/lib/platter"

// dataDir is where a repository lives when nobody says where.
func dataDir() string { return homeDir(os.Getuid(), "XDG_DATA_HOME", ".local/share") }

// stateDir is where catalogs and records of this machine live: where somebody
// says, or in the system's place or the user's.
func (o *options) stateDir() string {
	if o.state != "" {
		return o.state
	}
	return homeDir(os.Getuid(), "XDG_STATE_HOME", ".local/state")
}

// configFile is where the config is: where somebody says, or in the system's
// place or the user's.
func (o *options) configFile() string {
	if o.config != "" {
		return o.config
	}
	if path := os.Getenv("PLATTER_CONFIG"); path != "" { // of commands without the flag
		return path
	}
	if os.Getuid() == 0 {
		return "/etc/platter/platter.toml"
	}
	return filepath.Join(homeDir(os.Getuid(), "XDG_CONFIG_HOME", ".config"), "platter.toml")
}

// homeDir is the system's folder for root, and the one that the XDG base
// directory rules give to anybody else.
func homeDir(uid int, variable, otherwise string) string {
	if uid == 0 {
		return systemDir
	}
	if dir := os.Getenv(variable); filepath.IsAbs(dir) {
		return filepath.Join(dir, "platter")
	}
	return filepath.Join(os.Getenv("HOME"), otherwise, "platter")
}

// A flag is one row of the table of flags.
type flag struct {
	name, short string
	usage       string
	env         string // variable that sets it where the command line does not
	value       func(*options) pflag.Value
}

// limits of what flags take
const (
	minMemory, maxMemory = 128 * mib, tib
	maxLockWait          = 7 * day
	maxHook              = day
	maxRetryFor          = 30 * day
	maxKeep              = 1_000_000
	maxGrace             = 10 * 365 * day
)

// globalFlags are those of every command.
func globalFlags() []flag {
	return []flag{
		{
			"repo", "r", "path, s3:URL or sftp:URL", "PLATTER_REPOSITORY",
			func(o *options) pflag.Value { return text("PATH", &o.repo) },
		},
		{
			"catalog", "", "catalog directory (default one per repository)", "PLATTER_CATALOG",
			func(o *options) pflag.Value { return text("PATH", &o.catalog) },
		},
		{
			"state", "", "directory of records and catalogs", "PLATTER_STATE",
			func(o *options) pflag.Value { return text("PATH", &o.state) },
		},
		{
			"memory", "", "memory for the whole process", "",
			func(o *options) pflag.Value { return size(&o.memory, minMemory, maxMemory) },
		},
		{
			"lock-wait", "", "how long to wait while another platter holds the catalog", "",
			func(o *options) pflag.Value { return span(&o.lockWait, 0, maxLockWait) },
		},
		{
			"limit-read", "", "read no more than this from devices in a second", "",
			func(o *options) pflag.Value { return rate(&o.limitRead) },
		},
		{
			"limit-write", "", "write no more than this to devices in a second", "",
			func(o *options) pflag.Value { return rate(&o.limitWrite) },
		},
		{
			"retry-for", "", "how long to try while the repository cannot be reached", "",
			func(o *options) pflag.Value { return span(&o.retryFor, time.Second, maxRetryFor) },
		},
		{
			"limit-upload", "", "send no more than this over the network in a second", "",
			func(o *options) pflag.Value { return rate(&o.limitUpload) },
		},
		{
			"limit-download", "", "fetch no more than this over the network in a second", "",
			func(o *options) pflag.Value { return rate(&o.limitDownload) },
		},
		{
			"json", "", "print one JSON object per line", "",
			func(o *options) pflag.Value { return toggle(&o.json) },
		},
		{
			"quiet", "q", "no progress and no summary", "",
			func(o *options) pflag.Value { return toggle(&o.quiet) },
		},
		{
			"verbose", "v", "say more about what is done and why", "",
			func(o *options) pflag.Value { return toggle(&o.verbose) },
		},
		{
			"help", "h", "show help", "",
			func(o *options) pflag.Value { return toggle(&o.help) },
		},
	}
}

func dryRunFlag(usage string) flag {
	return flag{"dry-run", "n", usage, "", func(o *options) pflag.Value { return toggle(&o.dryRun) }}
}

func initFlags() []flag {
	return []flag{
		{
			"block-size", "", "size of a block, a power of two; it can never be changed", "",
			func(o *options) pflag.Value { return power(&o.blockSize, repo.MinBlockSize, repo.MaxBlockSize) },
		},
		{
			"no-encryption", "", "a repository that anybody who has its files can read", "",
			func(o *options) pflag.Value { return toggle(&o.noEncryption) },
		},
		keyFileFlag(),
		recipientFlag("; may be given again"),
		{
			"no-recovery-key", "", "make no recovery key, which is shown once", "",
			func(o *options) pflag.Value { return toggle(&o.noRecoveryKey) },
		},
	}
}

func keyFileFlag() flag {
	return flag{
		"key-file", "", "a file of at least 32 random bytes opens the repository", "",
		func(o *options) pflag.Value { return text("FILE", &o.keyFile) },
	}
}

func recipientFlag(more string) flag {
	return flag{
		"recipient", "", "an age recipient (age1...) opens the repository" + more, "",
		func(o *options) pflag.Value { return texts("AGE", &o.recipients) },
	}
}

func keyAddFlags() []flag {
	return []flag{
		{
			"passphrase", "", "a password opens the repository", "",
			func(o *options) pflag.Value { return toggle(&o.passphrase) },
		},
		keyFileFlag(),
		recipientFlag(""),
		{
			"label", "", "a note on whose it is", "",
			func(o *options) pflag.Value { return text("TEXT", &o.label) },
		},
		{
			"write-only", "", "enough for backups, not for restores", "",
			func(o *options) pflag.Value { return toggle(&o.writeOnly) },
		},
	}
}

func backupFlags() []flag {
	return []flag{
		{
			"all", "", "image every disk of the machine, as a set", "",
			func(o *options) pflag.Value { return toggle(&o.all) },
		},
		{
			"together", "", "image all as they were at one moment, or none", "",
			func(o *options) pflag.Value { return toggle(&o.together) },
		},
		{
			"volume", "", "name of the volume (default from the device's serial number or path)", "",
			func(o *options) pflag.Value { return text("NAME", &o.volume) },
		},
		{
			"tag", "", "a word to keep with the image; may be given again", "",
			func(o *options) pflag.Value { return texts("TAG", &o.tags) },
		},
		{
			"tracker", "", "how to know what changed; full: compare every block", "",
			func(o *options) pflag.Value {
				names := choice(&o.tracker, ways().Names()...)
				names.kind = "NAME"
				return names
			},
		},
		{
			"audit", "", "how much else to read, to prove the tracker", "",
			func(o *options) pflag.Value { return choice(&o.audit, job.AuditAuto, job.AuditFull, job.AuditOff) },
		},
		{
			"before", "", "run this before the moment of the image; no image if it fails", "",
			func(o *options) pflag.Value { return text("COMMAND", &o.hooks.Before) },
		},
		{
			"before-may-fail", "", "image all the same if --before fails", "",
			func(o *options) pflag.Value { return toggle(&o.hooks.MayFail) },
		},
		{
			"after", "", "run this when the moment is over, whatever came of it", "",
			func(o *options) pflag.Value { return text("COMMAND", &o.hooks.After) },
		},
		{
			"hook-limit", "", "how long each of them may take", "",
			func(o *options) pflag.Value { return span(&o.hooks.Limit, time.Second, maxHook) },
		},
		{
			"repository-on-device", "", "image a device that is in use though the repository lies on it", "",
			func(o *options) pflag.Value { return toggle(&o.onDevice) },
		},
		{
			"all-blocks", "", "keep what filesystems call free, too", "",
			func(o *options) pflag.Value { return toggle(&o.allBlocks) },
		},
		{
			"live", "", "image a device in use that has no still view, as fuzzy", "",
			func(o *options) pflag.Value { return toggle(&o.live) },
		},
		{
			"allow-unreadable", "", "go on past read errors; the ranges are recorded and hold zeros", "",
			func(o *options) pflag.Value { return toggle(&o.allowUnreadable) },
		},
		{
			"replace-device", "", "let another device go on under the volume's name", "",
			func(o *options) pflag.Value { return toggle(&o.replaceDevice) },
		},
		dryRunFlag("read and compare, store nothing"),
	}
}

func snapshotsFlags() []flag {
	return []flag{
		{
			"remove", "", "remove what dead runs left behind", "",
			func(o *options) pflag.Value { return toggle(&o.remove) },
		},
		{
			"kept", "", "with --remove, also what is kept for the next image", "",
			func(o *options) pflag.Value { return toggle(&o.kept) },
		},
	}
}

func restoreFlags() []flag {
	return []flag{
		{
			"yes", "y", "overwrite what is on TARGET without asking", "",
			func(o *options) pflag.Value { return toggle(&o.yes) },
		},
		{
			"in-place", "", "write only the blocks that differ; a tracker may tell where to look", "",
			func(o *options) pflag.Value { return toggle(&o.inPlace) },
		},
		{
			"compare-all", "", "with --in-place: believe no tracker", "",
			func(o *options) pflag.Value { return toggle(&o.compareAll) },
		},
		{
			"grow", "", "the last partition and its filesystem take the room of a larger disk", "",
			func(o *options) pflag.Value { return toggle(&o.grow) },
		},
		adaptFlag("make the system start on other hardware"),
		{
			"firmware", "", "with --adapt: what the other machine starts by (default as the image)", "",
			func(o *options) pflag.Value { return choice(&o.firmware, "bios", "uefi") },
		},
		{
			"new-ids", "", "new identities of disk, partitions, filesystems", "",
			func(o *options) pflag.Value { return toggle(&o.newIDs) },
		},
		{
			"reset", "", "machine-id or network: forget the old; again for both", "",
			func(o *options) pflag.Value { return texts("WHAT", &o.reset) },
		},
		{
			"no-read-back", "", "do not read TARGET again at the end to prove it", "",
			func(o *options) pflag.Value { return toggle(&o.noReadBack) },
		},
		dryRunFlag("show the plan, write nothing"),
	}
}

func adaptFlag(usage string) flag {
	return flag{"adapt", "", usage, "", func(o *options) pflag.Value { return toggle(&o.adapt) }}
}

func offerFlags() []flag {
	return []flag{
		{
			"writable", "w", "take writes, and forget them at the end", "",
			func(o *options) pflag.Value { return toggle(&o.writable) },
		},
		{
			"overlay", "", "take writes, and keep them in this file", "",
			func(o *options) pflag.Value { return text("FILE", &o.overlay) },
		},
	}
}

func nbdFlags() []flag {
	return append([]flag{
		{
			"unix", "", "a socket to make", "",
			func(o *options) pflag.Value { return text("PATH", &o.unix) },
		},
		{
			"listen", "", "an address to listen at; beyond this machine with TLS only", "",
			func(o *options) pflag.Value { return text("HOST:PORT", &o.listen) },
		},
		{
			"tls-certificate", "", "certificate of this server, PEM", "",
			func(o *options) pflag.Value { return text("FILE", &o.tlsCertificate) },
		},
		{
			"tls-key", "", "its key, PEM", "",
			func(o *options) pflag.Value { return text("FILE", &o.tlsKey) },
		},
		{
			"tls-clients", "", "authorities whose clients may connect, PEM (default any client)", "",
			func(o *options) pflag.Value { return text("FILE", &o.tlsClients) },
		},
	}, offerFlags()...)
}

func bootFlags() []flag {
	return []flag{
		{
			"firmware", "", "what starts the machine (default what the image starts by)", "",
			func(o *options) pflag.Value { return choice(&o.firmware, "bios", "uefi") },
		},
		{
			"bus", "", "how the disk is attached", "",
			func(o *options) pflag.Value { return choice(&o.bus, "virtio", "sata", "nvme") },
		},
		{
			"vm-memory", "", "memory of the machine", "",
			func(o *options) pflag.Value { return size(&o.vmMemory, 128*mib, tib) },
		},
		{
			"timeout", "", "how long to wait for a login prompt", "",
			func(o *options) pflag.Value { return span(&o.timeout, time.Second, day) },
		},
		{
			"picture", "", "make a PNG of the last screen", "",
			func(o *options) pflag.Value { return text("FILE", &o.picture) },
		},
		{
			"emulate", "", "do without KVM", "",
			func(o *options) pflag.Value { return toggle(&o.emulate) },
		},
		adaptFlag("start it as restore --adapt would leave it"),
	}
}

func filesFlags() []flag {
	return []flag{
		{
			"to", "", "copy to this folder", "",
			func(o *options) pflag.Value { return text("DIR", &o.to) },
		},
		{
			"tar", "", "write a tar archive to a new file; - is standard output", "",
			func(o *options) pflag.Value { return text("FILE", &o.tar) },
		},
		{
			"cat", "", "print the file", "",
			func(o *options) pflag.Value { return toggle(&o.cat) },
		},
		{
			"recursive", "R", "list also what is in folders of the folder", "",
			func(o *options) pflag.Value { return toggle(&o.deep) },
		},
		{
			"kernel", "", "have this machine's kernel read the filesystem", "",
			func(o *options) pflag.Value { return toggle(&o.kernel) },
		},
	}
}

func exportFlags() []flag {
	return []flag{{
		"format", "", "format of the file", "",
		func(o *options) pflag.Value { return choice(&o.format, job.ExportFormats()...) },
	}}
}

func runsFlags() []flag {
	return []flag{
		{
			"volume", "", "only those of this volume", "",
			func(o *options) pflag.Value { return text("NAME", &o.volume) },
		},
		{
			"failed", "", "only those that did not end well", "",
			func(o *options) pflag.Value { return toggle(&o.failed) },
		},
	}
}

func alertsFlags() []flag {
	return []flag{{
		"all", "", "those that are over, too", "",
		func(o *options) pflag.Value { return toggle(&o.all) },
	}}
}

func listFlags() []flag {
	return []flag{{
		"list", "", "list the names of all pages", "",
		func(o *options) pflag.Value { return toggle(&o.list) },
	}}
}

func auditFlags() []flag {
	return []flag{{
		"verify", "", "check that no entry was changed, moved or taken out", "",
		func(o *options) pflag.Value { return toggle(&o.verifyLog) },
	}}
}

func verifyFlags() []flag {
	return []flag{
		{
			"read-data", "", "read every stored byte", "",
			func(o *options) pflag.Value { return toggle(&o.readData) },
		},
		{
			"read-data-subset", "", "read this share of the stored bytes, picked at random", "",
			func(o *options) pflag.Value { return share(&o.subset) },
		},
	}
}

func pruneFlags() []flag {
	keep := func(name, what string, p func(*options) *int) flag {
		return flag{
			"keep-" + name, "", "keep " + what, "",
			func(o *options) pflag.Value { return count(p(o), maxKeep) },
		}
	}
	return []flag{
		keep("last", "the N newest images", func(o *options) *int { return &o.keepLast }),
		keep("hourly", "the newest image of each of the last N hours that have one", func(o *options) *int { return &o.keepHourly }),
		keep("daily", "the newest image of each of the last N days that have one", func(o *options) *int { return &o.keepDaily }),
		keep("weekly", "the newest image of each of the last N weeks that have one", func(o *options) *int { return &o.keepWeekly }),
		keep("monthly", "the newest image of each of the last N months that have one", func(o *options) *int { return &o.keepMonthly }),
		keep("yearly", "the newest image of each of the last N years that have one", func(o *options) *int { return &o.keepYearly }),
		{
			"keep-within", "", "keep all so far back from the volume's newest image", "",
			func(o *options) pflag.Value { return within(&o.keepWithin) },
		},
		configFlag(),
		{
			"max-delete", "", "most of a volume's images, or of all, to forget at once", "",
			func(o *options) pflag.Value { return shareOrCount(&o.pruneShare, &o.pruneCount, maxKeep) },
		},
		{
			"lost", "", "give up the images that are gone from the repository instead", "",
			func(o *options) pflag.Value { return toggle(&o.lost) },
		},
		dryRunFlag("print the reason for each image, forget none"),
	}
}

func configFlag() flag {
	return flag{
		"config", "", "the config (default platter.toml in /etc/platter)", "PLATTER_CONFIG",
		func(o *options) pflag.Value { return text("FILE", &o.config) },
	}
}

// maxPause bounds how long jobs are paused for by one command; without a length
// they are until somebody says so.
const maxPause = 366 * day

func socketFlag() flag {
	return flag{
		"socket", "", "where the agent is asked (default in /run/platter)", "PLATTER_SOCKET",
		func(o *options) pflag.Value { return text("PATH", &o.socket) },
	}
}

func agentFlags() []flag {
	return []flag{configFlag(), socketFlag(), {
		"launcher", "", "socket of what starts runs (default the agent does)", "",
		func(o *options) pflag.Value { return text("PATH", &o.launcher) },
	}}
}

func pauseFlags() []flag {
	return []flag{
		{
			"for", "", "how long; without it until job resume", "",
			func(o *options) pflag.Value { return span(&o.pauseFor, 0, maxPause) },
		},
		{
			"stop", "", "stop runs that go on; they go on where they were", "",
			func(o *options) pflag.Value { return toggle(&o.stopRuns) },
		},
		socketFlag(),
	}
}

func rescueFlags() []flag {
	return []flag{
		answersFlag("file of answers to put on the medium: it restores without asking"),
		{
			"from", "", "folder with files of Debian packages, / for this machine (default by apt)", "",
			func(o *options) pflag.Value { return text("DIR", &o.tree) },
		},
	}
}

func rescueMenuFlags() []flag {
	return []flag{
		answersFlag("file of answers (default that of the medium)"),
		{
			"unattended", "", "restore as the answers say, and ask nothing", "",
			func(o *options) pflag.Value { return toggle(&o.unattended) },
		},
	}
}

func answersFlag(usage string) flag {
	return flag{"answers", "", usage, "", func(o *options) pflag.Value { return text("FILE", &o.answers) }}
}

func showFlags() []flag {
	return []flag{{
		"picture", "", "write the last screen of the machine that was started from it", "",
		func(o *options) pflag.Value { return text("FILE", &o.picture) },
	}}
}

func imagesFlags() []flag {
	return []flag{{
		"deleted", "", "list images that were pruned instead", "",
		func(o *options) pflag.Value { return toggle(&o.deleted) },
	}}
}

func pinFlags() []flag {
	return []flag{
		reasonFlag("why; it is shown with the image"),
		untilFlag(),
		holdFlag("a legal hold: without an end, and removed only by unpin --hold"),
	}
}

func unpinFlags() []flag { return []flag{holdFlag("remove its legal holds, and only those")} }

func undeleteFlags() []flag {
	return []flag{reasonFlag("why; the pin says so"), untilFlag()}
}

func reasonFlag(usage string) flag {
	return flag{"reason", "", usage, "", func(o *options) pflag.Value { return text("TEXT", &o.reason) }}
}

func untilFlag() flag {
	return flag{
		"until", "", "when the pin ends: a date, a time, or a length of time from now", "",
		func(o *options) pflag.Value { return moment(&o.until) },
	}
}

func holdFlag(usage string) flag {
	return flag{"hold", "", usage, "", func(o *options) pflag.Value { return toggle(&o.hold) }}
}

func collectFlags() []flag {
	return []flag{
		{
			"grace", "", "time from condemned to deleted", "",
			func(o *options) pflag.Value { return span(&o.grace, 0, maxGrace) },
		},
		{
			"min-age", "", "age below which nothing is condemned", "",
			func(o *options) pflag.Value { return span(&o.minAge, 0, maxGrace) },
		},
		{
			"max-delete", "", "largest share of the stored bytes that one run may delete", "",
			func(o *options) pflag.Value { return share(&o.maxDelete) },
		},
		{
			"max-unused", "", "share of the stored bytes that may be of no use", "",
			func(o *options) pflag.Value { return share(&o.maxUnused) },
		},
		dryRunFlag("print what would be condemned, repacked and deleted, touch nothing"),
	}
}
