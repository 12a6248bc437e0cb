package zds

import (
	"context"
	"errors"
	"log/slog"
)

// Server is the node agent's end.
type Server struct{}

// NewServer makes a server that will listen at path. snapshot returns every pod
// that the proxy is to serve, also those that Add is being called for; a
// Workload without NS becomes a Keep. The namespaces stay the caller's; one
// that is closed meanwhile is skipped.
func NewServer(path string, snapshot func() []Workload, log *slog.Logger) *Server {
	return &Server{}
}

// Run serves until ctx ends.
func (s *Server) Run(ctx context.Context) error { return errors.New("zds: not built yet") }

// Add hands a pod to the newest proxy and waits for its ack.
func (s *Server) Add(ctx context.Context, w Workload) error { return errors.New("zds: not built yet") }

// Del tells every proxy that a pod is gone.
func (s *Server) Del(ctx context.Context, uid string) error { return errors.New("zds: not built yet") }

// Connected is how many proxies are connected and through their snapshot.
func (s *Server) Connected() int { return 0 }
