// Package xmllist reads what the tools of thin provisioning list in XML, and
// believes no list that is not whole or says what is not understood.
package xmllist

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strconv"
)

// ErrUnknown is the error for what a list says and nobody here understands.
var ErrUnknown = errors.New("not understood")

// Read calls element with the start of every element of a list that tool made,
// the one around all others, root, among them. A list without the end of root
// is an error.
func Read(list []byte, tool, root string, element func(xml.StartElement) error) error {
	d := xml.NewDecoder(bytes.NewReader(list))
	ended := false
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			if !ended {
				return fmt.Errorf("%s stopped in the middle of its list", tool)
			}
			return nil
		}
		if err == nil {
			switch t := token.(type) {
			case xml.StartElement:
				err = element(t)
			case xml.EndElement:
				ended = ended || t.Name.Local == root
			}
		}
		if err != nil {
			return fmt.Errorf("read the list of %s: %w", tool, err)
		}
	}
}

// Number returns an attribute that is a number from 0 to most.
func Number(t xml.StartElement, name string, most int64) (int64, error) {
	for _, a := range t.Attr {
		if a.Name.Local == name {
			n, err := strconv.ParseInt(a.Value, 10, 64)
			if err != nil || n < 0 || n > most {
				return 0, fmt.Errorf("%s of %s is %q: %w", name, t.Name.Local, a.Value, ErrUnknown)
			}
			return n, nil
		}
	}
	return 0, fmt.Errorf("%s without %s: %w", t.Name.Local, name, ErrUnknown)
}
