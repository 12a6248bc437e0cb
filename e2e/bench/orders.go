package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/rpc"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/warren-mesh/warren/e2e/onehost"
)

// Orders are what a control plane does at the word of the bench.
type Orders struct {
	plane *crowdPlane
	stop  func() (int, error)
	used  float64 // CPU, when it began
}

// Churn says who is to be told of changes.
type Churn struct {
	Kind string // of which streams
	N    int    // that there must be
}

// Told is what they have been told.
type Told struct {
	Changes int
	CPU     float64 // seconds that this took
}

// Begin begins to tell of changes.
func (o *Orders) Begin(c Churn, _ *int) (err error) {
	if o.used, err = onehost.CPU(os.Getpid()); err != nil {
		return err
	}
	o.stop, err = o.plane.churn(context.Background(), c.Kind, c.N)
	return err
}

// End ends that.
func (o *Orders) End(_ int, t *Told) (err error) {
	if t.Changes, err = o.stop(); err != nil {
		return err
	}
	used, err := onehost.CPU(os.Getpid())
	t.CPU = used - o.used
	return err
}

// takeOrders serves them at a Unix socket until ctx ends.
func takeOrders(ctx context.Context, socket string, plane *crowdPlane) error {
	s := rpc.NewServer()
	if err := s.Register(&Orders{plane: plane}); err != nil {
		return err
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return // ctx has ended
			}
			go s.ServeConn(conn)
		}
	}()
	return nil
}

// playControlPlane starts the bed's control plane and waits until it takes orders.
func (b *bed) playControlPlane(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	const name = "plane"
	socket := filepath.Join(b.Opts.Dir, name+".sock")
	if err := b.Run(name, self, []string{"GOMAXPROCS=1"}, "-play", b.ControlPlaneAddr().String(), "-root", b.RootCert(),
		"-orders", socket, "-size", strconv.Itoa(b.proxy.crowd)); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		conn, err := net.Dial("unix", socket)
		if err == nil {
			b.plane = rpc.NewClient(conn)
			return nil
		}
		select {
		case <-ctx.Done():
			log, _ := os.ReadFile(b.Log(name))
			return fmt.Errorf("the control plane does not come up: %w: %s", errors.Join(err, ctx.Err()), log)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// churn has the streams of a kind, one a node, told of changes until stop is called.
func (b *bed) churn(kind string) (stop func() (Told, error), err error) {
	if err := b.plane.Call("Orders.Begin", Churn{kind, len(b.Nodes)}, new(int)); err != nil {
		return nil, err
	}
	return func() (t Told, err error) {
		err = b.plane.Call("Orders.End", 0, &t)
		return t, err
	}, nil
}
