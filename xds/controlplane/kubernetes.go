package controlplane

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/warren-mesh/warren/ca/kubeauth"
	"github.com/warren-mesh/warren/xds/kube"
)

const (
	// namespaceFile is where a pod finds the namespace of its service account.
	namespaceFile    = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"
	defaultNamespace = "warren-system"

	protobuf = "application/vnd.kubernetes.protobuf"

	// Reviews of tokens a second, and at once: what proxies wait for has a rate of its own,
	// and waits for nothing that is written.
	reviewQPS   = 100
	reviewBurst = 200
)

// Between tries to read the CA.
const (
	firstCARetry = time.Second
	lastCARetry  = 15 * time.Second
)

// clients reach one API server.
type clients struct {
	kubernetes kubernetes.Interface
	dynamic    dynamic.Interface
	reviews    kubernetes.Interface // of tokens
}

func connect(cfg *rest.Config) (c clients, err error) {
	compact := rest.CopyConfig(cfg)
	compact.ContentType, compact.AcceptContentTypes = protobuf, protobuf+",application/json"
	if c.kubernetes, err = kubernetes.NewForConfig(compact); err != nil {
		return c, err
	}
	reviews := rest.CopyConfig(compact)
	reviews.QPS, reviews.Burst, reviews.RateLimiter = reviewQPS, reviewBurst, nil
	if c.reviews, err = kubernetes.NewForConfig(reviews); err != nil {
		return c, err
	}
	c.dynamic, err = dynamic.NewForConfig(cfg)
	return c, err
}

// cluster is what a control plane has in Kubernetes: what the leader of its replicas does.
type cluster struct {
	leader   *leader
	rootMaps *rootMaps // nil for none
	statuses []*statusWriter
	events   *objectEvents
}

// useKubernetes takes everything from an API server.
func (p *ControlPlane) useKubernetes(td spiffeid.TrustDomain) error {
	cfg, err := kube.Connect(p.cfg.Kubeconfig)
	if err != nil {
		return fmt.Errorf("--kubeconfig: %w", err)
	}
	c, err := connect(cfg)
	if err != nil {
		return fmt.Errorf("--kubeconfig: %w", err)
	}
	return p.useClients(c, td)
}

func (p *ControlPlane) useClients(c clients, td spiffeid.TrustDomain) error {
	feeder, err := kube.New(kube.Config{Client: c.kubernetes, Dynamic: c.dynamic, Log: p.log})
	if err != nil {
		return err
	}
	trusted, err := p.cfg.trusted()
	if err != nil {
		return err
	}
	if p.callers, err = proxiesByAccount(kubeauth.Config{Client: c.reviews, TrustDomain: td, Trusted: trusted, Audience: p.cfg.TokenAudience}, p.model); err != nil {
		return err
	}
	p.feed = kubeFeed{feeder}
	p.keep(&caSecret{client: c.kubernetes, namespace: p.cfg.Namespace, td: td, log: p.log})
	k := &cluster{}
	var duties []func(context.Context)
	if p.cfg.RootConfigMap != "" {
		k.rootMaps = &rootMaps{client: c.kubernetes, name: p.cfg.RootConfigMap, roots: p.roots, world: feeder.Read, log: p.log, again: make(chan struct{}, 1)}
		duties = append(duties, k.rootMaps.run)
	}
	k.events = &objectEvents{client: c.kubernetes, world: p.model.policies, unread: feeder.Problems, log: p.log, again: make(chan struct{}, 1)}
	duties = append(duties, k.events.run)
	if p.cfg.PolicyStatus {
		k.statuses = append(k.statuses, policyStatus(c.dynamic, p.model, feeder.Problems, p.log))
	}
	if p.cfg.WaypointStatus {
		k.statuses = append(k.statuses, waypointStatus(c.dynamic, p.model, p.log))
	}
	if p.cfg.AllocateAddresses {
		k.statuses = append(k.statuses, addressStatus(c.dynamic, p.model, p.log, k.events.setUnaddressed))
	}
	for _, s := range k.statuses {
		duties = append(duties, s.run)
	}
	k.leader = newLeader(c.kubernetes, p.cfg.Namespace, p.log, duties...)
	p.cluster = k
	return nil
}

// roots is the bundle that everyone trusts, empty before the CA is there.
func (p *ControlPlane) roots() string {
	if ca := p.keeper.Authority(); ca != nil {
		return string(ca.RootsPEM())
	}
	return ""
}

// awaitCA reads the CA, again and again until it can, or ctx ends: then it returns false.
func (p *ControlPlane) awaitCA(ctx context.Context) bool {
	retry := firstCARetry
	for {
		err := p.keeper.Load(ctx, time.Now())
		if err == nil {
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		text := err.Error()
		if before := p.noCA.Swap(&text); before == nil || *before != text {
			p.log.Error("the CA cannot be read, and nothing is served before it is", "err", err)
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(retry):
		}
		retry = min(2*retry, lastCARetry)
	}
}

// lead stands for election once there is something to write of.
func (p *ControlPlane) lead(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-p.feed.Synced():
	}
	return p.cluster.leader.run(ctx)
}

// ownNamespace is that of our service account, or what we are installed in if nobody says.
func ownNamespace(log *slog.Logger) string {
	text, err := os.ReadFile(namespaceFile)
	if ns := strings.TrimSpace(string(text)); err == nil && ns != "" {
		return ns
	}
	log.Info("no namespace is given and this is no pod", "namespace", defaultNamespace)
	return defaultNamespace
}
