package job

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cespare/xxhash/v2"

	"platter/image"
	"platter/image/keys"
	"platter/image/repo"
	"platter/image/segment"
	"platter/image/store"
	"platter/image/store/mem"
	"platter/retention"
)

// A village is an encrypted repository that an administrator and two agents write
// to. One of the agents has been broken into.
type village struct {
	objects map[string][]byte
	want    map[image.ImageID][]byte // of all images but the rogue's
	disk    []byte                   // the victim's, as of its newest image
	admin   *keys.Credentials
	victim  *keys.Credentials
	rogue   *keys.Credentials
	helper  string // an age recipient whose identity opens a slot of an agent
}

func keyFileOf(c byte) *keys.Credentials {
	return &keys.Credentials{KeyFile: bytes.Repeat([]byte{c}, keys.MinKeyFile)}
}

func newVillage(t *testing.T) *village {
	t.Helper()
	ctx := context.Background()
	w := &village{want: map[image.ImageID][]byte{}, admin: keyFileOf(1), victim: keyFileOf(2), rogue: keyFileOf(3)}
	st := mem.New()
	st.Advance(time.Since(mem.Epoch()))
	r, err := repo.Init(ctx, st, repo.InitOptions{BlockSize: 4096, IDAlgorithm: algorithm(), Encryption: &repo.Encryption{KeyFile: w.admin.KeyFile}})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []*keys.Credentials{w.victim, w.rogue} {
		if _, err := r.AddSlot(ctx, must(r.Keys.NewWriter(true)), func(d *keys.Domain) (string, []byte, error) { return d.KeyFileSlot(c.KeyFile, "agent") }, c); err != nil {
			t.Fatal(err)
		}
	}
	_, w.helper, err = keys.NewRecovery()
	if err != nil {
		t.Fatal(err)
	}
	admin, victim, rogue := w.env(t, st, w.admin), w.env(t, st, w.victim), w.env(t, st, w.rogue)
	rng := seeded(t, 51)
	d := &disk{name: "disk", data: make([]byte, 140*4096+99)}
	other := &disk{name: "other", data: make([]byte, 20*4096)}
	random(rng, d.data)
	random(rng, other.data)
	keep := func(env *Env, d *disk) *image.Manifest {
		m := mustBackup(t, env, d, BackupOptions{}).Image
		w.want[m.ID] = bytes.Clone(d.data)
		return m
	}
	gone := keep(victim, d)
	for range 2 {
		random(rng, d.data[4096*rng.IntN(100):][:5000])
		keep(victim, d)
		keep(admin, other)
	}
	w.disk = bytes.Clone(d.data)
	mustBackup(t, rogue, &disk{name: "rogue", data: bytes.Repeat([]byte("rogue"), 4000)}, BackupOptions{})
	mustVerify(t, admin, everyByte())
	keep(victim, d)
	extra := &disk{name: "extra", data: make([]byte, 4096)}
	random(rng, extra.data)
	forget(t, admin, mustBackup(t, admin, extra, BackupOptions{}).Image)
	forget(t, synced(t, admin), gone)
	delete(w.want, gone.ID)
	mustCollect(t, admin, CollectOptions{Grace: time.Hour, MaxDelete: 1})
	w.objects = map[string][]byte{}
	eachObject(t, st, func(name string, object []byte) { w.objects[name] = object })
	return w
}

// env opens a store with what somebody has, and a new catalog.
func (w *village) env(t *testing.T, st store.Store, c *keys.Credentials) *Env {
	t.Helper()
	r, err := repo.Unlock(context.Background(), st, c)
	if err != nil {
		t.Fatal(err)
	}
	return envOf(t, r)
}

// A burglar tries one thing, with all that the rogue's machine holds.
type burglar struct {
	*forger
	*village
	keys *keys.Domain
	st   *mem.Store
	put  []string // names of what is there because of it
}

// plant puts an object where there is none.
func (b *burglar) plant(name string, object []byte) {
	b.Helper()
	if err := b.st.Put(context.Background(), name, object); err != nil {
		b.Fatalf("plant %s: %v", name, err)
	}
	b.put = append(b.put, name)
}

// over tries to put an object where there is one.
func (b *burglar) over(name string) {
	b.Helper()
	if err := b.st.Put(context.Background(), name, []byte("junk")); !errors.Is(err, store.ErrExists) {
		b.Errorf("%s was written over: %v", name, err)
	}
}

// seal makes an object with the rogue's keys.
func (b *burglar) seal(kind, name string, v any) []byte {
	b.Helper()
	object, _, err := b.keys.Seal(kind, name, v)
	if err != nil {
		b.Fatal(err)
	}
	return object
}

func (b *burglar) forge(kind, name string, v any) { b.Helper(); b.plant(name, b.seal(kind, name, v)) }

// names lists the objects that were there before.
func (b *burglar) names(prefix string) []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(b.objects)), func(n string) bool { return !strings.HasPrefix(n, prefix) })
}

// image returns the victim's newest image and the name of its manifest.
func (b *burglar) image() (string, *image.Manifest) {
	b.Helper()
	return b.newest("host/disk")
}

func (b *burglar) newest(volume string) (name string, newest *image.Manifest) {
	b.Helper()
	for _, n := range b.names("images/") {
		if m := must(b.forger.env.Repo.Manifest(context.Background(), n)); m.Volume == volume && (newest == nil || m.Seq > newest.Seq) {
			name, newest = n, m
		}
	}
	return name, newest
}

// line is the folder of the victim's images, and the number of its newest.
func (b *burglar) line() (tag string, seq uint64) {
	b.Helper()
	name, m := b.image()
	tag, _, _ = repo.ParseManifestName(name)
	return tag, m.Seq
}

// blocks are IDs of the victim's newest image, as its agent's key tells them.
func (b *burglar) blocks() []image.ID {
	b.Helper()
	_, m := b.image()
	root := must(b.forger.env.reader().Page(context.Background(), m.Root, m.RootAt))
	leaf := must(b.forger.env.reader().Page(context.Background(), root.Entries[0], root.Hints[0]))
	return leaf.Entries[:]
}

// junk stores junk under the IDs of the victim's blocks.
func (b *burglar) junk(records int) []image.Location {
	b.Helper()
	var list []forged
	for _, id := range b.blocks()[:records] {
		list = append(list, forged{id, bytes.Repeat([]byte("junk"), 1024)})
	}
	return b.segment(segment.Data, list...)
}

func (b *burglar) segment(kind segment.Kind, records ...forged) []image.Location {
	b.Helper()
	at := b.forger.segment(kind, records...)
	b.put = append(b.put, segment.Name(at[0].Segment))
	return at
}

// as changes the keys that the burglar writes with.
func (b *burglar) as(d *keys.Domain) {
	r := *b.forger.env.Repo
	r.Keys, b.keys = d, d
	b.forger.env = &Env{Repo: &r, Memory: 8 << 20, Host: "host", Catalog: b.forger.env.Catalog}
}

// epoch is that of the next condemned list, list its name.
func (b *burglar) epoch() uint64 {
	b.Helper()
	return must(b.forger.env.Repo.NewestCondemned(context.Background())).Epoch + 1
}

func (b *burglar) list() string { b.Helper(); return fmt.Sprintf("trash/segments/%016x", b.epoch()) }

// segments of the repository as listed, without the rogue's.
func (b *burglar) condemned() (list []repo.CondemnedSegment) {
	for _, n := range b.names("segments/") {
		var id image.SegmentID
		if err := id.UnmarshalText([]byte(n[len(n)-32:])); err != nil {
			b.Fatal(err)
		}
		list = append(list, repo.CondemnedSegment{Segment: id, Size: int64(len(b.objects[n])), Epoch: 1})
	}
	return list
}

// An attempt is one thing that a rooted agent tries.
type attempt struct {
	what string
	do   func(b *burglar)
	// silent: there is nothing to name, the store itself or the reader's rules
	// make it nothing at all.
	silent bool
	// stops: a collection deletes nothing, and says which object is why.
	stops bool
}

func attempts() []attempt {
	manifest := func(b *burglar, tag string, seq uint64, change func(m *image.Manifest)) {
		_, m := b.image()
		m.Seq, m.ID = seq, image.ImageID{9, byte(seq)}
		change(m)
		b.forge(keys.KindManifest, fmt.Sprintf("images/%s/%016x", tag, seq), m)
	}
	mine := func(b *burglar) func(m *image.Manifest) {
		return func(m *image.Manifest) { m.Writer, m.WriteOnly = b.keys.Writer().String(), true }
	}
	grave := func(b *burglar, seq uint64, own bool) {
		name, m := b.image()
		tag, _, _ := repo.ParseManifestName(name)
		if own {
			m.Writer = b.keys.Writer().String()
		}
		m.Seq = seq
		g := fmt.Sprintf("trash/images/%s/%016x", tag, seq)
		b.forge(keys.KindTombstone, g, repo.Tombstone{Image: *m, Reason: "pruned", Time: time.Now()})
	}
	id := strings.Repeat("5a", 16)
	// impostor writes with keys of the right structure and signs as it likes.
	impostor := func(b *burglar) { b.as(&keys.Domain{ID: b.keys.ID, Structure: b.keys.Structure}) }
	return []attempt{
		// Junk for blocks.
		{what: "junk under the IDs of known blocks", do: func(b *burglar) { b.junk(100) }},
		{what: "junk under one ID a hundred times", do: func(b *burglar) {
			for range 20 {
				x := forged{b.blocks()[0], bytes.Repeat([]byte("junk"), 1024)}
				b.segment(segment.Data, x, x, x, x, x)
			}
		}},
		{what: "junk under the ID of a page", do: func(b *burglar) {
			_, m := b.image()
			b.segment(segment.Pages, forged{m.Root, new(image.Page).Encode(nil)})
		}},
		{what: "another's pages, with hints that lead to junk", do: func(b *burglar) {
			at := b.junk(100)
			_, m := b.image()
			root := must(b.forger.env.reader().Page(context.Background(), m.Root, m.RootAt))
			leaf := must(b.forger.env.reader().Page(context.Background(), root.Entries[0], root.Hints[0]))
			copy(leaf.Hints[:], at)
			root.Hints[0] = b.segment(segment.Pages, forged{root.Entries[0], leaf.Encode(nil)})[0]
			at = b.segment(segment.Pages, forged{m.Root, root.Encode(nil)})
			b.forger.commit(m.Size, m.Root, at[0])
		}},
		{what: "another's pages, with hints that lead to other records of the victim's", silent: true, do: func(b *burglar) {
			_, m := b.image()
			root := must(b.forger.env.reader().Page(context.Background(), m.Root, m.RootAt))
			leaf := must(b.forger.env.reader().Page(context.Background(), root.Entries[0], root.Hints[0]))
			slices.Reverse(leaf.Hints[:])
			b.segment(segment.Pages, forged{root.Entries[0], leaf.Encode(nil)})
		}},
		{what: "blocks that are right, in a segment of the rogue's", silent: true, do: func(b *burglar) {
			b.segment(segment.Data, forged{b.blocks()[0], b.disk[:4096]})
		}},
		{what: "another's records moved under other IDs", do: func(b *burglar) {
			_, m := b.image()
			root := must(b.forger.env.reader().Page(context.Background(), m.Root, m.RootAt))
			leaf := must(b.forger.env.reader().Page(context.Background(), root.Entries[0], root.Hints[0]))
			f := must(b.forger.env.reader().Footer(context.Background(), leaf.Hints[0].Segment))
			w := b.forger.env.Repo.NewSegment(make([]byte, 1<<20), segment.Data, [16]byte{1})
			for n := range 5 {
				payload := make([]byte, f.Records[n].Stored)
				if err := b.st.ReadAt(context.Background(), segment.Name(f.ID), payload, f.Records[n].Offset); err != nil {
					b.Fatal(err)
				}
				moved := must(f.Move(n, payload))
				moved.ID = f.Records[(n+1)%5].ID
				w.AddMoved(moved)
			}
			data, footer := w.Seal()
			b.plant(segment.Name(footer.ID), data)
		}},
		{what: "a segment that nobody signed", do: func(b *burglar) {
			at := b.junk(1)
			object := must(b.st.Get(context.Background(), segment.Name(at[0].Segment), 1<<20))
			b.st.Replace(segment.Name(at[0].Segment), unsigned(object, nil))
		}},
		{what: "a segment with another's certificate", do: func(b *burglar) {
			at := b.junk(1)
			victim := b.objects[b.names("segments/")[0]]
			object := must(b.st.Get(context.Background(), segment.Name(at[0].Segment), 1<<20))
			b.st.Replace(segment.Name(at[0].Segment), unsigned(object, victim[len(victim)-512+144:][:104]))
		}},
		{what: "a segment under a certificate with more rights", do: func(b *burglar) {
			at := b.junk(1)
			object := must(b.st.Get(context.Background(), segment.Name(at[0].Segment), 1<<20))
			c := b.keys.Certificate()
			c[32] = 3
			b.st.Replace(segment.Name(at[0].Segment), unsigned(object, c[:]))
		}},
		{what: "another's segment under a new name", do: func(b *burglar) {
			b.plant("segments/5a/"+id, b.objects[b.names("segments/")[0]])
		}},
		{what: "a segment of nothing but noise", do: func(b *burglar) { b.plant("segments/5a/"+id, bytes.Repeat([]byte("noise..."), 1024)) }},
		{what: "writing over another's segments", silent: true, do: func(b *burglar) {
			for _, n := range b.names("segments/") {
				b.over(n)
			}
		}},

		// Images.
		{what: "writing over manifests", silent: true, do: func(b *burglar) {
			for _, n := range b.names("images/") {
				b.over(n)
			}
		}},
		{what: "an image after another's newest, as its own", do: func(b *burglar) {
			tag, seq := b.line()
			manifest(b, tag, seq+1, mine(b))
		}},
		{what: "an image after another's newest, as the other's", do: func(b *burglar) {
			tag, seq := b.line()
			manifest(b, tag, seq+1, func(*image.Manifest) {})
		}},
		{what: "an image after another's newest, as that of one who reads", do: func(b *burglar) {
			tag, seq := b.line()
			manifest(b, tag, seq+1, func(m *image.Manifest) { m.WriteOnly = false })
		}},
		{what: "images under the next numbers of another's line", do: func(b *burglar) {
			tag, seq := b.line()
			for n := range uint64(5) {
				manifest(b, tag, seq+1+n, mine(b))
			}
		}},
		{what: "an image under the last number there is", do: func(b *burglar) {
			tag, _ := b.line()
			manifest(b, tag, math.MaxUint64, mine(b))
		}},
		{what: "noise under the next numbers of another's line", stops: true, do: func(b *burglar) {
			tag, seq := b.line()
			for n := range uint64(3) {
				b.plant(fmt.Sprintf("images/%s/%016x", tag, seq+1+n), []byte("noise"))
			}
		}},
		{what: "noise under the last number there is", stops: true, do: func(b *burglar) {
			tag, _ := b.line()
			b.plant(fmt.Sprintf("images/%s/%016x", tag, uint64(math.MaxUint64)), []byte("noise"))
		}},
		{what: "an image in the line of those who read", do: func(b *burglar) {
			tag := b.keys.VolumeTag("host/other", "")
			manifest(b, tag, 77, func(m *image.Manifest) { mine(b)(m); m.Volume = "host/other" })
		}},
		{what: "an old image of another, again under a new number", do: func(b *burglar) {
			tag, seq := b.line()
			name, _ := b.image()
			b.plant(fmt.Sprintf("images/%s/%016x", tag, seq+1), b.objects[name])
		}, stops: true},
		{what: "images of its own, of another's volume, of all times", silent: true, stops: true, do: func(b *burglar) {
			for _, at := range []time.Time{{}, time.Now().Add(-10 * 365 * 24 * time.Hour), time.Now().Add(10 * 365 * 24 * time.Hour)} {
				m := &image.Manifest{ID: image.ImageID{7}, Volume: "host/disk", BlockSize: 4096, Size: 0, Time: at, Done: at}
				b.put = append(b.put, must(b.forger.env.Repo.Commit(context.Background(), m)))
			}
		}},
		{what: "an image of its own with the ID of another's", silent: true, do: func(b *burglar) {
			_, m := b.image()
			must(b.forger.env.Repo.Commit(context.Background(), &image.Manifest{ID: m.ID, Volume: "host/disk", BlockSize: 4096, Time: time.Now()}))
		}},
		{what: "a hundred images of its own, of another's volume, to fill what prune keeps", silent: true, do: func(b *burglar) {
			for n := range 100 {
				m := &image.Manifest{ID: image.ImageID{7, byte(n)}, Volume: "host/disk", BlockSize: 4096, Time: time.Now().Add(time.Duration(n) * time.Hour)}
				must(b.forger.env.Repo.Commit(context.Background(), m))
			}
		}},
		{what: "an image of its own whose map is nowhere", stops: true, do: func(b *burglar) {
			name := must(b.forger.env.Repo.Commit(context.Background(), &image.Manifest{ID: image.ImageID{7}, Volume: "host/rogue", BlockSize: 4096, Size: 8192, Root: image.ID{1}, Time: time.Now()}))
			b.put = append(b.put, name, image.ImageID{7}.String())
		}},

		// Trash.
		{what: "a tombstone of another's image", do: func(b *burglar) { _, seq := b.line(); grave(b, seq, false) }},
		{what: "a tombstone of another's image, as if it were its own", do: func(b *burglar) { _, seq := b.line(); grave(b, seq, true) }},
		{what: "a tombstone of another's next image", do: func(b *burglar) { _, seq := b.line(); grave(b, seq+1, false) }},
		{what: "a tombstone under the last number there is", do: func(b *burglar) { grave(b, math.MaxUint64, true) }},
		{what: "noise for the tombstone of another's next image", do: func(b *burglar) {
			tag, seq := b.line()
			b.plant(fmt.Sprintf("trash/images/%s/%016x", tag, seq+1), []byte("noise"))
		}},
		{what: "a list that condemns everything", do: func(b *burglar) {
			b.forge(keys.KindCondemned, b.list(), repo.Condemned{Epoch: b.epoch(), Segments: b.condemned()})
		}},
		{what: "a list that condemns everything, under the last epoch", do: func(b *burglar) {
			b.forge(keys.KindCondemned, "trash/segments/ffffffffffffffff", repo.Condemned{Epoch: math.MaxUint64, Segments: b.condemned()})
		}},
		{what: "a list that condemns everything, which nobody signed", do: func(b *burglar) {
			name, epoch := b.list(), b.epoch()
			impostor(b)
			b.forge(keys.KindCondemned, name, repo.Condemned{Epoch: epoch, Segments: b.condemned()})
		}, stops: true},
		{what: "an old list again under a new epoch", stops: true, do: func(b *burglar) {
			b.plant(b.list(), b.objects[b.names("trash/segments/")[0]])
		}},
		{what: "noise for the next list", stops: true, do: func(b *burglar) { b.plant(b.list(), []byte("noise")) }},
		{what: "noise for the last list there can be", stops: true, do: func(b *burglar) { b.plant("trash/segments/ffffffffffffffff", []byte("noise")) }},
		{what: "notes of damage of another's blocks", do: func(b *burglar) {
			_, m := b.image()
			root := must(b.forger.env.reader().Page(context.Background(), m.Root, m.RootAt))
			leaf := must(b.forger.env.reader().Page(context.Background(), root.Entries[0], root.Hints[0]))
			if err := b.forger.env.Repo.NoteDamage(context.Background(), leaf.Entries[:], leaf.Hints[:]); err != nil {
				b.Fatal(err)
			}
		}},
		{what: "notes of damage of all segments", do: func(b *burglar) {
			var at []image.Location
			for _, s := range b.condemned() {
				at = append(at, image.Location{Segment: s.Segment, Record: repo.WholeSegment})
			}
			if err := b.forger.env.Repo.NoteDamage(context.Background(), make([]image.ID, len(at)), at); err != nil {
				b.Fatal(err)
			}
		}},
		{what: "noise for a note of damage", stops: true, do: func(b *burglar) { b.plant("trash/damaged/"+id, []byte("noise")) }},

		// Attestations.
		{what: "an attestation of its own junk", do: func(b *burglar) {
			at := b.junk(100)
			f := must(b.forger.env.Repo.Footer(context.Background(), at[0].Segment))
			b.forge(keys.KindAttested, "attest/"+id, map[string]any{"segments": []repo.Attested{{Segment: f.ID, Digest: f.Digest}}})
		}},
		{what: "an attestation of its own junk, by another's certificate", do: func(b *burglar) {
			at := b.junk(100)
			f := must(b.forger.env.Repo.Footer(context.Background(), at[0].Segment))
			name := "attest/" + id
			object := b.seal(keys.KindAttested, name, map[string]any{"segments": []repo.Attested{{Segment: f.ID, Digest: f.Digest}}})
			copy(object[len(object)-200:], b.objects[b.names("attest/")[0]][len(b.objects[b.names("attest/")[0]])-200:][:104])
			b.plant(name, object)
		}},
		{what: "an administrator's attestation under another name", do: func(b *burglar) {
			b.plant("attest/"+id, b.objects[b.names("attest/")[0]])
		}},

		// Leases.
		{what: "a lease of a backup that never ends", silent: true, stops: true, do: func(b *burglar) {
			run := id
			b.forge(keys.KindLease, "leases/"+run+"-00000001", repo.Lease{Run: run, Kind: repo.LeaseBackup, Host: "elsewhere", Boot: "boot"})
		}},
		{what: "a lease of a collector", do: func(b *burglar) {
			b.forge(keys.KindLease, "leases/"+id+"-00000001", repo.Lease{Run: id, Kind: repo.LeaseCollect, Host: "elsewhere", Boot: "boot"})
		}},
		{what: "a lease that nobody signed", stops: true, do: func(b *burglar) {
			impostor(b)
			b.forge(keys.KindLease, "leases/"+id+"-00000001", repo.Lease{Run: id, Kind: repo.LeaseBackup})
		}},
		{what: "noise for a lease", stops: true, do: func(b *burglar) { b.plant("leases/"+id+"-00000001", []byte("noise")) }},

		// Keys and config.
		{what: "a slot that has another write as the rogue", do: func(b *burglar) {
			name, object, err := repo.AgeSlot(b.helper, "helper")(b.keys)
			if !errors.Is(err, keys.ErrRights) {
				b.Errorf("an agent made slot %s of %d bytes: %v", name, len(object), err)
			}
			b.forge(keys.KindSlot, "keys/"+id, keys.Slot{Type: keys.SlotAge, Label: "helper", Recipient: b.helper, Sealed: "AAAA"})
		}},
		{what: "its own slot under another name", do: func(b *burglar) { b.plant("keys/"+id, b.objects[b.names("keys/")[0]]) }},
		{what: "a slot that nobody signed", do: func(b *burglar) {
			object, _, err := (*keys.Domain)(nil).Seal(keys.KindSlot, "keys/"+id, keys.Slot{Type: keys.SlotPassphrase, Argon2id: &keys.Argon2id{Time: 16, Memory: 128 << 10, Threads: 255}, Salt: id, Sealed: "AAAA"})
			if err != nil {
				b.Fatal(err)
			}
			b.plant("keys/"+id, object)
		}},
		{what: "writing over the config and the slots", silent: true, do: func(b *burglar) {
			b.over("config")
			for _, n := range b.names("keys/") {
				b.over(n)
			}
		}},

		// What there is no rule for.
		{what: "objects of names that nobody reads", silent: true, do: func(b *burglar) {
			for _, n := range []string{"images/x", "images/" + id + "/1", "segments/" + id, "leases", "config2", "trash/other/" + id, "index/" + id} {
				b.plant(n, []byte("noise"))
			}
		}},
		{what: "an index of its own", silent: true, do: func(b *burglar) {
			b.forge(keys.KindIndex, "index/"+id, map[string]any{"segments": b.condemned()})
			b.forge(keys.KindMoves, "index/"+strings.Repeat("6b", 16), map[string]any{"segments": b.condemned()})
		}},
	}
}

// unsigned returns a segment with another certificate, its checksum right.
func unsigned(object, certificate []byte) []byte {
	b := bytes.Clone(object)
	t := b[len(b)-512:]
	clear(t[144:312])
	copy(t[144:], certificate)
	putSum(t)
	return b
}

func TestRootedAgentHarmsNobodyElse(t *testing.T) {
	sweep(t)
	w := newVillage(t)
	list := attempts()
	if len(list) < 40 {
		t.Fatalf("%d attempts", len(list))
	}
	for _, a := range list {
		t.Run(strings.ReplaceAll(a.what, " ", "-"), func(t *testing.T) {
			st := mem.New()
			st.Advance(time.Since(mem.Epoch()))
			for name, object := range w.objects {
				st.Replace(name, object)
			}
			rogue := w.env(t, st, w.rogue)
			b := &burglar{forger: &forger{t, rogue}, village: w, keys: rogue.Repo.Keys, st: st}
			a.do(b)
			w.unharmed(t, st, b, a)
		})
	}
}

// unharmed goes on with everything that others do in a repository.
func (w *village) unharmed(t *testing.T, st *mem.Store, b *burglar, a attempt) {
	t.Helper()
	ctx := context.Background()
	admin, victim := w.env(t, st, w.admin), w.env(t, st, w.victim)
	all := func(when string) {
		t.Helper()
		bare := &Env{Repo: admin.Repo, Memory: 8 << 20}
		for id, want := range w.want {
			m := w.find(t, bare, id)
			for _, env := range []*Env{bare, admin} {
				if got, err := readImage(env, m); err != nil || !bytes.Equal(got, want) {
					t.Errorf("%s: image %s of %s: %v", when, m.ID, m.Volume, err)
				}
			}
		}
	}
	all("before")
	// The victim's next image stores what is new, and nothing of the junk.
	d := &disk{name: "disk", data: bytes.Clone(w.disk)}
	random(seeded(t, 52), d.data[:9000])
	for range 2 {
		m := mustBackup(t, victim, d, BackupOptions{}).Image
		if m.Writer != victim.Repo.Keys.Writer().String() || m.Stats.New > 3*4096 || m.Stats.Unchanged == 0 {
			t.Errorf("the victim's next image: %d bytes are new, %d unchanged", m.Stats.New, m.Stats.Unchanged)
		}
		w := bytes.Clone(d.data)
		if got, err := readImage(&Env{Repo: admin.Repo, Memory: 8 << 20}, m); err != nil || !bytes.Equal(got, w) {
			t.Errorf("the victim's next image differs: %v", err)
		}
	}
	// A new agent takes no junk for a block either, on a machine with an empty catalog.
	r := *admin.Repo
	r.Keys = must(admin.Repo.Keys.NewWriter(true))
	fresh := envOf(t, &r)
	m := mustBackup(t, fresh, &disk{name: "fresh", data: w.disk}, BackupOptions{}).Image
	if got, err := readImage(&Env{Repo: admin.Repo, Memory: 8 << 20}, m); err != nil || !bytes.Equal(got, w.disk) {
		t.Errorf("a new agent's image differs: %v", err)
	}
	all("after backups")
	report, _ := Verify(ctx, admin, everyByte())
	if report == nil {
		t.Fatal("verify ended without a report")
	}
	for _, d := range report.Damage {
		if d.Image != "" && w.want[idOf(t, d.Image)] != nil {
			t.Errorf("verify: an image has lost data: %+v", d)
		}
	}
	// Twice: what is condemned by the first, the second deletes.
	var problems []string
	for range 2 {
		c, err := Collect(ctx, admin, CollectOptions{MaxDelete: 1})
		if err != nil {
			problems = append(problems, err.Error())
		}
		if c != nil {
			problems = append(problems, c.Notices...)
		}
	}
	if a.stops {
		b.named(t, "collect", problems, nil)
	} else if len(problems) > 0 {
		t.Errorf("collect: %q", problems)
	}
	all("after collections")
	if !a.silent {
		b.named(t, "verify", nil, report)
	}
	// Prune keeps the newest of everybody's.
	synced(t, admin)
	if _, err := Prune(ctx, admin, PruneOptions{Policy: retention.Policy{Last: 1}}); err != nil && !a.stops {
		t.Errorf("prune: %v", err)
	}
	m = must(Find(ctx, victim, "disk"))
	if got, err := readImage(&Env{Repo: admin.Repo, Memory: 8 << 20}, m); err != nil || !bytes.Equal(got, d.data) {
		t.Errorf("after a prune, the victim's newest image: %v", err)
	}
	mustBackup(t, victim, d, BackupOptions{})
}

// find returns an image that is not the rogue's.
func (w *village) find(t *testing.T, env *Env, id image.ImageID) *image.Manifest {
	t.Helper()
	rogue := must(repo.Unlock(context.Background(), env.Repo.Store, w.rogue)).Keys.Writer().String()
	for _, m := range must(allImages(context.Background(), env)) {
		if m.ID == id && m.Writer != rogue {
			return m
		}
	}
	t.Fatalf("image %s is gone", id)
	return nil
}

func idOf(t *testing.T, text string) (id image.ImageID) {
	t.Helper()
	if err := id.UnmarshalText([]byte(text)); err != nil {
		t.Fatal(err)
	}
	return id
}

// named wants the burglar's work told by the name of an object, or by its
// writer.
func (b *burglar) named(t *testing.T, who string, problems []string, r *VerifyReport) {
	t.Helper()
	if r != nil {
		for _, d := range r.Damage {
			problems = append(problems, d.Object+" "+d.Image+" "+d.Problem)
		}
		for _, f := range r.Forged {
			problems = append(problems, f.Object+" "+f.Problem)
		}
	}
	for _, p := range problems {
		if w := b.keys.Writer().String(); w != "" && strings.Contains(p, w[:16]) {
			return
		}
		for _, name := range b.put {
			if strings.Contains(p, name) {
				return
			}
		}
	}
	t.Errorf("%s names none of %q: %q", who, b.put, problems)
}

// putSum makes the checksum of a segment's trailer right.
func putSum(trailer []byte) {
	n := len(trailer) - 8
	binary.LittleEndian.PutUint64(trailer[n:], xxhash.Sum64(trailer[:n]))
}
