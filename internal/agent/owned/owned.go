// Package owned tells whether a file is in the hands of root or of this process
// alone, so that nobody else can have it do something.
package owned

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Check returns the path without symbolic links, or an error that says who else
// might change the file at path: it and every folder above it must belong to
// root or to this user, and be writable by nobody else. In a folder like /tmp,
// where everybody may only delete what is his, that holds for what is in it.
func Check(path string) (string, error) {
	return check(path, os.Getuid())
}

func check(path string, uid int) (string, error) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", err
	}
	if real, err = filepath.Abs(real); err != nil {
		return "", err
	}
	for at := real; ; at = filepath.Dir(at) {
		var st unix.Stat_t
		if err := unix.Lstat(at, &st); err != nil {
			return "", &os.PathError{Op: "stat", Path: at, Err: err}
		}
		if st.Uid != 0 && int(st.Uid) != uid {
			return "", fmt.Errorf("%s belongs to user %d: want it, and every folder above it, to belong to root", at, st.Uid)
		}
		sticky := at != real && st.Mode&unix.S_ISVTX != 0
		if st.Mode&0o022 != 0 && !sticky {
			return "", fmt.Errorf("%s can be changed by others (mode %04o): say chmod go-w %s", at, st.Mode&0o7777, at)
		}
		if at == "/" {
			return real, nil
		}
	}
}

// CheckSecret is Check for a file that nobody else may read either.
func CheckSecret(path string) (string, error) {
	real, err := Check(path)
	if err != nil {
		return "", err
	}
	info, err := os.Stat(real)
	if err != nil {
		return "", err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return "", fmt.Errorf("%s can be read by others (mode %04o): say chmod 600 %s", real, info.Mode().Perm(), real)
	}
	return real, nil
}
