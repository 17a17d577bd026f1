package trace

import (
	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
)

// The trace points that have a program. A write is marked when it enters the
// block layer, when a driver makes it one of another disk, when its driver gets
// it, and when it is done. Nothing relies on the last of these alone: some
// kernels lose it now and then (docs/tracking.md has the figures).
const (
	pointQueue    = "block_bio_queue"
	pointRemap    = "block_bio_remap"
	pointIssue    = "block_rq_issue"
	pointComplete = "block_rq_complete"
	// Disks without requests (dm, md, zram) are done with a bio here. It has
	// no place any more by then: what is in flight is kept by its address.
	pointBioComplete = "block_bio_complete"
)

// points are those of every tracer, in the order they are attached.
var points = [...]string{pointComplete, pointIssue, pointRemap, pointQueue}

// Places on a program's stack.
const (
	stackDisk   = -4   // u32, the key of the disk
	stackLine   = -8   // u32, the key of a line
	stackHead   = -16  // the head of the disk's generation
	stackSize   = -24  // sectors that the disk has now, 0 if unknown
	stackBio    = -32  // the address of the bio
	stackFlight = -64  // a flight: disk, sector, bytes
	stackSpan   = -104 // the bits of an event, for each word of them

	spanMap   = 0
	spanHead  = 8
	spanFirst = 16 // bit
	spanLast  = 24 // bit
	spanBase  = 32 // the line that bit 0 is in
)

const (
	flightBytes = 24
	bitsPerLine = 1024 // a line of the map is 128 bytes
	wordsInLine = bitsPerLine / 64
	coarseShift = 12               // one coarse bit is so many fine ones
	coarseFrom  = 1 << coarseShift // from so many bits on, an event is marked coarsely
)

// maps are those that programs work on.
type maps struct {
	disks   *ebpf.Map // disk -> the map of its present generation
	flights *ebpf.Map // address of a bio -> what it writes
}

// orAtomic is a locked "or". The assembler forgets which atomic operation an
// instruction is unless the operation is there as its constant as well: it
// would be an addition, right once and wrong ever after.
func orAtomic(dst, src asm.Register, off int16) asm.Instruction {
	i := asm.OrAtomic.Mem(dst, src, asm.DWord, off)
	i.Constant = int64(asm.OrAtomic >> 8)
	return i
}

// program returns what runs at a trace point.
func program(k *kernel, m maps, point string) asm.Instructions {
	var ins asm.Instructions
	switch point {
	case pointQueue, pointRemap:
		ins = ofBio(k)
	case pointBioComplete:
		ins = ofFlight(k, m)
	default:
		ins = ofRequest(k, point)
	}
	ins[0] = btf.WithFuncMetadata(ins[0].WithSymbol("program"), entry())
	ins = append(ins, findDisk(m)...)
	ins = append(ins, judge(k)...)
	ins = append(ins, mark()...)
	ins = append(ins, count(m, point)...)
	ins = append(ins, asm.Mov.Imm(asm.R0, 0).WithSymbol("exit"), asm.Return())
	return append(ins, word()...)
}

// integer and pointer are what arguments are described as.
func integer() btf.Type { return &btf.Int{Name: "int", Size: 4, Encoding: btf.Signed} }
func pointer() btf.Type { return &btf.Pointer{Target: &btf.Void{}} }

func entry() *btf.Func {
	return &btf.Func{Name: "program", Linkage: btf.GlobalFunc, Type: &btf.FuncProto{
		Return: integer(), Params: []btf.FuncParam{{Name: "context", Type: pointer()}},
	}}
}

func wordEntry() *btf.Func {
	return &btf.Func{Name: "word", Linkage: btf.StaticFunc, Type: &btf.FuncProto{
		Return: integer(), Params: []btf.FuncParam{{Name: "index", Type: integer()}, {Name: "span", Type: pointer()}},
	}}
}

// What comes first in each program leaves the operation in R7, the sector in
// R8, the bytes in R9, the disk and its size on the stack, and goes to exit for
// what changes nothing.

// reads goes to exit for operations that change nothing.
func reads(k *kernel) asm.Instructions {
	return asm.Instructions{
		asm.And.Imm(asm.R7, 0xff),
		asm.JEq.Imm(asm.R7, k.op["READ"], "exit"),
		asm.JEq.Imm(asm.R7, k.op["FLUSH"], "exit"),
		asm.JEq.Imm(asm.R7, k.op["DRV_IN"], "exit"),
	}
}

// diskOf puts the key of the disk that reg points to, and its size, on the stack.
func diskOf(k *kernel, reg asm.Register) asm.Instructions {
	return asm.Instructions{
		asm.LoadMem(asm.R2, reg, k.diskMajor, asm.Word),
		asm.LoadMem(asm.R3, reg, k.diskMinor, asm.Word),
		asm.LSh.Imm(asm.R2, 20),
		asm.Or.Reg(asm.R2, asm.R3),
		asm.StoreMem(asm.RFP, stackDisk, asm.R2, asm.Word),
		asm.LoadMem(asm.R2, reg, k.diskPart0, asm.DWord),
		asm.LoadMem(asm.R2, asm.R2, k.devSectors, asm.DWord),
		asm.StoreMem(asm.RFP, stackSize, asm.R2, asm.DWord),
	}
}

func ofBio(k *kernel) asm.Instructions {
	ins := asm.Instructions{
		asm.LoadMem(asm.R6, asm.R1, 0, asm.DWord),
		asm.LoadMem(asm.R7, asm.R6, k.bioOp, asm.Word),
	}
	ins = append(ins, reads(k)...)
	ins = append(ins,
		asm.StoreMem(asm.RFP, stackBio, asm.R6, asm.DWord),
		asm.LoadMem(asm.R8, asm.R6, k.bioSector, asm.DWord),
		asm.LoadMem(asm.R9, asm.R6, k.bioBytes, asm.Word),
		asm.LoadMem(asm.R4, asm.R6, k.bioDev, asm.DWord),
		asm.LoadMem(asm.R4, asm.R4, k.devDisk, asm.DWord),
	)
	return append(ins, diskOf(k, asm.R4)...)
}

func ofRequest(k *kernel, point string) asm.Instructions {
	ins := asm.Instructions{
		asm.LoadMem(asm.R6, asm.R1, 0, asm.DWord),
		asm.Mov.Imm(asm.R9, 0),
	}
	if point == pointComplete {
		ins = append(ins, asm.LoadMem(asm.R9, asm.R1, 16, asm.DWord)) // the bytes that are done
	}
	ins = append(ins, asm.LoadMem(asm.R7, asm.R6, k.rqOp, asm.Word))
	ins = append(ins, reads(k)...)
	if point == pointComplete {
		ins = append(ins, asm.LSh.Imm(asm.R9, 32), asm.RSh.Imm(asm.R9, 32)) // of 32 bits
	} else {
		ins = append(ins, asm.LoadMem(asm.R9, asm.R6, k.rqBytes, asm.Word))
	}
	ins = append(ins,
		asm.LoadMem(asm.R8, asm.R6, k.rqSector, asm.DWord),
		asm.LoadMem(asm.R4, asm.R6, k.rqQueue, asm.DWord),
		asm.LoadMem(asm.R4, asm.R4, k.queueDisk, asm.DWord),
	)
	return append(ins, diskOf(k, asm.R4)...)
}

// ofFlight takes what a bio wrote from where it was kept when it was queued.
func ofFlight(k *kernel, m maps) asm.Instructions {
	ins := asm.Instructions{
		asm.LoadMem(asm.R6, asm.R1, 8, asm.DWord),
		asm.LoadMem(asm.R7, asm.R6, k.bioOp, asm.Word),
	}
	ins = append(ins, reads(k)...)
	return append(ins,
		asm.StoreMem(asm.RFP, stackBio, asm.R6, asm.DWord),
		asm.LoadMapPtr(asm.R1, m.flights.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, stackBio),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "exit"),
		asm.LoadMem(asm.R1, asm.R0, 0, asm.DWord),
		asm.StoreMem(asm.RFP, stackDisk, asm.R1, asm.Word),
		asm.LoadMem(asm.R8, asm.R0, 8, asm.DWord),
		asm.LoadMem(asm.R9, asm.R0, 16, asm.DWord),
		asm.Mov.Imm(asm.R1, 0), asm.StoreMem(asm.RFP, stackSize, asm.R1, asm.DWord),
		asm.LoadMapPtr(asm.R1, m.flights.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, stackBio),
		asm.FnMapDeleteElem.Call(),
	)
}

// findDisk leaves the map of the disk's present generation in R6, and its head
// on the stack and in R0.
func findDisk(m maps) asm.Instructions {
	return asm.Instructions{
		asm.LoadMapPtr(asm.R1, m.disks.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, stackDisk),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "exit"),
		asm.Mov.Reg(asm.R6, asm.R0),
		asm.StoreImm(asm.RFP, stackLine, 0, asm.Word),
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, stackLine),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "exit"),
		asm.StoreMem(asm.RFP, stackHead, asm.R0, asm.DWord),
	}
}

// judge leaves the first and last sector of a change in R8 and R9, and counts
// what cannot be vouched for.
func judge(k *kernel) asm.Instructions {
	return asm.Instructions{
		// A disk that is not as long as it was.
		asm.LoadMem(asm.R1, asm.RFP, stackSize, asm.DWord),
		asm.JEq.Imm(asm.R1, 0, "as it was"),
		asm.LoadMem(asm.R2, asm.R0, headSectors*8, asm.DWord),
		asm.JEq.Reg(asm.R1, asm.R2, "as it was"),
		asm.Mov.Imm(asm.R1, 1),
		asm.AddAtomic.Mem(asm.R0, asm.R1, asm.DWord, headResized*8),

		asm.JEq.Imm(asm.R7, k.op["WRITE"], "change").WithSymbol("as it was"),
		asm.JEq.Imm(asm.R7, k.op["DISCARD"], "change"),
		asm.JEq.Imm(asm.R7, k.op["WRITE_ZEROES"], "change"),
		asm.JEq.Imm(asm.R7, k.op["SECURE_ERASE"], "change"),
		asm.JNE.Imm(asm.R7, k.op["ZONE_APPEND"], "foreign"),
		// Where in its zone an append ends up is known only when it is done.
		asm.LoadMem(asm.R9, asm.R0, headZone*8, asm.DWord),
		asm.JNE.Imm(asm.R9, 0, "change"),

		// Commands for the drive itself, operations on zones, and whatever a
		// later kernel may invent.
		asm.Mov.Imm(asm.R1, 1).WithSymbol("foreign"),
		asm.AddAtomic.Mem(asm.R0, asm.R1, asm.DWord, headForeign*8),
		asm.Ja.Label("exit"),

		asm.RSh.Imm(asm.R9, 9).WithSymbol("change"),
		asm.JEq.Imm(asm.R9, 0, "exit"),
		asm.Add.Reg(asm.R9, asm.R8),
		asm.Sub.Imm(asm.R9, 1),
		asm.LoadMem(asm.R1, asm.R0, headSectors*8, asm.DWord),
		asm.JLT.Reg(asm.R9, asm.R1, "inside"),
		asm.Mov.Imm(asm.R2, 1),
		asm.AddAtomic.Mem(asm.R0, asm.R2, asm.DWord, headOutside*8),
		asm.JGE.Reg(asm.R8, asm.R1, "exit"),
		asm.Mov.Reg(asm.R9, asm.R1),
		asm.Sub.Imm(asm.R9, 1),
		asm.Mov.Imm(asm.R1, 0).WithSymbol("inside"),
	}
}

// mark sets the bits of the sectors from R8 to R9. What it does for one event
// has a bound: from coarseFrom bits on it sets those of the coarse map.
func mark() asm.Instructions {
	return asm.Instructions{
		asm.StoreMem(asm.RFP, stackFlight+8, asm.R8, asm.DWord),
		asm.StoreMem(asm.RFP, stackFlight+16, asm.R9, asm.DWord),
		asm.LoadMem(asm.R1, asm.R0, headShift*8, asm.DWord),
		asm.RSh.Reg(asm.R8, asm.R1),
		asm.RSh.Reg(asm.R9, asm.R1),
		asm.Mov.Imm(asm.R7, firstLine),
		asm.Mov.Reg(asm.R1, asm.R9),
		asm.Sub.Reg(asm.R1, asm.R8),
		asm.JLT.Imm(asm.R1, coarseFrom, "fine"),
		asm.LoadMem(asm.R7, asm.R0, headCoarse*8, asm.DWord),
		asm.RSh.Imm(asm.R8, coarseShift),
		asm.RSh.Imm(asm.R9, coarseShift),

		// Most events are bits of one word: those need no loop, and half the time.
		asm.Mov.Reg(asm.R1, asm.R8).WithSymbol("fine"),
		asm.RSh.Imm(asm.R1, 6),
		asm.Mov.Reg(asm.R2, asm.R9),
		asm.RSh.Imm(asm.R2, 6),
		asm.JNE.Reg(asm.R1, asm.R2, "words"),
		asm.RSh.Imm(asm.R1, 4), // words in a line
		asm.Add.Reg(asm.R1, asm.R7),
		asm.StoreMem(asm.RFP, stackLine, asm.R1, asm.Word),
		asm.Mov.Imm(asm.R3, -1),
		asm.Mov.Reg(asm.R1, asm.R8),
		asm.And.Imm(asm.R1, 63),
		asm.LSh.Reg(asm.R3, asm.R1),
		asm.And.Imm(asm.R9, 63),
		asm.Mov.Imm(asm.R1, 63),
		asm.Sub.Reg(asm.R1, asm.R9),
		asm.Mov.Imm(asm.R9, -1),
		asm.RSh.Reg(asm.R9, asm.R1),
		asm.And.Reg(asm.R9, asm.R3),
		asm.RSh.Imm(asm.R8, 6),
		asm.And.Imm(asm.R8, wordsInLine-1),
		asm.LSh.Imm(asm.R8, 3),
		asm.Mov.Reg(asm.R1, asm.R6).WithSymbol("one word"),
		asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, stackLine),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "no place"),
		asm.Add.Reg(asm.R0, asm.R8),
		asm.LoadMem(asm.R1, asm.R0, 0, asm.DWord),
		asm.And.Reg(asm.R1, asm.R9),
		asm.JEq.Reg(asm.R1, asm.R9, "marked"),
		orAtomic(asm.R0, asm.R9, 0),
		asm.Ja.Label("marked"),
		asm.LoadMem(asm.R0, asm.RFP, stackHead, asm.DWord).WithSymbol("no place"),
		asm.Mov.Imm(asm.R1, 1),
		asm.AddAtomic.Mem(asm.R0, asm.R1, asm.DWord, headOutside*8),
		asm.Ja.Label("marked"),

		asm.StoreMem(asm.RFP, stackSpan+spanFirst, asm.R8, asm.DWord).WithSymbol("words"),
		asm.StoreMem(asm.RFP, stackSpan+spanLast, asm.R9, asm.DWord),
		asm.StoreMem(asm.RFP, stackSpan+spanBase, asm.R7, asm.DWord),
		asm.StoreMem(asm.RFP, stackSpan+spanMap, asm.R6, asm.DWord),
		asm.StoreMem(asm.RFP, stackSpan+spanHead, asm.R0, asm.DWord),
		asm.RSh.Imm(asm.R8, 6),
		asm.RSh.Imm(asm.R9, 6),
		asm.Mov.Reg(asm.R1, asm.R9),
		asm.Sub.Reg(asm.R1, asm.R8),
		asm.Add.Imm(asm.R1, 1),
		asm.Instruction{OpCode: asm.LoadImmOp(asm.DWord), Dst: asm.R2, Src: asm.PseudoFunc, Constant: -1}.WithReference("word"),
		asm.Mov.Reg(asm.R3, asm.RFP), asm.Add.Imm(asm.R3, stackSpan),
		asm.Mov.Imm(asm.R4, 0),
		asm.FnLoop.Call(),

		asm.LoadMem(asm.R0, asm.RFP, stackHead, asm.DWord).WithSymbol("marked"),
		asm.Mov.Imm(asm.R1, 1),
		asm.AddAtomic.Mem(asm.R0, asm.R1, asm.DWord, headEvents*8),
	}
}

// word sets the bits of one word, the R1-th of the span that R2 points to.
func word() asm.Instructions {
	ins := asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R2),
		asm.LoadMem(asm.R7, asm.R6, spanFirst, asm.DWord),
		asm.Mov.Reg(asm.R8, asm.R7),
		asm.RSh.Imm(asm.R8, 6),
		asm.Add.Reg(asm.R8, asm.R1),
		asm.Mov.Imm(asm.R9, -1),
		asm.JNE.Imm(asm.R1, 0, "not the first"),
		asm.And.Imm(asm.R7, 63),
		asm.LSh.Reg(asm.R9, asm.R7),
		asm.LoadMem(asm.R4, asm.R6, spanLast, asm.DWord).WithSymbol("not the first"),
		asm.Mov.Reg(asm.R5, asm.R4),
		asm.RSh.Imm(asm.R5, 6),
		asm.JNE.Reg(asm.R5, asm.R8, "not the last"),
		asm.And.Imm(asm.R4, 63),
		asm.Mov.Imm(asm.R5, 63),
		asm.Sub.Reg(asm.R5, asm.R4),
		asm.Mov.Imm(asm.R4, -1),
		asm.RSh.Reg(asm.R4, asm.R5),
		asm.And.Reg(asm.R9, asm.R4),
		asm.LoadMem(asm.R1, asm.R6, spanBase, asm.DWord).WithSymbol("not the last"),
		asm.Mov.Reg(asm.R2, asm.R8),
		asm.RSh.Imm(asm.R2, 4), // words in a line
		asm.Add.Reg(asm.R1, asm.R2),
		asm.StoreMem(asm.RFP, stackLine, asm.R1, asm.Word),
		asm.LoadMem(asm.R1, asm.R6, spanMap, asm.DWord),
		asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, stackLine),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "no line"),
		asm.And.Imm(asm.R8, wordsInLine-1),
		asm.LSh.Imm(asm.R8, 3),
		asm.Add.Reg(asm.R0, asm.R8),
		// Most of what is written is written again: spare the bus a lock.
		asm.LoadMem(asm.R1, asm.R0, 0, asm.DWord),
		asm.And.Reg(asm.R1, asm.R9),
		asm.JEq.Reg(asm.R1, asm.R9, "set"),
		orAtomic(asm.R0, asm.R9, 0),
		asm.Mov.Imm(asm.R0, 0).WithSymbol("set"),
		asm.Return(),

		asm.LoadMem(asm.R0, asm.R6, spanHead, asm.DWord).WithSymbol("no line"),
		asm.Mov.Imm(asm.R1, 1),
		asm.AddAtomic.Mem(asm.R0, asm.R1, asm.DWord, headOutside*8),
		asm.Mov.Imm(asm.R0, 1),
		asm.Return(),
	}
	ins[0] = btf.WithFuncMetadata(ins[0].WithSymbol("word"), wordEntry())
	return ins
}

// count keeps the books of what is in flight where the kernel does not.
func count(m maps, point string) asm.Instructions {
	if point != pointQueue {
		return nil
	}
	return append(asm.Instructions{
		asm.LoadMem(asm.R1, asm.R0, headFlags*8, asm.DWord),
		asm.And.Imm(asm.R1, flagBios),
		asm.JEq.Imm(asm.R1, 0, "exit"),
	}, keepFlight(m)...)
}

// keepFlight remembers where a bio writes. Where there is no room for it, what
// is in flight is unknown from then on.
func keepFlight(m maps) asm.Instructions {
	return asm.Instructions{
		// The sectors R8 and R9 had are those of the stack.
		asm.LoadMem(asm.R1, asm.RFP, stackFlight+8, asm.DWord),
		asm.LoadMem(asm.R2, asm.RFP, stackFlight+16, asm.DWord),
		asm.Sub.Reg(asm.R2, asm.R1),
		asm.Add.Imm(asm.R2, 1),
		asm.LSh.Imm(asm.R2, 9),
		asm.StoreMem(asm.RFP, stackFlight+16, asm.R2, asm.DWord),
		asm.LoadMem(asm.R1, asm.RFP, stackDisk, asm.Word),
		asm.StoreMem(asm.RFP, stackFlight, asm.R1, asm.DWord),
		asm.LoadMapPtr(asm.R1, m.flights.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, stackBio),
		asm.Mov.Reg(asm.R3, asm.RFP), asm.Add.Imm(asm.R3, stackFlight),
		asm.Mov.Imm(asm.R4, 0),
		asm.FnMapUpdateElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "exit"),
		asm.LoadMem(asm.R0, asm.RFP, stackHead, asm.DWord),
		asm.Mov.Imm(asm.R1, 1),
		asm.AddAtomic.Mem(asm.R0, asm.R1, asm.DWord, headAdrift*8),
	}
}
