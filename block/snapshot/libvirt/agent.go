package libvirt

import (
	"context"
	"fmt"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"platter/block/command"
)

const (
	// agentLimit is how long a guest agent may take to freeze.
	agentLimit = 10 * time.Second
	// holdLimit is after what time the guest is thawed whatever happens.
	holdLimit = 20 * time.Second
)

// still calls do while the guest's agent, if there is one, holds its filesystems
// still, and returns for how long. Where it cannot, do is called all the same, and
// notes say why.
func (b *backup) still(ctx context.Context, do func()) (frozen time.Duration, notes []string) {
	if !b.domain.Agent {
		do()
		return 0, nil
	}
	fail := func(err error) {
		notes = append(notes, fmt.Sprintf("the guest was not frozen, the image is as after a power cut: %v", err))
	}
	tool, err := command.Find("virsh")
	var thaw func() error
	if err == nil {
		thaw, err = guard(tool, b.domain.UUID)
	}
	if err != nil {
		fail(err)
		do()
		return 0, notes
	}
	began := time.Now()
	freeze, cancel := context.WithTimeoutCause(ctx, agentLimit, fmt.Errorf("its agent did not answer within %v", agentLimit))
	_, err = virsh(freeze, "domfsfreeze", "--domain", b.domain.UUID)
	cancel()
	do()
	took, late := time.Since(began), thaw()
	switch {
	case err != nil:
		fail(err)
	case late != nil || took > holdLimit:
		fail(fmt.Errorf("the freeze was undone after %v: %v", holdLimit, late))
	default:
		frozen = took
		notes = append(notes, fmt.Sprintf("the guest's filesystems stood still for %d ms", took.Milliseconds()))
	}
	return frozen, notes
}

// guard starts a process that thaws the guest: when thaw is called, when this
// process is gone, or when the time is over. An agent that was slow to freeze may
// do so after it was given up, and is slow to thaw: the process goes on trying for
// half an hour, also when thaw has returned an error and this process is gone.
func guard(virsh, uuid string) (thaw func() error, err error) {
	const script = `timeout "$1" cat >/dev/null
n=0
until timeout "$1" "$2" --connect qemu:///system --quiet domfsthaw --domain "$3"; do
	n=$((n + 1))
	[ "$n" -lt 360 ] || exit 1
	sleep 5
done`
	cmd := exec.Command("/bin/sh", "-c", script, "platter-thaw", strconv.Itoa(int(holdLimit.Seconds())), virsh, uuid)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	hold, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the process that thaws: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	return func() error {
		_ = hold.Close()
		select {
		case err := <-ended:
			if err != nil {
				return fmt.Errorf("virsh domfsthaw: %w", err)
			}
			return nil
		case <-time.After(holdLimit):
			return fmt.Errorf("virsh domfsthaw has not succeeded within %v and is tried again in the background: see that the guest %s is not frozen",
				holdLimit, uuid)
		}
	}, nil
}
