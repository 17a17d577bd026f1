package thin

import (
	"slices"
	"strings"
	"testing"

	"platter/block"
)

// list is what thin_delta 0.9.0 printed, with every kind of element.
const list = `<superblock uuid="" time="2" transaction="3" data_block_size="128" nr_data_blocks="0">
  <diff left="2" right="3">
    <different begin="10" length="7"/>
    <same begin="17" length="31"/>
    <left_only begin="100" length="5"/>
    <right_only begin="900" length="3"/>
  </diff>
</superblock>
`

func TestDeltaListsWhatDiffers(t *testing.T) {
	var same, got []block.Extent
	if err := delta([]byte(list), func(e block.Extent) { same = append(same, e) }, func(e block.Extent) { got = append(got, e) }); err != nil {
		t.Fatal(err)
	}
	const unit = 65536
	want := []block.Extent{{Offset: 10 * unit, Length: 7 * unit}, {Offset: 100 * unit, Length: 5 * unit}, {Offset: 900 * unit, Length: 3 * unit}}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if want := []block.Extent{{Offset: 17 * unit, Length: 31 * unit}}; !slices.Equal(same, want) {
		t.Errorf("the same are %v, want %v", same, want)
	}
}

// A list that is cut short, or says what nobody here understands, is no proof.
func TestDeltaBelievesNoOtherList(t *testing.T) {
	for cut := range len(list) - len("\n") {
		if err := delta([]byte(list[:cut]), func(block.Extent) {}, func(block.Extent) {}); err == nil {
			t.Fatalf("believes the first %d bytes of %d", cut, len(list))
		}
	}
	for _, change := range [][2]string{
		{"left_only", "moved"},
		{`begin="100"`, `begin="-100"`},
		{`begin="100"`, ``},
		{`length="5"`, `length="5x"`},
		{`length="5"`, `length="4611686018427387903"`},
		{`data_block_size="128"`, `data_block_size="0"`},
		{`data_block_size="128"`, ``},
	} {
		if err := delta([]byte(strings.Replace(list, change[0], change[1], 1)), func(block.Extent) {}, func(block.Extent) {}); err == nil {
			t.Errorf("believes %s in place of %s", change[1], change[0])
		}
	}
}

func FuzzDelta(f *testing.F) {
	f.Add([]byte(list))
	f.Fuzz(func(t *testing.T, b []byte) {
		sound := func(e block.Extent) {
			if e.Offset < 0 || e.Length < 0 || e.End() < 0 {
				t.Errorf("gives %v", e)
			}
		}
		delta(b, sound, sound)
	})
}
