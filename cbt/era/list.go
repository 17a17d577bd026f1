package era

import (
	"encoding/xml"
	"errors"
	"fmt"
	"math"

	"platter/cbt/xmllist"
)

// blocks calls each with the runs of blocks in a list of era_invalidate. The
// list has to be whole, and to say nothing that is not understood.
func blocks(list []byte, each func(from, to int64)) error {
	return xmllist.Read(list, "era_invalidate", "blocks", func(t xml.StartElement) error { return element(t, each) })
}

func element(t xml.StartElement, each func(from, to int64)) error {
	switch t.Name.Local {
	case "blocks":
		return nil
	case "block":
		n, err := number(t, "block")
		if err == nil {
			each(n, n+1)
		}
		return err
	case "range":
		from, err1 := number(t, "begin")
		to, err2 := number(t, "end")
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		if to <= from {
			return fmt.Errorf("blocks %d to %d: %w", from, to, xmllist.ErrUnknown)
		}
		each(from, to)
		return nil
	}
	return fmt.Errorf("element %q: %w", t.Name.Local, xmllist.ErrUnknown)
}

// number returns an attribute that is a number of a block.
func number(t xml.StartElement, name string) (int64, error) {
	return xmllist.Number(t, name, math.MaxInt32)
}
