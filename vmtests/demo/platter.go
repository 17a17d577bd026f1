package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"time"
)

// platter runs the program on one repository.
type platter struct {
	program, repo, catalog string
}

// A backup is what the program reports of an image made; sizes are bytes.
type backup struct {
	Image struct {
		ID    string `json:"id"`
		Size  int64  `json:"size"`
		Stats struct {
			Read      int64 `json:"read"`
			Zero      int64 `json:"zero"`
			Unchanged int64 `json:"unchanged"`
			Known     int64 `json:"known"`
			New       int64 `json:"new"`
			Stored    int64 `json:"stored"`
			Overhead  int64 `json:"overhead"`
		} `json:"stats"`
	} `json:"image"`
	Elapsed time.Duration `json:"elapsed_ns"`
}

// A restore is what it reports of an image written back.
type restore struct {
	Written int64         `json:"written"`
	Zeroed  int64         `json:"zeroed"`
	Elapsed time.Duration `json:"elapsed_ns"`
}

// run runs a command and decodes the summary that it prints, if it is asked
// for one.
func (p platter) run(ctx context.Context, summary any, args ...string) error {
	args = append(args, "--repo", p.repo, "--catalog", p.catalog, "--json")
	var out, complaint bytes.Buffer
	cmd := exec.CommandContext(ctx, p.program, args...)
	cmd.Stdout, cmd.Stderr = &out, &complaint
	// Asked to stop, it leaves the repository and the target as it should.
	cmd.Cancel = func() error { return cmd.Process.Signal(interrupt) }
	cmd.WaitDelay = 20 * time.Second
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("platter %s: %w: %s", args[0], err, strings.TrimSpace(complaint.String()))
	}
	if summary == nil {
		return nil
	}
	for line := range bytes.Lines(out.Bytes()) {
		var kind struct {
			Type string `json:"message_type"`
		}
		if json.Unmarshal(line, &kind) == nil && kind.Type == "summary" {
			return json.Unmarshal(line, summary)
		}
	}
	return fmt.Errorf("platter %s: printed no summary", args[0])
}

func (p platter) backup(ctx context.Context, device, volume string) (*backup, error) {
	b := new(backup)
	return b, p.run(ctx, b, "backup", device, "--volume", volume, "--all-blocks")
}

func (p platter) restore(ctx context.Context, image, target string) (*restore, error) {
	r := new(restore)
	return r, p.run(ctx, r, "restore", image, target, "--yes")
}
