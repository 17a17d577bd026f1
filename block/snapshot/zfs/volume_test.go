package zfs

import (
	"strings"
	"testing"
	"time"
)

// said is what zfs list 2.1.11 printed, blanks in names and all.
const said = "tank/vm disk\t11\t20\t1700000000\t1048576\t8192\t-\t-\t-\t-\n" +
	"tank/vm disk@daily\t12\t21\t1700000001\t1048576\t-\t0\t-\t-\t-\n" +
	"tank/vm disk@platter-0011223344556677\t13\t22\t1700000002\t1048576\t-\t1\t8899aabbccddeeff\tb-1-2-3\tinherited\n" +
	"tank/vm disk@platter-1011223344556677\t14\t23\t1700000003\t524288\t-\t0\t8899aabbccddeeff\tb-1-2-3\tlocal=hidden\n"

func TestListsOfSnapshots(t *testing.T) {
	all, err := parse(said, "tank/vm disk")
	if err != nil || len(all) != 4 {
		t.Fatalf("got %d, %v, want 4", len(all), err)
	}
	if v := all[0]; v.Name != "tank/vm disk" || v.GUID != 11 || v.Created != 20 || v.Size != 1<<20 || v.BlockSize != 8192 {
		t.Errorf("the volume: got %+v", v)
	}
	if s, ok := describe(all[1]); ok {
		t.Errorf("somebody else's snapshot passes for ours: %+v", s)
	}
	s, ok := describe(all[2])
	if !ok || s.ID != "0011223344556677" || !s.Kept || s.Tag != "8899aabbccddeeff" || s.Run != "b-1-2-3" || !s.Time.Equal(time.Unix(1700000002, 0)) {
		t.Errorf("a kept one: got %+v, %v", s, ok)
	}
	if s, ok := describe(all[3]); !ok || s.Kept || all[3].snapdev != "local=hidden" || all[3].BlockSize != 8192 || all[3].Size != 512<<10 {
		t.Errorf("one that is left: got %+v, %+v, %v", s, all[3], ok)
	}
}

func TestStrangeListsAreRefused(t *testing.T) {
	for _, bad := range []string{
		"", strings.ReplaceAll(said, "tank/", "pool/"), strings.Replace(said, "\t20\t", "\t-\t", 1), strings.Replace(said, "\t13\t", "\t-13\t", 1),
		strings.Replace(said, "\t21\t", "\t", 1), strings.Replace(said, "1048576", "99999999999999999999", 1), said[:len(said)-30],
	} {
		if all, err := parse(bad, "tank/vm disk"); err == nil {
			t.Errorf("%q: got %v, want it refused", bad, all)
		}
	}
}

func TestPoolsThatGetNoSnapshot(t *testing.T) {
	for said, want := range map[string]string{
		"ONLINE 89 off": "", "DEGRADED 0 off": "", "ONLINE 12% off": "",
		"ONLINE 90 off": "90 % full", "SUSPENDED 1 off": "zpool status tank", "ONLINE 1 on": "read-only", "ONLINE - off": "full", "": "zpool list",
	} {
		if why := poolUnfit("tank", strings.Fields(said)); (why == "") != (want == "") || !strings.Contains(why, want) {
			t.Errorf("%q: got %q, want %q", said, why, want)
		}
	}
}
