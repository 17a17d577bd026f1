package job

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"platter/block"
	"platter/image"
)

// minPrefix is how many digits of an image's ID name it.
const minPrefix = 8

// Find returns the image that spec names on a command line: "latest" (of the
// repository), a volume (its latest), VOLUME@TIME (its latest at or before),
// or 8 or more hex digits that begin an ID, tried in that order. A volume is
// HOST/NAME, or a NAME of this host, or else the only one of that NAME. What
// is ambiguous is an error that lists the candidates: also a volume of which
// several writers made images, for one of them may not be who it seems to be.
// SPEC%WRITER looks among the images of one writer only, named by 8 or more hex
// digits that begin its key.
func Find(ctx context.Context, env *Env, spec string) (*image.Manifest, error) {
	all, err := candidates(ctx, env, spec)
	if err != nil {
		return nil, err
	}
	return env.find(all, spec)
}

func (env *Env) find(all []*image.Manifest, spec string) (*image.Manifest, error) {
	if len(all) == 0 {
		return nil, fmt.Errorf("find image %q: the repository holds no images", spec)
	}
	what, writer, one := strings.Cut(spec, "%")
	if one {
		if len(writer) < minPrefix {
			return nil, fmt.Errorf("find image %q: name a writer by %d digits or more of its key", spec, minPrefix)
		}
		all = slices.DeleteFunc(slices.Clone(all), func(m *image.Manifest) bool { return !strings.HasPrefix(m.Writer, strings.ToLower(writer)) })
		if len(all) == 0 {
			return nil, fmt.Errorf("find image %q: no image is of writer %s", spec, writer)
		}
	}
	if what == "latest" {
		return all[len(all)-1], nil
	}
	name, at, dated := strings.Cut(what, "@")
	volume, err := findVolume(all, env.Host, name)
	switch {
	case err != nil:
		return nil, err
	case volume != "":
		line, err := env.line(all, volume)
		if err != nil {
			return nil, fmt.Errorf("find image %q: %w", spec, err)
		}
		return ofLine(line, spec, at, dated)
	}
	if m, err := byPrefix(all, what); m != nil || err != nil {
		return m, err
	}
	return nil, fmt.Errorf("find image %q: no volume, and no image whose ID begins so (%d digits or more): %s", spec, minPrefix, volumesThere(all))
}

// ofLine returns the newest of a line, at or before a moment if one is given.
func ofLine(line []*image.Manifest, spec, at string, dated bool) (*image.Manifest, error) {
	if !dated {
		return newest(line, time.Time{}), nil
	}
	before, err := ParseMoment(at)
	if err != nil {
		return nil, fmt.Errorf("find image %q: %w", spec, err)
	}
	if m := newest(line, before); m != nil {
		return m, nil
	}
	return nil, fmt.Errorf("find image %q: the oldest image of %s is of %s", spec, line[0].Volume, line[0].Time.Local().Format(time.RFC3339))
}

// line returns the images of a volume, oldest first. Where they are of several
// lines, it is this writer's own, for one that cannot read, and else an error.
func (env *Env) line(all []*image.Manifest, volume string) ([]*image.Manifest, error) {
	lines := map[string][]*image.Manifest{}
	for _, m := range all {
		if m.Volume == volume {
			lines[m.Line()] = append(lines[m.Line()], m)
		}
	}
	if mine := lineOf(env.Repo.Keys.Writer()); mine != "" && lines[mine] != nil {
		return lines[mine], nil
	}
	if len(lines) == 1 {
		for _, l := range lines {
			return l, nil
		}
	}
	var list []string
	for _, line := range sortedKeys(lines) {
		m := newest(lines[line], time.Time{})
		who := "a writer who can read"
		if line != "" {
			who = fmt.Sprintf("writer %.16s, who cannot read", line)
		}
		list = append(list, fmt.Sprintf("%s of %s by %s", m.ID, m.Time.Local().Format(time.RFC3339), who))
	}
	return nil, fmt.Errorf("several writers made images of %s: name an image by its ID, or %s%%WRITER; the newest are %s", volume, volume, strings.Join(list, "; "))
}

// newest returns the image of the highest number, of those taken before a
// moment unless that is zero; nil if there is none.
func newest(line []*image.Manifest, before time.Time) (best *image.Manifest) {
	for _, m := range line {
		if (before.IsZero() || m.Time.Before(before)) && (best == nil || m.Seq > best.Seq) {
			best = m
		}
	}
	return best
}

// findVolume returns the full name of the volume that name means, "" if none.
func findVolume(all []*image.Manifest, host, name string) (string, error) {
	for _, want := range []string{name, host + "/" + name} {
		if slices.ContainsFunc(all, func(m *image.Manifest) bool { return m.Volume == want }) {
			return want, nil
		}
	}
	var others []string
	for _, m := range all {
		if _, rest, _ := strings.Cut(m.Volume, "/"); rest == name && !slices.Contains(others, m.Volume) {
			others = append(others, m.Volume)
		}
	}
	slices.Sort(others)
	switch len(others) {
	case 0:
		return "", nil
	case 1:
		return others[0], nil
	}
	return "", fmt.Errorf("volume %q is ambiguous: %s", name, strings.Join(others, ", "))
}

// volumesThere lists what could have been meant.
func volumesThere(all []*image.Manifest) string {
	var names []string
	for _, m := range all {
		if !slices.Contains(names, m.Volume) {
			names = append(names, m.Volume)
		}
	}
	if len(names) == 0 {
		return "the repository holds no images"
	}
	slices.Sort(names)
	if len(names) > 20 {
		names = append(names[:20], fmt.Sprintf("and %d more", len(names)-20))
	}
	return "there are " + strings.Join(names, ", ")
}

func byPrefix(all []*image.Manifest, spec string) (*image.Manifest, error) {
	prefix := strings.ToLower(spec)
	if len(prefix) < minPrefix || strings.Trim(prefix, "0123456789abcdef") != "" {
		return nil, nil
	}
	var found []*image.Manifest
	var list []string
	for _, m := range all {
		if strings.HasPrefix(m.ID.String(), prefix) {
			found = append(found, m)
			list = append(list, fmt.Sprintf("%s of %s, %s", m.ID, m.Volume, m.Time.Local().Format(time.RFC3339)))
		}
	}
	switch len(found) {
	case 0:
		return nil, nil
	case 1:
		return found[0], nil
	}
	return nil, fmt.Errorf("find image %q: ambiguous: %s", spec, strings.Join(list, "; "))
}

// ParseMoment returns the first moment that is after what s says: a date means
// its whole day, a time of day its whole minute or second.
func ParseMoment(s string) (time.Time, error) {
	if t, err := time.Parse(time.RFC3339Nano, s); err == nil {
		if t.Nanosecond() != 0 {
			return t.Add(1), nil
		}
		return t.Add(time.Second), nil
	}
	s = strings.Replace(s, " ", "T", 1)
	for _, l := range []struct {
		layout string
		unit   time.Duration
	}{{"2006-01-02T15:04:05", time.Second}, {"2006-01-02T15:04", time.Minute}} {
		if t, err := time.ParseInLocation(l.layout, s, time.Local); err == nil {
			return t.Add(l.unit), nil
		}
	}
	t, err := time.ParseInLocation(time.DateOnly, s, time.Local)
	if err != nil {
		return t, fmt.Errorf("time %q: want a date like 2026-11-23, a time like 2026-11-23T15:04, or RFC 3339", s)
	}
	return t.AddDate(0, 0, 1), nil
}

func extentOf(start, end int64) block.Extent { return block.Extent{Offset: start, Length: end - start} }
