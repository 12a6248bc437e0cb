package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/mtls"
	"github.com/warren-mesh/warren/ca/svid"
	"github.com/warren-mesh/warren/nodeagent/zds"
	"github.com/warren-mesh/warren/proxy/hbone"
	"github.com/warren-mesh/warren/proxy/route"
	"github.com/warren-mesh/warren/proxy/track"
	"github.com/warren-mesh/warren/xds/workload"
)

// local returns the world and this pod in it, waiting a while for the control
// plane to know the pod.
func (p *pod) local(ctx context.Context) (*workload.View, *workload.Workload, error) {
	if v := p.s.store.View(); p.find(v) != nil {
		return v, p.find(v), nil
	}
	ctx, cancel := context.WithTimeout(ctx, localWait)
	defer cancel()
	var view *workload.View
	var self *workload.Workload
	err := p.s.store.Wait(ctx, func(v *workload.View) bool {
		view, self = v, p.find(v)
		return self != nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("failed to fetch information about local workload: %s.%s (%s)", p.info.ServiceAccount, p.info.Namespace, p.info.Name)
	}
	return view, self, nil
}

// find looks the pod up by what the node agent said of it; where a connection
// came from says nothing.
func (p *pod) find(v *workload.View) *workload.Workload {
	w := p.s.localOf(v, p.info)
	if w != nil {
		p.mu.Lock()
		p.last = w
		p.mu.Unlock()
	}
	return w
}

// localOf is the workload of a pod of this node.
func (s *Server) localOf(v *workload.View, info zds.Info) *workload.Workload {
	if w := v.Local(info.Name, info.Namespace, info.ServiceAccount, s.cfg.ClusterID); w != nil && !s.foreign(v, w) {
		return w
	}
	return nil
}

// foreign says whether a workload with the name of a pod of this node, on a node with the
// name of this one, is another cluster's: if the control plane calls the cluster of others
// here as we do.
func (s *Server) foreign(v *workload.View, w *workload.Workload) bool {
	return w.ClusterID != "" && w.ClusterID != s.cfg.ClusterID && s.cfg.NodeName != "" && s.clusterIsHere(v)
}

// clusterIsHere says whether a workload of this node is said to be of our cluster.
func (s *Server) clusterIsHere(v *workload.View) bool {
	return slices.ContainsFunc(v.Here(), func(w *workload.Workload) bool { return w.ClusterID == s.cfg.ClusterID })
}

// speaker returns the world and this pod in it; while the control plane does not
// know the pod, as the node agent named it. That is enough to speak for the pod, if
// not to guard it, and nothing that a pod does at its start has to wait for its
// address to reach the control plane and come back: a kubelet may publish it only
// after a postStart hook.
//
// Network and trust domain are those of the node's other workloads: by a wrong
// network everybody would be unknown, and get plaintext. Where there is none, and
// where the node's name is not known (those of no node are gateways and the like, of
// whatever network), the control plane is waited for.
func (p *pod) speaker(ctx context.Context) (*workload.View, *workload.Workload, error) {
	v := p.s.store.View()
	if w := p.speaking(v); w != nil {
		return v, w, nil
	}
	return p.local(ctx)
}

// speaking is the pod in v, or what stands for it; nil where nothing does.
func (p *pod) speaking(v *workload.View) *workload.Workload {
	if w := p.current(v); w != nil {
		return w
	}
	if p.s.cfg.NodeName == "" {
		return nil
	}
	for _, w := range v.Here() {
		if w.ClusterID != "" && w.ClusterID != p.s.cfg.ClusterID {
			continue // nodes of other clusters may have the same name
		}
		return &workload.Workload{
			Name: p.info.Name, Namespace: p.info.Namespace, ServiceAccount: p.info.ServiceAccount, Node: w.Node, ClusterID: w.ClusterID,
			Network: w.Network, TrustDomain: w.TrustDomain, WorkloadName: p.info.Name, Type: workload.Pod, Protocol: workload.HBONE,
		}
	}
	return nil
}

// current is the pod in v, or as it was last known: the control plane forgets
// a pod that ends before its connections have. Who was taken for the pod, and is
// another cluster's as is known now, is forgotten.
func (p *pod) current(v *workload.View) *workload.Workload {
	if w := p.find(v); w != nil {
		return w
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.last != nil && p.s.foreign(v, p.last) {
		p.last = nil
	}
	return p.last
}

// hold returns the pod's lease on its identity.
func (p *pod) hold(self *workload.Workload) (*svid.Lease, error) {
	id := self.Identity()
	if id.IsZero() {
		return nil, &identityError{errors.New("the workload has no identity: its trust domain, namespace and service account do not form one")}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.hard.Err(); err != nil {
		return nil, errPodGone
	}
	if p.lease != nil && (p.lease.ID() != id || p.lease.Err() != nil) {
		p.lease.Release()
		p.lease = nil
	}
	if p.lease == nil {
		p.lease = p.s.certs.Acquire(p.whom(), id)
	}
	return p.lease, nil
}

// present gives the certificate for a handshake, as server.
func (p *pod) present(ctx context.Context) (*mtls.Identity, error) {
	_, self, err := p.speaker(ctx)
	if err != nil {
		return nil, err
	}
	return p.identity(ctx, self)
}

func (p *pod) identity(ctx context.Context, self *workload.Workload) (*mtls.Identity, error) {
	lease, err := p.hold(self)
	if err != nil {
		return nil, err
	}
	i, err := lease.Identity(ctx)
	if err != nil {
		return nil, &identityError{err}
	}
	return i, nil
}

// dialTunnel is the pool's DialFunc.
func (p *pod) dialTunnel(ctx context.Context, key hbone.Key) (net.Conn, *tls.Config, error) {
	_, self, err := p.speaker(ctx)
	if err != nil {
		return nil, nil, err
	}
	i, err := p.identity(ctx, self)
	if err != nil {
		return nil, nil, err
	}
	if i.ID() != key.Src {
		return nil, nil, &identityError{fmt.Errorf("the pod is %s now, not %s", i.ID(), key.Src)}
	}
	expected, err := splitIDs(key.Expected)
	if err != nil {
		return nil, nil, err
	}
	connected := p.connects.begin(key)
	c, err := p.sockets.Dial(ctx, netip.Addr{}, key.Dst)
	connected()
	if err != nil {
		return nil, nil, err
	}
	config := mtls.Client(i, expected)
	verify := config.VerifyConnection
	config.VerifyConnection = func(cs tls.ConnectionState) error {
		if err := verify(cs); err != nil {
			p.s.metrics.svids.refuse(track.Outbound, err)
			return err // until will not be asked: nothing may stay here
		}
		p.mu.Lock()
		p.dials[key] = i
		p.mu.Unlock()
		return nil
	}
	return c, config, nil
}

// retireEarly is how long before the end of a certificate its tunnels retire,
// those of short lives sooner.
const retireEarly = 2 * time.Second

// until is when a pooled tunnel takes no more connections: a moment before a
// certificate of either end does. The peer ends the tunnel right then, and a
// connection should not be among those that it refuses.
func (p *pod) until(key hbone.Key, cs tls.ConnectionState) time.Time {
	p.mu.Lock()
	i := p.dials[key]
	delete(p.dials, key)
	p.mu.Unlock()
	var end time.Time
	if i != nil {
		end = i.NotAfter()
	}
	if len(cs.PeerCertificates) > 0 {
		if peer := cs.PeerCertificates[0].NotAfter; end.IsZero() || peer.Before(end) {
			end = peer
		}
	}
	if end.IsZero() {
		return end
	}
	return end.Add(-min(retireEarly, time.Until(end)/10))
}

// joinIDs and splitIDs make a comparable value of identities, for the pool's
// key. No identity contains a comma.
func joinIDs(ids route.Identities) string {
	if len(ids.SANs) == 0 && len(ids.Own) == 1 {
		return ids.Own[0].String() // as it is, which is the rule
	}
	var b strings.Builder
	for id := range ids.All() {
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(id.String())
	}
	return b.String()
}

func splitIDs(s string) ([]spiffeid.ID, error) {
	var ids []spiffeid.ID
	if s == "" {
		return nil, nil
	}
	for part := range strings.SplitSeq(s, ",") {
		id, err := spiffeid.FromString(part)
		if err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	return ids, nil
}

// whom is the pod as sources of certificates know it.
func (p *pod) whom() svid.Pod {
	return svid.Pod{UID: p.uid, Namespace: p.info.Namespace, Name: p.info.Name, ServiceAccount: p.info.ServiceAccount, Netns: p.ns}
}
