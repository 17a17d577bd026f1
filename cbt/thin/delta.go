package thin

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"

	"platter/block"
)

const sectorSize = 512

// delta calls changed with each extent in which two thin volumes differ, as
// thin_delta lists them: mapped to other blocks of the pool, or in only one of
// them. Where both have the same block, or none, nobody wrote.
//
// The list has to be whole, and to say nothing that is not understood.
func delta(list []byte, changed func(block.Extent)) error {
	d := xml.NewDecoder(bytes.NewReader(list))
	var unit int64 // bytes
	ended := false
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			if !ended {
				return errors.New("thin_delta stopped in the middle of its list")
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the list of thin_delta: %w", err)
		}
		switch t := token.(type) {
		case xml.StartElement:
			if err := element(t, &unit, changed); err != nil {
				return fmt.Errorf("read the list of thin_delta: %w", err)
			}
		case xml.EndElement:
			ended = ended || t.Name.Local == "superblock"
		}
	}
}

func element(t xml.StartElement, unit *int64, changed func(block.Extent)) error {
	switch t.Name.Local {
	case "superblock":
		sectors, err := number(t, "data_block_size")
		if err != nil || sectors == 0 || sectors > 1<<21 {
			return fmt.Errorf("blocks of %d sectors: %w", sectors, errors.Join(err, errUnknown))
		}
		*unit = sectors * sectorSize
	case "diff":
	case "same":
	case "different", "left_only", "right_only":
		begin, err1 := number(t, "begin")
		length, err2 := number(t, "length")
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		if *unit == 0 || begin > math.MaxInt64 / *unit - length {
			return fmt.Errorf("%d blocks at %d: %w", length, begin, errUnknown)
		}
		changed(block.Extent{Offset: begin * *unit, Length: length * *unit})
	default:
		return fmt.Errorf("element %q: %w", t.Name.Local, errUnknown)
	}
	return nil
}

var errUnknown = errors.New("not understood")

// number returns an attribute that is a number of blocks or sectors.
func number(t xml.StartElement, name string) (int64, error) {
	for _, a := range t.Attr {
		if a.Name.Local == name {
			n, err := strconv.ParseInt(a.Value, 10, 64)
			if err != nil || n < 0 || n > math.MaxInt64/2 {
				return 0, fmt.Errorf("%s of %s is %q: %w", name, t.Name.Local, a.Value, errUnknown)
			}
			return n, nil
		}
	}
	return 0, fmt.Errorf("%s without %s: %w", t.Name.Local, name, errUnknown)
}
