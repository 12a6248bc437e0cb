package svid

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"
	"weak"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/mtls"
)

const (
	// reopenAfter bounds the age of a stream: what a source knew of the pod when the stream was opened may have been
	// incomplete, and some sources never look again.
	reopenAfter  = time.Hour
	reopenSpread = 0.2
	// listenFor is how long after a message without the identity the stream is trusted to bring it, before somebody who
	// waits has it opened anew.
	listenFor = 10 * time.Second
)

// stream is one Watch that has been started for an entry.
type stream struct {
	m      *Manager
	e      *entry
	cancel context.CancelFunc
	first  chan verdict // capacity 1: of the first message
	// follows: it gives what another pod was given.
	follows bool

	// Guarded by Manager.mu.
	opened bool      // the first message has come
	dead   bool      // the flight gave up before that
	epoch  int       // of the source
	last   time.Time // of the last message
}

// verdict is what came of the first message.
type verdict struct {
	i   *mtls.Identity
	err error
}

// open is one flight of an entry of a Watcher: it lasts until the first message, or until ctx ends without one. The
// stream goes on until it is replaced, run ends, or the source ends it. The one before is closed only when the new one
// has spoken.
func (s *stream) open(ctx, run context.Context, src Source, p Priority) {
	m, e := s.m, s.e
	start := m.started(e, p)
	streamCtx, cancel := context.WithCancel(run)
	s.cancel = cancel
	ended := make(chan error, 1)
	m.flights.Go(func() {
		defer cancel()
		var err error
		if s.follows {
			err = m.follow(streamCtx, src.Prover, s)
		} else {
			err = src.Watcher.Watch(streamCtx, e.pod, e.id, s.message)
		}
		var lives *OutlivedError
		if errors.As(err, &lives) {
			err = lives.Err
		}
		ended <- err
		s.ended(err, lives)
	})
	var v verdict
	select {
	case v = <-s.first:
	case v.err = <-ended:
		select {
		case v = <-s.first: // it spoke, then ended: the word counts
		default:
			v.err = cmp.Or(v.err, errClosed)
		}
	case <-ctx.Done():
		cancel()
		<-ended // its place is taken until then
		v.err = fmt.Errorf("%w: %w", ErrSilent, ctx.Err())
	}
	took := time.Since(start)
	m.finished(e, p, took, v.i, s.land(v))
}

var errClosed = errors.New("the source closed the stream")

// land ends the flight.
func (s *stream) land(v verdict) error {
	m, e := s.m, s.e
	m.mu.Lock()
	defer m.mu.Unlock()
	defer m.wakeUp()
	if !m.landedLocked(e, v.err) {
		s.cancel()
		return ErrNotNeeded
	}
	if !s.follows {
		m.heardLocked(e, v.err)
	}
	if v.err == nil {
		e.failures = 0
		m.speedUpLocked()
	} else {
		e.fails()
	}
	defer m.resignLocked(e)
	switch {
	case s.opened && e.stream == s && s.follows && v.err == nil:
		m.followedLocked(s)
	case s.opened && e.stream == s: // also when it does not speak of this identity: it will tell when that changes
		s.restLocked()
	case s.opened: // and closed since
		m.failedLocked(e, errClosed)
	default:
		s.dead = true
		s.cancel()
		m.withdrawnLocked(e, v.err)
		if e.stream == nil { // else that one knows of its own
			m.processEndedLocked(e, v.err)
		}
		m.failedLocked(e, v.err)
	}
	e.tellLocked()
	return v.err
}

// restLocked has the stream opened anew when it has said nothing for too long: at three quarters of the certificate's
// life, since renewals come at half of it, and at reopenAfter.
func (s *stream) restLocked() {
	d := time.Duration(float64(reopenAfter) * (1 - reopenSpread + 2*reopenSpread*rand.Float64()))
	if i := s.e.current.Load(); i != nil {
		left := i.NotAfter().Sub(s.m.wall())
		d = min(d, max(left*3/4, retryFloor))
	}
	s.m.restLocked(s.e, d, Background)
}

// message takes what the source says.
func (s *stream) message(u Update) {
	w := s.m.choose(s.e.id, u)
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	s.takeLocked(w)
}

// takeLocked puts what was chosen to use, or notes that nothing was.
func (s *stream) takeLocked(w word) {
	m, e := s.m, s.e
	if e.phase == gone || s.dead || s.opened && e.stream != s || s.epoch != m.epoch {
		return // superseded
	}
	s.last = time.Now()
	m.dropEarlyLocked(e)
	switch {
	case w.err == nil:
		w.i = s.useLocked(w)
	case errors.Is(w.err, errEarly):
		m.keepEarlyLocked(e, &early{word: w, s: s})
		w.i = nil
	default:
		s.refusedLocked(w.err)
	}
	if w.err != nil && w.told {
		m.toldLocked(e, w)
	}
	if !s.follows {
		defer m.shareLocked(e, w)
	}
	if !s.opened {
		s.opened = true
		if e.stream != nil {
			e.stream.cancel()
		}
		e.stream = s
		e.unguardLocked() // it knows of a process of its own
		s.first <- verdict{w.i, w.err}
		return // land does the rest
	}
	e.lastErr = w.err
	if w.err != nil {
		m.cfg.Log.Warn("Certificate rotation failed for "+e.id.String(), e.attrs("err", w.err)...)
	} else {
		m.logCompleted(w.i, e.attrs()...)
		e.failures = 0
	}
	if e.phase == resting && w.err == nil {
		m.timers.remove(e)
		s.restLocked()
		m.wakeUp()
	}
	e.tellLocked()
}

func (s *stream) useLocked(w word) *mtls.Identity {
	m, e := s.m, s.e
	i := m.same.intern(m.trustedLocked(w.i, w.given))
	old := e.current.Swap(i)
	if old != nil && !sameTrust(old, i) {
		m.trustChangedLocked(e, old, i)
	}
	if old == nil || !old.Chain()[0].Equal(i.Chain()[0]) {
		e.late = time.Now().Add(i.NotAfter().Sub(m.wall()) * 3 / 4)
	}
	e.given, e.proof, e.by, e.from = w.given, w.proof, ByStream, s.epoch
	m.clearNoticeLocked(e)
	if !s.follows {
		return i
	}
	e.by = ByProof
	switch g := m.groups[e.id]; {
	case m.src.Reuse == Confirm:
		e.borrowed = true
		m.giveNoticeLocked(e, time.Now().Add(ConfirmWithin), errUnconfirmed)
	case g != nil && !g.frozen.IsZero():
		m.giveNoticeLocked(e, g.frozen, errNoAnchor)
	}
	return i
}

func (s *stream) refusedLocked(err error) {
	if !errors.Is(err, ErrNotEntitled) {
		return // of a certificate that is no good: the one in use may still be
	}
	what := Mismatch
	if s.e.current.Load() != nil {
		what = Redacted
	}
	s.m.noteLocked(s.e.id, what)
	s.m.dropCertLocked(s.e, err)
}

// ended has a stream that the source closed opened again. What it gave stays in use while it is valid, unless the
// source said that it must not.
func (s *stream) ended(err error, lives *OutlivedError) {
	m, e := s.m, s.e
	m.mu.Lock()
	defer m.mu.Unlock()
	m.guardLocked(s, lives)
	if e.stream != s {
		return
	}
	e.stream = nil
	err = cmp.Or(err, errClosed)
	e.lastErr = err
	m.cfg.Log.Info("the stream of certificates for "+e.id.String()+" ended", e.attrs("err", err)...)
	m.withdrawnLocked(e, err)
	m.processEndedLocked(e, err)
	if e.phase == resting {
		m.timers.remove(e)
		e.fails()
		m.failedLocked(e, err)
		m.wakeUp()
	}
	e.tellLocked()
}

// processEndedLocked puts e on notice if err says that the process has ended by which it was attested, be it that it is
// learned only when another stream was to be opened.
func (m *Manager) processEndedLocked(e *entry, err error) {
	if !errors.Is(err, ErrProcessEnded) {
		return
	}
	m.noteLocked(e.id, ProcessEnded)
	m.giveNoticeLocked(e, time.Now().Add(endGrace), err)
	if g := m.groups[e.id]; g != nil && g.anchor == e {
		m.succeedLocked(g)
	}
}

// withdrawnLocked drops what is in use if err says that the pod lost the right to it.
func (m *Manager) withdrawnLocked(e *entry, err error) {
	var withdrawn *WithdrawnError
	if !errors.As(err, &withdrawn) {
		return
	}
	m.dropCertLocked(e, err)
	if g := m.groups[e.id]; g != nil && g.anchor == e {
		g.anchor, g.frozen = nil, time.Time{}
		m.takeBackLocked(g, err)
	}
}

func (m *Manager) dropCertLocked(e *entry, why error) {
	m.clearNoticeLocked(e)
	m.dropEarlyLocked(e)
	e.by, e.proof, e.given = "", Proof{}, nil
	if e.current.Swap(nil) != nil && m.cfg.Withdrawn != nil {
		pod, id := e.pod, e.id
		m.flights.Go(func() { m.cfg.Withdrawn(pod, id, why) })
	}
}

// listensLocked reports whether a stream is open that has said lately that it has nothing: opening another would get the
// same answer, and costs the source an attestation.
func (e *entry) listensLocked(now time.Time) bool {
	return e.stream != nil && now.Sub(e.stream.last) < listenFor
}

// interned keeps one copy of what many streams bring alike: SPIRE gives every pod of an identity the same key.
// It is guarded by Manager.mu.
type interned map[fingerprint]weak.Pointer[mtls.Identity]

func (n *interned) intern(i *mtls.Identity) *mtls.Identity {
	f := fingerprintOf(i)
	if old := (*n)[f].Value(); old != nil {
		return old
	}
	if *n == nil {
		*n = interned{}
	}
	for k, p := range *n { // few of a node's certificates change at a time
		if p.Value() == nil {
			delete(*n, k)
		}
	}
	(*n)[f] = weak.Make(i)
	return i
}

// fingerprintOf is of everything in an identity that can differ.
func fingerprintOf(i *mtls.Identity) fingerprint {
	h := sha256.New()
	for _, c := range i.Chain() {
		_, _ = h.Write(c.Raw)
	}
	_, _ = h.Write([]byte("roots"))
	for _, c := range i.Roots() {
		_, _ = h.Write(c.Raw)
	}
	federated := i.Federated()
	for _, td := range slices.SortedFunc(maps.Keys(federated), spiffeid.TrustDomain.Compare) {
		_, _ = h.Write([]byte(td.Name()))
		for _, c := range federated[td] {
			_, _ = h.Write(c.Raw)
		}
	}
	return fingerprint(h.Sum(nil))
}
