package trace

import (
	"fmt"

	"github.com/cilium/ebpf/btf"
)

// A kernel is where the running kernel keeps what the programs look at. It is
// read from the kernel's own description of its types (BTF), so that one
// binary fits all.
type kernel struct {
	bioDev, bioOp, bioSector, bioBytes int16
	devDisk, devSectors                int16
	diskMajor, diskMinor, diskPart0    int16
	rqQueue, rqOp, rqSector, rqBytes   int16
	queueDisk                          int16
	op                                 map[string]int32 // of requests, by name without REQ_OP_
}

// signature is what a trace point has to hand over for its program to be right.
var signatures = map[string][]string{
	pointQueue:       {"bio"},
	pointRemap:       {"bio", "", ""},
	pointIssue:       {"request"},
	pointComplete:    {"request", "", ""},
	pointBioComplete: {"request_queue", "bio"},
}

// readKernel returns where things are in the running kernel, or says what this
// kernel lacks.
func readKernel() (*kernel, error) {
	spec, err := btf.LoadKernelSpec()
	if err != nil {
		return nil, fmt.Errorf("read the kernel's types (it needs CONFIG_DEBUG_INFO_BTF): %w", err)
	}
	r := typeReader{spec: spec}
	k := &kernel{op: map[string]int32{}}
	k.bioDev = r.offset("bio", "bi_bdev")
	k.bioOp = r.offset("bio", "bi_opf")
	k.bioSector = r.offset("bio", "bi_iter", "bi_sector")
	k.bioBytes = r.offset("bio", "bi_iter", "bi_size")
	k.devDisk = r.offset("block_device", "bd_disk")
	k.devSectors = r.offset("block_device", "bd_nr_sectors")
	k.diskMajor = r.offset("gendisk", "major")
	k.diskMinor = r.offset("gendisk", "first_minor")
	k.diskPart0 = r.offset("gendisk", "part0")
	k.rqQueue = r.offset("request", "q")
	k.rqOp = r.offset("request", "cmd_flags")
	k.rqSector = r.offset("request", "__sector")
	k.rqBytes = r.offset("request", "__data_len")
	k.queueDisk = r.offset("request_queue", "disk")
	for _, name := range []string{"READ", "WRITE", "FLUSH", "DISCARD", "SECURE_ERASE", "WRITE_ZEROES", "ZONE_APPEND", "DRV_IN"} {
		k.op[name] = r.constant("REQ_OP_"+name, "req_op", "req_opf")
	}
	for point, want := range signatures {
		r.point(point, want)
	}
	if r.err != nil {
		return nil, fmt.Errorf("this kernel is another one than the tracer knows (Linux 5.16 and later): %w", r.err)
	}
	return k, nil
}

// A typeReader looks things up in the kernel's types. The first one that is
// missing is its error.
type typeReader struct {
	spec *btf.Spec
	err  error
}

func (r *typeReader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf(format, args...)
	}
}

// offset returns where a member of a struct is, in bytes.
func (r *typeReader) offset(name string, path ...string) int16 {
	var s *btf.Struct
	if err := r.spec.TypeByName(name, &s); err != nil {
		r.fail("struct %s: %w", name, err)
		return 0
	}
	var at uint32
	var t btf.Type = s
	for _, member := range path {
		off, of, ok := find(btf.UnderlyingType(t), member)
		if !ok {
			r.fail("struct %s has no %v", name, path)
			return 0
		}
		at, t = at+off, of
	}
	return int16(at)
}

// find looks for a member, also in the structs and unions without a name.
func find(t btf.Type, name string) (uint32, btf.Type, bool) {
	var members []btf.Member
	switch t := t.(type) {
	case *btf.Struct:
		members = t.Members
	case *btf.Union:
		members = t.Members
	}
	for _, m := range members {
		if m.Name == name && m.BitfieldSize == 0 {
			return m.Offset.Bytes(), m.Type, true
		}
		if m.Name == "" {
			if off, of, ok := find(btf.UnderlyingType(m.Type), name); ok {
				return m.Offset.Bytes() + off, of, true
			}
		}
	}
	return 0, nil, false
}

// constant returns a value of one of the enums, whose name changed once.
func (r *typeReader) constant(name string, enums ...string) int32 {
	for _, enum := range enums {
		var e *btf.Enum
		if r.spec.TypeByName(enum, &e) != nil {
			continue
		}
		for _, v := range e.Values {
			if v.Name == name {
				return int32(v.Value)
			}
		}
	}
	r.fail("enum %v has no %s", enums, name)
	return 0
}

// point checks what a trace point hands over: pointers to structs by name, or
// anything where there is none.
func (r *typeReader) point(name string, want []string) {
	var t *btf.Typedef
	if err := r.spec.TypeByName("btf_trace_"+name, &t); err != nil {
		r.fail("trace point %s: %w", name, err)
		return
	}
	p, ok := t.Type.(*btf.Pointer)
	if !ok {
		r.fail("trace point %s: no function", name)
		return
	}
	f, ok := p.Target.(*btf.FuncProto)
	if !ok || len(f.Params) != len(want)+1 { // the first one is of the kernel's own
		r.fail("trace point %s: other arguments", name)
		return
	}
	for i, s := range want {
		if s != "" && pointee(f.Params[i+1].Type) != s {
			r.fail("trace point %s: argument %d is no %s", name, i+1, s)
		}
	}
}

func pointee(t btf.Type) string {
	p, ok := btf.UnderlyingType(t).(*btf.Pointer)
	if !ok {
		return ""
	}
	s, ok := btf.UnderlyingType(p.Target).(*btf.Struct)
	if !ok {
		return ""
	}
	return s.Name
}
