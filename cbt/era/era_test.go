package era

import (
	"slices"
	"strings"
	"testing"
)

// list is what era_invalidate 0.9.0 printed, with every kind of element.
const list = `<blocks>
  <range begin="3" end = "6"/>
  <block block="9"/>
  <range begin="50" end = "53"/>
</blocks>
`

func TestBlocksOfAList(t *testing.T) {
	var got [][2]int64
	if err := blocks([]byte(list), func(from, to int64) { got = append(got, [2]int64{from, to}) }); err != nil {
		t.Fatal(err)
	}
	if want := [][2]int64{{3, 6}, {9, 10}, {50, 53}}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// A list that is cut short, or says what nobody here understands, is no proof.
func TestBlocksOfNoOtherList(t *testing.T) {
	for cut := range len(list) - len("\n") {
		if err := blocks([]byte(list[:cut]), func(int64, int64) {}); err == nil {
			t.Fatalf("believes the first %d bytes of %d", cut, len(list))
		}
	}
	for _, change := range [][2]string{
		{"<range", "<blob"},
		{`begin="50"`, `begin="53"`},
		{`begin="50"`, `begin="-1"`},
		{`begin="50"`, ``},
		{`end = "6"`, `end = "6x"`},
		{`block="9"`, ``},
		{`block="9"`, `block="4294967296"`},
	} {
		if err := blocks([]byte(strings.Replace(list, change[0], change[1], 1)), func(int64, int64) {}); err == nil {
			t.Errorf("believes %s in place of %s", change[1], change[0])
		}
	}
}

func FuzzBlocks(f *testing.F) {
	f.Add([]byte(list))
	f.Fuzz(func(t *testing.T, b []byte) {
		blocks(b, func(from, to int64) {
			if from < 0 || to <= from {
				t.Errorf("gives %d to %d", from, to)
			}
		})
	})
}

func TestSamplesAreOfAllAndHoldTheLast(t *testing.T) {
	for _, c := range []struct {
		runs [][2]int64
		want []int64
	}{
		{nil, nil},
		{[][2]int64{{7, 8}}, []int64{7}},
		{[][2]int64{{3, 6}, {9, 10}}, []int64{3, 4, 5, 9}},
	} {
		r := reservoir{}
		for _, run := range c.runs {
			r.add(run[0], run[1])
		}
		if got := r.pick(); !slices.Equal(got, c.want) {
			t.Errorf("%v: got %v, want %v", c.runs, got, c.want)
		}
	}
	r := reservoir{}
	for i := range int64(1000) {
		r.add(i*10, i*10+3)
	}
	got := r.pick()
	if len(got) != samples || got[len(got)-1] != 9992 || !slices.IsSorted(got) || len(slices.Compact(got)) != samples || got[0] > 1000 {
		t.Errorf("got %d samples, %v", len(got), got)
	}
	for _, n := range got {
		if n%10 > 2 {
			t.Errorf("block %d is in no run", n)
		}
	}
}

func TestTablesThatAreNoEra(t *testing.T) {
	for _, table := range []string{"", "0 8 linear 253:0 0", "0 131072 era 252:1 252:0", "0 131072 era 252:1 252:0 0", "8 131072 era 252:1 252:0 128", "0 8 era 1:1 1:0 8\n8 8 linear 1:2 0"} {
		if err := new(stack).parse(table); err == nil {
			t.Errorf("%q is a dm-era device", table)
		}
	}
}

func TestDiscardsEndAHistory(t *testing.T) {
	for _, c := range []struct {
		then, now Discards
		ok        bool
	}{
		{Discards{false, "a", 0}, Discards{false, "b", 0}, true},
		{Discards{true, "a", 5}, Discards{true, "a", 5}, true},
		{Discards{true, "a", 5}, Discards{true, "a", 6}, false},
		{Discards{true, "a", 0}, Discards{true, "b", 0}, false},
		{Discards{true, "a", 0}, Discards{false, "b", 0}, false},
	} {
		if err := c.now.since(c.then); (err == nil) != c.ok {
			t.Errorf("%v after %v: %v", c.now, c.then, err)
		}
	}
}
