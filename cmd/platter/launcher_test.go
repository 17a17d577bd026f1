package main

import (
	"net"
	"os"
	"os/exec"
)

// launcher stands where systemd does: for each connection to the socket that it
// is told it starts platter job attempt, with the connection for standard input.
func launcher() {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: os.Args[1]})
	for err == nil {
		var c *net.UnixConn
		if c, err = l.AcceptUnix(); err != nil {
			break
		}
		var in *os.File
		if in, err = c.File(); err != nil {
			break
		}
		cmd := exec.Command("platter", "job", "attempt")
		cmd.Stdin, cmd.Stderr = in, os.Stderr
		if err = cmd.Start(); err == nil {
			go cmd.Wait() // it says itself how it went
		}
		c.Close()
		in.Close()
	}
	panic(err)
}
