package s3

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	long := strings.Repeat("x", maxPrefix)
	for name, want := range map[string]Config{
		"s3:https://s3.example.com/bucket":            {Endpoint: "https://s3.example.com", Bucket: "bucket"},
		"s3:https://s3.example.com/bucket/":           {Endpoint: "https://s3.example.com", Bucket: "bucket"},
		"s3:https://s3.example.com:8443/bucket/a/b-c": {Endpoint: "https://s3.example.com:8443", Bucket: "bucket", Prefix: "a/b-c"},
		"s3:https://s3.example.com/bucket/A_b.c/":     {Endpoint: "https://s3.example.com", Bucket: "bucket", Prefix: "A_b.c"},
		"s3:http://127.0.0.1:9000/bucket":             {Endpoint: "http://127.0.0.1:9000", Bucket: "bucket"},
		"s3:http://[::1]:9000/bucket":                 {Endpoint: "http://[::1]:9000", Bucket: "bucket"},
		"s3:http://localhost/bucket":                  {Endpoint: "http://localhost", Bucket: "bucket"},
		"s3:https://s3.example.com/bucket/" + long:    {Endpoint: "https://s3.example.com", Bucket: "bucket", Prefix: long},
	} {
		got, err := Parse(name)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, %v, want %+v", name, got, err, want)
		}
		if back := strings.TrimSuffix(name, "/"); got.location() != back {
			t.Errorf("%s: location %s", name, got.location())
		}
	}
	for name, want := range map[string]string{
		"":                                     "want s3:",
		"/srv/repo":                            "want s3:",
		"s3:bucket/prefix":                     "want s3:",
		"s3://bucket/prefix":                   "want s3:",
		"s3:ftp://host/bucket":                 "want s3:",
		"s3:https:///bucket":                   "want s3:",
		"s3:https://host":                      "no bucket",
		"s3:https://host/":                     "no bucket",
		"s3:https://host/B":                    "bucket",
		"s3:https://host/a_b!":                 "bucket",
		"s3:http://example.com/bucket":         "use https",
		"s3:http://10.0.0.1/bucket":            "use https",
		"s3:https://host/bucket/a//b":          "prefix",
		"s3:https://host/bucket/../b":          "prefix",
		"s3:https://host/bucket/a b":           "prefix",
		"s3:https://host/bucket/" + long + "x": "at most 400",
		"s3:https://host/bucket?x=y":           "more than",
		"s3:https://host/bucket#x":             "more than",
	} {
		if _, err := Parse(name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", name, err, want)
		}
	}
	for _, name := range []string{"s3:https://id:secret@host/bucket", "s3:https://id:secret@ho st/bucket"} {
		if _, err := Parse(name); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("got %v, want an error without the secret", err)
		}
	}
}

// bare clears what the environment says of S3.
func bare(t *testing.T) (home string) {
	t.Helper()
	home = t.TempDir()
	t.Setenv("HOME", home)
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); strings.HasPrefix(name, "AWS_") {
			t.Setenv(name, "")
		}
	}
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	return home
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestRegion(t *testing.T) {
	home := bare(t)
	check := func(c Config, host, want string) {
		t.Helper()
		if got := c.region(host); got != want {
			t.Errorf("got region %q, want %q", got, want)
		}
	}
	check(Config{}, "minio.example.com", "us-east-1")
	check(Config{}, "s3.eu-central-1.amazonaws.com", "eu-central-1")
	write(t, filepath.Join(home, ".aws/config"), "[default]\nregion = from-file\n[ profile  other ]\noutput=text\nregion=of-other\n")
	check(Config{}, "s3.eu-central-1.amazonaws.com", "from-file")
	t.Setenv("AWS_PROFILE", "other")
	check(Config{}, "minio.example.com", "of-other")
	t.Setenv("AWS_PROFILE", "none")
	check(Config{}, "minio.example.com", "us-east-1")
	t.Setenv("AWS_DEFAULT_REGION", "default-region")
	check(Config{}, "minio.example.com", "default-region")
	t.Setenv("AWS_REGION", "region")
	check(Config{}, "minio.example.com", "region")
	check(Config{Region: "mine"}, "minio.example.com", "mine")
}

func TestCredentials(t *testing.T) {
	home := bare(t)
	check := func(c Config, id, secret, token string) {
		t.Helper()
		v, err := c.credentials("minio.example.com").GetWithContext(nil)
		if err != nil || v.AccessKeyID != id || v.SecretAccessKey != secret || v.SessionToken != token {
			t.Errorf("got %s %s %s, %v, want %s %s %s", v.AccessKeyID, v.SecretAccessKey, v.SessionToken, err, id, secret, token)
		}
	}
	if _, err := (&Config{}).credentials("minio.example.com").GetWithContext(nil); err == nil || !strings.Contains(err.Error(), "set AWS_ACCESS_KEY_ID") {
		t.Errorf("with none: got %v", err)
	}
	write(t, filepath.Join(home, ".aws/credentials"),
		"[default]\naws_access_key_id = id1\naws_secret_access_key = secret1\n[other]\naws_access_key_id=id2\naws_secret_access_key=secret2\naws_session_token=token2\n")
	check(Config{}, "id1", "secret1", "")
	t.Setenv("AWS_PROFILE", "other")
	check(Config{}, "id2", "secret2", "token2")
	t.Setenv("AWS_PROFILE", "missing")
	if _, err := (&Config{}).credentials("minio.example.com").GetWithContext(nil); err == nil || !strings.Contains(err.Error(), "missing") {
		t.Errorf("with a profile that is not there: got %v", err)
	}
	write(t, filepath.Join(home, "elsewhere"), "[default]\naws_access_key_id = id3\naws_secret_access_key = secret3\n")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", filepath.Join(home, "elsewhere"))
	t.Setenv("AWS_PROFILE", "")
	check(Config{}, "id3", "secret3", "")
	t.Setenv("AWS_ACCESS_KEY_ID", "id4")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "secret4")
	t.Setenv("AWS_SESSION_TOKEN", "token4")
	check(Config{}, "id4", "secret4", "token4")
	check(Config{AccessKey: "id5", SecretKey: "secret5"}, "id5", "secret5", "")
}
