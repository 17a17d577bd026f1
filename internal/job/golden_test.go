package job

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"platter/catalog"
	"platter/image/keys"
	"platter/image/repo"
	"platter/image/store/dir"
	"platter/image/store/mem"
	"platter/image/store/vfs"
)

// Golden repositories were written once and stay as they are: each one in a
// directory of its own, its objects below repo/, and in images.txt a line for
// each image: its ID, volume, number, length and the SHA-256 of its content.
// Beside an encrypted one lie a password, a key file and an age identity, each
// of which opens it.
const golden = "../../image/testdata/golden"

// TestGoldenWrite makes a new golden repository, v1-plain-moved, when
// PLATTER_TEST_GOLDEN=write asks for it, and v1-sealed-moved when it says sealed:
// like v1-plain, v1-sealed and v1-xxh8, and besides with indexes and with records
// that were moved. One that is there is never replaced.
func TestGoldenWrite(t *testing.T) {
	name := "v1-plain-moved"
	var x *exhibit
	switch os.Getenv("PLATTER_TEST_GOLDEN") {
	case "write":
		x = newExhibit(t)
	case "sealed":
		name = "v1-sealed-moved"
		x = newSealedExhibit(t)
	default:
		t.Skip("set PLATTER_TEST_GOLDEN=write or sealed to make a golden repository")
	}
	if err := os.Mkdir(filepath.Join(golden, name), 0o755); err != nil {
		t.Fatal(err) // there already
	}
	if x.unlock != nil {
		giveKeys(t, x, filepath.Join(golden, name))
	}
	for object, data := range x.objects {
		path := filepath.Join(golden, name, "repo", filepath.FromSlash(object))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var lines []string
	for _, m := range must(allImages(context.Background(), x.env)) {
		lines = append(lines, fmt.Sprintf("%s %s %d %d %x\n", m.ID, m.Volume, m.Seq, m.Size, sha256.Sum256(x.want[m.ID])))
	}
	if err := os.WriteFile(filepath.Join(golden, name, "images.txt"), []byte(strings.Join(lines, "")), 0o644); err != nil {
		t.Fatal(err)
	}
}

// giveKeys lets a password and an age identity open the exhibit too, and an
// agent's key file for writing only, and puts all of them into path.
func giveKeys(t *testing.T, x *exhibit, path string) {
	t.Helper()
	identity, recipient, err := keys.NewRecovery()
	if err != nil {
		t.Fatal(err)
	}
	agent := bytes.Repeat([]byte("agent "), 8)
	for file, content := range map[string][]byte{"password": passphrase, "key": x.unlock.KeyFile, "agent-key": agent, "identity": []byte(identity + "\n")} {
		if err := os.WriteFile(filepath.Join(path, file), content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	add := func(d *keys.Domain, slot repo.NewSlot) {
		name, err := x.env.Repo.AddSlot(context.Background(), d, slot, nil)
		if err != nil {
			t.Fatal(err)
		}
		x.objects[name] = must(x.env.Repo.Store.Get(context.Background(), name, 1<<30))
	}
	d := x.env.Repo.Keys
	add(d, func(d *keys.Domain) (string, []byte, error) { return d.PassphraseSlot(passphrase, "password") })
	add(d, repo.AgeSlot(recipient, "recovery key"))
	add(x.agent, func(d *keys.Domain) (string, []byte, error) { return d.KeyFileSlot(agent, "agent") })
}

// goldenKeys returns what opens a golden repository, by the file that holds it;
// of one in clear, nothing.
func goldenKeys(t *testing.T, name string) map[string]*keys.Credentials {
	t.Helper()
	read := func(file string) []byte { return must(os.ReadFile(filepath.Join(golden, name, file))) }
	if _, err := os.Stat(filepath.Join(golden, name, "key")); err != nil {
		return map[string]*keys.Credentials{"key": nil}
	}
	return map[string]*keys.Credentials{
		"password": {Passphrase: read("password")}, "key": {KeyFile: read("key")},
		"identity": {Identities: must(keys.ParseIdentities(string(read("identity"))))},
	}
}

func TestGoldenSealedRepositoryOpensWithEachOfItsKeys(t *testing.T) {
	for _, name := range []string{"v1-sealed", "v1-sealed-moved"} {
		sealedGolden(t, name)
	}
}

func sealedGolden(t *testing.T, name string) {
	t.Helper()
	st := inMemory(t, name)
	for file, k := range goldenKeys(t, name) {
		r, err := repo.Unlock(context.Background(), st, k)
		if err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		checkGolden(t, name, &Env{Repo: r, Memory: 8 << 20, Host: "host"})
	}
	agent := must(os.ReadFile(filepath.Join(golden, name, "agent-key")))
	r, err := repo.Unlock(context.Background(), st, &keys.Credentials{KeyFile: agent})
	if err != nil || r.Keys.CanRead() {
		t.Fatalf("the agent's key: %v, reads %v", err, r.Keys.CanRead())
	}
	if _, err := repo.Open(context.Background(), st); !errors.Is(err, keys.ErrCredentials) {
		t.Errorf("without a key: %v", err)
	}
	for _, s := range must(r.KeySlots(context.Background())) {
		if s.Problem != nil || s.WriteOnly != (s.Label == "agent") {
			t.Errorf("slot %s, %q: %v, write-only %v", s.Name, s.Label, s.Problem, s.WriteOnly)
		}
	}
}

// goldens returns the names of all golden repositories.
func goldens(t *testing.T) []string {
	t.Helper()
	list, err := os.ReadDir(golden)
	if err != nil || len(list) < 2 {
		t.Fatalf("%d golden repositories, %v; want 2 or more", len(list), err)
	}
	var names []string
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

// goldenImages returns the SHA-256 of each image of a golden repository by ID.
func goldenImages(t *testing.T, name string) map[string]string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(golden, name, "images.txt"))
	if err != nil {
		t.Fatal(err)
	}
	sums := map[string]string{}
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		f := strings.Fields(lines.Text())
		if len(f) != 5 {
			t.Fatalf("%s: line %q", name, lines.Text())
		}
		sums[f[0]] = f[4]
	}
	return sums
}

// inMemory returns a store that holds the objects of a golden repository.
func inMemory(t *testing.T, name string) *mem.Store {
	t.Helper()
	st, root := mem.New(), filepath.Join(golden, name, "repo")
	st.Advance(time.Since(mem.Epoch()))
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		st.Replace(filepath.ToSlash(strings.TrimPrefix(path, root+"/")), data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// checkGolden reads all images of a golden repository and compares them.
func checkGolden(t *testing.T, name string, env *Env) {
	t.Helper()
	want := goldenImages(t, name)
	images, _, err := Images(context.Background(), env, "")
	if err != nil || len(images) != len(want) || len(want) < 6 {
		t.Fatalf("%s: %d images, %v; want %d", name, len(images), err, len(want))
	}
	for _, m := range images {
		got, err := readImage(env, m)
		if err != nil {
			t.Errorf("%s: image %s of %s: %v", name, m.ID, m.Volume, err)
			continue
		}
		if sum := sha256.Sum256(got); hex.EncodeToString(sum[:]) != want[m.ID.String()] {
			t.Errorf("%s: image %s of %s has SHA-256 %x, want %s", name, m.ID, m.Volume, sum, want[m.ID.String()])
		}
	}
}

func TestGoldenRepositoriesStillOpen(t *testing.T) {
	ctx := context.Background()
	for _, name := range goldens(t) {
		st := inMemory(t, name)
		r, err := repo.Unlock(ctx, st, goldenKeys(t, name)["key"])
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		bare := &Env{Repo: r, Memory: 8 << 20, Host: "host"}
		checkGolden(t, name, bare)
		if notes, err := ReadNotes(ctx, bare); err != nil || len(notes.images) == 0 {
			t.Errorf("%s: notes on %d images, %v", name, len(notes.images), err)
		}
		env := envOf(t, r)
		if _, err := env.Catalog.Sync(ctx, r, nil); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		checkGolden(t, name, env)
		for _, e := range []*Env{bare, env} {
			report, err := Verify(ctx, e, VerifyOptions{ReadData: true})
			if err != nil || len(report.Damage) > 0 {
				t.Errorf("%s: verify: %v: %+v", name, err, report)
			}
		}
		// Work goes on in it: back up, prune one by hand, collect, rebuild.
		images := must(allImages(ctx, env))
		d := &disk{name: "a", data: must(readImage(env, images[0]))}
		m := mustBackup(t, env, d, BackupOptions{}).Image
		if m.Stats.New != 0 {
			t.Errorf("%s: %d bytes stored again", name, m.Stats.New)
		}
		if got := content(t, env, m); !bytes.Equal(got, d.data) {
			t.Errorf("%s: a new image differs", name)
		}
		forget(t, env, m)
		mustCollect(t, env, CollectOptions{})
		checkGolden(t, name, bare)
	}
}

func TestGoldenRepositoriesOpenAsDirectories(t *testing.T) {
	ctx := context.Background()
	for _, name := range goldens(t) {
		path := filepath.Join(t.TempDir(), "repo")
		if err := os.CopyFS(path, os.DirFS(filepath.Join(golden, name, "repo"))); err != nil {
			t.Fatal(err)
		}
		st, err := dir.Open(path, vfs.OS())
		if err != nil {
			t.Fatal(err)
		}
		r, err := repo.Unlock(ctx, st, goldenKeys(t, name)["key"])
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		checkGolden(t, name, &Env{Repo: r, Memory: 8 << 20, Host: "host"})
		c, _, err := catalog.Rebuild(ctx, catalog.Options{Dir: t.TempDir(), Repository: r.ID, BlockSize: r.Config.BlockSize}, r, nil)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		checkGolden(t, name, &Env{Repo: r, Memory: 8 << 20, Host: "host", Catalog: c})
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		kinds := map[string]bool{}
		for _, o := range filesBelow(t, path) {
			kinds[filepath.Dir(filepath.Dir(o))] = true
		}
		for _, k := range []string{"segments", "images", "trash", "trash/images"} {
			if !kinds[k] {
				t.Errorf("%s holds no %s", name, k)
			}
		}
		attested := slices.ContainsFunc(filesBelow(t, path), func(o string) bool { return strings.HasPrefix(o, "attest/") })
		if strings.HasSuffix(name, "-moved") && (!kinds["index"] || strings.Contains(name, "sealed") && !attested) {
			t.Errorf("%s holds no index, moves or attestations: %v", name, kinds)
		}
	}
}

func filesBelow(t *testing.T, root string) (list []string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			list = append(list, filepath.ToSlash(strings.TrimPrefix(path, root+"/")))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(list)
	return list
}
