package workload

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
)

// stream returns the random bytes that belong to a name.
func stream(name string) *rand.ChaCha8 {
	var seed [32]byte
	copy(seed[:], "platter bench/"+name)
	return rand.NewChaCha8(seed)
}

// dice returns random numbers that belong to a name.
func dice(name string) *rand.Rand { return rand.New(stream(name)) }

// write makes a file, its directory too, from what f writes.
func write(path string, f func(w *bufio.Writer) error) error {
	return writeMode(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, f)
}

func writeMode(path string, mode int, f func(w *bufio.Writer) error) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	file, err := os.OpenFile(path, mode, 0o644)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(file, mib)
	return errors.Join(f(w), w.Flush(), file.Close())
}

// noise fills a file with what does not compress, like films and archives.
func noise(path, name string, size int64) error {
	return write(path, func(w *bufio.Writer) error {
		_, err := io.CopyN(w, stream(name), size)
		return err
	})
}

// fields are the words that rows and log lines are made of.
var fields = [...]string{
	"account", "address", "basket", "carrier", "category", "checkout", "closed", "colour", "coupon", "customer",
	"delivered", "discount", "EUR", "Hamburg", "invoice", "language", "Lyon", "member", "newsletter", "open",
	"order", "paid", "parcel", "pending", "price", "product", "quantity", "refund", "returned", "session",
	"shipped", "stock", "supplier", "tax", "total", "Utrecht", "voucher", "warehouse", "weight", "Zagreb",
}

// row appends a database row: numbers, an identity that does not compress and
// text that does.
func row(b []byte, page uint64, slot int, r *rand.Rand) []byte {
	b = binary.BigEndian.AppendUint64(b, page<<12|uint64(slot))
	b = binary.BigEndian.AppendUint64(b, r.Uint64())
	b = binary.BigEndian.AppendUint32(b, r.Uint32N(1_000_000))
	b = fmt.Appendf(b, "%016x.%d@post.example;", r.Uint64(), r.IntN(40))
	for range 2 + r.IntN(10) {
		b = append(append(b, fields[r.IntN(len(fields))]...), ' ')
	}
	return b
}

// page fills b like a page of a database: a header, a table of slots growing
// up and rows growing down, with a gap of zeros between. It is 40 to 95 % full.
func page(b []byte, number uint64, r *rand.Rand) {
	const header, slotSize = 24, 4
	clear(b)
	binary.LittleEndian.PutUint64(b, number*0x9e3779b97f4a7c15+r.Uint64N(1024)) // the last change's place in the log
	binary.LittleEndian.PutUint64(b[8:], number)
	free := len(b) - len(b)*(40+r.IntN(56))/100
	var scratch [512]byte
	low, high := header, len(b)
	for slot := 0; high > free; slot++ {
		text := row(scratch[:0], number, slot, r)
		if high-len(text) < low+slotSize {
			break
		}
		high -= copy(b[high-len(text):], text)
		binary.LittleEndian.PutUint16(b[low:], uint16(high))
		binary.LittleEndian.PutUint16(b[low+2:], uint16(len(text)))
		low += slotSize
	}
	binary.LittleEndian.PutUint32(b[16:], uint32(low-header)/slotSize)
}

// table makes a database file of so many pages.
func table(path, name string, pages, pageSize int) error {
	return write(path, func(w *bufio.Writer) error {
		r, b := dice(name), make([]byte, pageSize)
		for i := range pages {
			page(b, uint64(i), r)
			if _, err := w.Write(b); err != nil {
				return err
			}
		}
		return nil
	})
}

// logLines writes an access log of at least size bytes.
func logLines(w *bufio.Writer, name string, size int64) error {
	r := dice(name)
	for i, n := 0, int64(0); n < size; i++ {
		k, err := fmt.Fprintf(w, "2026-11-%02d %02d:%02d:%02d.%03d shop%d httpd[%d] 10.%d.%d.%d %s /%s/%s?id=%d %d %dB %dus \"Mozilla/5.0 (X11; Linux x86_64; rv:140.0)\"\n",
			1+i/200_000%28, i/8000%24, i/130%60, i/2%60, r.IntN(1000), r.IntN(6), 900+r.IntN(48), r.IntN(256), r.IntN(256), r.IntN(256),
			[...]string{"GET", "GET", "GET", "POST"}[r.IntN(4)], fields[r.IntN(len(fields))], fields[r.IntN(len(fields))], r.IntN(100_000),
			[...]int{200, 200, 200, 304, 404, 500}[r.IntN(6)], r.IntN(90_000), r.IntN(900_000))
		if err != nil {
			return err
		}
		n += int64(k)
	}
	return nil
}
