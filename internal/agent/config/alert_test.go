package config

import (
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestAlertsNotifiersAndMetricsAreRead(t *testing.T) {
	c, err := Load(write(t, map[string]string{"platter.toml": `
[alert.db]
volumes = ["db1/*"]
last-good-image = "36h"
repeat = "1d"
changed = "12.5%"
[alert.rest]
anomalies = false
[notify.admins]
kind = "mail"
server = "mail.example.org:587"
user = "platter"
password-file = "/etc/platter/mail"
from = "Platter <platter@example.org>"
to = ["a@example.org"]
[notify.local]
kind = "webhook"
url = "http://127.0.0.1:8080/hook"
[metrics]
listen = "[::1]:9750"
textfile = "/var/lib/node/platter.prom"
`}))
	if err != nil {
		t.Fatal(err)
	}
	wantAlerts := []Alert{
		{Name: "db", Volumes: []string{"db1/*"}, LastGood: 36 * time.Hour, Repeat: 24 * time.Hour, Changed: 0.125},
		{Name: "rest", Changed: 0.5, Off: true},
	}
	if !reflect.DeepEqual(c.Alerts, wantAlerts) {
		t.Errorf("got %+v", c.Alerts)
	}
	wantNotifiers := []Notifier{
		{
			Name: "admins", Kind: Mail, Server: "mail.example.org:587", Security: StartTLS, User: "platter", PasswordFile: "/etc/platter/mail",
			From: "Platter <platter@example.org>", To: []string{"a@example.org"},
		},
		{Name: "local", Kind: Webhook, URL: "http://127.0.0.1:8080/hook", Security: StartTLS},
	}
	if !reflect.DeepEqual(c.Notifiers, wantNotifiers) {
		t.Errorf("got %+v", c.Notifiers)
	}
	if want := (Metrics{"[::1]:9750", "/var/lib/node/platter.prom"}); c.Metrics != want {
		t.Errorf("got %+v", c.Metrics)
	}
}

func TestMistakesInAlertsAndNotifiersAreTold(t *testing.T) {
	const mail = "[notify.m]\nkind = \"mail\"\nserver = \"h:25\"\nfrom = \"a@b\"\nto = [\"c@d\"]\n"
	for _, c := range []struct{ text, want string }{
		{"[alert.a]\nlast-god-image = \"1h\"\n", ":2:1: unknown key alert.a.last-god-image"},
		{"[alert.a]\nlast-good-image = \"1 h\"\n", ":2:20: alert.a.last-good-image: "},
		{"[alert.a]\nchanged = \"half\"\n", ":2:12: alert.a.changed: share"},
		{"[alert.a]\nchanged = \"101%\"\n", "alert.a.changed: share"},
		{"[alert.a]\nrepeat = \"1s\"\n", ":2:1: alert.a.repeat: want at least 1m"},
		{"[alert.a]\nvolumes = [\"\"]\n", ":2:1: alert.a.volumes: an empty pattern"},
		{"[notify.a]\nkind = \"pigeon\"\n", ":2:1: notify.a.kind: \"pigeon\": want mail, slack"},
		{"[notify.a]\nkind = \"slack\"\n", ":1:1: notify.a: it has neither url nor url-file"},
		{"[notify.a]\nkind = \"slack\"\nurl = \"http://example.org/\"\n", ":3:1: notify.a.url: want https"},
		{"[notify.a]\nkind = \"slack\"\nurl = \"example.org\"\n", ":3:1: notify.a.url: want an address"},
		{"[notify.a]\nkind = \"slack\"\nurl-file = \"x\"\n", ":3:1: notify.a.url-file: want a path from the root"},
		{"[notify.a]\nkind = \"slack\"\nurl = \"https://x/\"\nto = [\"a@b\"]\n", ":4:1: notify.a.to: a notifier of kind slack has no use for it"},
		{"[notify.a]\nkind = \"gotify\"\nurl = \"https://x/\"\n", ":1:1: notify.a: gotify wants a token-file"},
		{"[notify.\"a b\"]\nkind = \"slack\"\nurl = \"https://x/\"\n", "a notifier's name has"},
		{strings.Replace(mail, "h:25", "h", 1), ":3:1: notify.m.server: \"h\": want HOST:PORT"},
		{strings.Replace(mail, "c@d", "nobody", 1), "\"nobody\" is no address of mail"},
		{mail + "security = \"none\"\n", ":6:1: notify.m.security: none is for servers on this machine"},
		{mail + "security = \"some\"\n", ":6:1: notify.m.security: \"some\": want tls"},
		{mail + "user = \"x\"\n", ":1:1: notify.m: user and password-file belong together"},
		{"[metrics]\nlisten = \"0.0.0.0:9750\"\n", ":2:1: metrics.listen: want an address of this machine"},
		{"[metrics]\ntextfile = \"/x/platter.txt\"\n", ":2:1: metrics.textfile: want a path from the root that ends with .prom"},
	} {
		_, err := Load(write(t, map[string]string{"platter.toml": c.text}))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q:\n got %v\nwant %q", c.text, err, c.want)
		}
	}
}
