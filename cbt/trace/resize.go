package trace

import (
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
)

// resizers are the kernel's functions that change a disk's size. One of them
// may be compiled into the other.
var resizers = [...]string{"set_capacity", "set_capacity_and_notify"}

// resizeProgram runs when a disk gets a size, perhaps the one it has. Without
// it a resize is seen by the next write or the next run, unless the size is by
// then what it was before.
func resizeProgram(k *kernel, m maps) asm.Instructions {
	ins := asm.Instructions{
		btf.WithFuncMetadata(asm.LoadMem(asm.R6, asm.R1, 0, asm.DWord).WithSymbol("program"), entry()),
		asm.LoadMem(asm.R7, asm.R1, 8, asm.DWord),
	}
	ins = append(ins, diskOf(k, asm.R6)...)
	ins = append(ins, findDisk(m)...)
	return append(ins,
		asm.LoadMem(asm.R1, asm.R0, headSectors*8, asm.DWord),
		asm.JEq.Reg(asm.R1, asm.R7, "exit"),
		asm.Mov.Imm(asm.R1, 1),
		asm.AddAtomic.Mem(asm.R0, asm.R1, asm.DWord, headResized*8),
		asm.Mov.Imm(asm.R0, 0).WithSymbol("exit"),
		asm.Return(),
	)
}
