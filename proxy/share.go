package proxy

import (
	"errors"
	"fmt"
	"sync"
)

var errFull = errors.New("too many open sockets")

// share divides the process's descriptors among pods, so that one with very many
// connections does not take those that the others need: beyond limit only who
// has less than fair gets more.
type share struct {
	limit, fair int

	mu    sync.Mutex
	total int
	pods  map[*pod]int
}

// newShare divides so many descriptors.
func newShare(files uint64) *share {
	n := int(min(files, 1<<30))
	return &share{limit: n / 4 * 3, fair: n / 16, pods: make(map[*pod]int)}
}

// take is for a socket that a pod wants. What it grants is given back.
func (s *share) take(p *pod) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if own := s.pods[p]; s.total >= s.limit && own >= s.fair {
		return fmt.Errorf("%w: the pod has %d of %d", errFull, own, s.total)
	}
	s.total++
	s.pods[p]++
	return nil
}

func (s *share) give(p *pod) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.total--
	if s.pods[p]--; s.pods[p] == 0 {
		delete(s.pods, p)
	}
}
