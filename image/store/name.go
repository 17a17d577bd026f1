package store

import (
	"fmt"
	"strings"
)

// Bounds on names in bytes, which every known kind of store can keep.
const (
	MaxName = 512 // of a whole name
	MaxPart = 128 // between two slashes
)

// CheckName returns an error wrapping ErrName unless name is one or more parts
// of [a-z0-9-], separated by single slashes, within MaxName and MaxPart.
func CheckName(name string) error {
	if len(name) > MaxName {
		return fmt.Errorf("%q... of %d bytes: %w", name[:64], len(name), ErrName)
	}
	for part := range strings.SplitSeq(name, "/") {
		if !IsPart(part) {
			return fmt.Errorf("%q: %w", name, ErrName)
		}
	}
	return nil
}

// CheckPrefix is CheckName for the prefixes of List: empty, or a name and "/".
func CheckPrefix(prefix string) error {
	if prefix == "" {
		return nil
	}
	name, ok := strings.CutSuffix(prefix, "/")
	if !ok {
		return fmt.Errorf("prefix %q: %w", prefix, ErrName)
	}
	return CheckName(name)
}

// IsPart reports whether s may stand between two slashes of a name.
func IsPart(s string) bool {
	if s == "" || len(s) > MaxPart {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}
