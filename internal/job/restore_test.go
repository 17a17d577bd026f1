package job

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"platter/block"
	"platter/image"
	"platter/image/store"
	"platter/image/store/mem"
)

func yes(*RestorePlan) (bool, error) { return true, nil }

func mustRestore(t *testing.T, env *Env, opts RestoreOptions) *RestoreReport {
	t.Helper()
	if opts.Confirm == nil {
		opts.Confirm = yes
	}
	report, err := Restore(context.Background(), env, opts)
	if err != nil {
		t.Fatal(err)
	}
	return report
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRestoreToAFileGivesTheImage(t *testing.T) {
	for _, bs := range []int{4 << 10, 64 << 10, 4 << 20} {
		for _, size := range []int{0, 1, 511, 4096, bs - 1, bs, bs + 1, 1<<20 + 1, 2 << 20, 2<<20 + bs + 1, 600*min(bs, 64<<10) + 77} {
			t.Run(fmt.Sprintf("blocks of %d, %d bytes", bs, size), func(t *testing.T) {
				if size > 3<<20 && testing.Short() {
					t.Skip("short")
				}
				rng := seeded(t, uint64(size))
				env := newEnv(t, bs)
				d := &disk{name: "disk", data: make([]byte, size)}
				d.fill(rng, bs)
				mustBackup(t, env, d, BackupOptions{})
				path := filepath.Join(t.TempDir(), "restored")
				bare := *env
				bare.Catalog = nil
				for _, how := range []struct {
					env  *Env
					opts RestoreOptions
					old  int // bytes of junk there before, -1 for no file
				}{
					{env, RestoreOptions{}, -1},
					{&bare, RestoreOptions{}, size + 12345},
					{env, RestoreOptions{InPlace: true}, size / 2},
					{&bare, RestoreOptions{InPlace: true}, size + 54321},
					{env, RestoreOptions{InPlace: true, NoReadBack: true}, size},
				} {
					os.Remove(path)
					if how.old >= 0 {
						junk := make([]byte, how.old)
						random(rng, junk)
						copy(junk, d.data[:size/3])
						if err := os.WriteFile(path, junk, 0o600); err != nil {
							t.Fatal(err)
						}
					}
					how.opts.Image, how.opts.Target = "disk", path
					r := mustRestore(t, how.env, how.opts)
					if !bytes.Equal(readFile(t, path), d.data) {
						t.Fatalf("%+v: the file is not the image", how)
					}
					if r.Written+r.Zeroed+r.Kept != int64(size) {
						t.Errorf("%+v: written %d, zeroed %d, kept %d, want %d in all", how, r.Written, r.Zeroed, r.Kept, size)
					}
					if r.Plan.Create != (how.old < 0) || r.ReadBack == how.opts.NoReadBack {
						t.Errorf("%+v: create %v, read back %v", how, r.Plan.Create, r.ReadBack)
					}
				}
			})
		}
	}
}

func TestRestoreLeavesHoles(t *testing.T) {
	const bs = 64 << 10
	env := newEnv(t, bs)
	d := &disk{name: "disk", data: make([]byte, 64<<20), holes: true}
	random(seeded(t, 1), d.data[10<<20:11<<20])
	mustBackup(t, env, d, BackupOptions{})
	path := filepath.Join(t.TempDir(), "restored")
	mustRestore(t, env, RestoreOptions{Image: "latest", Target: path})
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil || st.Blocks*512 > 2<<20 {
		t.Errorf("the file takes %d bytes, %v, want about 1 MiB", st.Blocks*512, err)
	}
	if !bytes.Equal(readFile(t, path), d.data) {
		t.Error("the file is not the image")
	}
	if st.Mode&0o777 != 0o600 {
		t.Errorf("mode %o, want 600", st.Mode&0o777)
	}
}

func TestRestoreInPlaceWritesOnlyWhatDiffers(t *testing.T) {
	const bs = 4 << 10
	env := newEnv(t, bs)
	d := &disk{name: "disk", data: make([]byte, 3000*bs+5)}
	d.fill(seeded(t, 2), bs)
	m := mustBackup(t, env, d, BackupOptions{}).Image
	path := filepath.Join(t.TempDir(), "restored")
	changed := bytes.Clone(d.data)
	for _, n := range []int{0, 700, 1500, 3000} {
		changed[n*bs] ^= 1
	}
	if err := os.WriteFile(path, changed, 0o600); err != nil {
		t.Fatal(err)
	}
	r := mustRestore(t, env, RestoreOptions{Image: m.ID.String()[:8], Target: path, InPlace: true})
	if got := r.Written + r.Zeroed; got != 3*bs+5 {
		t.Errorf("wrote and zeroed %d bytes, want %d", got, 3*bs+5)
	}
	if !bytes.Equal(readFile(t, path), d.data) {
		t.Error("the file is not the image")
	}
}

func TestRestorePlansAsksAndOnlyThenWrites(t *testing.T) {
	env := newEnv(t, 4096)
	d := &disk{name: "disk", data: make([]byte, 100*4096)}
	random(seeded(t, 3), d.data)
	mustBackup(t, env, d, BackupOptions{})
	path := filepath.Join(t.TempDir(), "restored")
	opts := RestoreOptions{Image: "latest", Target: path, DryRun: true}
	r := mustRestore(t, env, opts)
	if _, err := os.Stat(path); err == nil || len(r.Plan.Steps) == 0 || !r.Plan.Create || r.Plan.Destroys != "" {
		t.Errorf("dry run: %+v, file %v", r.Plan, err)
	}
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	opts.DryRun = false
	no := errors.New("no terminal")
	for want, confirm := range map[error]func(*RestorePlan) (bool, error){
		ErrConfirm: nil,
		no:         func(*RestorePlan) (bool, error) { return false, no },
	} {
		opts.Confirm = confirm
		if _, err := Restore(t.Context(), env, opts); !errors.Is(err, want) {
			t.Errorf("got %v, want %v", err, want)
		}
	}
	var plan *RestorePlan
	opts.Confirm = func(p *RestorePlan) (bool, error) { plan = p; return false, nil }
	if _, err := Restore(t.Context(), env, opts); !errors.Is(err, ErrConfirm) || plan == nil || plan.Destroys == "" {
		t.Errorf("refused: got %v, plan %+v", err, plan)
	}
	if got := readFile(t, path); string(got) != "precious" {
		t.Errorf("the file holds %d other bytes", len(got))
	}
	opts.Confirm = nil
	opts.Target = filepath.Join(t.TempDir(), "new")
	if _, err := Restore(t.Context(), env, opts); err != nil {
		t.Errorf("a new file needs no confirmation: %v", err)
	}
}

func TestRestoreStopsAtADamagedBlockAndNamesIt(t *testing.T) {
	const bs = 4 << 10
	env := newEnv(t, bs)
	d := &disk{name: "disk", data: make([]byte, 1000*bs)}
	random(seeded(t, 4), d.data)
	m := mustBackup(t, env, d, BackupOptions{}).Image
	id := env.Repo.Hasher().Block(d.data[700*bs : 701*bs])
	at, err := env.Catalog.Locate(t.Context(), id)
	if err != nil || len(at) != 1 {
		t.Fatal(at, err)
	}
	f, err := env.Repo.Footer(t.Context(), at[0].Segment)
	if err != nil {
		t.Fatal(err)
	}
	name := "segments/" + f.ID.String()[:2] + "/" + f.ID.String()
	flipByte(t, env, name, f.Records[at[0].Record].Offset)
	path := filepath.Join(t.TempDir(), "restored")
	_, err = Restore(t.Context(), env, RestoreOptions{Image: "disk", Target: path})
	if !errors.Is(err, ErrDamaged) {
		t.Fatalf("got %v, want damage", err)
	}
	for _, want := range []string{m.ID.String(), fmt.Sprintf("%d+%d", 700*bs, bs), name} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in: %v", want, err)
		}
	}
	if got := readFile(t, path); len(got) != len(d.data) || !image.IsZero(got[:1<<20]) {
		t.Errorf("the first MiB of a restore cut short is not zero")
	}
}

func flipByte(t *testing.T, env *Env, name string, off int64) {
	t.Helper()
	st := env.Repo.Store.(*mem.Store)
	b, err := st.Get(context.Background(), name, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	b[off] ^= 0x10
	st.Replace(name, b)
}

// Whatever byte of whatever object is damaged or cut off, a restore gives the
// image or an error of damage.
func TestRestoreFromADamagedRepositoryNeverGivesOtherBytes(t *testing.T) {
	const bs = 4 << 10
	env := newEnv(t, bs)
	d := &disk{name: "disk", data: make([]byte, 150*bs+100)}
	rng := seeded(t, 5)
	d.fill(rng, bs)
	mustBackup(t, env, d, BackupOptions{})
	bare := &Env{Repo: env.Repo, Memory: 8 << 20, Host: "host"}
	st := env.Repo.Store.(*mem.Store)
	var names []string
	if err := st.List(t.Context(), "", func(o store.Info) error {
		if o.Name != "config" && !strings.HasPrefix(o.Name, "keys/") {
			names = append(names, o.Name)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "restored")
	damages, harmless := 0, 0
	for _, name := range names {
		whole, _ := st.Get(t.Context(), name, 1<<30)
		for off := 0; off < len(whole); off += 1 + rng.IntN(len(whole)/40+1) {
			bad := bytes.Clone(whole)
			bad[off] ^= 1 << rng.IntN(8)
			if rng.IntN(10) == 0 {
				bad = bad[:off]
			}
			st.Replace(name, bad)
			os.Remove(path)
			_, err := Restore(t.Context(), bare, RestoreOptions{Image: "latest", Target: path, NoReadBack: true})
			switch {
			case err == nil && !bytes.Equal(readFile(t, path), d.data):
				t.Fatalf("%s, byte %d: other bytes", name, off)
			case err == nil:
				harmless++
			case strings.HasPrefix(name, "images/"):
				damages++ // there is no image any more
			case !errors.Is(err, ErrDamaged):
				t.Fatalf("%s, byte %d: %v", name, off, err)
			default:
				damages++
			}
		}
		st.Replace(name, whole)
	}
	t.Logf("%d damages noticed, %d harmless", damages, harmless)
	if damages == 0 {
		t.Error("no damage was noticed")
	}
}

func TestRestoreHeedsItsContext(t *testing.T) {
	const bs = 4 << 10
	env := newEnv(t, bs)
	d := &disk{name: "disk", data: make([]byte, 2000*bs)}
	random(seeded(t, 6), d.data)
	mustBackup(t, env, d, BackupOptions{})
	path := filepath.Join(t.TempDir(), "restored")
	ctx, cancel := context.WithCancel(t.Context())
	var calls atomic.Int64
	env.Progress = func(p Progress) {
		if calls.Add(1) == 1 {
			cancel()
		}
	}
	_, err := Restore(ctx, env, RestoreOptions{Image: "disk", Target: path, LimitWrite: 1 << 20})
	if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "incomplete") {
		t.Errorf("got %v, want a cancelled restore", err)
	}
}

func TestRestoreReportsWhatIsMissing(t *testing.T) {
	const bs = 4 << 10
	env := newEnv(t, bs)
	d := &disk{name: "disk", data: make([]byte, 64*bs), bad: []block.Extent{{Offset: 8192, Length: 512}}}
	random(seeded(t, 7), d.data)
	mustBackup(t, env, d, BackupOptions{AllowUnreadable: true})
	r := mustRestore(t, env, RestoreOptions{Image: "disk", Target: filepath.Join(t.TempDir(), "restored")})
	if !r.Plan.Image.Incomplete() || len(r.Notices) == 0 || !strings.Contains(strings.Join(r.Notices, "\n"), "8192") {
		t.Errorf("notices %q", r.Notices)
	}
}
