package job

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"sort"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"platter/block"
	"platter/image"
	"platter/image/keys"
	"platter/image/reader"
	"platter/internal/export"
	"platter/internal/export/nbd"
	"platter/internal/export/overlay"
)

// OfferOptions say which image to offer as a disk, and whether it can be
// written to.
type OfferOptions struct {
	Image string
	// Overlay is the file that keeps what is written; it is made if it does
	// not exist. It belongs to one image.
	Overlay string
	// Writable keeps what is written until the offer ends, without Overlay.
	Writable bool
}

// An offered image: base is what the repository has, disk what is offered.
type offered struct {
	image *image.Manifest
	rd    *reader.Reader
	base  *reader.Disk
	disk  export.Device
	over  *overlay.Disk // nil when it is offered for reading only
}

// temporaryDir is where overlays without a name are: on disk, not in memory.
const temporaryDir = "/var/tmp"

// offer opens an image as a disk.
func offer(ctx context.Context, env *Env, opts *OfferOptions) (*offered, error) {
	if !env.Repo.Keys.CanRead() {
		return nil, keys.ErrNoDataKey
	}
	m, err := Find(ctx, env, opts.Image)
	if err != nil {
		return nil, err
	}
	for _, n := range imageNotices(m) {
		env.warn("%s", n)
	}
	rd := env.reader()
	o := &offered{image: m, rd: rd, base: reader.NewDisk(rd, m, env.Memory/4)}
	o.disk = &honest{o.base, m}
	switch {
	case opts.Overlay != "":
		o.over, err = overlay.Open(o.disk, m.ID, opts.Overlay)
	case opts.Writable:
		o.over, err = overlay.Temporary(o.disk, temporaryDir)
	}
	if err != nil {
		o.base.Close()
		return nil, err
	}
	if o.over != nil {
		o.disk = o.over
	}
	return o, nil
}

// honest names image, extent and segment of a block that cannot be had.
type honest struct {
	*reader.Disk
	m *image.Manifest
}

func (h *honest) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	n, err := h.Disk.ReadAt(ctx, p, off)
	return n, damaged(h.m, err)
}

func (o *offered) close() error {
	var err error
	if o.over != nil {
		err = o.over.Close()
	}
	o.base.Close()
	return err
}

// NBDOptions say what is offered over NBD, and where.
type NBDOptions struct {
	OfferOptions
	Unix   string // a socket to make, 0600
	Listen string // HOST:PORT; only with TLS if that is not this machine
	// Without either of them, the socket is the one that systemd, or whoever
	// does as it does, has opened for this process.

	// Files of a certificate and its key for TLS, and of the authorities whose
	// clients may connect. Without the last, any client may.
	Certificate, Key, Clients string
	// Ready is called once clients can connect.
	Ready func(NBDOffer)
}

// An NBDOffer is what is being offered.
type NBDOffer struct {
	Image   string `json:"image"`
	Volume  string `json:"volume"`
	Size    int64  `json:"size"`
	URI     string `json:"uri"` // as QEMU and libnbd take it
	Writes  string `json:"writes"`
	Address string `json:"address"`
}

// ServeNBD offers an image over NBD until ctx ends, which is no error.
func ServeNBD(ctx context.Context, env *Env, opts NBDOptions) (err error) {
	if (opts.Unix == "") == (opts.Listen == "") && !activated() || opts.Unix != "" && opts.Listen != "" {
		return fmt.Errorf("nbd: %w: name a socket by --unix or an address by --listen", ErrUsage)
	}
	secure, err := tlsConfig(&opts)
	if err != nil {
		return fmt.Errorf("nbd: %w", err)
	}
	o, err := offer(ctx, env, &opts.OfferOptions)
	if err != nil {
		return fmt.Errorf("nbd: %w", err)
	}
	defer func() { err = errors.Join(err, o.close()) }()
	l, err := listen(ctx, &opts, secure != nil)
	if err != nil {
		return fmt.Errorf("nbd: %w", err)
	}
	if opts.Ready != nil {
		opts.Ready(o.describe(l.Addr(), secure != nil, &opts))
	}
	s := &nbd.Server{
		Device: o.disk, TLS: secure, Find: o.context(env),
		Log: func(err error) { env.warn("%v", err) },
	}
	return s.Serve(ctx, l)
}

func (o *offered) describe(at net.Addr, secure bool, opts *NBDOptions) NBDOffer {
	offer := NBDOffer{Image: o.image.ID.String(), Volume: o.image.Volume, Size: o.image.Size, Address: at.String(), Writes: "refused"}
	switch {
	case opts.Overlay != "":
		offer.Writes = "kept in " + opts.Overlay
	case opts.Writable:
		offer.Writes = "kept until the end"
	}
	scheme := "nbd"
	if secure {
		scheme = "nbds"
	}
	if at.Network() == "unix" {
		offer.URI = scheme + "+unix:///?socket=" + at.String()
	} else {
		offer.URI = scheme + "://" + at.String()
	}
	return offer
}

// listen makes the socket. One that a dead process left is taken over.
func listen(ctx context.Context, opts *NBDOptions, secure bool) (net.Listener, error) {
	var lc net.ListenConfig
	if opts.Unix == "" && opts.Listen == "" {
		return net.FileListener(os.NewFile(firstSocket, "socket"))
	}
	if opts.Unix == "" {
		addr, err := net.ResolveTCPAddr("tcp", opts.Listen)
		if err != nil {
			return nil, fmt.Errorf("address %q: %w: %w", opts.Listen, ErrUsage, err)
		}
		if !secure && !addr.IP.IsLoopback() {
			return nil, fmt.Errorf("address %q: %w: beyond this machine disks are offered with TLS only: give --tls-certificate and --tls-key, or listen on 127.0.0.1 or a unix socket", opts.Listen, ErrUsage)
		}
		return lc.Listen(ctx, "tcp", opts.Listen)
	}
	if st, err := os.Lstat(opts.Unix); err == nil && st.Mode()&os.ModeSocket != 0 {
		var d net.Dialer
		if c, err := d.DialContext(ctx, "unix", opts.Unix); err == nil {
			c.Close()
			return nil, fmt.Errorf("socket %s: another process serves it", opts.Unix)
		}
		if err := os.Remove(opts.Unix); err != nil {
			return nil, err
		}
	}
	// A disk is every file on it: nobody else may connect, at no moment.
	mask := unix.Umask(0o177)
	defer unix.Umask(mask)
	return lc.Listen(ctx, "unix", opts.Unix)
}

// firstSocket is the descriptor of the first socket handed to a process, see
// sd_listen_fds(3).
const firstSocket = 3

// activated reports whether this process was handed one socket.
func activated() bool {
	return os.Getenv("LISTEN_PID") == strconv.Itoa(os.Getpid()) && os.Getenv("LISTEN_FDS") == "1"
}

func tlsConfig(opts *NBDOptions) (*tls.Config, error) {
	if opts.Certificate == "" && opts.Key == "" && opts.Clients == "" {
		return nil, nil
	}
	if opts.Certificate == "" || opts.Key == "" {
		return nil, fmt.Errorf("%w: TLS needs --tls-certificate and --tls-key", ErrUsage)
	}
	pair, err := tls.LoadX509KeyPair(opts.Certificate, opts.Key)
	if err != nil {
		return nil, fmt.Errorf("read certificate %s: %w", opts.Certificate, err)
	}
	c := &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	if opts.Clients == "" {
		return c, nil
	}
	pem, err := os.ReadFile(opts.Clients)
	if err != nil {
		return nil, err
	}
	c.ClientCAs, c.ClientAuth = x509.NewCertPool(), tls.RequireAndVerifyClientCert
	if !c.ClientCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no certificate", opts.Clients)
	}
	return c, nil
}

// changedContext is the kind of block status that tells what differs from
// another image: flag 1 where it does.
const changedContext = "platter:changed:"

// context finds platter:changed:IMAGE, where IMAGE is as on a command line.
func (o *offered) context(env *Env) func(context.Context, string) (*nbd.Context, error) {
	return func(ctx context.Context, name string) (*nbd.Context, error) {
		spec, ok := strings.CutPrefix(name, changedContext)
		if !ok {
			return nil, nil
		}
		m, err := Find(ctx, env, spec)
		if err != nil {
			return nil, err
		}
		report, err := diff(ctx, o.rd, m, o.image)
		if err != nil {
			return nil, err
		}
		return &nbd.Context{Name: name, Status: changedStatus(report.Extents).status}, nil
	}
}

// changedStatus answers from the extents in which two images differ.
type changedStatus []block.Extent

func (extents changedStatus) status(_ context.Context, off, length int64, most int) (list []nbd.Status, err error) {
	i := sort.Search(len(extents), func(i int) bool { return extents[i].End() > off })
	for at, end := off, off+length; at < end && len(list) < most; {
		s := nbd.Status{Length: end - at}
		if i < len(extents) && extents[i].Offset <= at {
			s = nbd.Status{Length: min(end, extents[i].End()) - at, Flags: 1}
			i++
		} else if i < len(extents) {
			s.Length = min(end, extents[i].Offset) - at
		}
		list = append(list, s)
		at += s.Length
	}
	return list, nil
}
