package audit

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// messageID names heads among all messages of the journal.
const messageID = "8f1f2d0be1c74b12a0bd0e3fb3a1c4d5"

const journalSocket = "/run/systemd/journal/socket"

// toJournal sends the head of a log, named by its folder, to the journal of systemd, in its own protocol: a
// datagram of lines NAME=VALUE.
func toJournal(log string, h Head) error {
	c, err := net.Dial("unixgram", journalSocket)
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = fmt.Fprintf(c, "MESSAGE=platter audit log: entry %d, hash %s\nMESSAGE_ID=%s\nPRIORITY=6\nSYSLOG_IDENTIFIER=platter\nPLATTER_AUDIT_LOG=%s\nPLATTER_AUDIT_SEQ=%d\nPLATTER_AUDIT_HASH=%s\n",
		h.Seq, h.Hash, messageID, strings.ReplaceAll(log, "\n", " "), h.Seq, h.Hash)
	return err
}

// journalTime bounds how long the journal may be asked.
const journalTime = 10 * time.Second

// fromJournal returns the last head of a log that root sent there, nil where
// there is none.
func fromJournal(log string) *Head {
	ctx, cancel := context.WithTimeout(context.Background(), journalTime)
	defer cancel()
	out, err := exec.CommandContext(ctx, "journalctl", "--quiet", "--lines=1", "--output=json", "MESSAGE_ID="+messageID, "_UID=0", "PLATTER_AUDIT_LOG="+log).Output()
	if err != nil {
		return nil
	}
	return parseJournal(out)
}

func parseJournal(out []byte) *Head {
	var m struct {
		Seq  string `json:"PLATTER_AUDIT_SEQ"`
		Hash string `json:"PLATTER_AUDIT_HASH"`
	}
	if json.Unmarshal(out, &m) != nil {
		return nil
	}
	seq, err := strconv.ParseUint(m.Seq, 10, 64)
	if err != nil || len(m.Hash) != len(firstPrev) {
		return nil
	}
	return &Head{seq, m.Hash}
}
