package nodeagent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/netutil"
	"golang.org/x/sync/errgroup"

	"github.com/warren-mesh/warren/cni/event"
	"github.com/warren-mesh/warren/cni/redirect"
	"github.com/warren-mesh/warren/internal/netns"
	"github.com/warren-mesh/warren/internal/nswatch"
	"github.com/warren-mesh/warren/nodeagent/enroll"
	"github.com/warren-mesh/warren/nodeagent/podwatch"
	"github.com/warren-mesh/warren/nodeagent/zds"
	"github.com/warren-mesh/warren/xds/translate"
)

const (
	stopWithin  = 3 * time.Second // for HTTP requests under way at the end
	maxRequests = 64              // at a time, of each HTTP server
)

// Run runs an agent until ctx ends; it returns nil then.
func Run(ctx context.Context, cfg Config, log *slog.Logger) error {
	a, err := New(cfg, log)
	if err != nil {
		return err
	}
	return a.Run(ctx)
}

// Agent is one that has its sockets and has found its pods, and does not run
// yet.
type Agent struct {
	cfg     Config
	log     *slog.Logger
	started time.Time

	source  *source
	cluster *cluster // nil: no API server
	nswatch *nswatch.Watcher
	rival   *rival
	host    *host
	proc    string // where the host's /proc is seen
	only    bool   // nothing is begun: the agent is here to clean up
	watch   *podwatch.Watcher
	proxies *zds.Server
	enroll  *enroll.Enroller
	backend redirect.Backend
	admin   *proxyAdmin
	metrics *metrics

	podsWithin time.Duration // for the pods when the mesh leaves this node

	zdsListener *zds.Listener
	cniListener *net.UnixListener
	http        []httpServer
	closers     []func() error // of what is open, in the order of opening
}

type httpServer struct {
	listener net.Listener
	handler  http.Handler
}

// New checks the config and the machine, opens the sockets and takes up what an
// earlier agent left. Run closes what it opened.
func New(cfg Config, log *slog.Logger) (*Agent, error) { return newAgent(cfg, nil, log) }

// newAgent is New with a client for the API server, or without.
func newAgent(cfg Config, client *client, log *slog.Logger) (_ *Agent, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	log.Info("configuration", "config", fmt.Sprintf("%+v", cfg))
	if err := netns.SelfTest(); err != nil {
		return nil, fmt.Errorf("nodeagent: %w", err)
	}
	a := &Agent{cfg: cfg, log: log, started: time.Now(), admin: newProxyAdmin(cfg.ZDSSocket), podsWithin: cfg.podsWithin(), proc: procOf(cfg.HostRoot)}
	if a.backend, err = chooseBackend(cfg.Redirect); err != nil {
		return nil, fmt.Errorf("nodeagent: choose what programs the pods' rules: %w", err)
	}
	if a.source, err = newSource(&cfg, client, log); err != nil {
		return nil, err
	}
	log.Info("chose what programs the pods' rules", "backend", a.backend.Name())
	if err := errors.Join(os.MkdirAll(cfg.RunDir, 0o755), os.MkdirAll(cfg.StateDir, 0o755)); err != nil {
		return nil, fmt.Errorf("nodeagent: %w", err)
	}
	if err := claimState(cfg.StateDir, cfg.NodeName, bootID()); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.close())
		}
	}()
	// The first socket also tells whether another agent runs here.
	if a.zdsListener, err = zds.Listen("unixpacket", cfg.ZDSSocket); err != nil {
		return nil, err
	}
	a.closers = append(a.closers, a.zdsListener.Close)
	if err := a.assemble(); err != nil {
		return nil, err
	}
	// Before anybody can ask: a snapshot that lacks a pod ends its connections.
	if err := a.enroll.Recover(context.Background()); err != nil {
		return nil, err
	}
	a.host.begin(context.Background(), a.enroll)
	return a, a.listen()
}

// chooseBackend follows --redirect.
func chooseBackend(choice string) (redirect.Backend, error) {
	if choice == RedirectNFTables {
		return redirect.Named(RedirectNFTables)
	}
	b, err := redirect.Detect()
	if err == nil && choice == RedirectIPTables && !strings.HasPrefix(b.Name(), RedirectIPTables) {
		return nil, redirect.ErrNoIPTables
	}
	return b, err
}

func newSource(cfg *Config, client *client, log *slog.Logger) (*source, error) {
	if cfg.Kubernetes {
		return clusterSource(cfg, client, log)
	}
	return folderSource(cfg.KubeDir, log), nil
}

// assemble makes the parts and connects them.
func (a *Agent) assemble() error {
	selectors, err := translate.ParseSelectors(a.cfg.Selectors, a.cfg.ExcludeNamespaces...)
	if err != nil {
		return err
	}
	a.watch, err = podwatch.New(a.source, a.source.untaken, enroll.ViewOptions{
		Node: a.cfg.NodeName, OwnNamespace: a.cfg.OwnNamespace, ExcludeNamespaces: a.cfg.ExcludeNamespaces, Selectors: selectors,
		Whole: a.source.whole,
	})
	if err != nil {
		return err
	}
	a.joinCluster(selectors)
	a.proxies = zds.NewServer(a.cfg.ZDSSocket, func() []zds.Workload { return a.enroll.Snapshot() }, a.log)
	a.metrics = newMetrics(a.proxies, func() []enroll.Report { return a.enroll.Report() })
	if err := a.joinHost(); err != nil {
		return err
	}
	a.rival = newRival(&a.cfg)
	a.rival.look(context.Background()) // before anybody can ask
	if a.nswatch, err = nswatch.New(); err != nil {
		return err
	}
	a.closers = append(a.closers, a.nswatch.Close)
	cfg := enroll.Config{
		StateDir: a.cfg.StateDir, HostRoot: a.cfg.HostRoot, Proc: a.proc, BootID: bootID(),
		Redirect: event.Redirect{IPv6: a.cfg.IPv6, DNS: a.cfg.DNSCapture, ProbeIP4: redirect.ProbeIP4(), ProbeIP6: redirect.ProbeIP6()},
		Backend:  a.backend, Named: redirect.Named,
		Proxy: a.proxies, World: a.watch, Flows: a.admin, Observe: a.metrics.observe, Log: a.log,
		Tell: a.cluster.tell, Probes: a.host.probes(),
		Watch: a.nswatch, SelfProbe: a.cfg.SelfProbe, Connections: connections{}, Policies: a.admin, Rival: a.rival.name, RivalChained: a.host.istioChained,
		Stale: a.source.stale, Exempt: append(slices.Clone(a.cfg.ExcludeNamespaces), a.cfg.OwnNamespace),
		Times: enroll.Times{Drain: cmp.Or(a.cfg.DrainDeadline, -1), Linger: a.cfg.Linger},
	}
	if a.source.client != nil { // a folder's pods are of no kubelet
		cfg.Finder = newFinder(a.proc)
	}
	if a.enroll, err = enroll.New(cfg); err != nil {
		return err
	}
	a.closers = append(a.closers, func() error { a.enroll.Close(); return nil })
	return nil
}

// bootID tells one run of the kernel from the next; empty where it is hidden.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// listen opens the other sockets.
func (a *Agent) listen() (err error) {
	if a.cniListener, err = event.Listen(filepath.Join(a.cfg.RunDir, event.SocketName)); err != nil {
		return err
	}
	a.closers = append(a.closers, ignoreClosed(a.cniListener.Close))
	for _, s := range []struct {
		name    string
		handler http.Handler
	}{
		{pluginSocket, a.istioHandler()}, {statusSocket, a.statusHandler()},
	} {
		l, err := zds.Listen("unix", filepath.Join(a.cfg.RunDir, s.name))
		if err != nil {
			return err
		}
		a.serveHTTP(l, s.handler)
	}
	for _, s := range []struct {
		address string
		handler http.Handler
	}{
		{a.cfg.HealthListen, a.healthHandler()}, {a.cfg.MetricsListen, a.metrics.handler()},
	} {
		if s.address == "" {
			continue
		}
		l, err := net.Listen("tcp", s.address)
		if err != nil {
			return fmt.Errorf("nodeagent: listen at %s: %w", s.address, err)
		}
		a.serveHTTP(l, s.handler)
	}
	return nil
}

func (a *Agent) serveHTTP(l net.Listener, h http.Handler) {
	a.closers = append(a.closers, ignoreClosed(l.Close))
	a.http = append(a.http, httpServer{netutil.LimitListener(l, maxRequests), h})
}

func ignoreClosed(closeIt func() error) func() error {
	return func() error {
		if err := closeIt(); !errors.Is(err, net.ErrClosed) {
			return err
		}
		return nil
	}
}

// close closes in the reverse order of opening. Pods stay as they are.
func (a *Agent) close() error {
	var errs []error
	for i := len(a.closers) - 1; i >= 0; i-- {
		errs = append(errs, a.closers[i]())
	}
	return errors.Join(errs...)
}

// Run serves until ctx ends or a part fails, and stops all parts then. Pods in
// the mesh stay in it, and the proxy goes on, so that the next agent takes over;
// unless there will be none: then nothing of the mesh's stays on the node.
func (a *Agent) Run(ctx context.Context) error {
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	group, parts := errgroup.WithContext(work)
	group.Go(func() error { return a.watch.Run(parts) })
	group.Go(func() error { return a.proxies.Serve(parts, a.zdsListener) })
	group.Go(func() error { return a.enroll.Run(parts) })
	group.Go(func() error { return a.nswatch.Run(parts, a.enroll.Changed) })
	group.Go(func() error { return a.rival.run(parts) })
	group.Go(func() error { return event.Serve(parts, a.cniListener, a.enroll, a.log) })
	for _, s := range a.http {
		group.Go(func() error { return serve(parts, s, a.log) })
	}
	a.cluster.run(parts, group, a.only)
	if !a.only {
		a.host.run(parts, group, a)
	}
	var ending error
	group.Go(func() error {
		select {
		case <-ctx.Done():
			ending = a.end(parts)
		case <-parts.Done(): // a part has failed
		}
		cancel()
		return nil
	})
	a.log.Info("the agent runs", "node", a.cfg.NodeName)
	err := group.Wait()
	if work.Err() != nil && errors.Is(err, context.Canceled) {
		err = nil
	}
	return errors.Join(err, ending, a.close())
}

func serve(ctx context.Context, s httpServer, log *slog.Logger) error {
	srv := &http.Server{
		Handler: s.handler, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: time.Minute,
		MaxHeaderBytes: 16 << 10,
	}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopWithin)
		defer cancel()
		if srv.Shutdown(grace) != nil {
			srv.Close()
		}
	})
	err := srv.Serve(s.listener)
	if !errors.Is(err, http.ErrServerClosed) {
		stop()
		return fmt.Errorf("nodeagent: serve %s: %w", s.listener.Addr(), err)
	}
	<-stopped
	return nil
}
