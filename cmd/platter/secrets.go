package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"

	"platter/image/keys"
	"platter/image/repo"
	"platter/internal/quantity"
)

// Variables that secrets come from. Passwords also come from NAME_FILE and
// NAME_COMMAND. There are no flags for them: everybody on a machine can read
// the arguments of a process.
const (
	passwordVar    = "PLATTER_PASSWORD"
	newPasswordVar = "PLATTER_NEW_PASSWORD"
	keyFileVar     = "PLATTER_KEY_FILE"
	identityVar    = "PLATTER_IDENTITY_FILE"
)

// maxSecret bounds what is read as one secret, in bytes.
const maxSecret = 1 << 20

// credentials are those that the environment gives.
func (c *call) credentials(ctx context.Context) (*keys.Credentials, error) {
	k := new(keys.Credentials)
	var err error
	if k.Passphrase, err = c.password(ctx, passwordVar); err != nil {
		return nil, err
	}
	if path := os.Getenv(keyFileVar); path != "" {
		if k.KeyFile, err = readSecret(keyFileVar, path); err != nil {
			return nil, err
		}
	}
	if path := os.Getenv(identityVar); path != "" {
		text, err := readSecret(identityVar, path)
		if err != nil {
			return nil, err
		}
		if k.Identities, err = keys.ParseIdentities(string(text)); err != nil {
			return nil, secretError("%s=%s: %s", identityVar, path, err)
		}
		if len(k.Identities) == 0 {
			return nil, secretError("%s=%s: it holds no age identity", identityVar, path)
		}
	}
	return k, nil
}

// password is what a variable, the file that NAME_FILE names or the command
// that NAME_COMMAND holds gives; nil when none of them is set.
func (c *call) password(ctx context.Context, name string) ([]byte, error) {
	var set []string
	for _, n := range []string{name, name + "_FILE", name + "_COMMAND"} {
		if os.Getenv(n) != "" {
			set = append(set, n)
		}
	}
	if len(set) == 0 {
		return nil, nil
	}
	if len(set) > 1 {
		return nil, advise(usagef("%s are set", strings.Join(set, " and ")), "unset all but one of them")
	}
	value := os.Getenv(set[0])
	var secret []byte
	var err error
	switch set[0] {
	case name:
		return []byte(value), nil
	case name + "_FILE":
		secret, err = readSecret(set[0], value)
	default:
		secret, err = c.commandSecret(ctx, set[0], value)
	}
	if err != nil {
		return nil, err
	}
	if secret = firstLineEnd(secret); len(secret) == 0 {
		return nil, secretError("%s gives an empty password", set[0])
	}
	return secret, nil
}

// firstLineEnd takes the one line end off that editors and commands put behind
// a password.
func firstLineEnd(b []byte) []byte {
	b, _ = bytes.CutSuffix(b, []byte("\n"))
	b, _ = bytes.CutSuffix(b, []byte("\r"))
	return b
}

// secretError is about a secret that could not be had; it counts as a missing
// one. Its text never holds any of it.
func secretError(format string, args ...any) error {
	return marked{fmt.Sprintf(format, args...), keys.ErrCredentials}
}

func readSecret(what, path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, secretError("%s: %s", what, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	if err != nil {
		return nil, secretError("%s: %s", what, err)
	}
	if len(b) > maxSecret {
		return nil, secretError("%s: %s is larger than %s", what, path, quantity.FormatSize(maxSecret))
	}
	return b, nil
}

// commandSecret is what a command of the shell prints.
func (c *call) commandSecret(ctx context.Context, what, command string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", command)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, c.term.err
	err := cmd.Run()
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case err != nil:
		return nil, secretError("%s: the command ended with %s", what, err)
	case out.Len() > maxSecret:
		return nil, secretError("%s: the command printed more than %s", what, quantity.FormatSize(maxSecret))
	}
	return out.Bytes(), nil
}

// newPassword is asked twice on a terminal.
func (c *call) newPassword(ctx context.Context) ([]byte, error) {
	first, err := c.term.secret(ctx, "new password: ")
	if err != nil {
		return nil, err
	}
	if len(first) == 0 {
		return nil, usagef("an empty password protects nothing")
	}
	second, err := c.term.secret(ctx, "once more: ")
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(first, second) {
		return nil, usagef("the two passwords are not the same; nothing was changed")
	}
	return first, nil
}

// unlockAdvice says what to do about a repository that does not open.
const unlockAdvice = "set PLATTER_PASSWORD, PLATTER_PASSWORD_FILE or PLATTER_PASSWORD_COMMAND; or PLATTER_KEY_FILE; or PLATTER_IDENTITY_FILE to a file with the recovery key"

// adviseUnlock adds to an error of opening a repository what to do.
func adviseUnlock(err error, location string, k *keys.Credentials) error {
	switch {
	case errors.Is(err, repo.ErrNotEncrypted):
		return advise(err, "if it is, unset the password and key variables; if it was encrypted before, somebody put another in its place")
	case errors.Is(err, keys.ErrCredentials) && k.Empty():
		return advise(secretError("open repository %s: it is encrypted, and no password or key is given", location), unlockAdvice)
	case errors.Is(err, keys.ErrCredentials):
		return advise(err, unlockAdvice)
	}
	return err
}

// adviseReading adds to an error of keys that cannot read who can.
func adviseReading(err error) error {
	if !errors.Is(err, keys.ErrNoDataKey) || errors.As(err, new(advised)) {
		return err
	}
	return advise(err, "use a password, key file or recovery key that is not write-only; platter key list shows them")
}
