package trace

import (
	"crypto/rand"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
)

// A loader puts maps and programs into the kernel and pins them in dir.
type loader struct {
	k    *kernel
	dir  string
	o    options
	maps maps
	open []interface{ Close() error }
}

func (l *loader) load() error {
	about, err := l.newMap("about", &ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 24, MaxEntries: 1})
	if err != nil {
		return err
	}
	record := aboutRecord{Version: version}
	rand.Read(record.ID[:])
	if err := about.Put(uint32(0), record); err != nil {
		return err
	}
	l.maps.disks, err = l.newMap("disks", &ebpf.MapSpec{
		Type: ebpf.HashOfMaps, KeySize: 4, ValueSize: 4, MaxEntries: maxDisks, InnerMap: mapSpec(firstLine + 1),
	})
	if err != nil {
		return err
	}
	_, err = l.newMap("consumers", &ebpf.MapSpec{Type: ebpf.Hash, KeySize: consumerKeyBytes, ValueSize: 16, MaxEntries: maxConsumers})
	if err != nil {
		return err
	}
	l.maps.flights, err = l.newMap("flights", &ebpf.MapSpec{Type: ebpf.Hash, KeySize: 8, ValueSize: flightBytes, MaxEntries: maxFlights})
	if err != nil {
		return err
	}
	return l.attachAll()
}

func (l *loader) newMap(name string, spec *ebpf.MapSpec) (*ebpf.Map, error) {
	spec.Name = "platter_" + name
	m, err := ebpf.NewMap(spec)
	if err == nil {
		l.open = append(l.open, m)
		err = m.Pin(filepath.Join(l.dir, name))
	}
	if err != nil {
		return nil, fmt.Errorf("make the map of %s: %w", name, err)
	}
	return m, nil
}

// attachAll attaches the programs. A write is queued first and done last, so
// the programs come in the reverse order: none is seen being done that was not
// seen before, but for what is in flight just now.
func (l *loader) attachAll() error {
	all := slices.Concat([]string{pointBioComplete}, points[:])
	if l.o.points != nil {
		all = l.o.points
		if _, err := l.newMap("partial", &ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1}); err != nil {
			return err
		}
	}
	for _, point := range all {
		if err := l.attach(point, ebpf.AttachTraceRawTp, program(l.k, l.maps, point)); err != nil {
			return err
		}
	}
	for _, function := range resizers {
		// Kernels without ftrace cannot; then a resize is noticed later.
		_ = l.attach(function, ebpf.AttachTraceFEntry, resizeProgram(l.k, l.maps))
	}
	return nil
}

func (l *loader) attach(to string, how ebpf.AttachType, ins asm.Instructions) error {
	if l.o.edit != nil {
		ins = l.o.edit(l.k, to, ins)
	}
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "platter_trace", Type: ebpf.Tracing, AttachType: how, AttachTo: to, Instructions: ins, License: "GPL",
	})
	if err != nil {
		return fmt.Errorf("load the program for %s: %w", to, err)
	}
	l.open = append(l.open, p)
	at, err := link.AttachTracing(link.TracingOptions{Program: p, AttachType: how})
	if err != nil {
		return fmt.Errorf("attach the program for %s: %w", to, err)
	}
	l.open = append(l.open, at)
	if err := at.Pin(filepath.Join(l.dir, "link_"+to)); err != nil {
		return fmt.Errorf("pin the program for %s: %w", to, err)
	}
	return nil
}

// close gives up this process's hold on what is pinned.
func (l *loader) close() error {
	var errs []error
	for _, c := range l.open {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}
