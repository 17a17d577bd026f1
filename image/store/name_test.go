package store_test

import (
	"errors"
	"strings"
	"testing"

	"platter/image/store"
)

func TestCheckName(t *testing.T) {
	part := strings.Repeat("x", store.MaxPart)
	full := strings.Repeat(strings.Repeat("a", 63)+"/", store.MaxName/64)
	for name, good := range map[string]bool{
		"a": true, "0": true, "-": true, "a/b-c/09": true, part: true, "a/" + part: true,
		full[:store.MaxName-1]: true, full[:store.MaxName-1] + "a": true, full + "a": false,
		"": false, "/": false, "a/": false, "/a": false, "a//b": false, "A": false, "a.b": false, "..": false,
		"a_": false, "a`": false, "a{": false, "a:": false, part + "x": false, "a\x00": false, "ä": false,
	} {
		err := store.CheckName(name)
		if (err == nil) != good || err != nil && !errors.Is(err, store.ErrName) {
			t.Errorf("CheckName(%q): got %v, want good %v", name, err, good)
		}
		if err := store.CheckPrefix(name + "/"); (err == nil) != good {
			t.Errorf("CheckPrefix(%q): got %v, want good %v", name+"/", err, good)
		}
	}
	if err := store.CheckPrefix(""); err != nil {
		t.Errorf("CheckPrefix of nothing: %v", err)
	}
	if err := store.CheckPrefix("a"); !errors.Is(err, store.ErrName) {
		t.Errorf("CheckPrefix without a slash: got %v", err)
	}
}

func TestAllocAligned(t *testing.T) {
	for _, n := range []int{0, 1, 4095, 4096, 4097, 1 << 20} {
		p := store.AllocAligned(n)
		if len(p) != n || cap(p) != n || !store.IsAligned(p) {
			t.Errorf("AllocAligned(%d): %d bytes, capacity %d, aligned %v", n, len(p), cap(p), store.IsAligned(p))
		}
		if n > 1 && store.IsAligned(p[1:]) {
			t.Errorf("a slice that begins at 1 passes for aligned")
		}
	}
}
