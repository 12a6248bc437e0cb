package proxy

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/warren-mesh/warren/ca/svid"
	"github.com/warren-mesh/warren/proxy/track"
	"github.com/warren-mesh/warren/xds/workload"
)

// Store is what the control plane would write to.
func (s *Server) Store() *workload.Store { return s.store }

// Tracked are the live connections.
func (s *Server) Tracked() *track.Registry { return s.tracked }

// Addresses are where the listeners of the proxy's own namespace ended up.
func (s *Server) Addresses() []string { return s.bound }

// Started is closed when the listeners are open.
func (s *Server) Started() <-chan struct{} { return s.started }

// RetryPods is what a timer does every few seconds.
func (s *Server) RetryPods(ctx context.Context) { s.pods.retryOnce(ctx) }

// AgentState is what the client of the node agent says of its connection.
func (s *Server) AgentState(connected, synced bool) { s.pods.state(connected, synced) }

// Certs keeps the certificates.
func (s *Server) Certs() *svid.Manager { return s.certs }

// Gatherer is what /metrics shows.
func (s *Server) Gatherer() prometheus.Gatherer { return s.metrics.registry }

// Dials is how many certificates are kept for tunnels that are being made.
func (s *Server) Dials() (n int) {
	for _, p := range s.pods.list() {
		p.mu.Lock()
		n += len(p.dials)
		p.mu.Unlock()
	}
	return n
}

// Sockets is how many descriptors the pods have taken of their share.
func (s *Server) Sockets() int {
	s.share.mu.Lock()
	defer s.share.mu.Unlock()
	return s.share.total
}

// AddTunnels makes it seem that each pod has so many tunnels more.
func (s *Server) AddTunnels(n int64) {
	for _, p := range s.pods.list() {
		p.tunnels.Add(n)
	}
}

// MaxTunnels is how many a pod may have.
const MaxTunnels = maxTunnels

// MaxToldPod is how many series the peers of one pod may have a say in.
const MaxToldPod = maxTold / 10

// ConnectPatience is how long an endpoint may take to be connected to, while there is another.
const ConnectPatience = connectPatience

// WakeAll has no endpoint rest any more.
func (s *Server) WakeAll() { s.resting.list.Store(nil) }

// Judged says whether live connections have been judged by the present view.
func (s *Server) Judged() bool { return s.judged.Load() == s.store.View() }

// JudgeFirstRequestsAfter has tunnels of that age judged again at their first request.
func JudgeFirstRequestsAfter(d time.Duration) (restore func()) {
	was := judgeLate.Swap(int64(d))
	return func() { judgeLate.Store(was) }
}
