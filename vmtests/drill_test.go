package vmtests

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"platter/image/store/s3/s3test"
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

// A machine is imaged on three nights to a bucket, and destroyed. The rescue
// medium starts another, with another bus, a larger disk and firmware that knows
// of none; it restores the middle night from the bucket alone, asking nothing,
// and the machine comes up with the files of that night.
func TestDrill(t *testing.T) {
	if !drills() {
		t.Skip("loses a machine: set PLATTER_TEST_DRILL=1, as make drill does")
	}
	for _, fw := range []qemu.Firmware{qemu.BIOS, qemu.UEFI} {
		if what := qemu.Missing(fw); what != "" {
			t.Skip("needs the package " + what)
		}
	}
	server := s3test.Start(t)
	for name, value := range map[string]string{"AWS_ACCESS_KEY_ID": s3test.AccessKey, "AWS_SECRET_ACCESS_KEY": s3test.SecretKey, "AWS_REGION": "us-east-1", "PLATTER_PASSWORD": "battery staple"} {
		t.Setenv(name, value)
	}
	r := &repo{t, "s3:" + server.URL + "/" + s3test.Bucket + "/drill", filepath.Join(t.TempDir(), "catalog")}
	r.run("init")

	var ids []string
	for night := range 3 {
		letters := map[string][]byte{}
		for n := range night + 1 {
			letters[fmt.Sprintf("letters/%d.txt", n)] = fmt.Appendf(nil, "letter %d as of night %d\n", n, night)
		}
		ids = append(ids, r.night(t, letters))
	}
	location, authority := secured(t, server.URL)
	answers := filepath.Join(t.TempDir(), "answers")
	text := fmt.Sprintf("network = \"dhcp\"\nrepository = \"s3:%s/%s/drill\"\nimage = %q\ntarget = [\"only\"]\nthen = \"poweroff\"\nauthority = '''\n%s'''\n[environment]\nPLATTER_PASSWORD = \"battery staple\"\nAWS_ACCESS_KEY_ID = %q\nAWS_SECRET_ACCESS_KEY = %q\nAWS_REGION = \"us-east-1\"\n",
		location, s3test.Bucket, ids[1], authority, s3test.AccessKey, s3test.SecretKey)
	if err := os.WriteFile(answers, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	medium := filepath.Join(t.TempDir(), "medium")
	r.run("rescue", "--answers", answers, medium)

	b := qemu.Machine{Disk: sparse(t, 1<<30), Firmware: qemu.UEFI, Secure: true, Memory: 1024, CPUs: 2, Bus: "nvme", Write: true, Network: true, Medium: medium}
	serial, err := b.Until(t.Context(), "rescue: done", 20*time.Minute)
	if err != nil {
		t.Fatalf("%v\n%s", err, serial)
	}
	t.Logf("%s", serial[strings.LastIndex(serial, "rescue: restoring"):])
	up, err := qemu.Machine{Disk: b.Disk, Firmware: qemu.UEFI, CPUs: 2, Bus: "nvme"}.Login(t.Context(), 10*time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(up.Serial, "proof: 2 files as they should be") {
		t.Errorf("the machine does not vouch for its files:\n%s", up.Serial)
	}
}

// night builds the machine's disk as it is on a night, images it, and returns the
// image's ID.
func (r *repo) night(t *testing.T, files map[string][]byte) string {
	t.Helper()
	cache, err := disk.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	d, err := disk.Build(t.Context(), disk.Spec{Path: filepath.Join(t.TempDir(), "server.raw"), Cache: cache, Data: "xfs", Files: files})
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(d.Path)
	out := r.run("backup", d.Path, "--volume", "a/disk", "--replace-device")
	for line := range strings.Lines(out) {
		var b struct {
			Type string `json:"message_type"`
			imaged
		}
		if json.Unmarshal([]byte(line), &b) == nil && b.Type == "summary" {
			return b.Image.ID
		}
	}
	t.Fatalf("no summary: %s", out)
	return ""
}
