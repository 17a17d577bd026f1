package era

import (
	"context"
	"errors"

	"platter/block"
	"platter/block/snapshot"
	"platter/cbt/live"
)

// Method is the name of the views in manifests and reports.
const Method = "dm-era"

// Provider takes views of dm-era devices: of the device itself while nobody
// writes to it, otherwise by copying it in passes, as cbt/live does.
type Provider struct{ live *live.Provider }

// New returns the provider that works with the tracer in dir.
func New(dir string) Provider { return Provider{live.New(dir).As(Method)} }

// Name implements snapshot.Provider.
func (Provider) Name() string { return Method }

// Fits implements snapshot.Provider.
func (p Provider) Fits(ctx context.Context, d block.Device) snapshot.Fit {
	s, err := look(ctx, d.Path)
	if errors.Is(err, errNone) {
		return snapshot.Fit{}
	}
	if err == nil {
		_, err = s.status(ctx)
	}
	if err != nil {
		return snapshot.Fit{Why: err.Error()}
	}
	f := snapshot.Fit{OK: true, Why: "a dm-era device, and nobody writes to it"}
	if d.How != block.Still {
		f = p.live.Fits(ctx, d)
	}
	return f
}

// Take implements snapshot.Provider.
func (p Provider) Take(ctx context.Context, d block.Device, o snapshot.Options) (snapshot.View, error) {
	if d.How != block.Still {
		return p.live.Take(ctx, d, o)
	}
	src, err := block.Open(d.Path, block.OpenOptions{})
	if err != nil {
		return nil, err
	}
	return snapshot.DirectAs(Method, src), nil
}

// Snapshots finds none: such views leave nothing behind.
func (Provider) Snapshots(context.Context, block.Device) ([]snapshot.Snapshot, error) {
	return nil, nil
}

// Remove has nothing to remove.
func (Provider) Remove(context.Context, snapshot.Snapshot) error { return nil }
