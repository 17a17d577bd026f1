package boot

import (
	"regexp"
	"strings"
)

// loginPrompt is a line that is a prompt: a host's name, "login:" and no more.
// A message that happens to hold the word is not one.
var loginPrompt = regexp.MustCompile(`(?m)^[A-Za-z0-9][A-Za-z0-9.-]* login:[ ]*$`)

// failures are the words by which machines say that they will not start.
var failures = []struct {
	words *regexp.Regexp
	means string
}{
	{regexp.MustCompile(`Kernel panic - not syncing[^\n]*`), "the kernel panicked"},
	{regexp.MustCompile(`(?m)^grub rescue> *$`), "GRUB does not find its files"},
	{regexp.MustCompile(`Minimal BASH-like line editing is supported`), "GRUB has no menu"},
	{regexp.MustCompile(`(?m)^error: (no such (device|partition|disk)|unknown filesystem|file [^\n]* not found)[^\n]*`), "GRUB does not find its files"},
	{regexp.MustCompile(`No bootable device`), "the firmware finds nothing to start"},
	{regexp.MustCompile(`Boot failed: not a bootable disk`), "the firmware finds nothing to start"},
	{regexp.MustCompile(`(?i)(missing|no) operating system`), "the boot sector finds nothing to start"},
	{regexp.MustCompile(`BdsDxe: No bootable option or device was found`), "the firmware finds nothing to start"},
	{regexp.MustCompile(`UEFI Interactive Shell`), "the firmware finds nothing to start"},
	{regexp.MustCompile(`(?m)^\(initramfs\) *$`), "the initramfs does not find the root file system"},
	{regexp.MustCompile(`(?m)^dracut:/# *$`), "the initramfs does not find the root file system"},
	{regexp.MustCompile(`ALERT! +[^\n]* does not exist`), "the initramfs does not find the root file system"},
	{regexp.MustCompile(`You are in (emergency|rescue) mode`), "it came up in an emergency shell"},
	{regexp.MustCompile(`Give root password for maintenance`), "it came up in an emergency shell"},
	{regexp.MustCompile(`(?m)^[^\n]*VFS: Unable to mount root fs[^\n]*`), "the kernel does not find the root file system"},
}

// judge reads what a serial port or a screen shows. What failed and went on to
// a prompt all the same is up: the prompt is the last word.
func judge(text string) (v Verdict, reason string) {
	prompts := loginPrompt.FindAllStringIndex(text, -1)
	lastPrompt := -1
	if len(prompts) > 0 {
		lastPrompt = prompts[len(prompts)-1][0]
	}
	for _, f := range failures {
		all := f.words.FindAllStringIndex(text, -1)
		if len(all) == 0 {
			continue
		}
		at := all[len(all)-1]
		if at[0] > lastPrompt {
			return Failed, f.means + ": " + strings.TrimSpace(text[at[0]:at[1]])
		}
	}
	if lastPrompt >= 0 {
		return Booted, strings.TrimSpace(text[lastPrompt:prompts[len(prompts)-1][1]])
	}
	return Unknown, ""
}

// terminalCodes are the escape sequences that firmware and boot loaders send,
// and carriage returns.
var terminalCodes = regexp.MustCompile(`\x1b\[[0-9;?=]*[ -/]*[@-~]|\x1b[()][0-9A-B]|\x1b[@-Z\\^_=>78cM]|\r|\x00`)

// plain removes terminal codes.
func plain(b []byte) string { return terminalCodes.ReplaceAllString(string(b), "") }
