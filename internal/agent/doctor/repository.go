package doctor

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"strings"
	"time"

	"platter/image/repo"
	"platter/image/store"
)

func (e *exam) repository() {
	if e.Problem != nil {
		e.find("see the message; docs/troubleshooting.md has those that are met most", "it cannot be opened: %v", e.Problem)
	}
}

// rights tries, by a lease of this machine's own, to write, to write again
// under the same name, and to delete.
func (e *exam) rights() {
	var run [16]byte
	rand.Read(run[:])
	holder, err := e.Repo.Acquire(e.ctx, repo.LeaseBackup, run)
	if err != nil {
		e.find("give this machine the right to write below leases/, segments/ and images/, see docs/s3.md", "a lease cannot be written: %v", err)
		return
	}
	defer holder.Release(e.ctx)
	name, err := e.own(hex.EncodeToString(run[:]))
	if err != nil || name == "" {
		e.find("give this machine the right to list, see docs/s3.md", "the lease that was written is not listed: %v", err)
		return
	}
	if err := e.Repo.Store.Put(e.ctx, name, []byte("again")); !errors.Is(err, store.ErrExists) {
		e.find("use a store that has conditional writes, see docs/s3.md: on this one two machines may overwrite each other's images",
			"the store took a second object under the name of one that was there (%v)", err)
	}
	err = e.Repo.Store.Delete(e.ctx, name)
	mayCollect := e.Repo.Keys.Writer().MayCollect()
	switch {
	case err == nil && !mayCollect && e.Path == "":
		e.find("take the right to delete below segments/ and images/ from it, see docs/s3.md",
			"this machine has a key that only writes, and credentials that delete: who breaks in may delete what it may list")
	case err != nil && mayCollect:
		e.find("give it the right to delete, see docs/s3.md, or let another machine prune and collect", "this machine may not delete: %v", err)
	}
}

// own returns the name of the lease of a run.
func (e *exam) own(run string) (name string, err error) {
	err = e.Repo.Store.List(e.ctx, "leases/", func(o store.Info) error {
		if strings.HasPrefix(o.Name, "leases/"+run+"-") {
			name = o.Name
		}
		return nil
	})
	return name, err
}

// maxSkew is how far two clocks may be apart.
const maxSkew = time.Minute

func (e *exam) clock() {
	before := e.Now()
	at, err := e.Repo.Store.Now(e.ctx)
	if err != nil {
		e.find("see that the store can be reached", "the store does not tell its time: %v", err)
		return
	}
	if skew := at.Sub(before).Abs(); skew > maxSkew+e.Now().Sub(before) {
		e.find("have the clocks of this machine and of the store set by NTP", "the store's clock is %s away from this machine's", skew.Round(time.Second))
	}
}

func (e *exam) leases() {
	live, stale, err := e.Repo.Leases(e.ctx)
	if err != nil {
		e.find("see that the store can be reached", "leases cannot be listed: %v", err)
		return
	}
	if len(stale) > 0 {
		e.find("nothing must be done: platter gc removes them", "%d leases were left by runs that died, such as %s", len(stale), stale[0])
	}
	now, err := e.Repo.Store.Now(e.ctx)
	if err != nil {
		return
	}
	for _, l := range live {
		if l.Kind != repo.LeaseBackup && now.Sub(l.Renewed) > repo.LeaseTTL/2 {
			e.find("see what became of it there; the lease runs out by itself", "the %s of %s has not renewed its lease for %s", l.Kind, l.Host, now.Sub(l.Renewed).Round(time.Second))
		}
	}
}

func (e *exam) keys() {
	if !e.Repo.Keys.Encrypted() {
		e.skip("the repository is not encrypted")
		return
	}
	list, err := e.Repo.KeySlots(e.ctx)
	if err != nil {
		e.find("see that the store can be reached", "keys cannot be listed: %v", err)
		return
	}
	readers := 0
	for _, s := range list {
		if s.Problem != nil {
			e.find("platter key remove, after a look at where it comes from", "key %s opens nothing: %v", s.Name, s.Problem)
		}
		if s.Reads() {
			readers++
		}
	}
	if readers < 2 {
		e.find("platter key add, for a recovery key or a second person: with the only one lost, all data is lost", "%d keys open the repository for restores", readers)
	}
}
