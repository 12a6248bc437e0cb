package proxy

import (
	"context"
	"errors"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/internal/netns"
	"github.com/warren-mesh/warren/nodeagent/zds"
	"github.com/warren-mesh/warren/proxy/sockopt"
	"github.com/warren-mesh/warren/xds/workload"
)

// ownUID names the pod that is served in the proxy's own namespace. Pods of the node
// agent have other names.
const ownUID = "proxy"

// self is the proxy's own pod, of a proxy that shares its node's pods: others in the
// mesh may ask it for its metrics by HBONE.
func (c Config) self() (spiffeid.ID, zds.Info, bool) {
	info := zds.Info{Name: c.PodName, Namespace: c.PodNamespace, ServiceAccount: c.ServiceAccount}
	td, err := spiffeid.TrustDomainFromString(c.TrustDomain)
	if c.Dedicated || info.Name == "" || info.Namespace == "" || info.ServiceAccount == "" || err != nil {
		return spiffeid.ID{}, info, false
	}
	id, err := spiffeid.FromSegments(td, "ns", info.Namespace, "sa", info.ServiceAccount)
	return id, info, err == nil
}

// openLone serves the one pod of a dedicated proxy.
func (s *Server) openLone(ctx context.Context) error {
	return s.serveOwn(ctx, s.cfg.Pod, s.cfg.Sockets, (*pod).openAll)
}

// openSelf serves the proxy's own metrics by HBONE, once it is known where the proxy's
// pod is. In the node's network there is no such port: who came by it would be let
// through to the node's own addresses, as the node.
func (s *Server) openSelf(ctx context.Context) {
	_, info, ok := s.cfg.self()
	if !ok || s.cfg.DNSOnly {
		return
	}
	var self *workload.Workload
	if s.store.Wait(ctx, func(v *workload.View) bool { self = s.localOf(v, info); return self != nil }) != nil {
		return
	}
	if self.NetworkMode == workload.HostNetwork {
		s.log.Info("the proxy's own metrics are in plaintext only: it is in the node's network")
		return
	}
	// Nothing is redirected here, and nobody's address can be borrowed.
	cfg := s.cfg.Sockets
	cfg.Mark, cfg.Transparent = 0, sockopt.Off
	if err := s.serveOwn(ctx, info, cfg, (*pod).openInbound); err != nil {
		s.log.Warn("the proxy's own metrics are not there by HBONE, only in plaintext", "err", err)
	}
}

// serveOwn serves a pod in the proxy's own namespace, by what open opens.
func (s *Server) serveOwn(ctx context.Context, info zds.Info, cfg sockopt.Config, open func(*pod, context.Context) error) error {
	var ns *netns.NS // the process's
	if s.home != nil {
		var err error
		if ns, err = s.home.Dup(); err != nil {
			return err
		}
	}
	p := s.makePod(ownUID, info, sockopt.New(ns, cfg))
	if err := p.begin(ctx, func(ctx context.Context) error { return open(p, ctx) }); err != nil {
		return err
	}
	return s.pods.addOwn(p)
}

// addOwn keeps a pod that no agent takes back.
func (ps *pods) addOwn(p *pod) error {
	ps.ops.Lock()
	defer ps.ops.Unlock()
	ps.mu.Lock()
	ending := ps.ending
	if !ending {
		ps.own = append(ps.own, p)
	}
	ps.mu.Unlock()
	if ending {
		p.stop()
		return errors.New("the proxy is shutting down")
	}
	ps.s.podChange()
	ps.s.ready.Set(taskProxy, true)
	ps.s.log.Info("the proxy's own namespace is served", "pod", podName(p.info))
	return nil
}

// admits says whether peers may have a port of the pod. Of the proxy's own pod they may
// have the metrics.
func (p *pod) admits(port uint16) bool { return p.shown() || port == p.s.cfg.Stats.Port() }

// shown says whether the pod is one of those that the proxy is there for.
func (p *pod) shown() bool { return p.uid != ownUID || p.s.cfg.Dedicated }
