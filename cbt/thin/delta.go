package thin

import (
	"encoding/xml"
	"errors"
	"fmt"
	"math"

	"platter/block"
	"platter/cbt/xmllist"
)

const sectorSize = 512

// delta calls changed with each extent in which two thin volumes differ, as
// thin_delta lists them: mapped to other blocks of the pool, or in only one of
// them, and same with each in which both have the same block. Where they do, or
// have none, nobody wrote.
//
// The list has to be whole, and to say nothing that is not understood.
func delta(list []byte, same, changed func(block.Extent)) error {
	var unit int64 // bytes
	return xmllist.Read(list, "thin_delta", "superblock", func(t xml.StartElement) error { return element(t, &unit, same, changed) })
}

func element(t xml.StartElement, unit *int64, same, changed func(block.Extent)) error {
	switch t.Name.Local {
	case "superblock":
		sectors, err := number(t, "data_block_size")
		if err != nil || sectors == 0 || sectors > 1<<21 {
			return fmt.Errorf("blocks of %d sectors: %w", sectors, errors.Join(err, xmllist.ErrUnknown))
		}
		*unit = sectors * sectorSize
	case "diff":
	case "same", "different", "left_only", "right_only":
		begin, err1 := number(t, "begin")
		length, err2 := number(t, "length")
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		if *unit == 0 || begin > math.MaxInt64 / *unit - length {
			return fmt.Errorf("%d blocks at %d: %w", length, begin, xmllist.ErrUnknown)
		}
		e := block.Extent{Offset: begin * *unit, Length: length * *unit}
		if t.Name.Local == "same" {
			same(e)
		} else {
			changed(e)
		}
	default:
		return fmt.Errorf("element %q: %w", t.Name.Local, xmllist.ErrUnknown)
	}
	return nil
}

// number returns an attribute that is a number of blocks or sectors.
func number(t xml.StartElement, name string) (int64, error) {
	return xmllist.Number(t, name, math.MaxInt64/2)
}
