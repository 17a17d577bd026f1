package trace

import (
	"context"
	"testing"

	"github.com/cilium/ebpf/asm"

	"platter/cbt"
	"platter/cbt/cbttest"
)

// A flaw is a tracer that does one thing wrong, and the story of the suite that
// finds it.
type flaw struct {
	name, story string
	kernel      func(k *kernel)
	edit        func(ins asm.Instructions) asm.Instructions
	session     func(s *Session) cbt.Tracker
}

// before puts instructions before the one with a symbol, which jumps reach
// last.
func before(symbol string, extra ...asm.Instruction) func(asm.Instructions) asm.Instructions {
	return func(ins asm.Instructions) (all asm.Instructions) {
		for _, i := range ins {
			if i.Symbol() == symbol {
				all = append(all, extra[0].WithSymbol(symbol))
				all = append(all, extra[1:]...)
				i = i.WithSymbol("")
			}
			all = append(all, i)
		}
		return all
	}
}

func flaws() []flaw {
	return []flaw{
		{name: "adds where it should or", story: "edges of extents", edit: func(ins asm.Instructions) asm.Instructions {
			for i := range ins {
				if ins[i].OpCode.AtomicOp() == asm.OrAtomic {
					ins[i] = asm.AddAtomic.Mem(ins[i].Dst, ins[i].Src, asm.DWord, ins[i].Offset)
				}
				if ins[i].Symbol() == "set" || i > 0 && ins[i].OpCode.JumpOp() == asm.JEq && ins[i].Reference() == "set" {
					// Without the look before, as it would be without the lock.
					ins[i] = asm.JEq.Imm(asm.R9, 0, "set").WithMetadata(ins[i].Metadata)
				}
			}
			return restore(ins, "set", asm.Mov.Imm(asm.R0, 0))
		}},
		{name: "loses a bit of each word", story: "edges of extents", edit: func(ins asm.Instructions) asm.Instructions {
			return before("one word", asm.And.Imm(asm.R9, ^int32(1<<3)))(before("not the last", asm.And.Imm(asm.R9, ^int32(1<<3)))(ins))
		}},
		{name: "loses a bit of what is in one word", story: "edges of extents", edit: before("one word", asm.And.Imm(asm.R9, ^int32(1<<3)))},
		{name: "ends a unit early", story: "edges of extents", edit: before("fine", asm.Sub.Imm(asm.R9, 1))},
		{name: "begins a unit late", story: "edges of extents", edit: before("fine", asm.Add.Imm(asm.R8, 1))},
		// Where nothing else is written, that nothing is seen gives these away.
		{name: "ignores discards", story: "seed 3", kernel: func(k *kernel) { k.op["DRV_IN"] = k.op["DISCARD"] }},
		{name: "ignores zeroes", story: "seed 0", kernel: func(k *kernel) { k.op["DRV_IN"] = k.op["WRITE_ZEROES"] }},
		// What is as long again as it was when it is looked at, only a program sees.
		{name: "ignores sizes", story: "resize", edit: func(ins asm.Instructions) asm.Instructions {
			for i := range ins {
				if ins[i].OpCode.AtomicOp() == asm.AddAtomic && ins[i].Offset == headResized*8 {
					ins[i] = asm.Mov.Imm(asm.R1, 0).WithMetadata(ins[i].Metadata)
				}
			}
			return ins
		}},
		{name: "marks later than the view", story: "writes during a run", session: func(s *Session) cbt.Tracker { return &late{s} }},
		{name: "trusts foreign generations", story: "foreign generation", session: func(s *Session) cbt.Tracker { return &credulous{s} }},
		{name: "clears what it is asked for", story: "run abandoned", session: func(s *Session) cbt.Tracker { return &forgetful{s} }},
		{name: "takes from other consumers", story: "two consumers", session: func(s *Session) cbt.Tracker { return &greedy{s, true} }},
		{name: "commits for other consumers", story: "cost", session: func(s *Session) cbt.Tracker { return &greedy{s, false} }},
		{name: "gives everything", story: "cost", session: func(s *Session) cbt.Tracker { return &lazy{s} }},
	}
}

// restore puts back the instruction that a symbol belongs to.
func restore(ins asm.Instructions, symbol string, want asm.Instruction) asm.Instructions {
	for i := range ins {
		if ins[i].Symbol() == symbol {
			ins[i] = want.WithSymbol(symbol)
		}
	}
	return ins
}

type late struct{ *Session }

func (l *late) Mark(ctx context.Context) (cbt.Generation, error) {
	if err := l.Next(); err != nil {
		return nil, err
	}
	return l.Session.Mark(ctx)
}

// credulous takes any generation for the one its history begins with.
type credulous struct{ *Session }

func (c *credulous) Changed(ctx context.Context, since cbt.Generation) (*cbt.Set, error) {
	if len(since) == 0 {
		return c.Session.Changed(ctx, since)
	}
	first := append(append(history{}, c.kept...), c.own...)[0]
	g := stamp{
		Version: version, Tracer: c.tracer.id, Boot: c.tracer.boot, History: first.get(bodyHistory), Nonce: first.get(headNonce),
		Number: first.number(), Disk: c.place.key, Seq: c.place.seq, Offset: c.place.Offset, Length: c.place.Length,
	}
	return c.Session.Changed(ctx, g.encode())
}

type forgetful struct{ *Session }

func (f *forgetful) Changed(ctx context.Context, since cbt.Generation) (*cbt.Set, error) {
	set, err := f.Session.Changed(ctx, since)
	for _, g := range f.kept {
		clear(g.words[firstLine*wordsInLine:])
	}
	return set, err
}

// greedy gives up what other consumers need: what was marked, or all of it.
type greedy struct {
	*Session
	quietly bool
}

func (g *greedy) Commit(ctx context.Context, at cbt.Generation) error {
	if g.quietly {
		for _, old := range g.kept {
			clear(old.words[firstLine*wordsInLine:])
		}
		return g.Session.Commit(ctx, at)
	}
	last := g.last()
	var key consumerKey
	var record consumerRecord
	var keys []consumerKey
	for all := g.tracer.consumers.Iterate(); all.Next(&key, &record); {
		keys = append(keys, key)
	}
	for _, k := range keys {
		if err := g.tracer.consumers.Put(k, consumerRecord{last.number(), last.get(bodyHistory)}); err != nil {
			return err
		}
	}
	return g.Session.Commit(ctx, at)
}

type lazy struct{ *Session }

func (l *lazy) Changed(ctx context.Context, since cbt.Generation) (*cbt.Set, error) {
	if _, err := l.Session.Changed(ctx, since); err != nil {
		return nil, err
	}
	return cbt.Unknown(l.place.Length), nil
}

// D55: a tracer that is wrong anywhere does not pass.
func TestSuiteCatchesFlawedTracers(t *testing.T) {
	runTest(t, testDir(t), options{}).Close() // or skip
	for _, f := range flaws() {
		t.Run(f.name, func(t *testing.T) {
			k, err := readKernel()
			if err != nil {
				t.Fatal(err)
			}
			if f.kernel != nil {
				f.kernel(k)
			}
			o := options{kernel: k}
			if f.edit != nil {
				o.edit = func(_ *kernel, _ string, ins asm.Instructions) asm.Instructions { return f.edit(ins) }
			}
			err = cbttest.Try(t, f.story, func(t testing.TB, size int64) cbttest.Fixture {
				return (&rig{t: t, o: o, wrap: f.session}).fixture(size)
			})
			if err == nil {
				t.Fatalf("%s: passes", f.story)
			}
			t.Logf("%s: %v", f.story, err)
		})
	}
}
