package lvm

import (
	"strings"
	"testing"

	"platter/block/snapshot"
)

// said is what lvs 2.03.16 printed of a group with a thin volume, its pool, a
// kept snapshot and a classic one.
const said = `{"report": [{"lv": [
{"vg_name":"vg","vg_uuid":"ed8RxH","vg_free":"390070272","vg_extent_size":"4194304","lv_name":"pool","lv_uuid":"q6p4em","segtype":"thin-pool","lv_size":"134217728","pool_lv":"","pool_lv_uuid":"","thin_id":"","origin":"","origin_uuid":"","metadata_lv":"[pool_tmeta]","metadata_lv_uuid":"kOYehs","transaction_id":"3","data_percent":"2.49","metadata_percent":"11.04","lv_attr":"twi-aot---","lv_tags":"","lv_merging":"","vg_seqno":"12"},
{"vg_name":"vg","vg_uuid":"ed8RxH","vg_free":"390070272","vg_extent_size":"4194304","lv_name":"tv","lv_uuid":"rIxvO3","segtype":"thin","lv_size":"100663296","pool_lv":"pool","pool_lv_uuid":"q6p4em","thin_id":"1","origin":"","origin_uuid":"","metadata_lv":"","metadata_lv_uuid":"","transaction_id":"0","data_percent":"3.32","metadata_percent":"","lv_attr":"Vwi-a-t---","lv_tags":"","lv_merging":"","vg_seqno":"12"},
{"vg_name":"vg","vg_uuid":"ed8RxH","vg_free":"390070272","vg_extent_size":"4194304","lv_name":"platter-abc","lv_uuid":"54MpLg","segtype":"thin","lv_size":"100663296","pool_lv":"pool","pool_lv_uuid":"q6p4em","thin_id":"2","origin":"tv","origin_uuid":"rIxvO3","metadata_lv":"","metadata_lv_uuid":"","transaction_id":"1","data_percent":"3.12","metadata_percent":"","lv_attr":"Vri-a-t--k","lv_tags":"platter,platter.consumer=00ff,platter.kept,platter.run=1a2b3c4d-4711-86400,platter.taken=1790000000","lv_merging":"","vg_seqno":"12"},
{"vg_name":"vg","vg_uuid":"ed8RxH","vg_free":"390070272","vg_extent_size":"4194304","lv_name":"big","lv_uuid":"bbbbbb","segtype":"striped","lv_size":"1073741824","pool_lv":"","pool_lv_uuid":"","thin_id":"","origin":"","origin_uuid":"","metadata_lv":"","metadata_lv_uuid":"","transaction_id":"","data_percent":"","metadata_percent":"","lv_attr":"-wi-a-----","lv_tags":"","lv_merging":"","vg_seqno":"12"},
{"vg_name":"vg","vg_uuid":"ed8RxH","vg_free":"390070272","vg_extent_size":"4194304","lv_name":"big","lv_uuid":"bbbbbb","segtype":"linear","lv_size":"1073741824","pool_lv":"","pool_lv_uuid":"","thin_id":"","origin":"","origin_uuid":"","metadata_lv":"","metadata_lv_uuid":"","transaction_id":"","data_percent":"","metadata_percent":"","lv_attr":"-wi-a-----","lv_tags":"","lv_merging":"","vg_seqno":"12"}
]}]}`

func TestParseReadsWhatLVMSays(t *testing.T) {
	g, err := parse([]byte(said))
	if err != nil {
		t.Fatal(err)
	}
	if len(g) != 4 {
		t.Fatalf("got %d volumes, want 4: one of two segments is one", len(g))
	}
	if g[0].Seqno != 12 {
		t.Errorf("got sequence number %d, want 12", g[0].Seqno)
	}
	pool, kept := g.byName("pool"), g.byName("platter-abc")
	if pool.Metadata != "pool_tmeta" || pool.DataFull != 2.49 || pool.MetadataFull != 11.04 {
		t.Errorf("pool: got %+v", pool)
	}
	s, ok := describe(kept, MethodThin)
	want := snapshot.Snapshot{
		Method: MethodThin, Name: "vg/platter-abc", ID: "abc", Tag: "00ff", Run: "1a2b3c4d-4711-86400", Kept: true, Time: s.Time,
	}
	if !ok || s != want || s.Time.Unix() != 1790000000 {
		t.Errorf("kept snapshot: got %+v, %v, want %+v", s, ok, want)
	}
	if _, ok := describe(kept, MethodThick); ok {
		t.Error("a thin snapshot counts as a classic one")
	}
	if _, ok := describe(g.byName("tv"), MethodThin); ok {
		t.Error("a volume without tags counts as a snapshot of ours")
	}
	for _, bad := range []string{"", "{}x", strings.Replace(said, `"lv_size":"134217728"`, `"lv_size":"128m"`, 1), strings.Replace(said, `"lv_uuid":"rIxvO3"`, `"lv_uuid":""`, 1)} {
		if _, err := parse([]byte(bad)); err == nil {
			t.Errorf("parse accepts %.60q", bad)
		}
	}
}

// A pool that fills up stops every volume in it: no snapshot makes that worse.
func TestFullPoolIsRefused(t *testing.T) {
	for _, c := range []struct{ old, now, want string }{
		{"", "", ""},
		{`"data_percent":"2.49"`, `"data_percent":"90.00"`, "lvextend"},
		{`"metadata_percent":"11.04"`, `"metadata_percent":"97.1"`, "poolmetadatasize"},
		{`twi-aot---`, `twi-aot-M-`, "repair"},
		{`twi-aot---`, `twi-aot-D-`, "room"},
		{`"segtype":"thin","lv_size"`, `"segtype":"linear","lv_size"`, "no thin volume"},
	} {
		g, err := parse([]byte(strings.ReplaceAll(said, c.old, c.now)))
		if err != nil {
			t.Fatal(err)
		}
		if why := thinUnfit(g.byName("tv"), g); (why == "") != (c.want == "") || !strings.Contains(why, c.want) {
			t.Errorf("%s: got %q, want %q", c.now, why, c.want)
		}
	}
}

func TestClassicSnapshotsGetRoom(t *testing.T) {
	g, err := parse([]byte(said))
	if err != nil {
		t.Fatal(err)
	}
	big := g.byName("big")
	if room, why := thickRoom(t.Context(), big, g); why != "" || room < big.Size/20 || room > big.free || room%big.extentSize != 0 {
		t.Errorf("got room of %d bytes, %q, want whole extents, a twentieth of %d or more", room, why, big.Size)
	}
	big.free = big.extentSize
	if _, why := thickRoom(t.Context(), big, g); !strings.Contains(why, "vgextend") {
		t.Errorf("a full group: got %q, want advice", why)
	}
	if _, why := thickRoom(t.Context(), g.byName("tv"), g); why == "" {
		t.Error("a thin volume would get a classic snapshot")
	}
	// All of it overwritten: header, table and every chunk.
	if got, want := fullRoom(4096*Chunk), int64(4096+1+3)*Chunk; got != want {
		t.Errorf("room for 4096 chunks: got %d, want %d", got, want)
	}
}

func TestStateOfClassicSnapshots(t *testing.T) {
	if s, err := state("0 65536 snapshot 256/16384 128\n"); err != nil || !s.Valid || s.Used != 256*512 {
		t.Errorf("got %+v, %v", s, err)
	}
	for _, word := range []string{"Invalid", "Overflow", "Merge failed"} {
		if s, err := state("0 65536 snapshot " + word); err != nil || s.Valid || s.Word != word {
			t.Errorf("%s: got %+v, %v, want it not valid", word, s, err)
		}
	}
	for _, bad := range []string{"", "0 65536 snapshot-origin", "0 65536 snapshot-merge 16/32 16", "0 65536 linear 1 2"} {
		if _, err := state(bad); err == nil {
			t.Errorf("%q is no snapshot, and passes for one", bad)
		}
	}
}

func TestNamesOfTheDeviceMapper(t *testing.T) {
	v := &Volume{VG: "my-vg", Name: "platter-1a"}
	if got := v.Device("cow"); got != "/dev/mapper/my--vg-platter--1a-cow" {
		t.Errorf("got %s", got)
	}
	if vg, lv := split(v.mapped("")); vg != v.VG || lv != v.Name {
		t.Errorf("got %s and %s back", vg, lv)
	}
}
