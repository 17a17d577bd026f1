package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestDisplayTakesATerminalAndGivesItBack runs in a process of its own, whose
// terminal is one that does not say how large it is.
func TestDisplayTakesATerminalAndGivesItBack(t *testing.T) {
	if os.Getenv("PLATTER_TEST_DISPLAY") != "" {
		d, err := openDisplay(os.Stdout)
		if err != nil {
			t.Fatal(err)
		}
		d.draw([]string{"one line", "another"})
		key := <-d.keys
		if err := d.close(); err != nil {
			t.Fatal(err)
		}
		fmt.Printf("key %c\n", key)
		return
	}
	master, slave, err := terminalPair()
	if err != nil {
		t.Skip(err)
	}
	defer master.Close()
	before, err := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "-test.run", "^TestDisplayTakesATerminalAndGivesItBack$")
	cmd.Env = append(os.Environ(), "PLATTER_TEST_DISPLAY=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var seen bytes.Buffer
	until := func(want string) {
		t.Helper()
		for b := make([]byte, 4096); !strings.Contains(seen.String(), want); {
			n, err := master.Read(b)
			seen.Write(b[:n])
			if err != nil {
				t.Fatalf("%v; the terminal shows %q, and never %q", err, seen.String(), want)
			}
		}
	}
	until("another")
	if !strings.Contains(seen.String(), enterScreen) || !strings.Contains(strings.ReplaceAll(seen.String(), "\r\r", "\r"), "one line\x1b[K\r\nanother") {
		t.Errorf("the terminal shows %q", seen.String())
	}
	if _, err := master.WriteString("q"); err != nil {
		t.Fatal(err)
	}
	until("key q")
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	after, err := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
	if err := errors.Join(err, slave.Close()); err != nil {
		t.Fatal(err)
	}
	if *after != *before || !strings.Contains(seen.String(), leaveScreen) {
		t.Errorf("the terminal is left as %+v, was %+v; it shows %q", after, before, seen.String())
	}
}

// terminalPair is a terminal, and the end from which it is looked at.
func terminalPair() (master, slave *os.File, err error) {
	if master, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		return nil, nil, err
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		return nil, nil, errors.Join(err, master.Close())
	}
	return master, slave, nil
}
