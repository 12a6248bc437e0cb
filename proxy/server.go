package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/warren-mesh/warren/ca/mtls"
	"github.com/warren-mesh/warren/ca/svid"
	"github.com/warren-mesh/warren/internal/netns"
	"github.com/warren-mesh/warren/nodeagent/zds"
	"github.com/warren-mesh/warren/proxy/admin"
	"github.com/warren-mesh/warren/proxy/dns"
	"github.com/warren-mesh/warren/proxy/hbone"
	"github.com/warren-mesh/warren/proxy/ready"
	"github.com/warren-mesh/warren/proxy/relay"
	"github.com/warren-mesh/warren/proxy/resolve"
	"github.com/warren-mesh/warren/proxy/sockopt"
	"github.com/warren-mesh/warren/proxy/track"
	"github.com/warren-mesh/warren/xds/client"
	"github.com/warren-mesh/warren/xds/workload"
)

// What readiness waits for, in ztunnel's words.
const (
	taskState = "state manager"
	taskProxy = "proxy"
	taskPods  = "workload proxy manager"
)

// AdminSocket is the name of the administration socket, beside the node agent's.
const AdminSocket = "admin.sock"

// Options are what a Server is given besides its configuration. The zero value
// is a program's.
type Options struct {
	Out     io.Writer // where logs go; required
	Version string
	Signer  svid.Signer // where certificates come from; nil: what Config says
	// Namespace is where what is served in the proxy's own is served; nil: the
	// process's. It stays the caller's.
	Namespace *netns.NS
}

// Server is the proxy of one node.
type Server struct {
	cfg          Config
	version      string
	born         time.Time
	logs         *logs
	log          *slog.Logger
	rbacLog      *slog.Logger
	lacks        *lacks // belongs to watch
	store        *workload.Store
	static       workload.Batch
	xds          *client.Client // nil: off
	given        bool           // the source of certificates was, by Options
	originLock   sync.Mutex     // guards origin, which followOrigin changes
	origin       *origin        // of certificates
	alarms       *alarms
	certs        *svid.Manager
	tracked      *track.Registry
	metrics      *metrics
	allot        allotment
	budget       *hbone.Budget
	gate         *hbone.Gate
	share        *share
	proven       pairs
	resting      resting
	revoked      mtls.Revocations
	crlEmptied   emptied                       // belongs to watchTrust
	rootsEmptied emptied                       // belongs to followOrigin
	judged       atomic.Pointer[workload.View] // by which live connections were judged last
	rootsChanged chan struct{}                 // capacity 1: peers have to be judged again
	names        *resolve.Resolver             // of workloads' hostnames
	waiting      *ready.Set                    // the sockets of connections
	relay        *relay.Relay
	ready        *admin.Readiness
	pods         *pods
	lines        lines
	resolv       *dns.ResolvFile // nil: none
	home         *netns.NS       // nil: the process's
	started      chan struct{}   // closed when everything that starts has
	asked        chan struct{}   // closed when somebody asks for the end
	once         sync.Once       // closes asked

	podsChanged chan struct{}
	bound       []string        // addresses of our own listeners, in order of opening; set by Run
	fetched     map[string]bool // holders of prefetched certificates; watch's own
	program     bool            // the process is this proxy's: its runtime may be set
}

// New makes a server. Run or Close must follow.
func New(cfg Config, o Options) (s *Server, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	l, err := newLogs(cfg.Log, o.Out)
	if err != nil {
		return nil, err
	}
	if err := mtls.Use(cfg.TLS); err != nil {
		l.sink.Close()
		return nil, fmt.Errorf("COMPLIANCE_POLICY, TLS12_ENABLED: %w", err)
	}
	files, err := sockopt.MaxFiles()
	if err != nil {
		l.sink.Close()
		return nil, fmt.Errorf("proxy: %w", err)
	}
	allotted := allot(cfg, findMachine())
	cfg.Threads, cfg.MemoryLimit = allotted.threads, allotted.memory
	s = &Server{
		given: o.Signer != nil, alarms: newAlarms(l.scope("proxy")),
		allot: allotted, gate: hbone.NewGate(allotted.handshakes()),
		share: newShare(files), home: o.Namespace, cfg: cfg, version: o.Version, born: time.Now(), logs: l, log: l.scope("proxy"), rbacLog: l.scope("rbac"), store: workload.NewNodeStore(cfg.NodeName),
		tracked: track.New(maxConnections, maxPodConnections), budget: hbone.NewBudget(windowBudget),
		ready: newReadiness(cfg), asked: make(chan struct{}), started: make(chan struct{}),
		podsChanged: make(chan struct{}, 1), rootsChanged: make(chan struct{}, 1), fetched: make(map[string]bool), names: resolve.New(resolve.Config{Servers: cfg.Nameservers}),
	}
	defer func() {
		if err != nil {
			s.Close()
			s = nil
		}
	}()
	// One loop keeps several threads busy: few, so that what is ready at the same
	// time shares a write.
	if s.waiting, err = ready.New(s.cfg.Threads / 4); err != nil {
		return s, fmt.Errorf("proxy: %w", err)
	}
	s.relay = relay.New(s.waiting)
	s.metrics = newMetrics(s.tracked, l.sink.Lost, s.tag())
	s.metrics.told.most = s.cfg.PeerSeries
	s.lacks = newLacks(s.rbacLog, s.metrics.policies.missing)
	s.metrics.registry.MustRegister(s.resting.gauge(), s.alarms)
	s.ready.Notes = s.alarms.notes
	s.pods = newPods(s)
	s.lines.zds.address(cfg.ZDSPath)
	s.openResolvers()
	if err := s.newState(); err != nil {
		return s, err
	}
	return s, s.newCerts(o.Signer)
}

func newReadiness(cfg Config) *admin.Readiness {
	if cfg.Dedicated {
		return admin.NewReadiness(taskState, taskProxy)
	}
	return admin.NewReadiness(taskState, taskProxy, taskPods)
}

// Close releases what New took. It is for a server that is not run.
func (s *Server) Close() {
	if s.origin != nil {
		if err := s.origin.close(); err != nil {
			s.log.Warn("the source of certificates did not close", "err", err)
		}
	}
	s.names.Close()
	if s.waiting != nil {
		_ = s.waiting.Close()
	}
	s.logs.sink.Close()
}

// Handler is what the node agent speaks to.
func (s *Server) Handler() zds.Handler { return s.pods }

// Quit begins the end of Run, as the end of its context does.
func (s *Server) Quit() { s.once.Do(func() { close(s.asked) }) }

// crew are goroutines that Run started. The first error of one ends Run.
type crew struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup
}

func newCrew(ctx context.Context) *crew {
	c := &crew{}
	c.ctx, c.cancel = context.WithCancelCause(ctx)
	return c
}

func (c *crew) start(f func(context.Context) error) {
	c.wg.Go(func() {
		if err := f(c.ctx); err != nil && c.ctx.Err() == nil {
			c.cancel(err)
		}
	})
}

func (c *crew) stop() {
	c.cancel(nil)
	c.wg.Wait()
}

// Run serves until ctx ends or Quit is called, drains, and returns. It returns
// an error when it could not start or something broke that it cannot do without.
func (s *Server) Run(ctx context.Context) error {
	defer s.Close()
	if !s.cfg.Dedicated { // that enters no namespace
		if err := netns.SelfTest(); err != nil {
			return fmt.Errorf("proxy: %w", err)
		}
	}
	s.log.Info("version", "version", s.version, "go", runtime.Version())
	s.log.LogAttrs(ctx, slog.LevelInfo, "configuration", configAttrs(s.cfg)...)
	front, err := s.listenAll()
	if err != nil {
		return err
	}
	// back goes on while connections drain: their policies still change.
	back := newCrew(context.WithoutCancel(ctx))
	defer back.stop()
	s.runBack(back)
	ends := newCrew(ctx)
	s.runFront(ends, front)
	if !s.cfg.Dedicated {
		s.ready.Set(taskProxy, true)
	}
	close(s.started)
	select {
	case <-ends.ctx.Done():
		err = context.Cause(ends.ctx)
	case <-back.ctx.Done():
		err = context.Cause(back.ctx)
	case <-s.asked:
	}
	if ctx.Err() != nil {
		err = nil
	}
	s.log.Info("shutting down", "deadline", s.cfg.DrainDeadline, "connections", s.tracked.Len(), "err", orNone(err))
	ends.cancel(nil)
	defer ends.wg.Wait()
	deadline, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.DrainDeadline)
	defer cancel()
	s.pods.drain(deadline)
	s.log.Info("shut down")
	return err
}

// runBack starts what lives until the last connection has ended.
func (s *Server) runBack(c *crew) {
	c.start(s.certs.Run)
	c.start(func(ctx context.Context) error { s.followOrigin(ctx); return nil })
	c.start(func(ctx context.Context) error { s.watchToken(ctx); return nil })
	c.start(func(ctx context.Context) error { s.watchCerts(ctx); return nil })
	if s.xds != nil {
		c.start(s.xds.Run)
	}
	c.start(func(ctx context.Context) error { s.watch(ctx); return nil })
	c.start(func(ctx context.Context) error { s.watchMemory(ctx); return nil })
	c.start(func(ctx context.Context) error { s.watchTrust(ctx); return nil })
}

// runFront starts what ends when the proxy is told to end.
func (s *Server) runFront(c *crew, listeners []served) {
	for _, l := range listeners {
		c.start(func(ctx context.Context) error { return l.serve(ctx, l.listener, l.handler, s.log) })
	}
	if !s.cfg.Dedicated {
		c.start(s.serveUnix)
	}
	c.start(func(ctx context.Context) error { s.pods.retry(ctx); return nil })
	c.start(func(ctx context.Context) error {
		if !s.synced(ctx) {
			return nil
		}
		s.ready.Set(taskState, true)
		if s.cfg.Dedicated {
			return s.openLone(ctx)
		}
		c.start(func(ctx context.Context) error { s.openSelf(ctx); return nil })
		agent := &zds.Client{Path: s.cfg.ZDSPath, Handler: s.pods, Log: s.pods.log, OnState: s.pods.state}
		return agent.Run(ctx)
	})
}

// synced waits for the world to be known: to a proxy that does not know who is
// in the mesh everybody would be outside of it, and get plaintext.
func (s *Server) synced(ctx context.Context) bool {
	select {
	case <-s.known():
		return true
	case <-ctx.Done():
		return false
	}
}

// known is closed when all of the world is known.
func (s *Server) known() <-chan struct{} {
	if s.xds != nil {
		return s.xds.Synced()
	}
	all := make(chan struct{})
	close(all)
	return all
}

// serving answers on a listener until the context ends.
type serving = func(context.Context, net.Listener, http.Handler, *slog.Logger) error

// served is a listener and who answers on it.
type served struct {
	listener net.Listener
	handler  http.Handler
	serve    serving
}

// listenAll opens the listeners of the proxy's own namespace.
func (s *Server) listenAll() (all []served, err error) {
	defer func() {
		if err != nil {
			for _, l := range all {
				err = errors.Join(err, l.listener.Close())
			}
		}
	}()
	administration := admin.Handler(s.source())
	open := func(addr string, h http.Handler, serve serving) error {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return fmt.Errorf("proxy: %w", err)
		}
		all = append(all, served{l, h, serve})
		s.bound = append(s.bound, l.Addr().String())
		return nil
	}
	if err := open(s.cfg.Admin.String(), administration, admin.Serve); err != nil {
		return all, err
	}
	if s.cfg.IPv6 && s.cfg.Admin.Addr().IsLoopback() {
		if err := open(fmt.Sprintf("[::1]:%d", s.cfg.Admin.Port()), administration, admin.Serve); err != nil {
			s.log.Info("no administration port on IPv6", "err", err)
		}
	}
	if err := open(s.cfg.Stats.String(), admin.MetricsHandler(s.metrics.handler()), admin.ServeOpen); err != nil {
		return all, err
	}
	if err := open(s.cfg.Ready.String(), admin.ReadyHandler(s.ready), admin.ServeOpen); err != nil {
		return all, err
	}
	return all, nil
}

// serveUnix answers on the administration socket until ctx ends. The node
// agent's folder may come later, and nothing but its status needs this.
func (s *Server) serveUnix(ctx context.Context) error {
	path := filepath.Join(filepath.Dir(s.cfg.ZDSPath), AdminSocket)
	for said := false; ctx.Err() == nil; wait(ctx, retryUnix) {
		l, err := admin.ListenUnix(path)
		if err == nil {
			return admin.Serve(ctx, l, admin.Handler(s.source()), s.log)
		}
		if !said {
			s.log.Warn("no administration socket yet: the node agent cannot show what this proxy does", "path", path, "err", err)
			said = true
		}
	}
	return nil
}

// Main makes a server and runs it.
func Main(ctx context.Context, cfg Config, version string, out io.Writer) error {
	s, err := New(cfg, Options{Out: out, Version: version})
	if err != nil {
		return err
	}
	s.allot.take(s.log)
	s.program = true
	return s.Run(ctx)
}
