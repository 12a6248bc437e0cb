package hbone

import (
	"context"
	"net/netip"
	"time"
)

// PeerHandshakes is the bound for one peer.
const PeerHandshakes = peerHandshakes

// PatientGate is a gate with another patience.
func PatientGate(places int, patience time.Duration) *Gate {
	g := NewGate(places)
	g.patience = patience
	return g
}

// Hold takes a place for ever.
func (g *Gate) Hold() { _ = g.take(context.Background(), laneKey{}, false, 0) }

// Peer is how many handshakes a peer has under way with us as server, and how
// many wait for that.
func (g *Gate) Peer(peer netip.Addr) [2]int {
	g.mu.Lock()
	defer g.mu.Unlock()
	if p := g.peers[peerKey{addr: peer}]; p != nil {
		return [2]int{p.n, p.wait.Len()}
	}
	return [2]int{}
}

// BusyAfter is for how long bulk has to last, MaxBusy how many tunnels that makes.
const (
	BusyAfter = busyAfter
	MaxBusy   = maxBusy
)

// Keep has the pool keep fewer tunnels.
func (p *Pool) Keep(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.most = n
}
