package onehost_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/warren-mesh/warren/e2e/onehost"
)

// late is how long after a pod has gone the control plane is told of it.
const late = 500 * time.Millisecond

// TestRollLosesNoConnection replaces the pods of a service one after the other
// under load, as a Deployment does, while everybody learns late that a pod has
// gone: first it refuses connections, then it is not there at all. The service
// always has two endpoints that work; no connection may fail. Without retries
// connections do fail: what the test makes them go through is real.
func TestRollLosesNoConnection(t *testing.T) {
	t.Run("with retries", func(t *testing.T) {
		r := newRollout(t)
		n, errs := r.run(t)
		if len(errs) > 0 || n == 0 {
			t.Errorf("%d of %d connections failed: %v", len(errs), n, errs)
		}
		left, err := retries(r.m.Nodes[0])
		if err != nil || left == 0 {
			t.Errorf("%d connections were taken to another endpoint (%v), want some: the test has tested nothing", left, err)
		}
		t.Logf("%d connections, %d taken to another endpoint, none failed", n, left)
	})
	t.Run("without", func(t *testing.T) {
		r := newRollout(t, "CONNECT_RETRIES=0")
		n, errs := r.run(t)
		if len(errs) == 0 {
			t.Errorf("none of %d connections failed, with CONNECT_RETRIES=0", n)
		}
		if left, err := retries(r.m.Nodes[0]); err != nil || left != 0 {
			t.Errorf("%d connections were taken to another endpoint: %v", left, err)
		}
		t.Logf("%d of %d connections failed", len(errs), n)
	})
}

// retries is how many connections of the node's pods left an endpoint for another.
func retries(n *onehost.Node) (sum int, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	text, err := n.Metrics(ctx)
	if err != nil {
		return 0, err
	}
	found := false
	for line := range strings.Lines(text) {
		if _, value, ok := strings.Cut(strings.TrimPrefix(line, "warren_connect_retries_total"), "} "); ok && strings.HasPrefix(line, "warren_connect_retries_total{") {
			var v float64
			if _, err := fmt.Sscan(value, &v); err != nil {
				return 0, err
			}
			sum, found = sum+int(v), true
		}
	}
	if !found {
		err = errors.New("there is no such metric")
	}
	return sum, err
}

// rollout is a service of three pods, and clients of it.
type rollout struct {
	m      *onehost.Mesh
	client *onehost.Pod
	vip    netip.AddrPort
	pods   []*rolled
	seq    int
}

// rolled is a pod of the service and what runs in it.
type rolled struct {
	pod *onehost.Pod
	l   *net.TCPListener
	wg  sync.WaitGroup
}

func newRollout(t *testing.T, env ...string) *rollout {
	t.Helper()
	r := &rollout{m: newMesh(t, onehost.Options{Env: env}), vip: netip.MustParseAddrPort("10.96.0.30:80")}
	if err := r.m.PutService("app", "rolled", r.vip, 8080, map[string]string{"app": "rolled"}); err != nil {
		t.Fatal(err)
	}
	r.client = addPod(t, r.m.Nodes[0], "app", "client", nil)
	for range 3 {
		r.pods = append(r.pods, r.add(t))
	}
	return r
}

// add starts a pod, and returns when it serves and everybody knows.
func (r *rollout) add(t *testing.T) *rolled {
	t.Helper()
	r.seq++
	p, err := r.m.Nodes[r.seq%2].AddPod(testContext(t), onehost.PodSpec{
		Namespace: "app", Name: "rolled-" + strings.ToLower(rand.Text()[:6]), ServiceAccount: "rolled",
		Labels: map[string]string{"app": "rolled"}, Unready: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	s := &rolled{pod: p}
	if s.l, err = p.Listen(8080); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.l.Close() })
	s.wg.Go(func() {
		for {
			c, err := s.l.AcceptTCP()
			if err != nil {
				return
			}
			s.serve(c)
		}
	})
	if err := p.SetReady(true); err != nil {
		t.Fatal(err)
	}
	if err := p.WaitReady(testContext(t)); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *rolled) serve(c net.Conn) {
	s.wg.Go(func() {
		defer c.Close()
		if _, err := io.Copy(c, c); err == nil {
			c.(*net.TCPConn).CloseWrite()
		}
	})
}

// stop ends the application as one does that takes care: it refuses connections,
// and serves those that it has, also those that it has not looked at yet.
func (s *rolled) stop() error {
	if err := s.pod.Refuse(8080); err != nil {
		return err
	}
	raw, err := s.l.SyscallConn()
	if err != nil {
		return err
	}
	var aerr error
	for aerr == nil {
		fd := -1
		if err := raw.Control(func(l uintptr) { fd, _, aerr = unix.Accept4(int(l), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK) }); err != nil {
			return err
		}
		if aerr != nil {
			break
		}
		f := os.NewFile(uintptr(fd), "accepted")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			return err
		}
		s.serve(c)
	}
	if !errors.Is(aerr, unix.EAGAIN) {
		return aerr
	}
	err = s.l.Close()
	s.wg.Wait()
	return err
}

// run replaces each pod under load, and returns how many connections there were
// and the errors.
func (r *rollout) run(t *testing.T) (int, []error) {
	t.Helper()
	l := r.load(4)
	l.turn(t)
	for i, old := range r.pods {
		r.pods[i] = r.add(t)
		if err := old.stop(); err != nil {
			t.Fatal(err)
		}
		l.turn(t) // what the pod has served has reached its client
		l.turn(t)
		if err := old.pod.Vanish(testContext(t)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(late) // not to wait for something: this is the delay
		if err := old.pod.Forget(); err != nil {
			t.Fatal(err)
		}
		l.turn(t)
	}
	return l.stop()
}

// load are clients, each of which makes one connection after the other.
type load struct {
	stop  func() (int, []error)
	turns []atomic.Int64
}

func (r *rollout) load(clients int) *load {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	l := &load{turns: make([]atomic.Int64, clients)}
	for i := range clients {
		wg.Go(func() {
			for ctx.Err() == nil {
				text := strings.Repeat(fmt.Sprintf("client %d, turn %d. ", i, l.turns[i].Load()), 200)
				if err := roundTripWithin(time.Minute, r.client, r.vip, text); err != nil {
					mu.Lock()
					errs = append(errs, fmt.Errorf("%s: %w", time.Now().Format("15:04:05.000"), err))
					mu.Unlock()
				}
				l.turns[i].Add(1)
			}
		})
	}
	l.stop = func() (n int, _ []error) {
		cancel()
		wg.Wait()
		for i := range l.turns {
			n += int(l.turns[i].Load())
		}
		return n, errs
	}
	return l
}

// turn returns when every client has ended the connection that it has now, and
// another one.
func (l *load) turn(t *testing.T) {
	t.Helper()
	var from []int64
	for i := range l.turns {
		from = append(from, l.turns[i].Load())
	}
	eventually(t, 3*time.Minute, "every client goes on", func() error {
		for i := range l.turns {
			if l.turns[i].Load() < from[i]+2 {
				return fmt.Errorf("client %d is in its %dth turn", i, l.turns[i].Load())
			}
		}
		return nil
	})
}

func roundTripWithin(d time.Duration, p *onehost.Pod, dst netip.AddrPort, text string) error {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	c, err := p.Dial(ctx, dst)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(d))
	if _, err := io.WriteString(c, text); err != nil {
		return err
	}
	if err := c.CloseWrite(); err != nil {
		return err
	}
	got, err := io.ReadAll(c)
	if err == nil && string(got) != text {
		err = fmt.Errorf("%d bytes came back, want %d as sent", len(got), len(text))
	}
	return err
}
