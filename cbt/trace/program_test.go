package trace

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/cilium/ebpf/asm"
)

// The assembler writes an addition for every atomic operation that does not
// name itself twice. With additions the second write to a unit clears its bit.
func TestAtomicOperationsAreWhatTheyAreCalled(t *testing.T) {
	for _, c := range []struct {
		name string
		ins  asm.Instruction
		want []byte
	}{
		{"or", orAtomic(asm.R0, asm.R9, 0), []byte{0xdb, 0x90, 0, 0, 0x40, 0, 0, 0}},
		{"add", asm.AddAtomic.Mem(asm.R0, asm.R1, asm.DWord, 8), []byte{0xdb, 0x10, 8, 0, 0, 0, 0, 0}},
	} {
		var got bytes.Buffer
		if _, err := c.ins.Marshal(&got, binary.LittleEndian); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got.Bytes(), c.want) {
			t.Errorf("%s: got % x, want % x", c.name, got.Bytes(), c.want)
		}
	}
}
