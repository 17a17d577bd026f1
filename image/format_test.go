package image_test

import (
	"bufio"
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/hpke"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"filippo.io/age"
	"github.com/cespare/xxhash/v2"
	"github.com/zeebo/blake3"
	"golang.org/x/crypto/argon2"
)

// What follows reads golden repositories by FORMAT.md alone: nothing of the
// packages under test is used, so that page, code and objects are held
// against each other.

const goldenDir = "testdata/golden"

func TestGoldenRepositoriesAreAsSpecified(t *testing.T) {
	list, err := os.ReadDir(goldenDir)
	if err != nil || len(list) < 2 {
		t.Fatalf("%d golden repositories, %v; want 2 or more", len(list), err)
	}
	for _, e := range list {
		t.Run(e.Name(), func(t *testing.T) {
			d := &decoder{T: t, objects: map[string][]byte{}, places: map[string][]place{}, segments: map[string][]record{}, moved: map[string][]move{}, kinds: map[string]int{}, signers: map[string]byte{}}
			d.load(filepath.Join(goldenDir, e.Name(), "repo"))
			d.config(filepath.Join(goldenDir, e.Name()))
			for name := range d.objects {
				d.object(name)
			}
			for _, kind := range []string{"config", "keys", "segment 1", "segment 2", "images", "leases", "tombstones", "condemned", "damaged", "pins", "verified", "index of moves"} {
				if d.kinds[kind] == 0 {
					t.Errorf("no %s", kind)
				}
			}
			if d.sealed {
				d.want(d.kinds["attested"] > 0 && len(d.signers) == 2, "%d attestations, signers %v", d.kinds["attested"], d.signers)
			}
			d.images(filepath.Join(goldenDir, e.Name(), "images.txt"))
		})
	}
}

type decoder struct {
	*testing.T
	objects    map[string][]byte
	repository string
	blockSize  int64
	mask       uint64
	id         []byte // keys
	structure  []byte
	sealed     bool
	private    hpke.PrivateKey // of the data key pair
	admin      ed25519.PublicKey
	signers    map[string]byte     // rights by public key, of who signed anything
	places     map[string][]place  // of blocks and pages by ID
	segments   map[string][]record // by ID
	moved      map[string][]move   // by ID of the segment they were in
	kinds      map[string]int
	manifests  []manifest
	hinted     int
}

// A move is of count records from the first on, to another segment.
type move struct {
	first, count int
	to           string
	at           int
}

type place struct {
	kind  byte
	plain []byte
}

type record struct{ id string }

type manifest struct {
	ID          string `json:"id"`
	Volume      string `json:"volume"`
	Seq         uint64 `json:"seq"`
	BlockSize   int64  `json:"block_size"`
	Size        int64  `json:"size"`
	Root        string `json:"root"`
	Predecessor string `json:"predecessor"`
	RootAt      struct {
		Segment string `json:"segment"`
		Record  int    `json:"record"`
	} `json:"root_at"`
	Writer    string `json:"writer"`
	WriteOnly bool   `json:"write_only"`
	digest    string
}

func (d *decoder) load(root string) {
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		d.objects[filepath.ToSlash(strings.TrimPrefix(path, root+string(filepath.Separator)))] = data
		return err
	})
	if err != nil {
		d.Fatal(err)
	}
}

func derive(context string, material []byte) []byte {
	key := make([]byte, 32)
	blake3.DeriveKey(context, material, key)
	return key
}

func keyed(key []byte, parts ...[]byte) []byte {
	h, err := blake3.NewKeyed(key)
	if err != nil {
		panic(err)
	}
	for _, p := range parts {
		h.Write(p)
	}
	return h.Sum(nil)
}

func (d *decoder) want(ok bool, format string, args ...any) {
	d.Helper()
	if !ok {
		d.Fatalf(format, args...)
	}
}

func zero(p []byte) bool { return len(bytes.Trim(p, "\x00")) == 0 }

// open takes a small object out of its envelope.
func (d *decoder) open(name, kind string, v any) (digest string) {
	payload, digest := d.payload(name, kind)
	if err := json.Unmarshal(payload, v); err != nil {
		d.Fatalf("%s: %v", name, err)
	}
	return digest
}

func (d *decoder) payload(name, kind string) (payload []byte, digest string) {
	b := d.objects[name]
	const tail = 104 + 64 + 32
	d.want(len(b) >= 56+tail, "%s: %d bytes", name, len(b))
	d.want(string(b[:8]) == "PLTR"+kind, "%s: begins %q", name, b[:8])
	var protection byte
	if d.sealed && kind != "CONF" && kind != "KEYS" {
		protection = 1
	}
	d.want(binary.LittleEndian.Uint16(b[8:]) == 1 && b[10] == protection && zero(b[11:16]), "%s: version and protection %x", name, b[8:16])
	n := binary.LittleEndian.Uint64(b[16:])
	d.want(n == uint64(len(b)-56-tail), "%s: payload of %d bytes in %d", name, n, len(b))
	d.want(zero(b[24:56]) == (protection == 0), "%s: salt", name)
	key := derive("platter 2026 public object digest", nil)
	if kind != "CONF" && kind != "KEYS" {
		key = derive("platter 2026 object digest", d.structure)
	}
	length := binary.LittleEndian.AppendUint32(nil, uint32(len(name)))
	sum := keyed(key, length, []byte(name), b[:len(b)-32])
	d.want(bytes.Equal(sum, b[len(b)-32:]), "%s: digest differs", name)
	inner := keyed(key, length, []byte(name), b[:len(b)-96])
	rights := d.signed(name, b[len(b)-tail:][:104], b[len(b)-96:][:64], join([]byte("platter 2026 object signature"), inner))
	d.want(!d.sealed || kind == "MANI" || kind == "LEAS" || kind == "TOMB" || kind == "DAMG" || rights&2 != 0, "%s: signed with rights %d", name, rights)
	payload = b[56 : 56+n]
	if protection == 1 {
		payload = d.decrypt(name, derive("platter 2026 object", join(d.structure, b[24:56])), make([]byte, 12), payload, nil)
	}
	return payload, hex.EncodeToString(sum)
}

// signed checks a signature and returns the rights of who made it.
func (d *decoder) signed(name string, certificate, signature, message []byte) byte {
	d.Helper()
	if !d.sealed {
		d.want(zero(certificate) && zero(signature), "%s: a signature in clear", name)
		return 3
	}
	if d.admin == nil {
		return 3 // a slot that is to be opened first: slots looks again
	}
	d.want(ed25519.Verify(d.admin, join([]byte("platter 2026 writer"), certificate[:40]), certificate[40:]), "%s: certificate", name)
	d.want(ed25519.Verify(certificate[:32], message, signature), "%s: signature", name)
	d.want(zero(certificate[33:40]) && (certificate[32] == 0 || certificate[32] == 3), "%s: rights %x", name, certificate[32:40])
	d.signers[hex.EncodeToString(certificate[:32])] = certificate[32]
	return certificate[32]
}

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

// decrypt opens AES-256-GCM.
func (d *decoder) decrypt(what string, key, nonce, b, bound []byte) []byte {
	d.Helper()
	plain, err := gcm(key).Open(nil, nonce, b, bound)
	d.want(err == nil, "%s: %v", what, err)
	return plain
}

func gcm(key []byte) cipher.AEAD {
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	return aead
}

func (d *decoder) config(dir string) {
	var c struct {
		Version     int
		Repository  string
		BlockSize   int64  `json:"block_size"`
		IDAlgorithm string `json:"id_algorithm"`
		Compression string
		Encryption  string
		Domain      string
		Features    []string
	}
	d.sealed = bytes.Contains(d.objects["config"], []byte(`"encryption":"aes-256-gcm+x25519"`))
	d.open("config", "CONF", &c)
	d.want(c.Version == 1 && c.Compression == "lz4" && len(c.Features) == 0, "config %+v", c)
	d.repository, d.blockSize = c.Repository, c.BlockSize
	d.mask = map[string]uint64{"xxhash64+blake3-192": 1<<64 - 1, "xxhash8+blake3-192": 0xff}[c.IDAlgorithm]
	d.want(d.mask != 0, "algorithm %q", c.IDAlgorithm)
	if c.Encryption != "none" {
		d.want(c.Encryption == "aes-256-gcm+x25519", "encryption %q", c.Encryption)
		d.slots(dir, c.Domain)
		d.open("config", "CONF", &c)
		return
	}
	for name := range d.objects {
		if !strings.HasPrefix(name, "keys/") {
			continue
		}
		var s struct {
			Type      string
			ID        string `json:"id_key"`
			Structure string `json:"structure_key"`
		}
		d.open(name, "KEYS", &s)
		id, structure := d.unhex(s.ID, 32), d.unhex(s.Structure, 32)
		print := derive("platter 2026 domain fingerprint", append(bytes.Clone(id), structure...))[:16]
		if hex.EncodeToString(print) == c.Domain && s.Type == "clear" {
			d.id, d.structure = id, structure
		}
	}
	d.want(d.id != nil, "no slot holds the keys")
}

// slots opens every key slot with what lies beside the repository.
func (d *decoder) slots(dir, domain string) {
	read := func(file string) []byte {
		b, err := os.ReadFile(filepath.Join(dir, file))
		d.want(err == nil, "%v", err)
		return b
	}
	kinds := map[string]int{}
	for name := range d.objects {
		if !strings.HasPrefix(name, "keys/") {
			continue
		}
		var s struct {
			Type, Recipient, Salt, Sealed, Writer string
			WriteOnly                             bool `json:"write_only"`
			Argon2id                              struct {
				Time, Threads uint8
				Memory        uint32 `json:"memory_kib"`
			}
		}
		d.open(name, "KEYS", &s)
		sealed, err := base64.StdEncoding.DecodeString(s.Sealed)
		d.want(err == nil, "%s: %v", name, err)
		var plain []byte
		switch s.Type {
		case "passphrase":
			a := s.Argon2id
			key := argon2.IDKey(read("password"), d.unhex(s.Salt, 16), uint32(a.Time), a.Memory, a.Threads, 32)
			plain = d.decrypt(name, key, make([]byte, 12), sealed, nil)
		case "keyfile":
			file := read("key")
			if s.WriteOnly {
				file = read("agent-key")
			}
			sum := keyed(derive("platter 2026 public object digest", nil), file)
			plain = d.decrypt(name, derive("platter 2026 key file", join(sum, d.unhex(s.Salt, 16))), make([]byte, 12), sealed, nil)
		case "age":
			identity, err := age.ParseX25519Identity(strings.TrimSpace(string(read("identity"))))
			d.want(err == nil && identity.Recipient().String() == s.Recipient, "%s: recipient %s, %v", name, s.Recipient, err)
			r, err := age.Decrypt(bytes.NewReader(sealed), identity)
			d.want(err == nil, "%s: %v", name, err)
			plain, err = io.ReadAll(r)
			d.want(err == nil, "%s: %v", name, err)
		default:
			d.Fatalf("%s: type %q", name, s.Type)
		}
		d.secrets(name, domain, plain, s.Writer, s.WriteOnly)
		d.open(name, "KEYS", &s)
		kinds[s.Type]++
	}
	d.want(kinds["passphrase"] == 1 && kinds["keyfile"] == 2 && kinds["age"] == 1, "slots %v", kinds)
}

// secrets takes in what a slot holds.
func (d *decoder) secrets(name, domain string, plain []byte, writer string, writeOnly bool) {
	var k struct {
		ID          string `json:"id_key"`
		Structure   string `json:"structure_key"`
		Public      string `json:"data_public"`
		Private     string `json:"data_private"`
		Admin       string `json:"admin_public"`
		AdminSeed   string `json:"admin_private"`
		Seed        string `json:"writer_private"`
		Certificate string `json:"certificate"`
	}
	if err := json.Unmarshal(plain, &k); err != nil {
		d.Fatalf("%s: %v", name, err)
	}
	d.id, d.structure = d.unhex(k.ID, 32), d.unhex(k.Structure, 32)
	print := derive("platter 2026 domain fingerprint", join(d.id, d.structure, d.unhex(k.Public, 32), d.unhex(k.Admin, 32)))[:16]
	d.want(hex.EncodeToString(print) == domain && (k.Private == "") == writeOnly, "%s: keys %x, write-only %v", name, print, writeOnly)
	d.admin = d.unhex(k.Admin, 32)
	c := d.unhex(k.Certificate, 104)
	public := ed25519.NewKeyFromSeed(d.unhex(k.Seed, 32)).Public().(ed25519.PublicKey)
	d.want(bytes.Equal(c[:32], public) && hex.EncodeToString(public) == writer && (c[32] == 0) == writeOnly, "%s: writer %x, %s", name, c[:33], writer)
	d.want(ed25519.Verify(d.admin, join([]byte("platter 2026 writer"), c[:40]), c[40:]), "%s: certificate", name)
	d.want((k.AdminSeed == "") == writeOnly, "%s: the administrator's key", name)
	if writeOnly {
		return
	}
	d.want(ed25519.NewKeyFromSeed(d.unhex(k.AdminSeed, 32)).Public().(ed25519.PublicKey).Equal(d.admin), "%s: the administrator's halves", name)
	private, err := ecdh.X25519().NewPrivateKey(d.unhex(k.Private, 32))
	d.want(err == nil && hex.EncodeToString(private.PublicKey().Bytes()) == k.Public, "%s: %v", name, err)
	d.private, err = hpke.NewDHKEMPrivateKey(private)
	d.want(err == nil, "%s: %v", name, err)
}

// origins returns the key of each entry of a segment's key table, and the
// origin it belongs to.
func (d *decoder) origins(name string, h []byte, kind byte) (list [][]byte, of [][]byte) {
	for i := range int(binary.LittleEndian.Uint32(h[72:])) {
		origin, wrapped := h[80+96*i:][:16], h[96+96*i:][:80]
		key := derive("platter 2026 page segment", join(d.structure, origin))
		if kind == 1 {
			var err error
			key, err = hpke.Open(d.private, hpke.HKDFSHA256(), hpke.AES256GCM(), join([]byte("platter 2026 segment key"), origin), wrapped)
			d.want(err == nil && len(key) == 32, "%s: key %d: %v", name, i, err)
		} else {
			d.want(zero(wrapped), "%s: a wrapped key of pages", name)
		}
		list, of = append(list, key), append(of, origin)
	}
	return list, of
}

func (d *decoder) unhex(s string, n int) []byte {
	b, err := hex.DecodeString(s)
	d.want(err == nil && len(b) == n, "%q: want %d hex digits", s, 2*n)
	return b
}

// object reads one object by the form of its name.
func (d *decoder) object(name string) {
	const id, tag, seq = "[0-9a-f]{32}", "[0-9a-f]{32}", "[0-9a-f]{16}"
	is := func(form string) bool { return regexp.MustCompile("^" + form + "$").MatchString(name) }
	switch {
	case name == "config":
		d.kinds["config"]++
	case is("keys/" + id):
		d.kinds["keys"]++
	case is("segments/[0-9a-f]{2}/" + id):
		d.segment(name)
	case is("images/" + tag + "/" + seq):
		var m manifest
		m.digest = d.open(name, "MANI", &m)
		d.want(name == d.manifestName(m), "%s says it is %d of %q", name, m.Seq, m.Volume)
		d.manifests = append(d.manifests, m)
		d.kinds["images"]++
	case is("leases/" + id + "-[0-9a-f]{8}"):
		var l struct{ Run, Kind string }
		d.open(name, "LEAS", &l)
		d.want(strings.HasPrefix(name, "leases/"+l.Run+"-") && (l.Kind == "backup" || l.Kind == "collect" || l.Kind == "prune"), "%s: %+v", name, l)
		d.kinds["leases"]++
	case is("trash/images/" + tag + "/" + seq):
		var g struct {
			Image          manifest
			Object         []byte
			Digest, Reason string
		}
		d.open(name, "TOMB", &g)
		d.want(name == "trash/"+d.manifestName(g.Image), "%s says it was %d of %q", name, g.Image.Seq, g.Image.Volume)
		g.Image.digest = g.Digest
		d.manifests = append(d.manifests, g.Image)
		d.objects[name[len("trash/"):]] = g.Object
		var again manifest
		d.want(d.open(name[len("trash/"):], "MANI", &again) == g.Digest && again.ID == g.Image.ID, "%s holds another manifest", name)
		delete(d.objects, name[len("trash/"):])
		d.kinds["tombstones"]++
	case is("pins/" + id):
		var p struct {
			Manifest, Image, Volume, Reason, By, Time string
			Seq                                       uint64
		}
		d.open(name, "PINS", &p)
		d.want(strings.HasPrefix(p.Manifest, "images/") && len(p.Image) == 32 && p.Seq > 0 && p.Volume != "" && p.Reason != "" && p.By != "" && p.Time != "", "%s: %+v", name, p)
		d.kinds["pins"]++
	case is("verified/" + id):
		var v struct {
			Images []struct {
				Manifest, Structure, Data, Damaged string
				Boot                               struct{ Time, Verdict string }
			}
		}
		d.open(name, "VERI", &v)
		d.want(len(v.Images) > 0, "%s: %+v", name, v)
		for _, c := range v.Images {
			d.want(strings.HasPrefix(c.Manifest, "images/") && c.Structure+c.Data+c.Damaged+c.Boot.Time != "", "%s: %+v", name, v)
		}
		d.kinds["verified"]++
	case is("screens/" + id):
		var s struct {
			Manifest string
			PNG      []byte
		}
		d.open(name, "SCRN", &s)
		d.want(strings.HasPrefix(s.Manifest, "images/") && len(s.PNG) > 0, "%s: %+v", name, s)
		d.kinds["screens"]++
	case is("trash/segments/" + seq):
		var c struct {
			Epoch    uint64
			Segments []struct {
				Segment string
				Size    int
				Epoch   uint64
			}
			Seen map[string]uint64
		}
		d.open(name, "COND", &c)
		d.want(name == fmt.Sprintf("trash/segments/%016x", c.Epoch) && len(c.Segments) > 0 && len(c.Seen) > 0, "%s: %+v", name, c)
		later := fmt.Sprintf("trash/segments/%016x", c.Epoch+1)
		for _, s := range c.Segments {
			there := len(d.objects["segments/"+s.Segment[:2]+"/"+s.Segment])
			// What an older list names may be deleted by now.
			d.want((there == s.Size || there == 0 && d.objects[later] != nil) && s.Epoch <= c.Epoch, "%s: %+v", name, s)
		}
		d.kinds["condemned"]++
	case is("trash/damaged/" + id):
		var n struct {
			Records []struct {
				Block string
				At    struct {
					Segment string
					Record  uint32
				}
			}
		}
		d.open(name, "DAMG", &n)
		d.want(len(n.Records) > 0 && len(n.Records[0].Block) == 64, "%s: %+v", name, n)
		d.kinds["damaged"]++
	case is("attest/" + id):
		var a struct {
			Segments []struct{ Segment, Digest string }
		}
		d.open(name, "ATTE", &a)
		for _, s := range a.Segments {
			b := d.objects["segments/"+s.Segment[:2]+"/"+s.Segment]
			d.want(len(b) > 512 && hex.EncodeToString(b[len(b)-400:][:32]) == s.Digest, "%s: %+v", name, s)
		}
		d.want(len(a.Segments) > 0, "%s is empty", name)
		d.kinds["attested"]++
	case is("index/footers/" + id):
		d.ends(name)
		d.kinds["index of footers"]++
	case is("index/moves/" + id):
		d.moves(name)
		d.kinds["index of moves"]++
	default:
		d.Fatalf("%s: an object of no known name", name)
	}
}

// ends reads an index of the ends of segments.
func (d *decoder) ends(name string) {
	b, _ := d.payload(name, "INDX")
	le, n := binary.LittleEndian, int(binary.LittleEndian.Uint32(b))
	entries, ends := b[4:4+24*n], b[4+24*n:]
	last := make([]byte, 16)
	for ; len(entries) > 0; entries = entries[24:] {
		id, size, footer := entries[:16], int(le.Uint32(entries[16:]))*4096, int(le.Uint32(entries[20:]))
		d.want(bytes.Compare(last, id) < 0, "%s: %x after %x", name, id, last)
		last = id
		if s := d.objects[fmt.Sprintf("segments/%x/%x", id[:1], id)]; s != nil {
			d.want(len(s) == size && bytes.Contains(s, ends[:footer]) && bytes.HasSuffix(s, ends[footer:footer+512]), "%s: end of segment %x", name, id)
		}
		ends = ends[footer+512:]
	}
	d.want(len(ends) == 0, "%s: %d bytes too many", name, len(ends))
}

// moves reads where records went.
func (d *decoder) moves(name string) {
	b, _ := d.payload(name, "MOVE")
	le := binary.LittleEndian
	targets, n := int(le.Uint32(b)), int(le.Uint32(b[4:]))
	entries, runs := b[8+16*targets:][:20*n], b[8+16*targets+20*n:]
	last := make([]byte, 16)
	for ; len(entries) > 0; entries = entries[20:] {
		d.want(bytes.Compare(last, entries[:16]) < 0 && le.Uint32(entries[16:]) > 0, "%s: %x after %x", name, entries[:20], last)
		last = entries[:16]
		next := uint32(0)
		for range le.Uint32(entries[16:]) {
			first, length, to := le.Uint32(runs), uint32(le.Uint16(runs[4:]))+1, int(le.Uint16(runs[6:]))
			d.want(first >= next && to < targets, "%s: run %x", name, runs[:12])
			d.moved[hex.EncodeToString(last)] = append(d.moved[hex.EncodeToString(last)],
				move{int(first), int(length), hex.EncodeToString(b[8+16*to:][:16]), int(le.Uint32(runs[8:]))})
			next, runs = first+length, runs[12:]
		}
	}
	d.want(len(runs) == 0, "%s: %d bytes too many", name, len(runs))
}

func (d *decoder) manifestName(m manifest) string {
	line := []byte(m.Volume)
	if m.WriteOnly {
		line = append(append(line, 0), m.Writer...)
	}
	d.want(!d.sealed || (d.signers[m.Writer] == 0) == m.WriteOnly, "image %d of %s is of writer %s", m.Seq, m.Volume, m.Writer)
	tag := keyed(derive("platter 2026 volume tag", d.structure), line)[:16]
	return fmt.Sprintf("images/%x/%016x", tag, m.Seq)
}

func (d *decoder) segment(name string) {
	b, le := d.objects[name], binary.LittleEndian
	id := name[len(name)-32:]
	d.want(strings.HasPrefix(name, "segments/"+id[:2]+"/") && len(b)%4096 == 0 && len(b) >= 8192, "%s: %d bytes", name, len(b))
	h, t := b[:4096], b[len(b)-512:]
	kind := h[8]
	d.want(string(h[:8]) == "PLTRSEG\x01" && string(t[:8]) == "PLTREND\x01", "%s: magic", name)
	d.want(le.Uint16(h[8:]) == uint16(kind) && le.Uint16(t[8:]) == uint16(kind) && (kind == 1 || kind == 2), "%s: kind", name)
	var flags, overhead byte
	table := int(le.Uint32(h[72:]))
	if d.sealed {
		flags, overhead = 1, 16
	}
	d.want(h[10] == flags && t[10]&^2 == flags && h[11] == 0 && t[11] == 0 && (table > 0) == d.sealed && table <= 41, "%s: flags, or a key table of %d", name, table)
	d.want(zero(h[76:80]) && zero(h[80+96*table:4088]) && zero(t[312:504]), "%s: what is kept zero", name)
	keys, origins := d.origins(name, h, kind)
	d.want(le.Uint32(h[12:]) == 4096 && le.Uint32(t[28:]) == 4096 && le.Uint64(t[32:]) == uint64(len(b)), "%s: lengths", name)
	d.want(hex.EncodeToString(h[16:32]) == d.repository && hex.EncodeToString(h[32:48]) == id && hex.EncodeToString(t[40:56]) == id, "%s: IDs", name)
	d.want(bytes.Equal(h[48:64], t[56:72]) && bytes.Equal(h[64:72], t[72:80]), "%s: run and time", name)
	d.want(xxhash.Sum64(h[:4088]) == le.Uint64(h[4088:]) && xxhash.Sum64(t[:504]) == le.Uint64(t[504:]), "%s: checksums", name)
	records, at, n := int(le.Uint32(t[12:])), int(le.Uint64(t[16:])), int(le.Uint32(t[24:]))
	d.want(n == 56*records+int(overhead) && at >= 4096 && at+n <= len(b)-512, "%s: footer at %d+%d", name, at, n)
	footer, key := b[at:at+n], derive("platter 2026 segment footer digest", d.structure)
	d.want(bytes.Equal(keyed(key, h), t[80:112]), "%s: digest of the header", name)
	d.want(bytes.Equal(keyed(key, footer, t[:112]), t[112:144]), "%s: digest of the footer", name)
	d.want(zero(b[at+n:len(b)-512]), "%s: padding", name)
	d.signed(name, t[144:248], t[248:312], join([]byte("platter 2026 segment signature"), t[112:248]))
	if d.sealed {
		footer = d.decrypt(name, derive("platter 2026 segment footer", join(d.structure, h[32:48])), make([]byte, 12), footer, nil)
	}
	off := 4096
	for i := range records {
		e := footer[56*i:][:56]
		plain, stored := int(le.Uint32(e[40:])), int(le.Uint32(e[44:]))
		rec, payload := b[off:off+16], b[off+16:off+16+stored]
		d.want(e[48] == kind && rec[0] == kind && e[49] == rec[1] && bytes.Equal(e[50:52], rec[2:4]) && (d.sealed || zero(rec[2:4])), "%s: record %d", name, i)
		d.want(int(le.Uint32(rec[4:])) == plain && int(le.Uint32(rec[8:])) == stored, "%s: lengths of record %d", name, i)
		number, origin := int(le.Uint32(rec[12:])), int(le.Uint16(rec[2:]))
		d.want((number == i || origin > 0) && int(le.Uint32(e[52:])) == number, "%s: number of record %d", name, i)
		d.want(xxhash.Sum64(payload) == le.Uint64(e[32:]), "%s: checksum of record %d", name, i)
		d.want(plain > 0 && plain <= 4<<20 && stored <= plain+int(overhead) && rec[1] <= 1, "%s: record %d of %d bytes in %d", name, i, plain, stored)
		if d.sealed {
			nonce := join(rec[12:16], make([]byte, 8))
			bound := join(rec[:2], rec[4:12], origins[origin], rec[12:16])
			payload = d.decrypt(fmt.Sprintf("%s: record %d", name, i), keys[origin], nonce, payload, bound)
		}
		if rec[1] == 1 {
			payload = d.lz4(payload, plain)
		}
		d.want(len(payload) == plain, "%s: record %d has %d bytes, want %d", name, i, len(payload), plain)
		content, idKey := payload, d.id
		if kind == 2 {
			content, idKey = payload[:4096], derive("platter 2026 map page ID", d.id)
		}
		want := binary.BigEndian.AppendUint64(nil, xxhash.Sum64(content)&d.mask)
		want = append(want, keyed(idKey, content)[:24]...)
		d.want(bytes.Equal(want, e[:32]), "%s: ID of record %d", name, i)
		d.places[string(want)] = append(d.places[string(want)], place{kind, payload})
		d.segments[id] = append(d.segments[id], record{string(want)})
		off += 16 + stored
	}
	d.want(off == at, "%s: records end at %d, the footer begins at %d", name, off, at)
	d.kinds[fmt.Sprintf("segment %d", kind)]++
}

// lz4 decodes an LZ4 block: sequences of a token, literals, and a match of what
// was decoded before.
func (d *decoder) lz4(b []byte, size int) (out []byte) {
	length := func(n int) int {
		for more := n == 15; more; b = b[1:] {
			n += int(b[0])
			more = b[0] == 255
		}
		return n
	}
	for {
		token := b[0]
		b = b[1:]
		n := length(int(token >> 4))
		out = append(out, b[:n]...)
		if b = b[n:]; len(b) == 0 {
			return out
		}
		distance := int(binary.LittleEndian.Uint16(b))
		b = b[2:]
		n = length(int(token&15)) + 4
		d.want(distance > 0 && distance <= len(out) && len(out)+n <= size, "lz4: %d bytes from %d back", n, distance)
		for range n {
			out = append(out, out[len(out)-distance])
		}
	}
}

// images builds every image and compares it with the list.
func (d *decoder) images(list string) {
	text, err := os.ReadFile(list)
	if err != nil {
		d.Fatal(err)
	}
	sums := map[string]string{}
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		var id, volume, sum string
		var seq, size int64
		if _, err := fmt.Sscan(lines.Text(), &id, &volume, &seq, &size, &sum); err != nil {
			d.Fatalf("%q: %v", lines.Text(), err)
		}
		sums[id] = sum
	}
	built := 0
	for _, m := range d.manifests {
		d.chain(m)
		want, ok := sums[m.ID]
		if !ok {
			continue // pruned
		}
		built++
		if got := sha256.Sum256(d.build(m)); hex.EncodeToString(got[:]) != want {
			d.Errorf("image %d of %s: SHA-256 %x, want %s", m.Seq, m.Volume, got, want)
		}
	}
	d.want(built == len(sums) && built >= 6, "%d images, want %d", built, len(sums))
	d.want(d.hinted > 100, "%d hints are right", d.hinted)
}

// chain checks a manifest against the one before it.
func (d *decoder) chain(m manifest) {
	want := strings.Repeat("0", 64)
	for _, before := range d.manifests {
		if before.Volume == m.Volume && before.WriteOnly == m.WriteOnly && (!m.WriteOnly || before.Writer == m.Writer) && before.Seq == m.Seq-1 {
			want = before.digest
		}
	}
	d.want(m.Seq == 1 || !zero(d.unhex(want, 32)), "number %d of %s is missing", m.Seq-1, m.Volume)
	d.want(m.Predecessor == want, "image %d of %s follows %s, want %s", m.Seq, m.Volume, m.Predecessor, want)
}

func (d *decoder) build(m manifest) []byte {
	d.want(m.BlockSize == d.blockSize, "block size %d", m.BlockSize)
	out := make([]byte, m.Size)
	blocks := (m.Size + m.BlockSize - 1) / m.BlockSize
	level, span := 0, int64(128)
	for ; span < blocks; span *= 128 {
		level++
	}
	root := string(d.unhex(m.Root, 32))
	d.want(d.segments[m.RootAt.Segment][m.RootAt.Record].id == root, "the hint of the root is wrong")
	d.page(out, root, level, 0, span/128)
	return out
}

// page fills in what lies below a page whose entries span so many blocks each.
func (d *decoder) page(out []byte, id string, level int, first, span int64) {
	if zero([]byte(id)) {
		return
	}
	p := d.get(id, 2)
	hints := d.hints(p[4096:])
	for i := range int64(128) {
		entry := string(p[32*i : 32*i+32])
		begin := (first + i*span) * d.blockSize
		if zero([]byte(entry)) {
			continue
		}
		d.want(begin < int64(len(out)), "an entry past the end")
		if hints[i] == entry {
			d.hinted++
		}
		if level > 0 {
			d.page(out, entry, level-1, first+i*span, span/128)
			continue
		}
		b := d.get(entry, 1)
		d.want(int64(len(b)) == min(d.blockSize, int64(len(out))-begin), "a block of %d bytes at %d", len(b), begin)
		copy(out[begin:], b)
	}
}

func (d *decoder) get(id string, kind byte) []byte {
	list := d.places[id]
	d.want(len(list) > 0 && list[0].kind == kind, "%x is not stored", id)
	return list[0].plain
}

// hints returns the ID that each entry's hint leads to.
func (d *decoder) hints(b []byte) (ids [128]string) {
	segments, runs := int(binary.LittleEndian.Uint16(b)), int(binary.LittleEndian.Uint16(b[2:]))
	d.want(segments <= 128 && runs <= 128 && len(b) == 4+16*segments+8*runs, "%d segments and %d runs in %d bytes", segments, runs, len(b))
	table, list := b[4:4+16*segments], b[4+16*segments:]
	for ; len(list) > 0; list = list[8:] {
		first, n, s := int(list[0]), int(list[1])+1, int(list[2])
		d.want(first+n <= 128 && s < segments && list[3] == 0, "run %x", list[:8])
		for i := range n {
			ids[first+i] = d.led(hex.EncodeToString(table[16*s:16*s+16]), int(binary.LittleEndian.Uint32(list[4:]))+i)
		}
	}
	return ids
}

// led returns the ID of a record, wherever it was moved to.
func (d *decoder) led(segment string, n int) string {
	for range 1 + len(d.moved) {
		if in := d.segments[segment]; in != nil {
			if n < len(in) {
				return in[n].id
			}
			return ""
		}
		for _, m := range d.moved[segment] {
			if n >= m.first && n < m.first+m.count {
				segment, n = m.to, m.at+n-m.first
				break
			}
		}
	}
	return ""
}
