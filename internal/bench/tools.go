package main

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
)

// Steps of a round, in order.
const (
	full      = "full"
	unchanged = "unchanged"
	second    = "second night"
	restore   = "restore"
	restoreRB = "restore, read back"
	restoreSp = "restore, sparse"
)

// places are the files of a round.
type places struct {
	first, second string // the disk on both nights
	repo          string // the tool's repository, a folder of its own
	out           string // what is restored
	url           string // of the bucket, for tools that want a server
}

// A tool is one of the programs that are compared.
type tool struct {
	name    string
	dedupes bool
	version []string // the command that tells it
	env     []string
	server  bool                     // it wants a server for S3 over places.repo
	start   func(p places) []command // makes an empty repository
	steps   []step
}

// A step is a timed command of a tool.
type step struct {
	name    string
	command func(p places) command
	// reads names the disk that is to be in the page cache; empty for the
	// repository's files.
	reads func(p places) string
	// restores names what the output must equal; nil for backups.
	restores func(p places) string
	out      func(p places) string // where it is restored, if not to places.out
}

func first(p places) string   { return p.first }
func nextDay(p places) string { return p.second }

// nights are the steps of a tool that knows earlier backups: it makes three.
func nights(backup func(p places, disk, tag string) command) []step {
	return []step{
		{name: full, reads: first, command: func(p places) command { return backup(p, p.first, "n1") }},
		{name: unchanged, reads: first, command: func(p places) command { return backup(p, p.first, "n1b") }},
		{name: second, reads: nextDay, command: func(p places) command { return backup(p, p.second, "n2") }},
	}
}

// tools returns all of them, platter first. A file of random bytes is the key
// of platter's encrypted repositories.
func tools(platter, keyFile string) []tool {
	folder := func(p places) string { return p.repo }
	sealed := platterTool(platter, folder, "--no-recovery-key")
	sealed.name, sealed.env = "platter encrypted", []string{"PLATTER_KEY_FILE=" + keyFile}
	all := []tool{platterTool(platter, folder, "--no-encryption"), sealed, borgTool(), resticTool(folder), qemuTool(), lz4Tool()}
	return append(all, bucketTools(platter)...)
}

func platterTool(program string, repo func(p places) string, encryption string) tool {
	catalog := func(p places) string { return filepath.Join(filepath.Dir(p.repo), "catalog") }
	back := func(flags ...string) func(p places) command {
		return func(p places) command {
			args := []string{program, "restore", "-r", repo(p), "--catalog", catalog(p), "bench/disk", p.out, "--yes"}
			return command{args: append(args, flags...)}
		}
	}
	// The disk keeps its path on both nights, as a disk does.
	disk := func(p places) string { return filepath.Join(filepath.Dir(p.repo), "disk.raw") }
	return tool{
		name: "platter", dedupes: true, version: []string{program, "version"},
		start: func(p places) []command {
			return []command{
				{args: []string{"rm", "-rf", catalog(p)}},
				{args: []string{program, "init", "-r", repo(p), "--catalog", catalog(p), encryption}},
			}
		},
		steps: append(nights(func(p places, night, tag string) command {
			return command{link: [2]string{night, disk(p)}, args: []string{program, "backup", disk(p), "--all-blocks", "-r", repo(p), "--catalog", catalog(p), "--volume", "bench/disk", "--json"}}
		}),
			step{name: restore, command: back("--no-read-back"), restores: nextDay},
			step{name: restoreRB, command: back(), restores: nextDay}),
	}
}

func borgTool() tool {
	extracted := func(p places) string { return filepath.Join(filepath.Dir(p.out), "disk.raw") }
	return tool{
		name: "borg", dedupes: true, version: []string{"borg", "--version"},
		env:   []string{"BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK=yes", "BORG_RELOCATED_REPO_ACCESS_IS_OK=yes"},
		start: func(p places) []command { return []command{{args: []string{"borg", "init", "-e", "none", p.repo}}} },
		steps: append(nights(func(p places, disk, tag string) command {
			return command{args: []string{
				"borg", "create", "--compression", "lz4", "--chunker-params", "fixed,4194304",
				"--stdin-name", "disk.raw", p.repo + "::" + tag, "-",
			}, stdin: disk}
		}),
			step{name: restore, restores: nextDay, command: func(p places) command {
				return command{args: []string{"borg", "extract", "--stdout", p.repo + "::n2"}, stdout: p.out}
			}},
			step{name: restoreSp, restores: nextDay, out: extracted, command: func(p places) command {
				return command{args: []string{"borg", "extract", "--sparse", p.repo + "::n2"}, dir: filepath.Dir(p.out)}
			}}),
	}
}

func resticTool(repo func(p places) string) tool {
	return tool{
		name: "restic", dedupes: true, version: []string{"restic", "version"},
		env: []string{"RESTIC_PASSWORD=bench"},
		start: func(p places) []command {
			return []command{{args: []string{"restic", "-q", "init", "-r", repo(p), "--repository-version", "2"}}}
		},
		steps: append(nights(func(p places, disk, tag string) command {
			return command{args: []string{"restic", "-q", "-r", repo(p), "backup", "--stdin", "--stdin-filename", "disk.raw", "--tag", tag}, stdin: disk}
		}),
			step{name: restore, restores: nextDay, command: func(p places) command {
				return command{args: []string{"restic", "-q", "-r", repo(p), "dump", "--tag", "n2", "latest", "/disk.raw"}, stdout: p.out}
			}}),
	}
}

// copyTool makes one copy and turns it back; it knows no earlier one.
func copyTool(name string, version []string, to, from func(p places, copied string) []string) tool {
	copied := func(p places) string { return filepath.Join(p.repo, "copy") }
	return tool{
		name: name, version: version,
		start: func(p places) []command { return []command{{args: []string{"mkdir", p.repo}}} },
		steps: []step{
			{name: full, reads: first, command: func(p places) command { return command{args: to(p, copied(p))} }},
			{name: restore, restores: first, command: func(p places) command { return command{args: from(p, copied(p))} }},
		},
	}
}

func qemuTool() tool {
	return copyTool("qemu-img", []string{"qemu-img", "--version"},
		func(p places, copied string) []string {
			return []string{"qemu-img", "convert", "-W", "-m", "16", "-f", "raw", "-O", "qcow2", p.first, copied}
		},
		func(p places, copied string) []string {
			return []string{"qemu-img", "convert", "-W", "-m", "16", "-f", "qcow2", "-O", "raw", copied, p.out}
		})
}

func lz4Tool() tool {
	return copyTool("lz4", []string{"lz4", "--version"},
		func(p places, copied string) []string { return []string{"lz4", "-1", "-q", "-f", p.first, copied} },
		func(p places, copied string) []string {
			return []string{"lz4", "-d", "-q", "-f", "--sparse", copied, p.out}
		})
}

// tellVersion returns the first line of what a tool says of itself.
func tellVersion(ctx context.Context, t tool) string {
	out, err := exec.CommandContext(ctx, t.version[0], t.version[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Sprint("unknown: ", err)
	}
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	return strings.Trim(line, "* ")
}
