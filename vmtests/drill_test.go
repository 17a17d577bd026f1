package vmtests

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"platter/block"
	"platter/image/store/s3/s3test"
	"platter/internal/export/rescue/apt"
	"platter/internal/export/rescue/ramfs"
	"platter/vmtests/debian"
	"platter/vmtests/disk"
	"platter/vmtests/qemu"
)

// drills reports whether the rounds that lose machines are run.
func drills() bool { return vm() || os.Getenv("PLATTER_TEST_DRILL") != "" }

// guestHost is how a machine reaches the host's loopback.
const guestHost = "10.0.2.2"

// secured offers a server of this host with TLS, as it must be where it is not
// reached by loopback. It returns where machines reach it, and the certificate of
// its authority, in PEM.
func secured(t *testing.T, server string) (location, authority string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), IPAddresses: []net.IP{net.ParseIP(guestHost)}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().AddDate(-1, 0, 0), NotAfter: time.Now().AddDate(10, 0, 0), KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	to, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})
	if err != nil {
		t.Fatal(err)
	}
	// Requests are signed with the name by which the machine knows the server.
	h := &http.Server{Handler: &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(to)
		r.Out.Host = r.In.Host
	}}}
	go h.Serve(l)
	t.Cleanup(func() { h.Close() })
	port := l.Addr().(*net.TCPAddr).Port
	return fmt.Sprintf("https://%s:%d", guestHost, port), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// nights is run on the machine that is lost: it images its own disk three times
// while rows are written to a database.
const nights = `export PLATTER_REPOSITORY='%s' PLATTER_PASSWORD='battery staple' AWS_REGION=us-east-1
export AWS_ACCESS_KEY_ID=%s AWS_SECRET_ACCESS_KEY=%s
db() { sqlite3 -cmd ".timeout 10000" /srv/letters.db "$@"; }
(
	set -e
	ifconfig eth0 10.0.2.15 netmask 255.255.255.0 up
	db "pragma journal_mode=wal; create table now (night); insert into now values (0); create table letters (id integer primary key, night, body)"
	while :; do
		echo "insert into letters (night, body) select night, hex(randomblob(500)) from now;"
		busybox usleep 20000
	done | db &
	platter tracker run
	for night in 1 2 3; do
		db "update now set night = $night"
		sleep 2
		platter backup -q /dev/vda --volume a/disk --before "sh /srv/count before" --after "sh /srv/count after"
	done
)
echo "nights: ended with $?"
`

// count tells how many rows are committed.
const count = `sqlite3 -cmd ".timeout 10000" /srv/letters.db "select 'night ' || night || ' $1: ' || (select count(*) from letters) from now" >/dev/console
`

// answer is run whenever the machine starts: the database checks itself, and tells
// what it holds.
const answer = `[ ! -e /srv/letters.db ] || sqlite3 /srv/letters.db "pragma integrity_check; select 'database: ' || count(*) || ' rows to ' || max(id) || ', the last of night ' || max(night) from letters"
`

// A machine with its root on LVM, whose database is written to, images itself on
// three nights to a bucket, and is destroyed. The rescue medium starts another,
// with another bus, a larger disk, and firmware that knows of none and starts only
// what is signed; it restores the middle night from the bucket alone, asking
// nothing, and reboots: the database has that night's rows.
func TestDrill(t *testing.T) {
	if !drills() {
		t.Skip("loses a machine: set PLATTER_TEST_DRILL=1, as make drill does")
	}
	if what := qemu.Missing(qemu.UEFI); what != "" {
		t.Skip("needs the package " + what)
	}
	server := s3test.Start(t)
	for name, value := range map[string]string{"AWS_ACCESS_KEY_ID": s3test.AccessKey, "AWS_SECRET_ACCESS_KEY": s3test.SecretKey, "AWS_REGION": "us-east-1", "PLATTER_PASSWORD": "battery staple"} {
		t.Setenv(name, value)
	}
	path := s3test.Bucket + "/drill"
	r := &repo{t, "s3:" + server.URL + "/" + path, filepath.Join(t.TempDir(), "catalog")}
	r.run("init")
	location, authority := secured(t, server.URL)
	location = "s3:" + location + "/" + path

	// The medium is made while the machine lives.
	medium := filepath.Join(t.TempDir(), "medium")
	made := make(chan error)
	go func() {
		out, err := exec.CommandContext(t.Context(), binary, "rescue", medium).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("rescue: %w: %s", err, out)
		}
		made <- err
	}()
	moments := loseMachine(t, location, authority)
	if err := <-made; err != nil {
		t.Fatal(err)
	}

	text := fmt.Sprintf("network = \"dhcp\"\nrepository = %q\nimage = %q\ntarget = [\"only\"]\nthen = \"reboot\"\nauthority = '''\n%s'''\n[environment]\nPLATTER_PASSWORD = \"battery staple\"\nAWS_ACCESS_KEY_ID = %q\nAWS_SECRET_ACCESS_KEY = %q\nAWS_REGION = \"us-east-1\"\n",
		location, imagesOf(t, r)[1], authority, s3test.AccessKey, s3test.SecretKey)
	answers := filepath.Join(t.TempDir(), "answers")
	if err := os.WriteFile(answers, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	esp, err := block.Look(medium)
	if err != nil {
		t.Fatal(err)
	}
	sh(t, "", "mcopy", "-i", fmt.Sprintf("%s@@%d", medium, esp.Table.Partitions[1].Offset), answers, "::platter/answers")

	b, err := qemu.Machine{
		Disk: sparse(t, 1<<30), Firmware: qemu.UEFI, Secure: true, Memory: 1024, CPUs: 2, Bus: "nvme", Write: true, Network: true, Medium: medium, Reboots: true,
	}.Login(t.Context(), 15*time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the other machine, after %v:\n%s", b.Elapsed, b.Serial)
	restored := b.Serial[max(0, strings.LastIndex(b.Serial, "rescue: done")):]
	var rows, last, night int
	if _, err := fmt.Sscanf(restored[max(0, strings.Index(restored, "database: ")):], "database: %d rows to %d, the last of night %d", &rows, &last, &night); err != nil {
		t.Fatalf("the database does not tell what it holds: %v", err)
	}
	if m := moments[1]; rows < m.before || rows > m.after || last != rows || night != 2 {
		t.Errorf("%d rows to %d, the last of night %d: want those of night 2, %d to %d, and no gap", rows, last, night, m.before, m.after)
	}
	for _, want := range []string{"\nok\n", "proof: 2 files as they should be"} {
		if !strings.Contains(restored, want) {
			t.Errorf("the machine does not say %q", want)
		}
	}
}

// A moment is how many rows were committed before an image's moment, and after.
type moment struct{ before, after int }

// loseMachine has a machine image itself on three nights, and destroys it.
func loseMachine(t *testing.T, location, authority string) (moments [3]moment) {
	t.Helper()
	a := qemu.Machine{
		Disk: machineWithDatabase(t, location, authority), Firmware: qemu.UEFI, Memory: 1024, Write: true, Network: true,
		Typed: []qemu.Line{{After: " login: ", Text: "root"}, {After: "# ", Text: "sh /srv/nights"}},
	}
	serial, err := a.Until(t.Context(), "nights: ended with ", 15*time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the machine that is lost:\n%s", serial)
	for _, said := range regexp.MustCompile(`night ([123]) (before|after): ([0-9]+)`).FindAllStringSubmatch(serial, -1) {
		rows, _ := strconv.Atoi(said[3])
		// A moment that did not come about is tried again: the last one counts.
		if m := &moments[said[1][0]-'1']; said[2] == "before" {
			m.before = rows
		} else {
			m.after = rows
		}
	}
	for i, m := range moments {
		if m.before == 0 || m.after < m.before || i > 0 && m.before <= moments[i-1].after {
			t.Fatalf("the nights' moments %+v: want rows before each, and more in the next", moments)
		}
	}
	if err := os.Remove(a.Disk); err != nil {
		t.Fatal(err)
	}
	return moments
}

// machineWithDatabase makes the disk of a machine that has a database, and can
// image itself to a repository.
func machineWithDatabase(t *testing.T, location, authority string) string {
	t.Helper()
	cache, err := debian.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	tree, err := apt.Unpack(t.Context(), cache, "sqlite", []string{"sqlite3", "libsqlite3-0", "libc6", "libreadline8", "libtinfo6", "zlib1g"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	added := ramfs.New(tree)
	if err := errors.Join(added.Program("sqlite3"), added.File("sbin/platter", binary, 0o755)); err != nil {
		t.Fatal(err)
	}
	added.Text("etc/ssl/certs/ca-certificates.crt", 0o644, []byte(authority))
	added.Text("etc/start.d/answer", 0o644, []byte(answer))
	added.Text("srv/count", 0o644, []byte(count))
	added.Text("srv/nights", 0o600, fmt.Appendf(nil, nights, location, s3test.AccessKey, s3test.SecretKey))
	d, err := disk.Build(t.Context(), disk.Spec{
		Path: filepath.Join(t.TempDir(), "server.raw"), Cache: cache, Loaders: []disk.Loader{disk.GRUBForUEFI}, Stack: disk.LVM,
		Files: map[string][]byte{"letters/one.txt": []byte("Dear reader,\n"), "zeros": make([]byte, mib)},
		Added: added.Entries, Modules: []string{"virtio_net"},
	})
	if err != nil {
		t.Fatal(err)
	}
	return d.Path
}
