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

// Under is how many handshakes a peer has under way with us as server.
func (g *Gate) Under(peer netip.Addr) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	if p := g.peers[peerKey{addr: peer}]; p != nil {
		return p.n
	}
	return 0
}
