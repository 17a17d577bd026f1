package sftp

import "testing"

func TestParse(t *testing.T) {
	for name, want := range map[string]Config{
		"sftp:host:/srv/repo":        {Host: "host", Path: "/srv/repo"},
		"sftp:me@host:/srv/repo":     {User: "me", Host: "host", Path: "/srv/repo"},
		"sftp:me@host:repo":          {User: "me", Host: "host", Path: "repo"},
		"sftp:me@host/srv/repo":      {User: "me", Host: "host", Path: "/srv/repo"},
		"sftp:me@host:2222/srv/repo": {User: "me", Host: "host", Port: 2222, Path: "/srv/repo"},
		"sftp://host/repo":           {Host: "host", Path: "repo"},
		"sftp://host//srv/repo":      {Host: "host", Path: "/srv/repo"},
		"sftp://me@host:2222//srv":   {User: "me", Host: "host", Port: 2222, Path: "/srv"},
		"sftp://me@host:2222/a:b":    {User: "me", Host: "host", Port: 2222, Path: "a:b"},
		"sftp:u@dom@host:/x":         {User: "u@dom", Host: "host", Path: "/x"},
		"sftp:[::1]:/x":              {Host: "::1", Path: "/x"},
		"sftp://[::1]:22/x@y":        {Host: "::1", Port: 22, Path: "x@y"},
		"sftp:host:2222":             {Host: "host", Path: "2222"},
	} {
		got, err := Parse(name)
		if err != nil || got.User != want.User || got.Host != want.Host || got.Port != want.Port || got.Path != want.Path {
			t.Errorf("%s: got %+v, %v, want %+v", name, got, err, want)
			continue
		}
		again, err := Parse(got.location())
		if err != nil || again.Path != got.Path || again.Host != got.Host || again.User != got.User {
			t.Errorf("%s: its location %s reads as %+v, %v", name, got.location(), again, err)
		}
	}
	for _, name := range []string{
		"sftp:", "sftp:host", "sftp://host", "sftp://host/", "sftp::/x", "sftp:@host:/x", "sftp:me:secret@host:/x", "sftp://me:secret@host/x",
		"sftp:[::1/x", "sftp:host:70000/x", "sftp://host:port/x", "sftp:-oProxyCommand=x:/y", "sftp:ho st:/x", "s3:x", "sftp:host:",
	} {
		if c, err := Parse(name); err == nil {
			t.Errorf("%s: taken as %+v", name, c)
		}
	}
}
