package workload

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// Places of the server's data, below the root.
const (
	ordersPath    = "var/lib/shop/orders.db"     // pages of 8 KiB
	customersPath = "var/lib/shop/customers.ibd" // pages of 16 KiB
	redoPath      = "var/lib/shop/redo.0"
	redoUsed      = 20 * mib
	redoSize      = 96 * mib
	logCount      = 24
)

func filmPath(i int) string { return fmt.Sprintf("srv/media/film%02d.mp4", i) }
func logPath(i int) string  { return fmt.Sprintf("var/log/shop/access.%02d.log", i) }

// fill lays a server's data beside the system: databases, logs, media, copies
// of what is there already, and free space that holds deleted files.
func fill(root string) error {
	litter := filepath.Join(root, "var/tmp/litter")
	steps := []func(string) error{
		// The litter is written first and deleted last, so that later files lie
		// around it and its blocks stay on the disk.
		func(string) error {
			return repeat(60, func(i int) error {
				return noise(filepath.Join(litter, fmt.Sprint(i)), fmt.Sprint("litter", i), int64(1+i%9)*mib)
			})
		},
		fillMedia, fillDatabases, fillLogs, copyLibraries, copyMedia,
		func(string) error { return os.RemoveAll(litter) },
	}
	for _, step := range steps {
		if err := step(root); err != nil {
			return err
		}
	}
	return nil
}

// fillMedia writes 0.55 GiB of films whose lengths end in mid-block.
func fillMedia(root string) error {
	return repeat(40, func(i int) error {
		return noise(filepath.Join(root, filmPath(i)), fmt.Sprint("film", i), int64(6+i%17)*mib+int64(i)*4099)
	})
}

func fillDatabases(root string) error {
	return errors.Join(
		table(filepath.Join(root, ordersPath), "orders", 384*mib/(8*kib), 8*kib),
		table(filepath.Join(root, customersPath), "customers", 192*mib/(16*kib), 16*kib),
		fillRedo(filepath.Join(root, redoPath)))
}

// fillRedo writes a log that was laid out whole and is used in part: the rest
// is zeros on the disk, not a hole.
func fillRedo(path string) error {
	return write(path, func(w *bufio.Writer) error {
		if _, err := io.CopyN(w, stream("redo"), redoUsed); err != nil {
			return err
		}
		zeros := make([]byte, mib)
		return repeat((redoSize-redoUsed)/mib, func(int) error {
			_, err := w.Write(zeros)
			return err
		})
	})
}

func fillLogs(root string) error {
	return repeat(logCount, func(i int) error {
		return write(filepath.Join(root, logPath(i)), func(w *bufio.Writer) error {
			return logLines(w, fmt.Sprint("log", i), 8*mib+int64(i)*12_347)
		})
	})
}

// copyLibraries stores 220 MiB of the system a second time, as container
// layers do.
func copyLibraries(root string) error {
	paths, err := pick(filepath.Join(root, "usr/lib"), "layers", 64*kib, 40*mib)
	if err != nil {
		return err
	}
	var total int64
	for _, path := range paths {
		if total >= 220*mib {
			break
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		n, err := duplicate(path, filepath.Join(root, "srv/layers", rel))
		if err != nil {
			return err
		}
		total += n
	}
	return nil
}

// copyMedia keeps some films twice, and a dump of the customers.
func copyMedia(root string) error {
	err := repeat(6, func(i int) error {
		from := filmPath(i * 5)
		_, err := duplicate(filepath.Join(root, from), filepath.Join(root, "home/ada/Downloads", filepath.Base(from)))
		return err
	})
	_, dup := duplicate(filepath.Join(root, customersPath), filepath.Join(root, "var/backups/customers.ibd.1"))
	return errors.Join(err, dup)
}

// duplicate copies a file byte by byte: a reflink or an offloaded copy would
// not write the bytes a second time.
func duplicate(from, to string) (int64, error) {
	in, err := os.Open(from)
	if err != nil {
		return 0, err
	}
	defer in.Close()
	var n int64
	err = write(to, func(w *bufio.Writer) error {
		n, err = io.Copy(w, struct{ io.Reader }{in})
		return err
	})
	return n, err
}

// pick lists the regular files below dir with from <= size < to, in an order
// that belongs to name.
func pick(dir, name string, from, to int64) ([]string, error) {
	var paths []string
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		info, err := e.Info()
		if err == nil && info.Size() >= from && info.Size() < to {
			paths = append(paths, path)
		}
		return err
	})
	slices.Sort(paths)
	r := dice(name)
	r.Shuffle(len(paths), func(i, j int) { paths[i], paths[j] = paths[j], paths[i] })
	return paths, err
}

func repeat(n int, f func(i int) error) error {
	for i := range n {
		if err := f(i); err != nil {
			return err
		}
	}
	return nil
}
