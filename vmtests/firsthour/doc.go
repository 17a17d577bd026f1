// Package firsthour does in a guest what docs/first-hour.md says, with a Debian
// that starts by itself: its tests are built by those of vmtests.
package firsthour
