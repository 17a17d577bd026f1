package job

import (
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"platter/block"
	"platter/catalog"
	"platter/image/repo"
	"platter/image/store/dir"
	"platter/image/store/vfs"
)

// BenchmarkRestore restores a disk that is half zeros and half data which LZ4
// halves, from a directory to a sparse file. PLATTER_BENCH_MIB is its size,
// 512 by default. CPU time is reported beside wall time.
func BenchmarkRestore(b *testing.B) {
	mib := 512
	if s := os.Getenv("PLATTER_BENCH_MIB"); s != "" {
		mib, _ = strconv.Atoi(s)
	}
	env := benchEnv(b)
	d := &disk{name: "disk", data: make([]byte, mib<<20), holes: true}
	text := make([]byte, 1<<10)
	r := rand.New(rand.NewPCG(1, 1))
	for i := range text {
		text[i] = "abcdefghijklmnopqrstuvwxyz      "[r.IntN(32)]
	}
	for off := 0; off < len(d.data); off += 2 << 20 {
		for at := off; at < off+1<<20; at += 256 {
			random(r, d.data[at:at+96])
			copy(d.data[at+96:at+256], text[r.IntN(1<<9):])
		}
	}
	if _, err := Backup(context.Background(), env, BackupOptions{Sources: []block.Source{d}}); err != nil {
		b.Fatal(err)
	}
	for name, opts := range map[string]RestoreOptions{"read back": {}, "no read back": {NoReadBack: true}, "in place": {InPlace: true, Confirm: yes}} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(d.data)))
			path := filepath.Join(b.TempDir(), "restored")
			var phases [2]time.Duration
			env.Progress = func(p Progress) {
				i := 0
				if p.Phase == "read back" {
					i = 1
				}
				phases[i] = p.Elapsed
			}
			before := cpuTime()
			for b.Loop() {
				if !opts.InPlace {
					os.Remove(path)
				}
				opts.Image, opts.Target = "disk", path
				if _, err := Restore(context.Background(), env, opts); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric((cpuTime()-before).Seconds()/float64(b.N), "cpu-s/op")
			b.ReportMetric(phases[0].Seconds(), "write-s")
			b.ReportMetric(phases[1].Seconds(), "readback-s")
		})
	}
}

func benchEnv(b *testing.B) *Env {
	st, err := dir.Create(filepath.Join(b.TempDir(), "repo"), vfs.OS())
	if err != nil {
		b.Fatal(err)
	}
	ctx := context.Background()
	r, err := repo.Init(ctx, st, repo.InitOptions{})
	if err != nil {
		b.Fatal(err)
	}
	c, err := catalog.Open(ctx, catalog.Options{Dir: b.TempDir(), Repository: r.ID, BlockSize: r.Config.BlockSize})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { c.Close() })
	return &Env{Repo: r, Catalog: c, Memory: 256 << 20, Version: "bench", Host: "host"}
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
