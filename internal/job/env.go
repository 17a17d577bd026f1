package job

import (
	"context"

	"platter/image/reader"
)

// sync brings the catalog up to date with the repository.
func (env *Env) sync(ctx context.Context) error {
	report, err := env.Catalog.Sync(ctx, env.Repo, nil)
	if err != nil {
		return err
	}
	for _, w := range report.Warnings {
		env.warn("%s", w)
	}
	return nil
}

// reader returns a Reader that asks the catalog, if there is one.
func (env *Env) reader() *reader.Reader {
	var index reader.Index
	if env.Catalog != nil {
		index = env.Catalog
	}
	return reader.New(env.Repo, index, env.Memory/4)
}
