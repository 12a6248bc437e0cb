package hbone

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Key names the tunnels that may carry a stream: who speaks, whom we accept
// as the peer, where it listens and which source address the tunnel has.
type Key struct {
	Src      spiffeid.ID
	Expected string // the accepted peer identities, joined by the caller
	Dst      netip.AddrPort
	SrcIP    netip.Addr
}

// Request is what a CONNECT carries besides its stream. Header names are
// lower case and must not start with a colon; order and repetition are kept.
type Request struct {
	Authority string
	Header    [][2]string
	// Late is what Start asks, if it is not nil, when there was no answer for Patience,
	// and now and then from there on. An error gives up. An answer in that moment does
	// not wait: Late may run beside done, and after it.
	Late     func() error
	Patience time.Duration
}

// DialFunc makes the connection of a new tunnel and the TLS configuration for
// it. It is called on a goroutine of its own; ctx ends when nobody waits for
// the result any more or the pool is closed. The pool owns what it returns.
type DialFunc = func(ctx context.Context, key Key) (net.Conn, *tls.Config, error)

// Pool opens streams and keeps the tunnels for them: one dialer a key at a
// time, streams spread over a key's tunnels, idle ones released.
type Pool struct {
	cfg  Config
	dial DialFunc
	ctx  context.Context // ends with the pool
	stop context.CancelFunc
	wg   sync.WaitGroup // dials and tunnels

	// mu may be taken while a tunnel's mu is held, never the other way round.
	mu      sync.Mutex
	keys    map[Key]*entry // only keys with a tunnel or a dial
	seq     uint64         // of the newest tunnel
	tunnels int            // in keys
	most    int            // of tunnels, before idle ones go
	era     uint64         // how often Retire was called
	rests   uint64         // how often a tunnel has become idle
	opening int            // Opens under way
	refuse  bool           // closed or draining
	quiet   chan struct{}  // draining: closed when the last stream has ended
}

// NewPool returns a pool that makes connections with dial.
func NewPool(cfg Config, dial DialFunc) *Pool {
	p := &Pool{cfg: cfg.withDefaults(), dial: dial, keys: make(map[Key]*entry), most: maxTunnels}
	p.ctx, p.stop = context.WithCancel(context.Background())
	return p
}

// Open sends a CONNECT through a tunnel for key and returns once the peer
// answered 200. A stream that the peer refused unprocessed, or whose tunnel
// turned out dead, is tried once more on a fresh tunnel. Errors: *StatusError,
// *ConnectError, *TLSError, *ResetError, *TunnelError, ErrTimeout, ErrClosed or
// the cause of ctx.
func (p *Pool) Open(ctx context.Context, key Key, req Request) (*Stream, error) {
	p.mu.Lock()
	if p.refuse {
		p.mu.Unlock()
		return nil, ErrClosed
	}
	p.opening++
	p.mu.Unlock()
	s, err := p.open(ctx, key, req)
	p.opened()
	return s, err
}

// maxStale is how often an Open finds its tunnel ended or filled up by others
// before it gives up; a peer that ends every tunnel must not keep it for ever.
const maxStale = 16

func (p *Pool) open(ctx context.Context, key Key, req Request) (*Stream, error) {
	after, stale := uint64(0), 0
	for {
		m, seasoned, err := p.acquire(ctx, key, after)
		if err != nil {
			return nil, err
		}
		s, answer, err := m.t.request(req)
		p.release(m)
		switch {
		case err == nil:
		case errors.Is(err, errStale) && stale < maxStale:
			stale++
			continue
		default:
			return nil, err
		}
		if err = s.await(ctx, answer); err == nil {
			return s, nil
		}
		if after > 0 || !retriable(err, seasoned) {
			return nil, err
		}
		after = m.seq
	}
}

// retriable says whether a CONNECT may be tried on another tunnel: the peer did
// nothing with it, or the tunnel had been lying there and was dead already. No
// byte of an application has been sent at this point in either case.
func retriable(err error, seasoned bool) bool {
	var r refused
	if errors.As(err, &r) {
		return true
	}
	var lost *TunnelError
	return seasoned && errors.As(err, &lost) && !errors.Is(err, ErrTimeout)
}

// Close resets all streams, closes all tunnels and waits for them. Later Opens
// fail with ErrClosed.
func (p *Pool) Close() error {
	p.mu.Lock()
	p.refuse = true
	var all []*member
	for _, e := range p.keys {
		all = append(all, e.members...)
	}
	p.stop() // under mu: no dial starts after this
	p.mu.Unlock()
	for _, m := range all {
		if !m.t.closeIdle() {
			m.t.fail(ErrClosed)
		}
	}
	p.wg.Wait()
	return nil
}

// Drain refuses new streams, waits until the last one has ended or ctx is
// done, and closes the pool. It returns ctx's error if streams were cut.
func (p *Pool) Drain(ctx context.Context) error {
	p.mu.Lock()
	p.refuse = true
	if p.quiet == nil {
		p.quiet = make(chan struct{})
		p.checkQuietLocked()
	}
	quiet := p.quiet
	p.mu.Unlock()
	var err error
	select {
	case <-quiet:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	return errors.Join(err, p.Close())
}

// checkQuietLocked ends the wait of Drain when there are no streams left.
func (p *Pool) checkQuietLocked() {
	if p.quiet == nil || p.opening > 0 {
		return
	}
	for _, e := range p.keys {
		for _, m := range e.members {
			if m.streams > 0 {
				return
			}
		}
	}
	select {
	case <-p.quiet:
	default:
		close(p.quiet)
	}
}

// Stats describes the pool for a dump.
type Stats struct {
	Keys, Tunnels, Streams int
}

// Stats counts what the pool holds now.
func (p *Pool) Stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := Stats{Keys: len(p.keys)}
	for _, e := range p.keys {
		s.Tunnels += len(e.members)
		for _, m := range e.members {
			s.Streams += m.streams
		}
	}
	return s
}
