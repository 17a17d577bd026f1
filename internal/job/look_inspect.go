package job

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unicode"

	"platter/image/keys"
	"platter/image/reader"
	"platter/image/repo"
	"platter/image/store/dir"
	"platter/image/store/vfs"
)

// Inspect writes to w what a file of a repository is and what is wrong with
// it: a segment with all its records, or a sealed object with its content.
// Keys are never shown.
//
// r may be nil: then the repository that the file lies in is looked for around
// it, and opened with k, which may be nil. Without one, digests under the repository's keys cannot be checked. What
// is wrong comes back as an error wrapping ErrDamaged too.
func Inspect(ctx context.Context, r *repo.Repo, k *keys.Credentials, path string, w io.Writer) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("inspect: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return fmt.Errorf("inspect: %w", err)
	}
	if !st.Mode().IsRegular() {
		return fmt.Errorf("inspect %s: not a file", path)
	}
	name, root := objectName(path)
	if r == nil {
		var done func()
		r, done = around(ctx, root, k)
		defer done()
	}
	in := &inspection{ctx: ctx, repo: r, file: f, size: st.Size(), name: name, out: printable{w}}
	in.run()
	if in.err != nil {
		return fmt.Errorf("inspect %s: %w", path, in.err)
	}
	if in.problems > 0 {
		return fmt.Errorf("inspect %s: %w: problems: %d", path, ErrDamaged, in.problems)
	}
	return nil
}

// objectName splits a path into the object's name and the repository's
// directory, by the folders that a repository has.
func objectName(path string) (name, root string) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return filepath.Base(path), ""
	}
	parts := strings.Split(abs, "/")
	for i := len(parts) - 1; i > 0; i-- {
		switch parts[i] {
		case "trash", "segments", "images", "keys", "leases":
			if parts[i] == "trash" || parts[i-1] != "trash" {
				return strings.Join(parts[i:], "/"), strings.Join(parts[:i], "/")
			}
		}
	}
	return filepath.Base(abs), filepath.Dir(abs)
}

// around opens the repository in root, if there is one.
func around(ctx context.Context, root string, k *keys.Credentials) (*repo.Repo, func()) {
	st, err := dir.Open(root, vfs.OS())
	if err != nil {
		return nil, func() {}
	}
	r, err := repo.Unlock(ctx, st, k)
	if err != nil {
		st.Close()
		return nil, func() {}
	}
	return r, func() { st.Close() }
}

// An inspection is one call of Inspect.
type inspection struct {
	ctx      context.Context
	repo     *repo.Repo // nil without keys
	file     *os.File
	size     int64
	name     string
	out      io.Writer
	problems int
	err      error // why it could not be finished
}

func (in *inspection) say(format string, args ...any) { fmt.Fprintf(in.out, format+"\n", args...) }

// wrong says what is wrong, or keeps an error that is no damage.
func (in *inspection) wrong(err error) {
	if !reader.Damaged(err) && !errors.Is(err, keys.ErrNewer) {
		in.err = errors.Join(in.err, err)
		return
	}
	in.problems++
	in.say("WRONG: %v", err)
}

func (in *inspection) run() {
	head := make([]byte, 16)
	n, err := in.file.ReadAt(head, 0)
	if err != nil && err != io.EOF {
		in.err = err
		return
	}
	switch {
	case bytes.HasPrefix(head[:n], []byte("PLTRSEG")):
		in.segment()
	case bytes.HasPrefix(head[:n], []byte("PLTR")):
		in.object()
	case strings.HasPrefix(in.name, "segments/"):
		in.segment()
	default:
		in.err = fmt.Errorf("begins %q: not a file of a repository, or damaged in its first bytes", head[:n])
	}
}

// kindText names the kinds of object for people.
func kindText(kind string) string {
	text, ok := map[string]string{
		keys.KindConfig: "config", keys.KindSlot: "key slot", keys.KindManifest: "manifest of an image",
		keys.KindLease: "lease", keys.KindCondemned: "list of condemned segments",
		keys.KindTombstone: "tombstone of an image", keys.KindDamage: "note of damaged records",
		keys.KindPin: "pin of an image", keys.KindVerified: "results of verifications", keys.KindScreen: "picture of a screen",
	}[kind]
	if !ok {
		return fmt.Sprintf("object of unknown kind %q", kind)
	}
	return text
}

// object shows a sealed object. Its header, see image/FORMAT.md:
//
//	4:8 kind, 8:10 version, 10:12 protection, 16:24 payload length
func (in *inspection) object() {
	if most := keys.MaxObject(keys.KindCondemned); in.size > most {
		in.err = fmt.Errorf("%d bytes, an object has at most %d", in.size, most)
		return
	}
	b := make([]byte, in.size)
	if _, err := in.file.ReadAt(b, 0); err != nil && err != io.EOF {
		in.err = err
		return
	}
	const header, trailer = 56, keys.CertificateSize + keys.SignatureSize + 32
	if len(b) < header+trailer {
		in.say("%s: %d bytes", in.name, len(b))
		in.problems++
		in.say("WRONG: an object has at least %d bytes", header+trailer)
		return
	}
	kind, length := string(b[4:8]), binary.LittleEndian.Uint64(b[16:])
	in.say("%s: %s, version %d, %d bytes", in.name, kindText(kind), binary.LittleEndian.Uint16(b[8:]), len(b))
	var domain *keys.Domain
	if in.repo != nil {
		domain = in.repo.Keys
	}
	var plain []byte
	switch {
	case domain == nil && kind != keys.KindConfig && kind != keys.KindSlot:
		in.say("no repository that opens is around it: its digest is not checked")
	default:
		payload, s, err := domain.Payload(kind, in.name, b)
		if err != nil {
			in.wrong(err)
		} else {
			in.say("digest %s: right", s.Digest)
			if s.Writer.String() != "" {
				in.say("signed by writer %s", s.Writer)
			}
		}
		plain = payload
	}
	switch {
	case plain != nil:
		in.payload(plain)
	case length > uint64(len(b)-header-trailer):
		in.say("its payload of %d bytes is not there", length)
	case binary.LittleEndian.Uint16(b[10:]) != 0:
		in.say("its payload of %d bytes is encrypted", length)
	default:
		in.payload(b[header : header+int(length)])
	}
}

// payload shows JSON without the values of keys.
func (in *inspection) payload(b []byte) {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	var v any
	err := dec.Decode(&v)
	if err == nil {
		b, err = json.MarshalIndent(hideKeys(v), "", "  ")
	}
	if err != nil {
		in.problems++
		in.say("WRONG: its payload is not JSON: %v", err)
		return
	}
	in.say("%s", b)
}

// hideKeys replaces the values of all fields that hold keys.
func hideKeys(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for name, value := range v {
			if strings.HasSuffix(strings.ToLower(name), "key") {
				v[name] = "(not shown)"
			} else {
				v[name] = hideKeys(value)
			}
		}
	case []any:
		for i := range v {
			v[i] = hideKeys(v[i])
		}
	}
	return v
}

func hexText(b []byte) string { return hex.EncodeToString(b) }

// printable keeps what others wrote from speaking to the terminal.
type printable struct{ w io.Writer }

func (p printable) Write(b []byte) (int, error) {
	text := strings.ToValidUTF8(string(b), "\ufffd")
	var out strings.Builder
	for _, c := range text {
		if c == '\n' || unicode.IsPrint(c) {
			out.WriteRune(c)
		} else {
			q := strconv.QuoteRuneToASCII(c)
			out.WriteString(q[1 : len(q)-1])
		}
	}
	if _, err := io.WriteString(p.w, out.String()); err != nil {
		return 0, err
	}
	return len(b), nil
}
