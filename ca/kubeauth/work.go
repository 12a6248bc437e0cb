package kubeauth

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
)

// work bounds the reviews under way, all together and those for one address: tokens that were made up cost a review
// each, and must not keep the proxies of other nodes waiting.
type work struct {
	slots   chan struct{}
	perPeer int

	mu    sync.Mutex
	peers map[netip.Addr]int // those that wait included
}

func newWork(all, perPeer int) *work {
	return &work{slots: make(chan struct{}, all), perPeer: perPeer, peers: make(map[netip.Addr]int)}
}

// begin waits for a slot until ctx ends. Without an error the caller calls end.
func (w *work) begin(ctx context.Context, peer netip.Addr) error {
	if !w.enter(peer) {
		return fmt.Errorf("%d reviews of tokens from %s are under way", w.perPeer, peer)
	}
	select {
	case w.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		w.leave(peer)
		return fmt.Errorf("waiting for one of %d reviews of tokens to end: %w", cap(w.slots), ctx.Err())
	}
}

func (w *work) end(peer netip.Addr) {
	<-w.slots
	w.leave(peer)
}

func (w *work) enter(peer netip.Addr) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.peers[peer] == w.perPeer {
		return false
	}
	w.peers[peer]++
	return true
}

func (w *work) leave(peer netip.Addr) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.peers[peer]--; w.peers[peer] == 0 {
		delete(w.peers, peer)
	}
}
