package era

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
)

// blocks calls each with the runs of blocks in a list of era_invalidate. The
// list has to be whole, and to say nothing that is not understood.
func blocks(list []byte, each func(from, to int64)) error {
	d := xml.NewDecoder(bytes.NewReader(list))
	ended := false
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			if !ended {
				return errors.New("era_invalidate stopped in the middle of its list")
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the list of era_invalidate: %w", err)
		}
		switch t := token.(type) {
		case xml.StartElement:
			if err := element(t, each); err != nil {
				return fmt.Errorf("read the list of era_invalidate: %w", err)
			}
		case xml.EndElement:
			ended = ended || t.Name.Local == "blocks"
		}
	}
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
			return fmt.Errorf("blocks %d to %d: %w", from, to, errUnknown)
		}
		each(from, to)
		return nil
	}
	return fmt.Errorf("element %q: %w", t.Name.Local, errUnknown)
}

var errUnknown = errors.New("not understood")

// number returns an attribute that is a number of a block.
func number(t xml.StartElement, name string) (int64, error) {
	for _, a := range t.Attr {
		if a.Name.Local == name {
			n, err := strconv.ParseInt(a.Value, 10, 64)
			if err != nil || n < 0 || n > math.MaxInt32 {
				return 0, fmt.Errorf("%s of %s is %q: %w", name, t.Name.Local, a.Value, errUnknown)
			}
			return n, nil
		}
	}
	return 0, fmt.Errorf("%s without %s: %w", t.Name.Local, name, errUnknown)
}
