package agent

import (
	"path/filepath"

	"platter/internal/agent/config"
)

// uses are what a run needs to itself.
type uses struct {
	catalog string   // "" for none
	devices []string // without symbolic links
}

func usesOf(j *config.Job, r *config.Repository) uses {
	return uses{catalogOf(j, r), devicesOf(j)}
}

func catalogOf(j *config.Job, r *config.Repository) string {
	switch {
	case !NeedsCatalog(j.Kind):
		return ""
	case r == nil:
		return "of the environment"
	case r.Catalog != "":
		return r.Catalog
	}
	return "of " + r.Location
}

func devicesOf(j *config.Job) (list []string) {
	for _, d := range j.Devices {
		if real, err := filepath.EvalSymlinks(d); err == nil {
			d = real
		}
		list = append(list, d)
	}
	return list
}

// NeedsCatalog reports whether jobs of a kind work with the catalog. The others
// read a repository, and do without.
func NeedsCatalog(kind string) bool { return kind != config.Verify && kind != config.Boot }
