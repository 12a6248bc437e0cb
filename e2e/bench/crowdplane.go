package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
)

const (
	changeEvery = 2 * time.Millisecond
	mostBehind  = 1024 // changes that are due and not sent
)

// crowdPlane is a control plane that has a crowd. It costs as little as it can beside
// what is measured: it sends what has been prepared, and reads no more of an answer
// than what it is about.
type crowdPlane struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer
	*crowd
	next    int // of the changes, by whoever tells them
	telling atomic.Bool

	mu      sync.Mutex
	streams []*stream
}

// stream is one that is told of changes, from its first answer on.
type stream struct {
	kind    string       // what it asked for: addressType or controlType
	answers atomic.Int64 // to that

	mu sync.Mutex // of sending
	to grpc.ServerStream
}

// DeltaAggregatedResources serves one proxy or control.
func (c *crowdPlane) DeltaAggregatedResources(st discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	s := &stream{to: st}
	defer c.leave(s)
	seen := make(map[string]bool)
	var r request
	for {
		if err := st.RecvMsg(&r); err != nil {
			return err
		}
		kind := string(r.kind)
		if seen[kind] { // an answer
			if (kind == addressType || kind == controlType) && s.answers.Add(1) == 1 {
				c.enter(s, kind)
			}
			continue
		}
		seen[kind] = true
		first := c.first
		if kind != addressType {
			var err error
			if first, err = response(kind, "first"); err != nil {
				return err
			}
		}
		if err := s.send(first); err != nil {
			return err
		}
	}
}

func (s *stream) send(m message) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.to == nil {
		return errors.New("the stream of one that follows has ended")
	}
	return s.to.SendMsg(m)
}

func (c *crowdPlane) enter(s *stream, kind string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s.kind = kind
	c.streams = append(c.streams, s)
}

func (c *crowdPlane) leave(s *stream) {
	c.mu.Lock()
	c.streams = slices.DeleteFunc(c.streams, func(other *stream) bool { return other == s })
	c.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.to = nil // it must not be used when its handler has returned
}

// following waits until n streams follow a kind, and returns them.
func (c *crowdPlane) following(ctx context.Context, kind string, n int) ([]*stream, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		c.mu.Lock()
		all := slices.DeleteFunc(slices.Clone(c.streams), func(s *stream) bool { return s.kind != kind })
		c.mu.Unlock()
		if len(all) == n {
			return all, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%d follow %s, not %d: %w", len(all), kind, n, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// churn tells the n streams of a kind that a workload has changed, every changeEvery,
// until stop is called, which returns how many changes each was told of when all of them
// have been answered.
func (c *crowdPlane) churn(ctx context.Context, kind string, n int) (stop func() (int, error), err error) {
	streams, err := c.following(ctx, kind, n)
	if err != nil {
		return nil, err
	}
	wanted := make([]int64, n) // answers
	for i, s := range streams {
		wanted[i] = s.answers.Load()
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	sent := 0
	go func() { ended <- c.tell(ctx, streams, &sent) }()
	return func() (int, error) {
		cancel()
		select {
		case err := <-ended:
			for i, s := range streams {
				err = errors.Join(err, s.answered(wanted[i]+int64(sent)))
			}
			return sent, err
		case <-time.After(startTimeout):
			return 0, fmt.Errorf("what follows %s does not take what it is sent", kind)
		}
	}, nil
}

// answered waits until so many answers have come: a proxy may let changes gather.
func (s *stream) answered(wanted int64) error {
	for end := time.Now().Add(startTimeout); s.answers.Load() < wanted; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			return fmt.Errorf("%d answers are missing", wanted-s.answers.Load())
		}
	}
	return nil
}

// tell sends what is due, also what an earlier turn has come too late for.
func (c *crowdPlane) tell(ctx context.Context, streams []*stream, sent *int) error {
	c.telling.Store(true)
	defer c.telling.Store(false)
	tick := time.NewTicker(changeEvery)
	defer tick.Stop()
	for began := time.Now(); ; {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		due := int(time.Since(began) / changeEvery)
		if due-*sent > mostBehind {
			return fmt.Errorf("what follows is %d changes behind", due-*sent)
		}
		for ; *sent < due; *sent++ {
			m := c.changes[c.next%len(c.changes)]
			c.next++
			for _, s := range streams {
				if err := s.send(m); err != nil {
					return err
				}
			}
		}
	}
}
