package server

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
)

// Config of a Server. Authenticate and Log must be set; the zero value of anything
// else is the default.
type Config struct {
	// Authenticate names the caller of a stream, or refuses it. Its error may carry a
	// gRPC status; any other becomes Unauthenticated without its text, which is logged.
	// It is called again while the stream lives.
	Authenticate func(ctx context.Context) (caller string, err error)
	Log          *slog.Logger

	// Debounce is how long it must have been quiet before a change is sent (100 ms),
	// DebounceMax how long a change waits for that at most (10 s).
	Debounce, DebounceMax time.Duration
	// AckTimeout is how long a client may take to receive and answer a response before
	// its stream is cut off (60 s).
	AckTimeout time.Duration
	// Recheck is how often a stream is authenticated again, give or take a fifth (10 min,
	// for each time is a question to the API server, by what each stream began with): one
	// whose caller is refused then, or has become another, ends. Errors with a status other
	// than Unauthenticated and PermissionDenied say nothing about the caller and are passed
	// over.
	Recheck time.Duration
	// MaxStreams bounds all streams (5000), MaxStreamsPerCaller those of one caller
	// (8): while a proxy is replaced a node has two, and each may be reconnecting.
	MaxStreams, MaxStreamsPerCaller int
	// MaxSending bounds the memory that responses take until they are written, all
	// together (512 MiB). Resources are not counted, which exist once for all of them: the
	// whole of a mesh is 24 bytes for each. A client that does not take its own is cut off
	// after AckTimeout, and its connection is closed.
	MaxSending int64
	// MaxTold bounds what clients said they have when they subscribed, till they are
	// answered, all together (256 MiB). One caller has an eighth of it at most.
	MaxTold int64
}

func (c Config) withDefaults() Config {
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&c.Debounce, 100 * time.Millisecond},
		{&c.DebounceMax, 10 * time.Second},
		{&c.AckTimeout, time.Minute},
		{&c.Recheck, 10 * time.Minute},
	} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	if c.MaxStreams == 0 {
		c.MaxStreams = 5000
	}
	if c.MaxStreamsPerCaller == 0 {
		c.MaxStreamsPerCaller = 8
	}
	if c.MaxSending == 0 {
		c.MaxSending = 512 << 20
	}
	if c.MaxTold == 0 {
		c.MaxTold = 256 << 20
	}
	return c
}

// Server serves snapshots to delta ADS clients.
type Server struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer
	cfg     Config
	states  *publisher
	stats   counters
	sending *budget
	told    *toldBudget
	// refusals bounds log lines that callers without credentials can cause.
	refusals *rate.Limiter

	mu      sync.Mutex
	callers map[string]int // streams open by caller
	total   int

	pumps sync.WaitGroup // goroutines of streams, which end just after their streams

	closing chan struct{} // closed by Shutdown
	once    sync.Once
}

const (
	refusalRate  = 10 // log lines a second
	refusalBurst = 100
)

// New makes a server that answers nobody before the first SetSnapshot.
func New(cfg Config) *Server {
	cfg = cfg.withDefaults()
	return &Server{
		cfg:     cfg,
		states:  newPublisher(cfg.Debounce, cfg.DebounceMax),
		callers: make(map[string]int),
		closing: make(chan struct{}),
		sending: newBudget(cfg.MaxSending),
		told:    newToldBudget(cfg.MaxTold),

		refusals: rate.NewLimiter(refusalRate, refusalBurst),
	}
}

// SetSnapshot makes a snapshot the newest. It never waits for a client.
func (s *Server) SetSnapshot(next *Snapshot) { s.states.set(next) }

// Register adds the server to a gRPC server, which has to be made with ServerOptions, or
// with a Codec after them, and should serve a Listener.
func (s *Server) Register(r grpc.ServiceRegistrar) {
	discovery.RegisterAggregatedDiscoveryServiceServer(r, s)
}

// Shutdown ends every stream, now and later, with a status that makes clients connect
// again elsewhere. It does not wait.
func (s *Server) Shutdown() { s.once.Do(func() { close(s.closing) }) }

// Wait returns when no goroutine of a stream is left. Call it after the gRPC server
// was stopped.
func (s *Server) Wait() { s.pumps.Wait() }

// ServerOptions bounds what a gRPC server takes from its clients, as istiod does:
// requests of 4 MiB, and a ping every 30 s that must be answered within 10 s. A connection
// on which nothing is asked for a minute ends: whoever answers pings need not say who he is.
func ServerOptions() []grpc.ServerOption { return serverOptions(time.Minute) }

func serverOptions(idle time.Duration) []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ForceServerCodecV2(Codec(encoding.GetCodecV2(proto.Name))),
		grpc.MaxRecvMsgSize(4 << 20),
		grpc.MaxHeaderListSize(32 << 10),
		grpc.MaxConcurrentStreams(64),
		grpc.ConnectionTimeout(10 * time.Second),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: idle, Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
	}
}

// Stats counts what happened since the start. The maps have a key for each type URL.
type Stats struct {
	Streams  int    // open now
	CutOff   uint64 // streams ended because the client was too slow
	Refused  uint64 // streams that were not let in, or for which there was no room
	Sent     map[string]uint64
	Rejected map[string]uint64 // responses that a client did not take (NACK)
}

type counters struct {
	cutOff, refused atomic.Uint64
	sent, rejected  [kinds]atomic.Uint64
}

// Stats returns the counters.
func (s *Server) Stats() Stats {
	st := Stats{CutOff: s.stats.cutOff.Load(), Refused: s.stats.refused.Load(), Sent: make(map[string]uint64), Rejected: make(map[string]uint64)}
	for k := range kind(kinds) {
		st.Sent[k.typeURL()] = s.stats.sent[k].Load()
		st.Rejected[k.typeURL()] = s.stats.rejected[k].Load()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	st.Streams = s.total
	return st
}

// authenticate names the caller of a stream, or returns the status to refuse it with.
func (s *Server) authenticate(ctx context.Context) (string, error) {
	caller, err := s.cfg.Authenticate(ctx)
	if err == nil {
		return caller, nil
	}
	if s.refusals.Allow() {
		s.cfg.Log.Warn("stream refused", "err", err)
	}
	if _, ok := status.FromError(err); ok {
		return "", err
	}
	return "", status.Error(codes.Unauthenticated, "authentication failure")
}

// recheckEvery is how often one stream is checked: all that a rollout brought at once are
// not to come at once for ever.
func (c *Config) recheckEvery() time.Duration {
	return time.Duration(float64(c.Recheck) * (0.8 + 0.4*rand.Float64()))
}

// recheck returns why a stream that was let in must end, nil if it may go on.
func (s *Server) recheck(ctx context.Context, caller string) error {
	now, err := s.authenticate(ctx)
	switch code := status.Code(err); {
	case err == nil && now != caller:
		return status.Error(codes.Unauthenticated, "authentication failure")
	case code == codes.Unauthenticated || code == codes.PermissionDenied:
		return err
	}
	return nil
}

// admit lets a stream in, or says why not. The caller of a stream that was let in
// calls release when it ends.
func (s *Server) admit(ctx context.Context) (caller string, release func(), err error) {
	defer func() {
		if err != nil {
			s.stats.refused.Add(1)
		}
	}()
	if caller, err = s.authenticate(ctx); err != nil {
		return "", nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.total >= s.cfg.MaxStreams {
		return "", nil, status.Error(codes.ResourceExhausted, "too many streams at this control plane")
	}
	if s.callers[caller] >= s.cfg.MaxStreamsPerCaller {
		return "", nil, status.Errorf(codes.ResourceExhausted, "%s already has %d streams", caller, s.callers[caller])
	}
	s.total++
	s.callers[caller]++
	return caller, func() { s.release(caller) }, nil
}

func (s *Server) release(caller string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.total--
	if s.callers[caller]--; s.callers[caller] == 0 {
		delete(s.callers, caller)
	}
}
