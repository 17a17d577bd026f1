package main

import (
	"context"
	"strings"
)

// A command is one row of the table that the program, its help, its shell
// completion and the check of README.md are made from.
type command struct {
	name    string // as typed: "backup", or "catalog check"
	args    string // "IMAGE TARGET", "[VOLUME...]": how many follows from it
	group   string
	short   string
	long    string
	example string
	flags   []flag
	run     func(context.Context, *call, []string) error
}

// groups are what the commands are for, in the order that help shows them.
var groups = [...]struct{ id, title string }{
	{"make", "Make images:"},
	{"look", "Look at them:"},
	{"return", "Get a disk back:"},
	{"prove", "Prove them:"},
	{"keep", "Keep what is wanted:"},
	{"care", "Take care:"},
	{"run", "Let it run by itself:"},
}

// commands is the table.
func commands() []command {
	return []command{
		{
			"init", "", "make", "make a repository",
			`Makes an empty repository. One that exists already is refused and left as it is.

It is encrypted, unless --no-encryption says otherwise: by a password, which is
asked for or comes from PLATTER_PASSWORD, PLATTER_PASSWORD_FILE or
PLATTER_PASSWORD_COMMAND, by a key file, or for age recipients; any one of them
opens it. A recovery key is shown once. Lost password and lost recovery key mean
lost data.`,
			"platter init -r /backup/repo\nplatter init -r /backup/repo --block-size 128KiB --key-file /root/platter.key", initFlags(), runInit,
		},
		{
			"backup", "[DEVICE...]", "make", "image disks, partitions or files",
			`Images each DEVICE: a disk, a partition, a logical volume, a loop device or a
file; with --all every disk of the machine but those that the repository lies on.
Images of several devices are a set; with --together they are all of one moment,
or there is none of them. The first image reads and stores everything
but zeros and what filesystems call free; each later one stores only the blocks
that changed. Every image is whole: it can be restored, and deleted, without the
others.

A device in use is imaged from a snapshot of it where one can be taken (logical
volumes, files on btrfs and XFS), which also tells what changed since the image
before. Another disk or partition that is in use is copied while it is written
to, then what was written is copied again, and at the end its filesystems stand
still for a moment: the image is of that moment. This needs root and a kernel
that can be traced; without, a device in use is refused, or imaged as it changes
with --live.

qemu:SOCKET is the disk of a running virtual machine, by the socket of its QMP;
qemu:SOCKET:DISK is one of several. QEMU holds it still, and keeps a bitmap of
what the machine writes. libvirt:DOMAIN are all disks of a domain of libvirt's, as
of one moment; libvirt:DOMAIN:DISK is one of them.

Commands can be run around the moment of which the image is (--before, --after),
as to have a database write back what it has in memory. They get PLATTER_HOOK
(before or after), PLATTER_DEVICES and PLATTER_VOLUMES (one a line), PLATTER_RUN,
and PLATTER_OUTCOME (taken or failed) after it.

Every run reads a few places again that the tracker calls unchanged, and in 30
days all of them once.`,
			"platter backup /dev/sda\nplatter backup --volume db1/root --tag before-upgrade /dev/vg0/root-snapshot", backupFlags(), runBackup,
		},
		{
			"devices", "[DEVICE...]", "make", "list devices that can be imaged, and how",
			`Lists this machine's block devices, or the devices and files given, with what is
on them, the name that a volume of each would have, and how each would be imaged:
by which still view, by which tracker, and why not by a better one. With -v that
is said of every way there is.`,
			"platter devices\nplatter devices -v /dev/sda /srv/vm.img", nil, runDevices,
		},

		{
			"images", "[VOLUME]", "look", "list images",
			`Lists the images of the repository, or of one volume, oldest first. With
--deleted it lists those that were pruned and may still come back.`,
			"platter images\nplatter images --json db1/root\nplatter images --deleted", imagesFlags(), runImages,
		},
		{
			"show", "IMAGE", "look", "show all about one image, or a set",
			"Shows what an image is of, when and how it was made, and what it cost. For\nIMAGE the ID of a set (8 digits of it) may stand: then its images are listed.\n\n" + imageGrammar,
			"platter show latest\nplatter show --picture screen.png db1/root@2026-01-31T03:00:00Z", showFlags(), runShow,
		},
		{
			"diff", "IMAGE IMAGE", "look", "list where two images differ",
			"Lists the extents in which two images differ. Only their maps are read, and\nof those only the parts that differ.\n\n" + imageGrammar,
			"platter diff db1/root@2026-01-30 db1/root", nil, runDiff,
		},
		{
			"stats", "", "look", "sum up the repository",
			"Counts volumes, images and segments, and tells what they hold and take.",
			"platter stats\nplatter stats --json", nil, runStats,
		},
		{
			"runs", "", "look", "list what ran here, and how it ended",
			`Lists the backups, restores, verifications, prunes, collections and boots of
this machine, those of the command line too, oldest first: the last 10,000 of
them, and of 400 days. A run that ended without a word is listed as "died".`,
			"platter runs\nplatter runs --failed --volume db1/root", runsFlags(), runRuns,
		},
		{
			"alerts", "", "look", "list what is wrong with the backups of this machine",
			`Lists alerts: volumes whose last good image is too old, runs that failed, damage,
and what is odd about an image, such as half a disk that changed. Rules and who is
told are in the config, see docs/alerts.md.

What is odd suspends pruning of the volume until it is acknowledged.`,
			"platter alerts\nplatter alerts --all --json", alertsFlags(), runAlerts,
		},
		{
			"alerts ack", "ALERT...", "keep", "acknowledge alerts",
			`Acknowledges alerts, by the numbers that platter alerts lists: they are not told
again. One that suspends pruning is over with that: look at the machine first.`,
			"platter alerts ack 12\nplatter alerts ack 12 13", nil, runAlertsAck,
		},
		{
			"audit", "", "look", "list who did what on this machine",
			`Lists what was done with disks, images and keys on this machine, and by whom:
commands that change or read what is stored, and what the agent was told.

Each entry holds the hash of the one before it. With --verify, lines that were
changed, moved or taken out are named, and that the end was cut off: the last
hash is kept beside the log, and in the journal. Note it elsewhere, too.`,
			"platter audit --json\nplatter audit --verify", auditFlags(), runAudit,
		},
		{
			"inspect", "FILE", "look", "describe one file of a repository",
			"Describes a file of a repository (config, key, segment or manifest), checks it,\nand says where it is damaged. It needs nothing but the file.",
			"platter inspect /backup/repo/config", nil, runInspect,
		},

		{
			"restore", "IMAGE TARGET...", "return", "write an image back to a disk or a file",
			`Writes IMAGE to TARGET: a disk, a partition, or a file, which is made if it does
not exist. Shows the plan and asks first; without a terminal, --yes says so.
Every block is checked before it is written, and TARGET is read back at the end.

A target that is mounted, in use, too small or otherwise wrong is refused
before anything is written.

IMAGE:pN is partition N of the image of a disk: it goes into a file, a device, or
a partition of another disk. An image of a disk goes onto a larger disk, onto a
smaller one that its partitions fit, and onto one with sectors of another size:
the partition table is fitted to it. With --grow the last partition and its
filesystem (ext4, XFS, btrfs, swap) take the room of a larger one.

With --adapt the system starts on other hardware: drivers that its initramfs lacks,
UUIDs in place of names such as /dev/sda2, a boot loader where any firmware finds it,
and with --firmware another one than the old machine's. With --new-ids the copy can
be in one machine with its original. --reset machine-id, and --reset network, forget
what is the old machine's. The plan lists what is changed: see docs/hardware.md.

With --in-place a tracker that has watched TARGET since the newest image of it
tells where to look, so that going back costs what changed.

For IMAGE the ID of a set may stand (8 digits of it), the images that one backup
made of several devices: then each TARGET is VOLUME=TARGET, and one is restored
after the other.

` + imageGrammar,
			"platter restore latest /dev/sdb\nplatter restore --yes db1/root@2026-01-31 /var/tmp/root.img\nplatter restore db1/disk:p2 /dev/sdb2", restoreFlags(), runRestore,
		},
		{
			"nbd", "IMAGE", "return", "offer an image as a disk over NBD",
			`Offers IMAGE as a disk to QEMU, to the kernel's nbd driver and to all else that
speaks NBD, until it is stopped. Nothing is restored first: blocks are read, and
checked, when they are asked for. Clients can ask which blocks hold data, and by
the context platter:changed:IMAGE which differ from another image.

The disk can be read, unless --writable or --overlay takes writes beside it. The
image itself is never written to. Without --unix and --listen it serves the
socket that systemd opened for it.

` + imageGrammar,
			"platter nbd latest --unix /run/disk.sock\nplatter nbd db1/root --listen 127.0.0.1:10809 --writable", nbdFlags(), runNBD,
		},
		{
			"mount", "IMAGE DIR", "return", "show an image as files",
			`Shows IMAGE in DIR, an empty directory: disk.raw, a file for each partition, and
info.json, until it is stopped or unmounted. Nothing is restored first. With
"mount -o ro,loop DIR/partition-1.raw /mnt" single files can be copied out of it;
a file system that was not unmounted cleanly wants --writable for that, which
forgets what was written at the end.

` + imageGrammar,
			"platter mount db1/root@2026-01-31 /mnt/image\nplatter mount --writable latest /mnt/image", offerFlags(), runMount,
		},
		{
			"files", "IMAGE[:PATH]", "return", "list, print or copy files out of an image",
			`Lists what PATH is in IMAGE, or what is in it if it is a folder. PATH begins with
"/", and before it with pN if the image has several partitions with filesystems:
latest:p2/etc/fstab. Without PATH all begins at the root.

With --to files and folders are copied to a folder, with --tar into an archive,
with owners, modes, times, extended attributes, ACLs, hard links, devices and
holes; with --cat one file is printed. Nothing that exists is overwritten. What
cannot be had is told of, and gives exit status 3.

ext2, ext3, ext4 and FAT are read by platter itself, which suits images that
nobody trusts. For all others, and for a journal that holds writes, --kernel has
the running kernel read them, as root: a bad filesystem may harm it. The journal
is replayed beside the image, and nobody else sees what is mounted.

` + imageGrammar,
			"platter files db1/root:/etc\nplatter files --to /tmp/back db1/root@2026-01-31:/etc/ssh\nplatter files --kernel --tar - latest:p3/home | tar -t", filesFlags(), runFiles,
		},
		{
			"export", "IMAGE FILE", "return", "write an image to a file for virtual machines",
			`Writes IMAGE to FILE, which must not exist, in a format of virtual machines:
qcow2 unless --format names another. It needs Debian's package qemu-utils.

` + imageGrammar,
			"platter export db1/root /var/lib/vms/root.qcow2\nplatter export --format vmdk latest disk.vmdk", exportFlags(), runExport,
		},

		{
			"verify", "[IMAGE...]", "prove", "prove that images can be restored",
			`Checks the structure of the images given, or of all: manifests, maps, and that
every block is where it should be. With --read-data every stored byte is read
and checked too. Damage is named by image, extent and segment, and damaged
blocks are stored again by the next backup that meets them.

` + imageGrammar,
			"platter verify\nplatter verify --read-data-subset 5%", verifyFlags(), runVerify,
		},

		{
			"boot", "IMAGE", "prove", "prove that a system comes up on an image",
			`Starts IMAGE in a virtual machine without a network, and waits for a login prompt
on its serial port or text screen. What the machine writes is forgotten. A panic,
a rescue shell or firmware that finds nothing to start is "failed"; without any of
these and without a prompt, nothing is proven: both exit with status 3. What came of
it is kept with the image, and a picture of the screen: see "platter show". Under UEFI
only the serial port can be read. It needs Debian's package qemu-system-x86, and
ovmf for UEFI.

` + imageGrammar,
			"platter boot latest\nplatter boot --firmware uefi --picture screen.png web1/root", bootFlags(), runBoot,
		},

		{
			"rescue", "FILE", "return", "make a medium that restores bare machines",
			`Makes FILE, a medium that starts a machine without a system: a USB stick, or a
disk as it is. It starts on a BIOS, on UEFI and with Secure Boot, and has this
platter, drivers, tools for LVM, md, LUKS and filesystems, the firmware that this
machine has, a menu that leads through a restore, and a shell. What it is made of
apt fetches, unless --from names a folder.

With --answers it restores without asking, once: see docs/rescue.md. Answers can
also be put on the stick later, as platter/answers. The same files make the same
bytes.`,
			"platter rescue rescue.img\nplatter rescue --answers answers.toml rescue.img", rescueFlags(), runRescue,
		},
		{
			"rescue-menu", "", "return", "lead through a restore",
			`Asks for repository, volume, moment and target, shows the plan, and restores: the
menu of the rescue medium. With --unattended it asks nothing and does what the
answers say.`,
			"platter rescue-menu\nplatter rescue-menu --unattended --answers answers.toml", rescueMenuFlags(), runRescueMenu,
		},

		{
			"prune", "[VOLUME...]", "keep", "forget images by rules",
			`Forgets the images that no rule keeps, of the volumes given or of all. Rules
apply to each volume by itself; they come from the flags, or where there are
none from the policies of the config. Without any rule nothing is done. The space
is reclaimed by "platter gc".

Pinned images are kept, and so are the newest complete image and the last one
verified by its every byte. Where more than half of a volume's images would go,
none does until --max-delete allows it.

--lost forgets no image. It is for those that are gone and that nobody pruned,
when all ways to get them back are tried: "images", "backup" and "verify" miss
them from then on no more.`,
			"platter prune --keep-daily 7 --keep-weekly 4 --keep-monthly 12 --dry-run\nplatter prune --keep-within 30d db1/root", pruneFlags(), runPrune,
		},
		{
			"pin", "IMAGE", "keep", "keep an image from being pruned",
			`Keeps IMAGE, whatever the rules say and on whatever machine they are applied,
until the pin is removed or the time of --until has come by the store's clock. A
legal hold (--hold) has no end.

` + imageGrammar,
			"platter pin --reason before-upgrade --until 90d db1/root\nplatter pin --hold --reason case-2026-114 3f9a01bc", pinFlags(), runPin,
		},
		{
			"unpin", "IMAGE", "keep", "let an image be pruned again",
			`Removes the pins of IMAGE. Legal holds stay, and are removed by --hold alone. The
keys of a machine that may only write images cannot remove either.

` + imageGrammar,
			"platter unpin db1/root\nplatter unpin --hold 3f9a01bc", unpinFlags(), runUnpin,
		},
		{
			"undelete", "IMAGE", "keep", "bring a pruned image back",
			`Brings an image back that was pruned, as long as "platter gc" has not deleted
what it needs: at least for the grace period. Everything is checked first, and
what is condemned is stored again. The image comes back pinned.

IMAGE is one that "platter images --deleted" lists: an ID of which 8 digits are
enough, a volume (its latest deleted image), or VOLUME@TIME.`,
			"platter images --deleted\nplatter undelete 3f9a01bc", undeleteFlags(), runUndelete,
		},
		{
			"gc", "", "keep", "reclaim space that no image needs",
			`Condemns segments that no image needs, and deletes those condemned for longer
than the grace. Running backups are safe at any setting.

Segments that are needed in part are repacked when more than --max-unused of
what is stored is of no use, and small ones are merged: what is in use moves to
new segments, as it is stored, and the old ones are condemned. --limit-read and
--limit-write bound how fast.`,
			"platter gc\nplatter gc --dry-run\nplatter gc --max-unused 10% --limit-write 50MiB", collectFlags(), runCollect,
		},

		{
			"key list", "", "care", "list what opens the repository",
			"Lists the passwords, key files and recipients that open the repository, by\nname, and what each may do. None of them is shown itself.",
			"platter key list\nplatter key list --json", nil, runKeyList,
		},
		{
			"key add", "", "care", "let another password or key open the repository",
			`Adds a password, a key file or an age recipient to what opens the repository.
No stored data is written again. A new password is asked for or comes from
PLATTER_NEW_PASSWORD, PLATTER_NEW_PASSWORD_FILE or PLATTER_NEW_PASSWORD_COMMAND.

With --write-only it is enough for backups with dedupe, and lists images, but
cannot read what is in them: for machines that others may break into.`,
			"platter key add --passphrase --label second-admin\nplatter key add --key-file /root/agent.key --write-only --label web1", keyAddFlags(), runKeyAdd,
		},
		{
			"key remove", "NAME", "care", "let a password or key no longer open the repository",
			`Removes what key list calls NAME; 8 digits of it are enough. The last one that
may read is refused. Who used it and kept a copy of its file can still open what
they have of the repository: the keys of the data stay the same.`,
			"platter key remove 3f9a01bc", nil, runKeyRemove,
		},
		{
			"key rotate", "", "care", "change the password",
			`Puts a new password in place of the one that is used now. The new one is stored
before the old one is removed; cut short, both open the repository. The new
password is asked for or comes from PLATTER_NEW_PASSWORD,
PLATTER_NEW_PASSWORD_FILE or PLATTER_NEW_PASSWORD_COMMAND.`,
			"platter key rotate", nil, runKeyRotate,
		},
		{
			"doctor", "", "care", "look for what will go wrong, and say what to do",
			`Looks at modes of files, free space, what this machine may do in the repository,
clocks, leases and snapshots that were left behind, the tracer, keys, the age of
images and verifications, alerts and the audit log. Each finding comes with its
remedy. With any, the exit status is 3.

It writes nothing but a lease of its own, by which it tries its rights.`,
			"platter doctor\nplatter doctor --json",
			[]flag{configFlag()},
			runDoctor,
		},
		{
			"config check", "", "care", "look for mistakes in the config",
			`Reads the config, platter.toml and conf.d/*.toml beside it, and names every
mistake with its file, line and column. Keys that nobody knows are mistakes.`,
			"platter config check\nplatter config check --config ./platter.toml",
			[]flag{configFlag()},
			runConfigCheck,
		},
		{
			"catalog check", "", "care", "compare the catalog with the repository",
			"Compares the catalog with the repository, and says where they differ. Nothing\nis changed.",
			"platter catalog check", nil, runCatalogCheck,
		},
		{
			"catalog rebuild", "", "care", "make the catalog anew from the repository",
			"Makes the catalog anew from segments and manifests. Nothing is lost with a\ncatalog but time.",
			"platter catalog rebuild", nil, runCatalogRebuild,
		},
		{
			"tracker run", "[DEVICE...]", "care", "start the tracer of raw disks",
			`Starts the tracer: programs in the kernel that mark what is written to disks,
so that backups of disks with nothing underneath read only what changed. It goes
on when this command ends, and until a reboot; docs/tracking.md has the systemd
unit. With the tracer running, this has it watch more disks.

It watches the disks that the DEVICEs are on, or all disks of the machine.`,
			"platter tracker run\nplatter tracker run /dev/sda /dev/nvme0n1", nil, runTrackerRun,
		},
		{
			"tracker status", "", "care", "show what the tracer watches",
			"Shows the disks that the tracer watches, what that costs, and whether their\nhistory is good.",
			"platter tracker status\nplatter tracker status --json", nil, runTrackerStatus,
		},
		{
			"tracker stop", "", "care", "stop the tracer",
			"Stops the tracer and ends the history of every disk: the next image of each is\ncompared in full.",
			"platter tracker stop", nil, runTrackerStop,
		},
		{
			"config reload", "", "care", "have the agent read its config again",
			`Has the agent that runs read its config again, as systemctl reload does. With a
mistake in the config all stays as it was. Runs that go on are left alone.`,
			"platter config reload",
			[]flag{socketFlag()},
			runConfigReload,
		},

		{
			"agent", "", "run", "run jobs on a schedule",
			`Runs the jobs of the config on their schedules until it is stopped. systemd starts
it as platter-agent.service. Every run is a process of its own. What was due
while the machine was off is caught up once; runs that fail are tried again; an
agent that is stopped, or dies, goes on with its runs when it starts again.

With --launcher it starts no run itself, but asks for each at a socket behind
which the service manager starts platter job attempt: then it needs no rights of
root, and has none to open a disk.

SIGHUP has it read its config again.`,
			"platter agent\nplatter agent --config ./platter.toml --socket ./agent.sock --state ./state", agentFlags(), runAgent,
		},
		{
			"job list", "", "run", "list jobs, and when they are due",
			"Lists the jobs of the agent that runs: when each is due, what goes on, how its\nlast run ended.",
			"platter job list\nplatter job list --json",
			[]flag{socketFlag()},
			runJobList,
		},
		{
			"job run", "JOB...", "run", "run jobs now",
			"Has the agent run each JOB as soon as nothing is in its way, whatever its\nschedule, its window and pauses say.",
			"platter job run nightly",
			[]flag{socketFlag()},
			runJobRun,
		},
		{
			"job attempt", "", "run", "make a run that the agent asks for",
			`Makes one attempt at a run of a job, with its hooks: the one that the agent asks
for on standard input, a connection which systemd has accepted for it as
platter-run.socket says. What the job does is read from the config. Nobody calls
this by hand.`,
			"platter job attempt --config ./platter.toml",
			[]flag{configFlag()},
			runJobAttempt,
		},
		{
			"job stop", "JOB...", "run", "stop runs of jobs",
			"Stops the run of each JOB, or takes back one that waits. It is not tried again\nbefore the job is due.",
			"platter job stop nightly",
			[]flag{socketFlag()},
			runJobStop,
		},
		{
			"job pause", "[JOB...]", "run", "let no run of jobs begin",
			"Keeps runs of each JOB, or of all, from beginning, also after a restart. Runs that\ngo on are left alone, unless --stop is given.",
			"platter job pause --for 2h\nplatter job pause --stop nightly", pauseFlags(), runJobPause,
		},
		{
			"job resume", "[JOB...]", "run", "end a pause",
			"Ends the pause of each JOB, or of all. What was due meanwhile begins, once for\neach job.",
			"platter job resume",
			[]flag{socketFlag()},
			runJobResume,
		},
		{
			"top", "", "run", "watch runs and volumes",
			`Shows what the agent does, live: runs that go on, jobs, and the last image of each
volume. q ends it. Where standard output is no terminal it prints all once.`,
			"platter top\nplatter top | less",
			[]flag{socketFlag()},
			runTop,
		},
		{
			"snapshots", "DEVICE...", "care", "list what backups left on devices, or remove it",
			`Lists the snapshots and reflink copies that backups made of each DEVICE: those
that are kept to be compared with the next image, those of runs that go on, and
those that dead runs left behind. The next backup of a device removes the last
by itself. For DEVICE a folder may stand: then the copies of all files in it are
meant, also of files that are gone.

With --remove what was left behind is removed; with --kept also what is kept: the
next image of that volume is compared in full then, and no image is harmed.`,
			"platter snapshots /dev/vg/db /srv/vm.img\nplatter snapshots --remove --kept /srv", snapshotsFlags(), runSnapshots,
		},
		{
			"completion", "SHELL", "care", "print a completion script for bash, zsh or fish",
			"Prints a script that lets the shell complete commands, flags and volumes.\nSHELL is bash, zsh or fish.",
			"platter completion bash >/etc/bash_completion.d/platter\nplatter completion zsh >\"${fpath[1]}/_platter\"\nplatter completion fish >~/.config/fish/completions/platter.fish", nil, runCompletion,
		},
		{
			"man", "[COMMAND...]", "care", "print a manual page",
			"Prints the manual page of a command, or that of the program, for man(1).",
			"platter man backup | man -l -\nplatter man --list", listFlags(), runMan,
		},
		{
			"help", "[COMMAND...]", "care", "show help",
			"Shows the help of a command, or lists all.",
			"platter help\nplatter help catalog rebuild", nil, runHelp,
		},
		{
			"version", "", "care", "print the version",
			"Prints the version of this program, the commit it was built from and the Go\nthat built it.",
			"platter version\nplatter version --json", nil, runVersion,
		},
	}
}

const imageGrammar = `IMAGE is "latest", a volume (its latest image), VOLUME@TIME (the latest at or
before that time), or an image's ID, of which 8 digits are enough. With %WRITER
behind it only the images of one writer count, as key list shows writers.`

// arity returns how many arguments a command takes; most is -1 for any number.
func (c command) arity() (least, most int) {
	for _, word := range strings.Fields(c.args) {
		if !strings.HasPrefix(word, "[") {
			least++
		}
		if strings.HasSuffix(strings.TrimSuffix(word, "]"), "...") {
			most = -1
		} else if most >= 0 {
			most++
		}
	}
	return least, most
}

// use is the line that shows how the command is typed.
func (c command) use() string {
	words := []string{"platter", c.name}
	if c.args != "" {
		words = append(words, c.args)
	}
	if len(c.flags) > 0 {
		words = append(words, "[FLAGS]")
	}
	return strings.Join(words, " ")
}
