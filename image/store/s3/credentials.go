package s3

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/minio/minio-go/v7/pkg/s3utils"
)

// errNoCredentials: nothing says who asks.
var errNoCredentials = errors.New("no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE to name some in ~/.aws/credentials")

// credentials are those of the Config, or come from where programs for S3 look
// for them: environment, files, and what a machine of the cloud is given.
func (c *Config) credentials(host string) *credentials.Credentials {
	if c.AccessKey != "" {
		return credentials.NewStaticV4(c.AccessKey, c.SecretKey, c.SessionToken)
	}
	s := &sources{list: []credentials.Provider{new(credentials.EnvAWS), new(credentials.FileAWSCredentials)}}
	if onCloud(host) {
		s.list = append(s.list, new(credentials.IAM))
	}
	return credentials.New(s)
}

// onCloud reports whether to ask the machine's own cloud for a role: where it
// says that it has one, and for Amazon's S3 unless told not to.
func onCloud(host string) bool {
	for _, v := range []string{"AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI"} {
		if os.Getenv(v) != "" {
			return true
		}
	}
	return s3utils.IsAmazonEndpoint(url.URL{Host: host}) && !strings.EqualFold(os.Getenv("AWS_EC2_METADATA_DISABLED"), "true")
}

// sources asks several providers in turn. Unlike minio-go's own chain it does
// not go on as nobody when none knows any credentials, and tells why.
type sources struct {
	list    []credentials.Provider
	current credentials.Provider
}

func (s *sources) RetrieveWithCredContext(cc *credentials.CredContext) (credentials.Value, error) {
	// Roles are asked for by the default client: the store's own has its CA.
	plain := &credentials.CredContext{Context: cc.Context}
	why := errNoCredentials
	for _, p := range s.list {
		v, err := p.RetrieveWithCredContext(plain)
		if err == nil && v.AccessKeyID != "" && v.SecretAccessKey != "" {
			s.current = p
			return v, nil
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			why = fmt.Errorf("%w (%w)", why, err)
		}
	}
	return credentials.Value{}, why
}

func (s *sources) Retrieve() (credentials.Value, error) {
	return s.RetrieveWithCredContext(new(credentials.CredContext))
}

func (s *sources) IsExpired() bool { return s.current == nil || s.current.IsExpired() }

// region is the one to sign for. Servers that have only one mostly take the
// default; one that does not says which it wants.
func (c *Config) region(host string) string {
	for _, r := range []string{
		c.Region, os.Getenv("AWS_REGION"), os.Getenv("AWS_DEFAULT_REGION"), profileRegion(),
		s3utils.GetRegionFromURL(url.URL{Host: host}),
	} {
		if r != "" {
			return r
		}
	}
	return "us-east-1"
}

// profileRegion is the region of the profile in the AWS config file, if any.
func profileRegion() string {
	path := os.Getenv("AWS_CONFIG_FILE")
	if path == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return ""
		}
		path = filepath.Join(home, ".aws", "config")
	}
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	section, want := "", "default"
	if p := os.Getenv("AWS_PROFILE"); p != "" && p != "default" {
		want = "profile " + p
	}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		line := strings.TrimSpace(lines.Text())
		if strings.HasPrefix(line, "[") {
			section = strings.Join(strings.Fields(strings.Trim(line, "[]")), " ")
		} else if k, v, ok := strings.Cut(line, "="); ok && section == want && strings.TrimSpace(k) == "region" {
			return strings.TrimSpace(v)
		}
	}
	return ""
}
