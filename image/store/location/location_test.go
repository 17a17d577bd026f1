package location

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"platter/image/store"
	"platter/image/store/s3"
	"platter/image/store/s3/s3test"
	"platter/image/store/sftp/sftptest"
)

func TestIsPath(t *testing.T) {
	for name, want := range map[string]bool{
		"repo": true, "/srv/repo": true, "./s3:x": true, "a:b": true, "a/b:c": true, "C:": true,
		"s3:": false, "s3:https://h/b": false, "s3:x": false, "sftp:h:/x": false, "sftp:h": false, "./sftp:h": true, "sftp://h/x": false, "http://h": false,
	} {
		if got := IsPath(name); got != want {
			t.Errorf("IsPath(%q): got %v", name, got)
		}
	}
}

func TestDirectory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "repo")
	st, err := Open(t.Context(), path, Options{})
	if !errors.Is(err, ErrMissing) || st != nil {
		t.Errorf("got %v, %v, want ErrMissing", st, err)
	}
	if st, err = Create(t.Context(), path, Options{}); err != nil || st.Location() != path {
		t.Fatalf("got %v, %v", st, err)
	}
	st.Close()
	if st, err = Open(t.Context(), path, Options{}); err != nil || st.Location() != path {
		t.Errorf("got %v, %v", st, err)
	}
	st.Close()
	file := filepath.Join(path, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), file, Options{}); !errors.Is(err, ErrMissing) {
		t.Errorf("a file: got %v, want ErrMissing", err)
	}
}

func TestBucket(t *testing.T) {
	for _, name := range []string{"s3:", "s3:bucket", "sftp://host", "sftp:host", "http://host/x", "s3:http://example.com/b"} {
		if st, err := Open(t.Context(), name, Options{}); !errors.Is(err, ErrSyntax) || st != nil {
			t.Errorf("%s: got %v, %v, want ErrSyntax", name, st, err)
		}
	}
	server := s3test.Start(t)
	t.Setenv("AWS_ACCESS_KEY_ID", s3test.AccessKey)
	t.Setenv("AWS_SECRET_ACCESS_KEY", s3test.SecretKey)
	name := s3.Scheme + server.URL + "/" + s3test.Bucket + "/x"
	for _, open := range []string{"create", "open"} {
		f := map[string]func() (store.Store, error){
			"create": func() (store.Store, error) { return Create(t.Context(), name, Options{}) },
			"open":   func() (store.Store, error) { return Open(t.Context(), name, Options{}) },
		}[open]
		st, err := f()
		if err != nil || st.Location() != name {
			t.Fatalf("%s: got %v, %v", open, st, err)
		}
		st.Close()
	}
	_, err := Create(t.Context(), s3.Scheme+server.URL+"/no-such-bucket", Options{})
	if !errors.Is(err, s3.ErrNoBucket) {
		t.Errorf("got %v, want ErrNoBucket", err)
	}
}

func TestAnotherMachine(t *testing.T) {
	server := sftptest.Start(t)
	t.Setenv("PLATTER_SSH_KEY", server.Key)
	t.Setenv("PLATTER_SSH_KNOWN_HOSTS", sftptest.KnownHosts(t, server.Address, server.HostKey))
	name := "sftp://" + server.User + "@" + server.Address + "/" + server.Dir + "/a/repo"
	if st, err := Open(t.Context(), name, Options{}); !errors.Is(err, ErrMissing) || st != nil {
		t.Errorf("got %v, %v, want ErrMissing", st, err)
	}
	st, err := Create(t.Context(), name, Options{})
	if err != nil {
		t.Fatal(err)
	}
	st.Close()
	if st, err = Open(t.Context(), name, Options{}); err != nil || st.Location() != name {
		t.Fatalf("got %v, %v", st, err)
	}
	st.Close()
	t.Setenv("PLATTER_SSH_KNOWN_HOSTS", filepath.Join(t.TempDir(), "none"))
	if st, err := Open(t.Context(), name, Options{}); err == nil || errors.Is(err, ErrMissing) || st != nil {
		t.Errorf("an unknown host: got %v, %v", st, err)
	}
}
