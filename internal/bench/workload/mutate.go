package workload

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// mutate changes a filled disk as a day of work would.
func mutate(root string) error {
	at := func(path string) string { return filepath.Join(root, path) }
	return errors.Join(
		updateTable(at(ordersPath), "day orders", 8*kib, 24, 96, 160),
		updateTable(at(customersPath), "day customers", 16*kib, 10, 64, 60),
		appendRedo(at(redoPath)),
		rotateLogs(root),
		upgradePackages(root),
		changeMedia(root),
		newSessions(root))
}

// updateTable rewrites pages: runs of them, as batches do, and single ones.
func updateTable(path, name string, pageSize, runs, runLength, single int) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	pages := int(info.Size()) / pageSize
	r, b := dice(name), make([]byte, pageSize)
	rewrite := func(first, n int) error {
		for i := first; i < first+n; i++ {
			page(b, uint64(i), r)
			if _, err := f.WriteAt(b, int64(i)*int64(pageSize)); err != nil {
				return err
			}
		}
		return nil
	}
	err = repeat(runs, func(int) error { return rewrite(r.IntN(pages-runLength), runLength) })
	if err == nil {
		err = repeat(single, func(int) error { return rewrite(r.IntN(pages), 1) })
	}
	return errors.Join(err, f.Sync(), f.Close())
}

func appendRedo(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	_, err = io.CopyN(io.NewOffsetWriter(f, redoUsed), stream("day redo"), 12*mib)
	return errors.Join(err, f.Close())
}

// rotateLogs appends to four logs, begins a new one and deletes the oldest.
func rotateLogs(root string) error {
	err := repeat(4, func(i int) error {
		return writeMode(filepath.Join(root, logPath(i)), os.O_WRONLY|os.O_APPEND, func(w *bufio.Writer) error {
			return logLines(w, fmt.Sprint("day log", i), 3*mib)
		})
	})
	fresh := write(filepath.Join(root, logPath(logCount)), func(w *bufio.Writer) error {
		return logLines(w, "day log new", 8*mib)
	})
	return errors.Join(err, fresh, os.Remove(filepath.Join(root, logPath(logCount-1))))
}

// upgradePackages replaces 28 MiB of files by slightly other ones, each under a
// new name that is then renamed, as dpkg does.
func upgradePackages(root string) error {
	paths, err := pick(filepath.Join(root, "usr/lib"), "day upgrade", 4*kib, 6*mib)
	if err != nil {
		return err
	}
	r := dice("day upgrade bytes")
	total := 0
	for _, path := range paths {
		if total >= 28*mib {
			break
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for range len(b)/4096 + 1 {
			binary.LittleEndian.PutUint32(b[r.IntN(len(b)-3):], r.Uint32())
		}
		if err := errors.Join(os.WriteFile(path+".dpkg-new", b, 0o644), os.Rename(path+".dpkg-new", path)); err != nil {
			return err
		}
		total += len(b)
	}
	return nil
}

func changeMedia(root string) error {
	err := repeat(3, func(i int) error {
		return noise(filepath.Join(root, filmPath(40+i)), fmt.Sprint("day film", i), 13*mib+777)
	})
	return errors.Join(err, os.Remove(filepath.Join(root, filmPath(7))))
}

// newSessions writes many tiny files.
func newSessions(root string) error {
	r := dice("day session sizes")
	return repeat(1500, func(i int) error {
		return noise(filepath.Join(root, fmt.Sprintf("var/lib/php/sessions/%02x/%04d", i%256, i)), fmt.Sprint("day session", i), 200+r.Int64N(9000))
	})
}
