package notify

import (
	"context"
	"crypto/tls"
	"net"
	"os"
	"strconv"

	"github.com/wneessen/go-mail"

	"platter/internal/agent/config"
)

func sendMail(ctx context.Context, n *config.Notifier, m *Message, trust *tls.Config) error {
	msg, err := letter(n, m)
	if err != nil {
		return err
	}
	host, service, err := net.SplitHostPort(n.Server)
	if err != nil {
		return err
	}
	port, err := net.LookupPort("tcp", service)
	if err != nil {
		return err
	}
	if trust == nil {
		trust = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	trust.ServerName = host
	var line dialer
	defer line.hangUp()
	options := []mail.Option{mail.WithPort(port), mail.WithTLSConfig(trust), mail.WithTimeout(attemptTime)}
	switch n.Security {
	case config.TLS:
		options = append(options, mail.WithSSL())
	case config.StartTLS:
		options = append(options, mail.WithTLSPolicy(mail.TLSMandatory), mail.WithDialContextFunc(line.dial))
	default:
		options = append(options, mail.WithTLSPolicy(mail.NoTLS))
	}
	if n.User != "" {
		password, err := secret(n.PasswordFile)
		if err != nil {
			return err
		}
		options = append(options, mail.WithSMTPAuth(mail.SMTPAuthAutoDiscover), mail.WithUsername(n.User), mail.WithPassword(password))
	}
	client, err := mail.NewClient(host, options...)
	if err != nil {
		return err
	}
	return client.DialAndSendWithContext(ctx, msg)
}

// A dialer sees to it that the connection is closed, also where STARTTLS came
// to nothing: the library leaves it open then.
type dialer struct{ conn net.Conn }

func (d *dialer) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, address)
	if err == nil {
		d.conn = conn
	}
	return conn, err
}

func (d *dialer) hangUp() {
	if d.conn != nil {
		d.conn.Close()
	}
}

// letter is a message as mail. Its ID stays the same when it is sent again.
func letter(n *config.Notifier, m *Message) (*mail.Msg, error) {
	msg := mail.NewMsg()
	if err := msg.From(n.From); err != nil {
		return nil, err
	}
	if err := msg.To(n.To...); err != nil {
		return nil, err
	}
	host, err := os.Hostname()
	if err != nil {
		host = "localhost"
	}
	msg.Subject(m.Title)
	msg.SetDateWithValue(m.Created)
	msg.SetMessageIDWithValue("platter-" + m.ID + "-" + strconv.FormatInt(m.Created.Unix(), 36) + "@" + host)
	msg.SetGenHeader("Auto-Submitted", "auto-generated")
	if m.Urgent {
		msg.SetImportance(mail.ImportanceHigh)
	}
	msg.SetBodyString(mail.TypeTextPlain, m.Body)
	return msg, nil
}
