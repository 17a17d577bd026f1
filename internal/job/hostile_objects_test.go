package job

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/sys/unix"

	"platter/catalog"
	"platter/image"
	"platter/image/keys"
	"platter/image/repo"
	"platter/image/segment"
	"platter/image/store"
	"platter/image/store/dir"
	"platter/image/store/vfs"
)

// A villain changes objects of an exhibit into what no program writes, under
// keys that are right: the repository is an enemy's, or an agent went mad.
type villain struct {
	*testing.T
	*exhibit
	changes map[string][]byte // what becomes of the exhibit; nil is no object
	after   func(root string) // changes the directory itself
}

// put has the administrator's keys sign a payload.
func (v *villain) put(kind, name string, payload []byte) string {
	v.Helper()
	object, _, err := v.env.Repo.Keys.SealBytes(kind, name, payload)
	if err != nil { // longer than any writer's: the envelope is made by hand
		object = append(binary.LittleEndian.AppendUint64([]byte("PLTR"+kind+"\x01\x00\x00\x00\x00\x00\x00\x00"), uint64(len(payload))), make([]byte, 32)...)
		object = append(append(object, payload...), make([]byte, 200)...)
	}
	v.changes[name] = object
	return name
}

// manifest puts one in the place of the newest image of a line.
func (v *villain) manifest(change func(m *image.Manifest)) string {
	v.Helper()
	names := v.names("images/")
	name := names[len(names)-1]
	m := must(v.env.Repo.Manifest(context.Background(), name))
	change(m)
	object, _, err := v.keysOf(m).Seal(keys.KindManifest, name, m)
	if err != nil {
		v.Fatal(err)
	}
	v.changes[name] = object
	return name
}

func (v *villain) keysOf(m *image.Manifest) *keys.Domain {
	if m.WriteOnly {
		return v.agent
	}
	return v.env.Repo.Keys
}

// text is JSON with n times the same in the middle.
func text(before, again string, n int, after string) []byte {
	return []byte(before + strings.Repeat(again, n) + after)
}

// segment patches one of the exhibit's and makes its checks right again, as far
// as they are not signed.
func (v *villain) segment(patch func(b []byte) []byte) string {
	name := v.needed()
	b := patch(bytes.Clone(v.objects[name]))
	v.changes[name] = b
	if len(b) < 8192 || v.env.Repo.Keys.Encrypted() {
		return name
	}
	t := b[len(b)-segment.TrailerSize:]
	offset, length := binary.LittleEndian.Uint64(t[16:]), uint64(binary.LittleEndian.Uint32(t[24:]))
	var footer []byte
	if n := uint64(len(b)); offset <= n && length <= n-offset {
		footer = b[offset:][:length]
	}
	v.env.Repo.Keys.SumFooter((*[32]byte)(t[112:]), footer, t[:112])
	binary.LittleEndian.PutUint64(t[segment.TrailerSize-8:], xxhash.Sum64(t[:segment.TrailerSize-8]))
	return name
}

// needed is a segment without which an image is lost.
func (v *villain) needed() string {
	names := v.names("images/")
	return segment.Name(must(v.env.Repo.Manifest(context.Background(), names[len(names)-1])).RootAt.Segment)
}

// trailer patches a field of a segment's trailer.
func (v *villain) trailer(off int, value ...byte) string {
	return v.segment(func(b []byte) []byte {
		copy(b[len(b)-segment.TrailerSize+off:], value)
		return b
	})
}

func u32(n uint32) []byte { return binary.LittleEndian.AppendUint32(nil, n) }
func u64(n uint64) []byte { return binary.LittleEndian.AppendUint64(nil, n) }

// random32 is the end of a name that a writer draws.
var random32 = strings.Repeat("c4", 16)

// A hostility returns the names of objects of which one must be named when all
// is tried, none where nothing need be said.
type hostility func(v *villain) string

var hostilities = map[string]hostility{
	"config of another block size":   func(v *villain) string { return v.config("block_size", "0") },
	"config with blocks of 4 EiB":    func(v *villain) string { return v.config("block_size", "4611686018427387904") },
	"config of version 2^60":         func(v *villain) string { return v.config("version", "1152921504606846976") },
	"config that nests 100,000 deep": func(v *villain) string { return v.put(keys.KindConfig, "config", text("", `{"a":[`, 100_000, "")) },
	"config of 2 MiB":                func(v *villain) string { return v.put(keys.KindConfig, "config", text(`{"x":"`, "x", 2<<20, `"}`)) },
	"slot of 2 MiB":                  func(v *villain) string { return v.put(keys.KindSlot, v.names("keys/")[0], make([]byte, 2<<20)) },
	"slot of a type nobody knows":    func(v *villain) string { return v.put(keys.KindSlot, v.names("keys/")[0], []byte(`{"type":"moon"}`)) },
	"slot with keys of no length": func(v *villain) string {
		return v.put(keys.KindSlot, v.names("keys/")[0], []byte(`{"type":"clear","id_key":"","structure_key":"00"}`))
	},
	"slot that costs 4 TiB": func(v *villain) string {
		v.put(keys.KindSlot, "keys/"+random32, []byte(`{"type":"passphrase","salt":"00000000000000000000000000000000","argon2id":{"time":4294967295,"memory_kib":4294967295,"threads":255}}`))
		return ""
	},
	"manifest of minus one byte":         func(v *villain) string { return v.manifest(func(m *image.Manifest) { m.Size = -1 }) },
	"manifest beyond the largest device": func(v *villain) string { return v.manifest(func(m *image.Manifest) { m.Size = image.MaxSize + 1 }) },
	"manifest of other blocks":           func(v *villain) string { return v.manifest(func(m *image.Manifest) { m.BlockSize = 1 << 30 }) },
	"manifest without an ID":             func(v *villain) string { return v.manifest(func(m *image.Manifest) { m.ID = image.ImageID{} }) },
	"manifest under another's name":      func(v *villain) string { return v.manifest(func(m *image.Manifest) { m.Volume = "host/other" }) },
	"manifest whose volume is a path": func(v *villain) string {
		return v.manifest(func(m *image.Manifest) { m.Volume = "../../etc/passwd\x1b]0;" })
	},
	"manifest of a number that wraps": func(v *villain) string { return v.manifest(func(m *image.Manifest) { m.Seq = 1<<64 - 1 }) },
	"manifest that follows nothing": func(v *villain) string {
		return v.manifest(func(m *image.Manifest) { m.Predecessor = image.Digest{9} })
	},
	"manifest of features": func(v *villain) string {
		return v.manifest(func(m *image.Manifest) { m.Features = []string{"time-travel"} })
	},
	"manifest with a range that wraps": func(v *villain) string {
		return v.manifest(func(m *image.Manifest) { m.Unreadable = append(m.Unreadable, extentOf(1<<62, 1<<62+1<<62-1)) })
	},
	"manifest with its root beyond": func(v *villain) string {
		return v.manifest(func(m *image.Manifest) {
			m.Root, m.RootAt = image.ID{1}, image.Location{Segment: m.RootAt.Segment, Record: 1<<32 - 1}
		})
	},
	"manifest of five million partitions": func(v *villain) string {
		return v.manifestOf(text(`{"device":{"table":{"partitions":[{}`, ",{}", 1_300_000, `]}}}`))
	},
	"manifest of a million warnings":  func(v *villain) string { return v.manifestOf(text(`{"warnings":[""`, `,""`, 1_300_000, `]}`)) },
	"manifest of 60 MiB":              func(v *villain) string { return v.manifestOf(make([]byte, 60<<20)) },
	"manifest that nests":             func(v *villain) string { return v.manifestOf(text("", "[", 3<<20, "")) },
	"manifest with a number of 3 MiB": func(v *villain) string { return v.manifestOf(text(`{"size":`, "9", 3<<20, "}")) },
	"manifest of zeros of 2^60 bytes": func(v *villain) string {
		v.manifest(func(m *image.Manifest) { m.Size, m.Root = image.MaxSize, image.ID{} })
		return ""
	},
	"manifest number 2^64-1": func(v *villain) string {
		n := v.lineOf() + "/ffffffffffffffff"
		v.changes[n] = []byte("noise")
		return n
	},
	"manifests of numbers with holes":  func(v *villain) string { return v.put(keys.KindManifest, v.lineOf()+"/00000000ffffffff", []byte(`{}`)) },
	"page that is its own great-grand": func(v *villain) string { return v.laughs() },
	"page with 127 hints too many":     func(v *villain) string { return v.page(func(b []byte) []byte { b[image.PageSize+2] = 0xff; return b }) },
	"page whose hints are 1 MiB": func(v *villain) string {
		return v.page(func(b []byte) []byte { return append(b, make([]byte, 1<<20)...) })
	},
	"page of 4 MiB": func(v *villain) string {
		return v.page(func(b []byte) []byte { return append(b, make([]byte, segment.MaxPlain-len(b))...) })
	},
	"segment of nothing":               func(v *villain) string { return v.segment(func([]byte) []byte { return nil }) },
	"segment of a header":              func(v *villain) string { return v.segment(func(b []byte) []byte { return b[:4096] }) },
	"segment not a multiple of 4 KiB":  func(v *villain) string { return v.segment(func(b []byte) []byte { return append(b, 0) }) },
	"segment of 2^32 records":          func(v *villain) string { return v.trailer(12, u32(1<<32-1)...) },
	"segment without records":          func(v *villain) string { return v.trailer(12, u32(0)...) },
	"segment with its footer at -4096": func(v *villain) string { return v.trailer(16, u64(1<<64-4096)...) },
	"segment with its footer in front": func(v *villain) string { return v.trailer(16, u64(0)...) },
	"segment with a footer of 4 GiB":   func(v *villain) string { return v.trailer(24, u32(1<<32-1)...) },
	"segment of all bytes":             func(v *villain) string { return v.trailer(32, u64(1<<64-1)...) },
	"segment of other keys": func(v *villain) string {
		return v.segment(func(b []byte) []byte { copy(b[16:], make([]byte, 32)); return b })
	},
	"segment of a TiB, all holes":  func(v *villain) string { return v.sparse(1 << 40) },
	"segment of a GiB, all holes":  func(v *villain) string { return v.sparse(1 << 30) },
	"segment that is a directory":  func(v *villain) string { return v.instead(func(p string) error { return os.Mkdir(p, 0o700) }) },
	"segment that leads elsewhere": func(v *villain) string { return v.instead(func(p string) error { return os.Symlink("/dev/zero", p) }) },
	"segment that is a pipe":       func(v *villain) string { return v.instead(func(p string) error { return unix.Mkfifo(p, 0o600) }) },
	"block that is a bomb":         func(v *villain) string { return v.bomb() },
	"index of 2^32 segments":       func(v *villain) string { return v.put(keys.KindIndex, "index/footers/"+random32, u32(1<<32-1)) },
	"index with an end of 4 GiB": func(v *villain) string {
		b := append(u32(1), make([]byte, 16)...)
		b = append(append(b, u32(1)...), u32(1<<32-1)...)
		return v.put(keys.KindIndex, "index/footers/"+random32, append(b, make([]byte, segment.TrailerSize)...))
	},
	"index of lies": func(v *villain) string { return v.lyingIndex() },
	"index of 60 MiB": func(v *villain) string {
		return v.put(keys.KindIndex, "index/footers/"+random32, append(u32(200_000), make([]byte, 60<<20)...))
	},
	"moves beyond all counts": func(v *villain) string {
		return v.put(keys.KindMoves, "index/moves/"+random32, append(u32(1<<32-1), u32(1<<32-1)...))
	},
	"moves in a ring": func(v *villain) string { return v.ring() },
	"attestation of a million": func(v *villain) string {
		return v.put(keys.KindAttested, "attest/"+random32, text(`{"segments":[{}`, ",{}", 5<<20, "]}"))
	},
	"attestation of nonsense": func(v *villain) string {
		return v.put(keys.KindAttested, "attest/"+random32, []byte(`{"segments":[{"segment":"zz"}]}`))
	},
	"lease of 60 MiB": func(v *villain) string {
		return v.put(keys.KindLease, "leases/"+random32+"-00000001", make([]byte, 60<<20))
	},
	"lease of 300,000 values": func(v *villain) string {
		return v.put(keys.KindLease, "leases/"+random32+"-00000001", text(`{"run":"x","x":[{}`, ",{}", 300_000, "]}"))
	},
	"lease number 2^32-1": func(v *villain) string {
		v.put(keys.KindLease, "leases/"+random32+"-ffffffff", []byte(`{"kind":"collect","epoch":18446744073709551615}`))
		return ""
	},
	"list of epoch 2^64-1": func(v *villain) string {
		return v.put(keys.KindCondemned, "trash/segments/ffffffffffffffff", []byte(`{"epoch":1}`))
	},
	"list of all segments, of minus 2^62 bytes": func(v *villain) string {
		var list []string
		for _, n := range v.names("segments/") {
			list = append(list, fmt.Sprintf(`{"segment":%q,"size":-4611686018427387904,"since":"2020-01-01T00:00:00Z","epoch":2}`, filepath.Base(n)))
		}
		v.put(keys.KindCondemned, "trash/segments/0000000000000009", []byte(`{"epoch":9,"time":"2020-01-01T00:00:00Z","segments":[`+strings.Join(list, ",")+`]}`))
		return ""
	},
	"list of a million nothings": func(v *villain) string {
		return v.put(keys.KindCondemned, "trash/segments/0000000000000009", text(`{"epoch":9,"segments":[{}`, ",{}", 10<<20, "]}"))
	},
	"tombstone of 11 MiB of nothings": func(v *villain) string {
		return v.put(keys.KindTombstone, v.names("trash/images/")[0], text(`{"image":{"warnings":["x"`, `,""`, 3<<20, "]}}"))
	},
	"tombstone of another": func(v *villain) string {
		return v.put(keys.KindTombstone, v.names("trash/images/")[0], []byte(`{"image":{"volume":"host/x","seq":7}}`))
	},
	"note of damage to all": func(v *villain) string { v.put(keys.KindDamage, "trash/damaged/"+random32, v.allDamaged()); return "" },
	"note of damage, 15 MiB": func(v *villain) string {
		return v.put(keys.KindDamage, "trash/damaged/"+random32, text(`{"records":[{}`, ",{}", 5<<20, "]}"))
	},
	"pin until the year 10^12": func(v *villain) string {
		return v.put(keys.KindPin, "pins/"+random32, []byte(`{"until":"1000000000000-01-01T00:00:00Z"}`))
	},
	"pin of 2 MiB": func(v *villain) string {
		return v.put(keys.KindPin, "pins/"+random32, text(`{"reason":"`, "x", 2<<20, `"}`))
	},
	"verifications, a million": func(v *villain) string {
		return v.put(keys.KindVerified, "verified/"+random32, text(`{"images":[{}`, ",{}", 10<<20, "]}"))
	},
	"picture of 40 MiB": func(v *villain) string {
		return v.put(keys.KindScreen, "screens/"+random32, text(`{"png":"`, "AAAA", 10<<20, `"}`))
	},
	"names that climb": func(v *villain) string {
		v.changes["segments/..%2f/passwd"], v.changes["images/x/y/z"] = []byte("x"), []byte("y")
		return ""
	},
}

func (v *villain) config(key, value string) string {
	payload, _, err := v.env.Repo.Keys.Payload(keys.KindConfig, "config", v.objects["config"])
	if err != nil {
		v.Fatal(err)
	}
	at := bytes.Index(payload, []byte(`"`+key+`":`)) + len(key) + 3
	end := at + bytes.IndexAny(payload[at:], ",}")
	return v.put(keys.KindConfig, "config", slices.Concat(payload[:at], []byte(value), payload[end:]))
}

func (v *villain) manifestOf(payload []byte) string {
	names := v.names("images/")
	return v.put(keys.KindManifest, names[len(names)-1], payload)
}

func (v *villain) lineOf() string { return filepath.Dir(v.names("images/")[0]) }

// beside adds to the changes what a forger stores in the exhibit's repository.
func (v *villain) beside(forge func(f *forger)) {
	r := *v.env.Repo
	r.Store = v.with(nil)
	f := &forger{v.T, &Env{Repo: &r, Memory: 8 << 20, Host: "host"}}
	forge(f)
	err := r.Store.List(context.Background(), "", func(o store.Info) error {
		if _, ok := v.objects[o.Name]; !ok {
			v.changes[o.Name] = must(r.Store.Get(context.Background(), o.Name, 1<<30))
		}
		return nil
	})
	if err != nil {
		v.Fatal(err)
	}
}

// laughs is an image of 2^50 bytes and of five pages: each of them 128 times the
// one below.
func (v *villain) laughs() string {
	v.beside(func(f *forger) {
		block := bytes.Repeat([]byte("ha"), 2048)
		id := f.env.Repo.Hasher().Block(block)
		at := f.segment(segment.Data, forged{id, block})[0]
		size := int64(4096)
		for range 5 {
			id, at = f.page(slices.Repeat([]image.ID{id}, image.PageEntries), slices.Repeat([]image.Location{at}, image.PageEntries))
			size *= image.PageEntries
		}
		f.commit(size, id, at)
	})
	return ""
}

// page commits an image whose root is encoded as change has it.
func (v *villain) page(change func([]byte) []byte) (name string) {
	v.beside(func(f *forger) {
		h := f.env.Repo.Hasher()
		block := bytes.Repeat([]byte("block"), 1000)[:4096]
		at := f.segment(segment.Data, forged{h.Block(block), block})
		p := image.Page{Entries: [image.PageEntries]image.ID{h.Block(block)}, Hints: [image.PageEntries]image.Location{at[0]}}
		b := change(p.Encode(nil))
		where := f.segmentOf(8<<20, segment.Pages, forged{h.Page(p.Content(nil)), b})[0]
		f.commit(4096, h.Page(p.Content(nil)), where)
		name = segment.Name(where.Segment)
	})
	return name
}

// bomb is a block of 20 KiB that says it is 4 MiB.
func (v *villain) bomb() (name string) {
	v.beside(func(f *forger) {
		h := f.env.Repo.Hasher()
		large := make([]byte, segment.MaxPlain)
		copy(large, "boom")
		at := f.segment(segment.Data, forged{h.Block(large[:4096]), large})
		root, rootAt := f.page([]image.ID{h.Block(large[:4096])}, at)
		f.commit(4096, root, rootAt)
		name = segment.Name(at[0].Segment)
	})
	return name
}

// sparse has a segment keep its end, after as many bytes of nothing.
func (v *villain) sparse(size int64) string {
	name := v.needed()
	v.after = func(root string) {
		f, err := os.OpenFile(filepath.Join(root, name), os.O_WRONLY, 0)
		if err != nil {
			v.Fatal(err)
		}
		defer f.Close()
		end := v.objects[name][len(v.objects[name])-4096:]
		if _, err := f.WriteAt(end, size-int64(len(end))); err != nil {
			v.after = nil
			v.Logf("a file system without large files: %v", err)
		}
	}
	return name
}

// instead puts something that is no file in the place of a segment.
func (v *villain) instead(put func(path string) error) string {
	name := v.needed()
	v.changes[name] = nil
	v.after = func(root string) {
		if err := put(filepath.Join(root, name)); err != nil {
			v.Fatal(err)
		}
	}
	return name
}

// lyingIndex holds the end of one segment under the name of another.
func (v *villain) lyingIndex() string {
	names := v.names("segments/")
	a, b := v.objects[names[0]], must(hex.DecodeString(filepath.Base(names[1])))
	t := a[len(a)-segment.TrailerSize:]
	offset, length := binary.LittleEndian.Uint64(t[16:]), binary.LittleEndian.Uint32(t[24:])
	p := append(u32(1), b...)
	p = append(append(p, u32(uint32(len(v.objects[names[1]])/4096))...), u32(length)...)
	return v.put(keys.KindIndex, "index/footers/"+random32, append(append(p, a[offset:][:length]...), t...))
}

// ring says that the records of one segment went to another, and back.
func (v *villain) ring() string {
	names := v.names("segments/")
	a, b := must(hex.DecodeString(filepath.Base(names[0]))), must(hex.DecodeString(filepath.Base(names[1])))
	if bytes.Compare(a, b) > 0 {
		a, b = b, a
	}
	p := append(append(append(u32(2), u32(2)...), a...), b...)
	p = append(append(append(append(p, a...), u32(1)...), b...), u32(1)...)
	for place := range 2 {
		run := append(u32(0), 0xff, 0xff, byte(1-place), 0)
		p = append(append(p, run...), u32(0)...)
	}
	v.put(keys.KindMoves, "index/moves/"+random32, p)
	return ""
}

func (v *villain) allDamaged() []byte {
	var list []string
	for _, n := range v.names("segments/") {
		list = append(list, fmt.Sprintf(`{"block":"%064d","at":{"segment":%q,"record":4294967295}}`, 0, filepath.Base(n)))
	}
	return []byte(`{"records":[` + strings.Join(list, ",") + `]}`)
}

// What a hostile repository may cost: memory, and time of the processor, so that
// it does not matter what else the machine does.
const (
	hostileMemory = 256 << 20
	hostileTime   = 5 * time.Second
)

// worked is how long processors have worked for this process.
func worked(t *testing.T) time.Duration {
	t.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func TestHostileRepositories(t *testing.T) {
	// D7, D9, D26, D30. Each is opened, listed, restored, verified, collected
	// and read into a new catalog: no wrong byte comes out, the object is named,
	// and neither memory nor time is what the enemy says. make test tries a part
	// of them, PLATTER_TEST_LONG=1 all.
	sweep(t)
	limit := debug.SetMemoryLimit(96 << 20) // as platter does by its --memory
	defer debug.SetMemoryLimit(limit)
	tried, rng := 0, rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 1))
	for _, exhibits := range []func(*testing.T) *exhibit{newExhibit, newSealedExhibit} {
		x := exhibits(t)
		for _, name := range sortedKeys(hostilities) {
			h := hostilities[name]
			if rng.IntN(8) > 0 && !long() {
				continue
			}
			tried++
			v := &villain{T: t, exhibit: x, changes: map[string][]byte{}}
			want := h(v)
			v.suffer(name, want)
		}
	}
	t.Logf("%d hostile repositories of %d", tried, 2*len(hostilities))
}

// suffer tries everything on a repository and wants its errors to be right.
func (v *villain) suffer(name, want string) {
	v.Helper()
	if v.env.Repo.Keys.Encrypted() {
		name += ", sealed"
	}
	path := v.lay()
	v.changes = nil
	debug.FreeOSMemory()
	watched := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0) == nil
	base, start := resident(v.T, "VmRSS"), worked(v.T)
	said, err := v.everything(path)
	took, peak := worked(v.T)-start, resident(v.T, "VmHWM")-base
	if err != nil {
		v.Errorf("%s: %v", name, err)
	}
	if want != "" && !strings.Contains(said, want) && !strings.Contains(said, filepath.Base(want)) {
		v.Errorf("%s: nothing names %s:\n%s", name, want, said)
	}
	if took > hostileTime || watched && peak > hostileMemory {
		v.Errorf("%s: took %v and %d MiB", name, took, peak>>20)
	}
	if testing.Verbose() {
		v.Logf("%-45s %6d ms %4d MiB", name, took.Milliseconds(), peak>>20)
	}
}

// lay writes the repository to a directory.
func (v *villain) lay() string {
	v.Helper()
	path := filepath.Join(v.TempDir(), "repository")
	write := func(name string, object []byte) {
		file := filepath.Join(path, filepath.FromSlash(name))
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, object, 0o600)); err != nil {
			v.Fatal(err)
		}
	}
	for name, object := range v.objects {
		if _, changed := v.changes[name]; !changed {
			write(name, object)
		} else if err := os.MkdirAll(filepath.Join(path, filepath.Dir(name)), 0o700); err != nil {
			v.Fatal(err)
		}
	}
	for name, object := range v.changes {
		if object != nil {
			write(name, object)
		}
	}
	if v.after != nil {
		v.after(path)
	}
	return path
}

// everything does all that one does with a repository, and returns all that was
// said. Its error is what must never be: a wrong byte.
func (v *villain) everything(path string) (said string, err error) {
	ctx := context.Background()
	var mu sync.Mutex
	var b strings.Builder
	say := func(what string, err error) {
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			fmt.Fprintf(&b, "%s: %v\n", what, err)
		}
	}
	st, err := dir.Open(path, vfs.OS())
	if err != nil {
		return "", err
	}
	defer st.Close()
	r, err := repo.Unlock(ctx, st, v.unlock)
	if err != nil {
		say("config or keys/"+random32+": open", err)
		for name := range v.objects {
			if strings.HasPrefix(name, "keys/") {
				say(name, err) // no slot opens: which, platter key list says
			}
		}
		return b.String(), nil
	}
	warn := func(s string) { say("warning", errors.New(s)) }
	bare := &Env{Repo: r, Memory: 32 << 20, Host: "host", Version: "test", Warn: warn}
	images, _, err := Images(ctx, bare, "")
	say("images", err)
	for _, m := range images {
		if err := v.restored(bare, m, say); err != nil {
			return b.String(), err
		}
	}
	verify := func(env *Env) {
		report, err := Verify(ctx, env, VerifyOptions{ReadData: true})
		say("verify", err)
		if report != nil {
			for _, d := range report.Damage {
				say("damage", fmt.Errorf("%s: %s", d.Object, d.Problem))
			}
			for _, f := range report.Forged {
				say("forged", fmt.Errorf("%s: %s", f.Object, f.Problem))
			}
		}
	}
	verify(bare)
	if list, err := r.KeySlots(ctx); err == nil {
		for _, s := range list {
			say(s.Name, s.Problem)
		}
	}
	opts := catalog.Options{Dir: v.TempDir(), Repository: r.ID, BlockSize: 4096, Memory: catalog.MinMemory}
	c, report, err := catalog.Rebuild(ctx, opts, r, nil)
	if err != nil {
		say("rebuild", err)
		return b.String(), nil
	}
	defer c.Close()
	for _, w := range report.Warnings {
		say("rebuild", errors.New(w))
	}
	warm := *bare
	warm.Catalog = c
	_, err = Collect(ctx, &warm, CollectOptions{MaxDelete: 1})
	say("collect", err)
	for _, m := range must(allImages(ctx, &warm)) {
		if err := v.restored(&warm, m, say); err != nil {
			return b.String(), err
		}
	}
	return b.String(), nil
}

// restored restores an image of moderate size.
func (v *villain) restored(env *Env, m *image.Manifest, say func(string, error)) error {
	if m.Size > 1<<30 {
		return nil
	}
	target := filepath.Join(v.TempDir(), "target")
	_, err := Restore(context.Background(), env, RestoreOptions{Image: m.ID.String(), Target: target, Confirm: yes, NoReadBack: true})
	say("restore", err)
	want, ok := v.want[m.ID]
	if !ok {
		return nil
	}
	if got, e := os.ReadFile(target); err == nil && (e != nil || !bytes.Equal(got, want)) {
		return fmt.Errorf("image %s restores to other bytes", m.ID)
	}
	return nil
}
