package notify

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"os"
	"strings"

	"platter/internal/agent/config"
)

// send tells one message to one notifier. It takes no longer than ctx lasts.
func send(ctx context.Context, n *config.Notifier, m *Message) error {
	trust, err := authorities(n)
	if err != nil {
		return err
	}
	if n.Kind == config.Mail {
		return sendMail(ctx, n, m, trust)
	}
	req, err := request(ctx, n, m)
	if err != nil {
		return err
	}
	return do(req, trust)
}

// authorities are whom a server's certificate may come from; nil for those of
// the system.
func authorities(n *config.Notifier) (*tls.Config, error) {
	if n.CAFile == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(n.CAFile)
	if err != nil {
		return nil, err
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s: there is no certificate in it", n.CAFile)
	}
	return &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}, nil
}

// do sends a request. It follows nobody elsewhere, who might learn secrets.
func do(req *http.Request, trust *tls.Config) error {
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment, TLSClientConfig: trust, DisableKeepAlives: true}
	client := http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	req.Header.Set("User-Agent", "platter")
	resp, err := client.Do(req)
	if err != nil {
		return withoutURL(err)
	}
	defer resp.Body.Close()
	said, _ := io.ReadAll(io.LimitReader(resp.Body, 200))
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("the server answers %s: %s", resp.Status, strings.TrimSpace(string(said)))
	}
	return nil
}

// withoutURL takes the address out of an error: that of a webhook is a secret.
func withoutURL(err error) error {
	var e interface{ Unwrap() error }
	if errors.As(err, &e) && e.Unwrap() != nil {
		return e.Unwrap()
	}
	return err
}

func secret(path string) (string, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(string(text)), nil
}

// address is where a notifier sends to.
func address(n *config.Notifier) (string, error) {
	if n.URLFile == "" {
		return n.URL, nil
	}
	text, err := secret(n.URLFile)
	if err != nil {
		return "", err
	}
	if err := config.CheckURL(text); err != nil {
		return "", fmt.Errorf("%s: %w", n.URLFile, err)
	}
	return text, nil
}

// request is a message in the shape that a kind of notifier takes.
func request(ctx context.Context, n *config.Notifier, m *Message) (*http.Request, error) {
	to, err := address(n)
	if err != nil {
		return nil, err
	}
	token := ""
	if n.TokenFile != "" {
		if token, err = secret(n.TokenFile); err != nil {
			return nil, err
		}
	}
	header := http.Header{}
	var body []byte
	switch n.Kind {
	case config.Healthchecks:
		to += map[string]string{PingStart: "/start", PingFail: "/fail"}[m.Ping]
		body = []byte(m.Body)
	case config.Ntfy:
		header.Set("Title", mime.BEncoding.Encode("utf-8", m.Title))
		header.Set("Priority", map[bool]string{false: "3", true: "4"}[m.Urgent])
		body = []byte(m.Body)
	case config.Gotify:
		to = strings.TrimSuffix(to, "/") + "/message"
		header.Set("X-Gotify-Key", token)
		token = ""
	}
	if body == nil {
		header.Set("Content-Type", "application/json")
		if body, err = json.Marshal(shape(n.Kind, m)); err != nil {
			return nil, err
		}
	}
	if token != "" {
		header.Set("Authorization", "Bearer "+token)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, to, bytes.NewReader(body))
	if err != nil {
		return nil, withoutURL(err)
	}
	req.Header = header
	return req, nil
}

type object map[string]any

// shape is the JSON that a kind of notifier takes.
func shape(kind string, m *Message) any {
	switch kind {
	case config.Slack:
		return object{"text": "*" + escapeSlack(m.Title) + "*\n" + escapeSlack(m.Body)}
	case config.Teams:
		return object{"type": "message", "attachments": []object{{
			"contentType": "application/vnd.microsoft.card.adaptive",
			"content": object{
				"$schema": "http://adaptivecards.io/schemas/adaptive-card.json", "type": "AdaptiveCard", "version": "1.4",
				"body": []object{
					{"type": "TextBlock", "text": m.Title, "weight": "Bolder", "wrap": true},
					{"type": "TextBlock", "text": m.Body, "wrap": true},
				},
			},
		}}}
	case config.Gotify:
		return object{"title": m.Title, "message": m.Body, "priority": map[bool]int{false: 4, true: 8}[m.Urgent]}
	}
	return object{"id": m.ID, "time": m.Created, "title": m.Title, "body": m.Body, "urgent": m.Urgent, "data": m.Data}
}

// escapeSlack keeps what comes from disks and stores from being read as marks.
func escapeSlack(s string) string {
	return strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;").Replace(s)
}
