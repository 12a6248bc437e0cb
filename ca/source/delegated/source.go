package delegated

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	api "github.com/spiffe/spire-api-sdk/proto/spire/api/agent/delegatedidentity/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/warren-mesh/warren/ca/svid"
	"github.com/warren-mesh/warren/internal/owner"
)

// Mode is who attests a pod.
type Mode string

// Modes.
const (
	PID       Mode = "pid"       // SPIRE, by a process that we prove to be the pod's
	Selectors Mode = "selectors" // we: SPIRE believes our word on namespace and service account
)

const (
	maxSVIDs         = 64
	maxBundleMessage = 16 << 20 // all trust domains that the agent knows
)

// Config says where the agent is and how pods are attested.
type Config struct {
	// Address is unix:///absolute/path of the agent's admin socket.
	Address string
	// Agents are users, beside root and our own, whose processes may be the agent: it does not prove itself otherwise.
	Agents owner.Trusted
	Mode   Mode // default PID
	// Proc is /proc of the host's PID namespace; default "/proc".
	Proc string
	// SameNumbers says that the agent knows processes by the numbers that they have in Proc, and nothing is looked at that
	// would show it.
	SameNumbers bool
	Log         *slog.Logger
}

// Source is a svid.Watcher. Whoever makes it closes it.
type Source struct {
	cfg  Config
	conn *grpc.ClientConn
	scan scanner

	bundles bundles
	stop    context.CancelFunc
	done    sync.WaitGroup
}

// New checks cfg, and begins to watch bundles.
func New(cfg Config) (*Source, error) {
	if p, ok := strings.CutPrefix(cfg.Address, "unix://"); !ok || !path.IsAbs(p) {
		return nil, fmt.Errorf("delegated identity API: address %q: want unix:///absolute/path of the agent's admin socket", cfg.Address)
	}
	switch cfg.Mode {
	case "":
		cfg.Mode = PID
	case PID, Selectors:
	default:
		return nil, fmt.Errorf("delegated identity API: mode %q: want %q or %q", cfg.Mode, PID, Selectors)
	}
	if cfg.Proc == "" {
		cfg.Proc = "/proc"
	}
	if cfg.Mode == PID && !cfg.SameNumbers {
		if err := checkPIDs(cfg.Proc); err != nil {
			return nil, fmt.Errorf("delegated identity API: %w", err)
		}
	}
	pace := backoff.Config{BaseDelay: 200 * time.Millisecond, Multiplier: 1.6, Jitter: 0.5, MaxDelay: 3 * time.Second}
	conn, err := grpc.NewClient(cfg.Address, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithContextDialer(cfg.Agents.Dial),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: pace, MinConnectTimeout: 10 * time.Second}))
	if err != nil {
		return nil, fmt.Errorf("delegated identity API: %w", err)
	}
	s := &Source{cfg: cfg, conn: conn, scan: scanner{proc: cfg.Proc}, bundles: newBundles()}
	ctx, cancel := context.WithCancel(context.Background())
	s.stop = cancel
	s.done.Go(func() { s.watchBundles(ctx) })
	return s, nil
}

// Close ends the connection and the streams on it.
func (s *Source) Close() error {
	s.stop()
	err := s.conn.Close()
	s.done.Wait()
	return err
}

// Watch implements svid.Watcher.
func (s *Source) Watch(ctx context.Context, pod svid.Pod, id spiffeid.ID, emit func(svid.Update)) error {
	if s.cfg.Mode == Selectors {
		return s.follow(ctx, &api.SubscribeToX509SVIDsRequest{Selectors: selectors(pod)}, nil, emit)
	}
	return s.watchProcess(ctx, pod, id, emit)
}

// selectors are what we know of a pod. Fewer than an entry has can only lose it; more than we know would be a lie.
func selectors(pod svid.Pod) []*types.Selector {
	out := []*types.Selector{
		{Type: "k8s", Value: "ns:" + pod.Namespace},
		{Type: "k8s", Value: "sa:" + pod.ServiceAccount},
	}
	if pod.UID != "" {
		out = append(out, &types.Selector{Type: "k8s", Value: "pod-uid:" + pod.UID})
	}
	if pod.Name != "" {
		out = append(out, &types.Selector{Type: "k8s", Value: "pod-name:" + pod.Name})
	}
	return out
}

// follow emits what a subscription brings, each time with the bundles of that moment, and again when they change.
// check is asked before each message is believed.
func (s *Source) follow(ctx context.Context, req *api.SubscribeToX509SVIDsRequest, check func() error, emit func(svid.Update)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := api.NewDelegatedIdentityClient(s.conn).SubscribeToX509SVIDs(ctx, req)
	if err != nil {
		return failure(err)
	}
	messages := make(chan *api.SubscribeToX509SVIDsResponse)
	ended := make(chan error, 1)
	s.done.Go(func() {
		for {
			msg, err := stream.Recv()
			if err != nil {
				ended <- err
				return
			}
			select {
			case messages <- msg:
			case <-ctx.Done():
				ended <- ctx.Err()
				return
			}
		}
	})
	var last *api.SubscribeToX509SVIDsResponse
	var known *trust
	_, changed := s.bundles.get()
	for {
		select {
		case err := <-ended:
			return failure(err)
		case last = <-messages:
			known, changed = s.bundles.get()
		case <-changed:
			known, changed = s.bundles.get()
		}
		// Without a bundle nothing can be believed yet; it comes within milliseconds, before or after.
		if last == nil || known == nil && len(last.GetX509Svids()) > 0 {
			continue
		}
		u, err := read(last, known)
		if err != nil {
			return fmt.Errorf("delegated identity API: %w", err)
		}
		if check != nil {
			if err := check(); err != nil {
				return err
			}
		}
		emit(u)
	}
}

func read(msg *api.SubscribeToX509SVIDsResponse, known *trust) (u svid.Update, err error) {
	if n := len(msg.GetX509Svids()); n > maxSVIDs {
		return u, fmt.Errorf("message with %d SVIDs, more than %d", n, maxSVIDs)
	}
	u.Federated, u.Refused = make(map[spiffeid.TrustDomain][]*x509.Certificate), make(map[string]error)
	for _, m := range msg.GetX509Svids() {
		var chain []byte
		for _, der := range m.GetX509Svid().GetCertChain() {
			chain = append(chain, der...)
		}
		name := m.GetX509Svid().GetId()
		s, err := svid.ParseDER("spiffe://"+name.GetTrustDomain()+name.GetPath(), chain, m.GetX509SvidKey(), nil)
		if err != nil {
			return svid.Update{}, err
		}
		s.Roots = known.own(s.ID.TrustDomain())
		u.SVIDs = append(u.SVIDs, s)
		if td := s.ID.TrustDomain().Name(); known.refused[td] != nil {
			u.Refused[td] = known.refused[td]
		}
	}
	for _, name := range msg.GetFederatesWith() {
		td, err := spiffeid.TrustDomainFromString(name)
		if err != nil {
			u.Refused[fmt.Sprintf("%.100s", name)] = err
			continue
		}
		if err := known.refused[td.Name()]; err != nil {
			u.Refused[td.Name()] = err
		}
		if certs := known.roots[td]; len(certs) > 0 {
			u.Federated[td] = certs
		}
	}
	return u, nil
}

// failure keeps what is in use: a denial here is of this proxy, whose own entry may not have reached the agent yet
// after a restart, and says nothing of the pod. What the pod may have, it learns from a message without it.
func failure(err error) error {
	if errors.Is(err, io.EOF) {
		return errors.New("delegated identity API: the agent closed the stream")
	}
	wrapped := fmt.Errorf("delegated identity API: %w", err)
	switch status.Code(err) {
	case codes.PermissionDenied:
		return fmt.Errorf("%w (is this proxy among the agent's authorized_delegates, and registered?)", wrapped)
	case codes.InvalidArgument, codes.Unimplemented:
		return &svid.PermanentError{Err: wrapped}
	default:
		return wrapped
	}
}
