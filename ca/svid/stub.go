package svid

import (
	"context"
	"errors"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/mtls"
)

type Manager struct{ cfg Config }
type Lease struct{}

func New(cfg Config) (*Manager, error)                          { return &Manager{cfg: cfg}, nil }
func (m *Manager) Run(ctx context.Context) error                { return errors.New("stub") }
func (m *Manager) Acquire(holder string, id spiffeid.ID) *Lease { return &Lease{} }
func (m *Manager) Prefetch(id spiffeid.ID, holder string)       {}
func (m *Manager) Forget(holder string)                         {}
func (m *Manager) Dump() []State                                { return nil }

func (l *Lease) ID() spiffeid.ID                                      { return spiffeid.ID{} }
func (l *Lease) Identity(ctx context.Context) (*mtls.Identity, error) { return nil, errors.New("stub") }
func (l *Lease) Done() <-chan struct{}                                { return nil }
func (l *Lease) Release()                                             {}
