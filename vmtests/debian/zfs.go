package debian

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// InstallZFS makes a Debian system in root with ZFS's tools and the modules that
// it builds for a kernel. Needs root, and leaves nothing mounted.
func InstallZFS(ctx context.Context, k *Kernel, root string, log io.Writer) error {
	headers, err := k.Headers()
	if err != nil {
		return err
	}
	lists, err := withContrib(ctx)
	if err != nil {
		return err
	}
	sources := root + ".list"
	if err := os.WriteFile(sources, []byte(lists), 0o644); err != nil {
		return err
	}
	suite := strings.Fields(lists)[2]
	cmd := exec.CommandContext(ctx, "mmdebstrap", "--mode=root", "--variant=apt", "--format=directory",
		"--include=ca-certificates,gcc,make,zfsutils-linux,zfs-dkms,"+headers, suite, root, sources)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	// It unmounts what it mounted when it is interrupted.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("install zfs-dkms with %s: %w (does the archive have that version no more? Remove %s and start again: guests get a newer kernel)",
			headers, err, filepath.Clean(filepath.Join(k.Modules, "../../..")))
	}
	return nil
}

// withContrib returns where apt has Debian from, the release first, as lines of
// sources.list, with the section that ZFS is in.
func withContrib(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "apt-get", "indextargets", "--format", "$(ORIGIN) $(COMPONENT) $(SITE) $(RELEASE)", "Created-By: Packages").Output()
	if err != nil {
		return "", fmt.Errorf("ask apt where it has Debian from: %w", err)
	}
	var lines strings.Builder
	for line := range strings.Lines(string(out)) {
		if f := strings.Fields(line); len(f) == 4 && f[0] == "Debian" && f[1] == "main" {
			fmt.Fprintf(&lines, "deb %s %s main contrib\n", f[2], f[3])
		}
	}
	if lines.Len() == 0 {
		return "", fmt.Errorf("apt knows no source of Debian: apt-get update")
	}
	return lines.String(), nil
}
