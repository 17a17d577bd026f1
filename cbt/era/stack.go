package era

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"platter/block"
	"platter/block/command"
)

// errNone means that a device is no dm-era device.
var errNone = errors.New("no dm-era device")

// A stack is a dm-era device and what it is made of.
type stack struct {
	name     string // the device mapper's
	dir      string // in sysfs
	metadata string // path of the device with the metadata
	origin   string // path of the device below
	block    int64  // bytes that are marked together
	size     int64  // bytes
}

// look returns the stack of a device, errNone for others.
func look(ctx context.Context, path string) (*stack, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return nil, fmt.Errorf("stat %s: %w", path, err)
	}
	dir := fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	name, err := os.ReadFile(dir + "/dm/name")
	if st.Mode&unix.S_IFMT != unix.S_IFBLK || err != nil {
		return nil, errNone
	}
	s := &stack{name: strings.TrimSpace(string(name)), dir: dir}
	out, err := command.Run(ctx, "dmsetup", "table", s.name)
	if err != nil {
		return nil, err
	}
	return s, s.parse(string(out))
}

// parse reads "0 131072 era 252:1 252:0 128": a device of one table line, with
// sizes in sectors.
func (s *stack) parse(table string) error {
	f := strings.Fields(table)
	if len(f) < 3 || f[2] != "era" {
		return errNone
	}
	if len(f) != 6 {
		return fmt.Errorf("the table of %s is not understood: %q", s.name, table)
	}
	length, err1 := strconv.ParseInt(f[1], 10, 64)
	sectors, err2 := strconv.ParseInt(f[5], 10, 64)
	if err := errors.Join(err1, err2); err != nil || f[0] != "0" || sectors <= 0 || sectors > 1<<21 {
		return fmt.Errorf("the table of %s is not understood: %q", s.name, table)
	}
	s.size, s.block = length*512, sectors*512
	s.metadata, err1 = node(f[3])
	s.origin, err2 = node(f[4])
	return errors.Join(err1, err2)
}

// node returns the path of a device by its numbers.
func node(numbers string) (string, error) {
	link, err := os.Readlink("/sys/dev/block/" + numbers)
	return "/dev/" + filepath.Base(link), err
}

// identity names a device among all there are, as far as anything does.
func identity(path string) (string, error) {
	d, err := block.Look(path)
	if err != nil {
		return "", err
	}
	if d.Identity != "" {
		return d.Identity, nil
	}
	return d.Name, nil
}

// A status is how a stack is.
type status struct {
	era  int64 // the current one
	held bool  // somebody has a snapshot of the metadata
}

// status asks the kernel: "0 131072 era 8 21/2048 7 -", the last but one being
// the era, the last the root of the metadata that is held.
func (s *stack) status(ctx context.Context) (status, error) {
	out, err := command.Run(ctx, "dmsetup", "status", "--target", "era", s.name)
	if err != nil {
		return status{}, err
	}
	f := strings.Fields(string(out))
	if len(f) != 7 || f[2] != "era" {
		return status{}, fmt.Errorf("status of %s: %q: its metadata may need repair", s.name, strings.TrimSpace(string(out)))
	}
	era, err := strconv.ParseInt(f[5], 10, 64)
	if err != nil {
		return status{}, fmt.Errorf("status of %s: %q", s.name, strings.TrimSpace(string(out)))
	}
	return status{era, f[6] != "-"}, nil
}

func (s *stack) message(ctx context.Context, words string) error {
	_, err := command.Run(ctx, "dmsetup", "message", s.name, "0", words)
	return err
}

// attr reads a file of the device in sysfs, as text.
func (s *stack) attr(name string) string {
	b, _ := os.ReadFile(filepath.Join(s.dir, name))
	return strings.TrimSpace(string(b))
}
