package rotation

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/authority"
)

const (
	storeTimeout = 15 * time.Second
	// lookEvery is how often the store is compared with what is signed with. A replica that is restarted because of
	// another authority is not to be there before it was seen.
	lookEvery = 2 * time.Second
)

// Config is what a Keeper needs. Store and Replica are required.
type Config struct {
	Store     Store
	Replica   string // our name, another one at each start
	Lifetimes authority.Policy
	Overlap   time.Duration // of a replacement
	Log       *slog.Logger  // default: discards
}

// Keeper is one replica's authority. Safe for concurrent use.
type Keeper struct {
	cfg    Config
	ledger Ledger
	saver  saver
	// forgetful: remember has failed, and said so. It belongs to Load, then to Compare.
	forgetful bool
	warned    string // CertID of the authority of which was said that it ends soon; belongs to Compare

	// signing is held for reading while a certificate is signed: once another authority is in use, the ledger has all
	// of the one before.
	signing sync.RWMutex
	current *authority.Authority // guarded by signing

	mu     sync.Mutex
	kept   Kept   // what was last in the store, and could be used
	inUse  use    // of it
	differ string // why what is in the store is something else; empty for the same
}

// New makes a keeper, which has no authority before Load.
func New(cfg Config) *Keeper {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Keeper{cfg: cfg}
}

// Load reads the authority, or makes one where there is none. Of several replicas that find none at the same time the
// first makes it, and all others read that.
func (k *Keeper) Load(ctx context.Context, now time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	kept, found, err := k.read(ctx, now)
	if err != nil {
		return err
	}
	if err := k.sinceLast(ctx, &kept, now); err != nil {
		return err
	}
	u, err := k.cfg.choose(kept, now)
	if err != nil {
		return fmt.Errorf("%s: %w", kept.Name, err)
	}
	if err := k.cfg.Store.Publish(ctx, u.ca.RootsPEM()); err != nil {
		return err
	}
	if found {
		if err := k.notFound(ctx, u, now); err != nil {
			return err
		}
	}
	// Whoever signs is in the ledger before: nobody there is nobody who needs the old root.
	k.ledger.expect(u.ca.TTL().DefaultTTL)
	k.saver.mu.Lock()
	err = k.write(ctx, kept.Record.step(), now, false)
	k.saver.mu.Unlock()
	if err != nil {
		return fmt.Errorf("nothing is signed before this replica is among those that do: %w", err)
	}
	k.put(kept, u)
	k.remember(ctx, kept)
	k.cfg.Log.Info("the CA's key has been read", "from", kept.Name, "expires", stamp(u.ca.NotAfter()), "note", u.note)
	return nil
}

// read reads the authority, or makes one. found says that there was one.
func (k *Keeper) read(ctx context.Context, now time.Time) (kept Kept, found bool, err error) {
	kept, err = k.cfg.Store.Read(ctx)
	if err != nil || kept.Name != "" {
		return kept, true, err
	}
	// The ledger begins before the authority is there, so that nobody takes it for one with a past.
	if err := k.cfg.Store.WriteReplica(ctx, Replica{Name: past, At: now, Ended: true}, nil); err != nil {
		return kept, false, err
	}
	if err := k.cfg.Store.Create(ctx, now); err != nil {
		return kept, false, err
	}
	kept, err = k.cfg.Store.Read(ctx) // what is there counts, whoever wrote it
	if err == nil && kept.Name == "" {
		err = errors.New("the CA is gone again after it was made")
	}
	kept.Record.Last = authority.Files{} // a new mesh was begun
	return kept, false, err
}

func (k *Keeper) put(kept Kept, u use) {
	k.signing.Lock()
	k.current = u.ca
	k.signing.Unlock()
	k.mu.Lock()
	k.kept, k.inUse = kept, u
	k.mu.Unlock()
}

// Authority is what signs now, nil before Load.
func (k *Keeper) Authority() *authority.Authority {
	k.signing.RLock()
	defer k.signing.RUnlock()
	return k.current
}

// Sign signs with the authority that there is, and counts what it signed.
func (k *Keeper) Sign(csr []byte, id spiffeid.ID, ttl time.Duration, now time.Time) (authority.Leaf, error) {
	leaf, err := k.sign(csr, id, ttl, now)
	if err == nil {
		err = k.vouch(leaf.NotAfter.Sub(now), now)
	}
	if err != nil {
		return authority.Leaf{}, err
	}
	return leaf, nil
}

func (k *Keeper) sign(csr []byte, id spiffeid.ID, ttl time.Duration, now time.Time) (authority.Leaf, error) {
	k.signing.RLock()
	defer k.signing.RUnlock()
	leaf, err := k.current.Sign(csr, id, ttl, now)
	if err == nil {
		k.ledger.Signed(k.current.ID(), k.current.RootIDs(), leaf.NotAfter, now)
	}
	return leaf, err
}

// Run follows the store until ctx ends, and calls changed when another authority is in use, or other roots. Call End
// once nothing is signed any more.
func (k *Keeper) Run(ctx context.Context, changed func()) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if k.Compare(ctx, time.Now()) {
				changed()
			}
		}
		k.Save(ctx, time.Now())
	}
}

// Compare looks at the store once, takes up what is there, and reports whether that is something else than was in use.
// An authority of ours that was deleted is put back: a replica that starts would begin another mesh.
func (k *Keeper) Compare(ctx context.Context, now time.Time) (changed bool) {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	kept, err := k.cfg.Store.Read(ctx)
	k.mu.Lock()
	before, told := k.kept, k.differ
	k.mu.Unlock()
	differ := ""
	switch {
	case err != nil && kept.Name == "":
		differ = told // nothing was found out about it
	case err != nil:
		differ = err.Error()
	case kept.Name == "" && !before.Plugged:
		k.cfg.Log.Warn("the CA is gone and is put back: to begin a new mesh, stop all replicas first", "from", before.Name)
		if err := k.cfg.Store.PutBack(ctx, before.Files); err != nil {
			differ = err.Error()
		}
	case kept.Name == "":
		differ = before.Name + " is gone"
	default:
		if changed, err = k.take(ctx, kept, now); err != nil {
			differ = fmt.Sprintf("%s has changed, and is not used: %v", kept.Name, err)
		}
	}
	if differ != "" && differ != told {
		k.cfg.Log.Error("this replica signs with a CA that is not the one that is kept: mend that, or put the old one back", "reason", differ)
	}
	k.mu.Lock()
	k.differ = differ
	k.mu.Unlock()
	if ends := k.Ending(now); ends != "" && k.warned != k.Authority().ID() {
		k.warned = k.Authority().ID()
		k.cfg.Log.Warn(ends)
	}
	return changed
}

// Ending says that the authority ends soon, and what to do; empty while it does not, and before Load.
func (k *Keeper) Ending(now time.Time) string {
	ca := k.Authority()
	if ca == nil || !ca.EndsSoon(now) {
		return ""
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	what := "rotate it by `controlplane ca prepare`"
	if k.kept.Plugged {
		what = "put another one there"
	}
	return fmt.Sprintf("the CA in %s ends at %s, and nobody can prove itself after: %s", k.kept.Name, stamp(ca.NotAfter()), what)
}

// take takes up what is in the store. Of several replicas that see a change at the same time one says when it began.
func (k *Keeper) take(ctx context.Context, kept Kept, now time.Time) (changed bool, err error) {
	k.mu.Lock()
	before := k.inUse
	k.mu.Unlock()
	if err := k.judge(ctx, &kept, before, now); err != nil {
		if errors.Is(err, ErrChanged) {
			return false, nil // another replica has, and it is read the next time
		}
		return false, err
	}
	u, err := k.cfg.choose(kept, now)
	if err != nil {
		return false, err
	}
	if err := k.cfg.Store.Publish(ctx, u.ca.RootsPEM()); err != nil {
		return false, err
	}
	k.put(kept, u)
	if u.note == "" {
		k.finish(ctx, kept)
	}
	k.remember(ctx, kept)
	if same(u.files, before.files) {
		return false, nil
	}
	k.cfg.Log.Warn("another CA is kept, or comes into use", "from", kept.Name, "note", u.note, "expires", stamp(u.ca.NotAfter()))
	return true, nil
}

// judge finds out what it means that something else is installed than what is in use.
func (k *Keeper) judge(ctx context.Context, kept *Kept, before use, now time.Time) error {
	fits := kept.Record.Fits(kept.Files)
	if fits && kept.Record.guarded() {
		return nil
	}
	installed, err := k.cfg.load(kept.Files, "", now)
	if err != nil {
		return err
	}
	next := Record{}
	switch {
	case fits:
		return nil
	case authority.CertID(kept.Files.Cert) == authority.CertID(before.files.Cert):
		if kept.Record.Phase == Settled {
			return nil
		}
		// What was to come does not.
	default:
		next = Record{Phase: Replacing, Last: kept.Files, Since: now, Other: before.files, For: authority.CertID(kept.Files.Cert), Roots: rootsOf(kept.Files)}
		next.Untold = k.untold(ctx, kept.Record, before, installed.ca.RootIDs(), now)
	}
	if kept.Record.guarded() {
		k.cfg.Log.Warn("another CA was put in the place of the one that was being rotated: the rotation is given up", "from", kept.Name)
	}
	if err := k.cfg.Store.WriteRecord(ctx, *kept, next); err != nil {
		return err
	}
	again, err := k.cfg.Store.Read(ctx)
	if err != nil {
		return err
	}
	*kept = again
	return nil
}

// untold says whether there may be somebody who was not told roots, although they are given out: since a moment ago, by
// what was under way before, or by another list.
func (k *Keeper) untold(ctx context.Context, under Record, inUse use, roots []string, now time.Time) bool {
	firstPart := under.guarded() || authority.CertID(under.Other.Cert) == authority.CertID(inUse.files.Cert)
	if under.Phase != Settled && firstPart && now.Before(under.Since.Add(k.cfg.Overlap)) {
		return true
	}
	replicas, err := k.cfg.Store.Replicas(ctx)
	own, _ := k.ledger.snapshot(now)
	return err != nil || live(append(replicas, Replica{Batches: own}), now, func(b Batch) bool {
		return slices.ContainsFunc(roots, func(id string) bool { return !slices.Contains(b.Roots, id) })
	}).Count > 0
}

// finish forgets a record that is over, and with it the old key. If that fails it is tried again: it is then still
// there, and over.
func (k *Keeper) finish(ctx context.Context, kept Kept) {
	if err := Finish(ctx, k.cfg.Store, kept); err != nil && !errors.Is(err, ErrChanged) {
		k.cfg.Log.Error("the key of the CA that was replaced is still there", "err", err)
	}
}

// Finish does what is left when a rotation or a replacement is over.
func Finish(ctx context.Context, s Store, kept Kept) error {
	if kept.Record.Phase == Settled {
		return nil
	}
	if kept.Record.Phase == Retired && !same(kept.Files, kept.Record.Other) {
		if err := s.Install(ctx, kept.Record.Other); err != nil {
			return err
		}
	}
	return s.WriteRecord(ctx, kept, Record{Last: kept.Record.Last})
}

// Differs says why what is in the store is not what is signed with; empty when it is.
func (k *Keeper) Differs() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.differ
}

// Note says how far a rotation or a replacement is, empty for none.
func (k *Keeper) Note() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.inUse.note
}

// Phase is that of what is under way.
func (k *Keeper) Phase() Phase {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.inUse.note == "" {
		return Settled
	}
	return k.kept.Record.Phase
}
