package main

import "testing"

func TestDefaultsAreTheSystemsForRootAndXDGForOthers(t *testing.T) {
	t.Setenv("HOME", "/home/u")
	for _, tc := range []struct {
		uid       int
		xdg, want string
	}{
		{0, "", "/var/lib/platter"},
		{0, "/home/u/state", "/var/lib/platter"},
		{1000, "", "/home/u/.local/state/platter"},
		{1000, "/home/u/state", "/home/u/state/platter"},
		{1000, "relative/is/ignored", "/home/u/.local/state/platter"},
	} {
		t.Setenv("XDG_STATE_HOME", tc.xdg)
		if got := homeDir(tc.uid, "XDG_STATE_HOME", ".local/state"); got != tc.want {
			t.Errorf("uid %d, XDG_STATE_HOME=%q: got %s, want %s", tc.uid, tc.xdg, got, tc.want)
		}
	}
}
