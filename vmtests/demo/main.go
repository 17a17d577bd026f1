// Command demo shows platter's main job on real input: it builds a small disk
// that boots, images it, changes it, images it again, restores both images,
// and starts the restored disk.
//
// It tells the story on the terminal and writes it as a web page. Loop devices
// are used where there are any, else plain files. Nothing but the page and the
// download cache is left behind.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

func main() {
	platter := flag.String("platter", "bin/platter", "the program to show")
	page := flag.String("page", "bin/demo.html", "where to write the web page")
	flag.Parse()
	// The context's end stops every program that was started; what was set up
	// is then taken down by the functions that set it up.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, *platter, *page)
	interrupted := ctx.Err() != nil
	stop()
	if interrupted {
		fmt.Fprintln(os.Stderr, "\ndemo: interrupted; all that was set up for it is gone again")
		os.Exit(130)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "\ndemo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, program, page string) error {
	program, err := filepath.Abs(program)
	if err != nil {
		return err
	}
	work, err := os.MkdirTemp("", "platter-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	t := newTeller(os.Stdout)
	s := &story{
		tell: t, dir: work,
		platter: platter{program: program, repo: filepath.Join(work, "repository"), catalog: filepath.Join(work, "catalog")},
	}
	t.open()
	err = s.play(ctx)
	if err != nil {
		t.failed()
		return err
	}
	if err := writePage(page, s); err != nil {
		return err
	}
	t.close(page)
	return nil
}
