package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"platter/image/keys"
	"platter/image/repo"
)

// A keyLine is one key slot of `key list --json`. It tells nothing of the keys.
type keyLine struct {
	Name      string    `json:"name"`
	Type      string    `json:"type,omitempty"`
	Label     string    `json:"label,omitempty"`
	Created   time.Time `json:"created,omitzero"`
	WriteOnly bool      `json:"write_only"`
	Recipient string    `json:"recipient,omitempty"`
	Writer    string    `json:"writer,omitempty"`  // public key that signs what it writes
	Problem   string    `json:"problem,omitempty"` // why it opens nothing
}

func lineOfKey(s repo.KeySlot) keyLine {
	l := keyLine{
		Name: strings.TrimPrefix(s.Name, "keys/"), Type: s.Type, Label: s.Label, Created: s.Created,
		WriteOnly: s.WriteOnly, Recipient: s.Recipient, Writer: s.Writer,
	}
	if s.Problem != nil {
		l.Problem = s.Problem.Error()
	}
	return l
}

func runKeyList(ctx context.Context, c *call, _ []string) error {
	r, err := c.openRepository(ctx)
	if err != nil {
		return err
	}
	defer c.finish(r, nil)
	list, err := r.KeySlots(ctx)
	if err != nil {
		return err
	}
	if c.term.json {
		for _, s := range list {
			c.term.object("key", lineOfKey(s))
		}
		return nil
	}
	var t table
	t.row("NAME", "TYPE", "CREATED", "MAY", "WRITER", "LABEL", "RECIPIENT")
	for _, s := range list {
		l := lineOfKey(s)
		t.row(l.Name, l.Type, createdText(s), rightsText(s), shortWriter(l.Writer), l.Label, l.Recipient)
	}
	c.term.table(t)
	return nil
}

// shortWriter is how tables name a writer.
func shortWriter(key string) string { return key[:min(len(key), 16)] }

func createdText(s repo.KeySlot) string {
	if s.Created.IsZero() {
		return ""
	}
	return timeText(s.Created)
}

func rightsText(s repo.KeySlot) string {
	switch {
	case s.Problem != nil:
		return "nothing: " + s.Problem.Error()
	case s.WriteOnly:
		return "write"
	}
	return "read, write"
}

func runKeyAdd(ctx context.Context, c *call, _ []string) error {
	o := c.opts
	if given := len(o.recipients) + count1(o.passphrase) + count1(o.keyFile != ""); given != 1 {
		return advise(usagef("key add: want one of --passphrase, --key-file and --recipient"), "see: platter key add --help")
	}
	r, err := c.openRepository(ctx)
	if err != nil {
		return err
	}
	defer c.finish(r, nil)
	d, err := r.Keys.NewWriter(o.writeOnly)
	if err != nil {
		return advise(fmt.Errorf("key add: %w", err), "use a key that reads: the password or key of platter init, or the recovery key")
	}
	slot, proof, err := c.newSlot(ctx)
	if err != nil {
		return err
	}
	name, err := r.AddSlot(ctx, d, slot, proof)
	if err != nil {
		return err
	}
	return c.printKey("added", name, o.writeOnly)
}

func count1(is bool) int {
	if is {
		return 1
	}
	return 0
}

// newSlot makes what the flags of key add ask for, and what opens it.
func (c *call) newSlot(ctx context.Context) (repo.NewSlot, *keys.Credentials, error) {
	label := c.opts.label
	switch {
	case c.opts.passphrase:
		secret, err := c.nextPassword(ctx, "key add")
		if err != nil {
			return nil, nil, err
		}
		return func(d *keys.Domain) (string, []byte, error) { return d.PassphraseSlot(secret, label) }, &keys.Credentials{Passphrase: secret}, nil
	case c.opts.keyFile != "":
		secret, err := readSecret("--key-file", c.opts.keyFile)
		if err != nil {
			return nil, nil, err
		}
		return func(d *keys.Domain) (string, []byte, error) { return d.KeyFileSlot(secret, label) }, &keys.Credentials{KeyFile: secret}, nil
	}
	return repo.AgeSlot(c.opts.recipients[0], label), nil, nil
}

// nextPassword comes from the environment, or is asked.
func (c *call) nextPassword(ctx context.Context, what string) ([]byte, error) {
	secret, err := c.password(ctx, newPasswordVar)
	if err != nil || secret != nil {
		return secret, err
	}
	if !c.term.asks {
		return nil, advise(usagef("%s: the new password is missing, and there is no terminal to ask on", what),
			"set PLATTER_NEW_PASSWORD, PLATTER_NEW_PASSWORD_FILE or PLATTER_NEW_PASSWORD_COMMAND")
	}
	return c.newPassword(ctx)
}

func (c *call) printKey(what, name string, writeOnly bool) error {
	name = strings.TrimPrefix(name, "keys/")
	if c.term.json {
		c.term.object("summary", struct {
			Name      string `json:"name"`
			WriteOnly bool   `json:"write_only"`
		}{name, writeOnly})
		return nil
	}
	rights := ""
	if writeOnly {
		rights = ", which may write and not read"
	}
	c.term.summaryf("%s key %s%s\n", what, name, rights)
	return nil
}

func runKeyRemove(ctx context.Context, c *call, args []string) error {
	r, err := c.openRepository(ctx)
	if err != nil {
		return err
	}
	defer c.finish(r, nil)
	list, err := r.KeySlots(ctx)
	if err != nil {
		return err
	}
	name, err := repo.SlotName(list, args[0])
	if err != nil {
		return advise(fmt.Errorf("key remove: %w", err), "see: platter key list")
	}
	left, err := r.RemoveSlot(ctx, name)
	if errors.Is(err, repo.ErrLastKey) {
		return advise(fmt.Errorf("%w; it stays", err), "add another first: platter key add")
	}
	if err != nil {
		return err
	}
	if c.term.json {
		return c.printKey("removed", name, false)
	}
	c.term.summaryf("removed key %s; what still opens the repository:\n", strings.TrimPrefix(name, "keys/"))
	for _, s := range left {
		if s.Problem == nil {
			l := lineOfKey(s)
			c.term.summaryf("  %s  %s  %s  %s\n", l.Name, l.Type, rightsText(s), l.Label)
		}
	}
	return nil
}

func runKeyRotate(ctx context.Context, c *call, _ []string) error {
	r, k, err := c.unlock(ctx)
	if err != nil {
		return err
	}
	defer c.finish(r, nil)
	switch {
	case !r.Keys.Encrypted():
		return fmt.Errorf("key rotate: %w", repo.ErrNotEncrypted)
	case len(k.Passphrase) == 0:
		return advise(usagef("key rotate: the repository was opened without a password"),
			"give the old one by %s; when it is lost: platter key add --passphrase, then platter key remove", passwordVar)
	}
	next, err := c.nextPassword(ctx, "key rotate")
	if err != nil {
		return err
	}
	added, removed, err := r.Rotate(ctx, k.Passphrase, next)
	if err != nil {
		return err
	}
	for _, name := range removed {
		c.detailf("removed key %s", strings.TrimPrefix(name, "keys/"))
	}
	return c.printKey("the new password is in place of the old one:", added, false)
}

// encryption is what init makes a repository with: nil for one in clear, and
// otherwise the recovery key too, unless it is left out.
func (c *call) encryption(ctx context.Context) (e *repo.Encryption, recovery string, err error) {
	secret, err := c.password(ctx, passwordVar)
	if err != nil {
		return nil, "", err
	}
	keyFile := c.opts.keyFile
	if keyFile == "" {
		keyFile = os.Getenv(keyFileVar)
	}
	if c.opts.noEncryption {
		if len(secret) > 0 || keyFile != "" || len(c.opts.recipients) > 0 || c.opts.noRecoveryKey {
			return nil, "", usagef("init: --no-encryption, and a password or key is given: leave out one or the other")
		}
		return nil, "", nil
	}
	e = &repo.Encryption{Passphrase: secret, Recipients: c.opts.recipients}
	for _, text := range e.Recipients {
		if _, err := keys.ParseRecipient(text); err != nil {
			return nil, "", usagef("init: %s", err)
		}
	}
	if keyFile != "" {
		if e.KeyFile, err = readSecret("key file", keyFile); err != nil {
			return nil, "", err
		}
		if len(e.KeyFile) < keys.MinKeyFile {
			return nil, "", advise(usagef("init: key file %s has %d bytes, and needs %d random ones", keyFile, len(e.KeyFile), keys.MinKeyFile), "make one with: head -c 32 /dev/urandom")
		}
	}
	if len(e.Passphrase) == 0 && len(e.KeyFile) == 0 && len(e.Recipients) == 0 {
		if !c.term.asks {
			return nil, "", advise(usagef("init: a password is missing, and there is no terminal to ask on"),
				"set PLATTER_PASSWORD, PLATTER_PASSWORD_FILE or PLATTER_PASSWORD_COMMAND, or give --key-file or --recipient; or say --no-encryption")
		}
		if e.Passphrase, err = c.newPassword(ctx); err != nil {
			return nil, "", err
		}
	}
	if !c.opts.noRecoveryKey {
		recovery, e.Recovery, err = keys.NewRecovery()
	}
	return e, recovery, err
}

// tellKeys says, once, what init made and what is lost with it. The recovery
// key goes nowhere else.
func (c *call) tellKeys(e *repo.Encryption, recovery, location string) {
	if e == nil {
		c.term.notef("platter: repository %s is not encrypted: whoever has its files can read every disk in it", location)
		return
	}
	if recovery == "" {
		c.term.notef("platter: there is no recovery key: with the password or key lost, all data is lost")
		return
	}
	c.term.notef("platter: recovery key, shown this once:\n\n  %s\n\n"+
		"  Print it or write it down, and keep it away from the repository. It opens the\n"+
		"  repository from a file that %s names.\n"+
		"  Lost password and lost recovery key mean lost data: nobody can help then.", recovery, identityVar)
}
