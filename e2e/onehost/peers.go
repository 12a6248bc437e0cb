package onehost

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/mtls"
	"github.com/warren-mesh/warren/ca/source/istio"
	"github.com/warren-mesh/warren/ca/svid"
	"github.com/warren-mesh/warren/proxy/hbone"
	"github.com/warren-mesh/warren/proxy/proxyproto"
	"github.com/warren-mesh/warren/proxy/ready"
	"github.com/warren-mesh/warren/proxy/relay"
)

// CA is a client of the mesh's own CA with the node's token, as the node's proxy is one.
func (n *Node) CA() (*istio.Signer, error) {
	addr := n.mesh.ControlPlaneAddr()
	config := mtls.ToServer(func() ([]byte, error) { return os.ReadFile(n.mesh.RootCert()) }, addr.Addr().String(), "istiod.istio-system.svc")
	return istio.New(istio.Config{
		Address: "https://" + addr.String(), ClusterID: n.mesh.cluster(),
		TLS: func() (*tls.Config, error) { return config, nil },
		Token: func() (string, error) {
			b, err := os.ReadFile(n.TokenFile())
			return strings.TrimSpace(string(b)), err
		},
		Dial: func(ctx context.Context, _, address string) (net.Conn, error) { return dialIn(ctx, n.NS, address) },
	})
}

// Certificate gets one for a service account that has a pod on the node, from the
// mesh's own CA, as the node's proxy would.
func (n *Node) Certificate(ctx context.Context, namespace, account string) (*mtls.Identity, error) {
	signer, err := n.CA()
	if err != nil {
		return nil, err
	}
	defer signer.Close()
	id, err := spiffeid.FromString(fmt.Sprintf("spiffe://cluster.local/ns/%s/sa/%s", namespace, account))
	if err != nil {
		return nil, err
	}
	manager := svid.New(svid.Config{Signer: signer})
	running, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { _ = manager.Run(running) })
	defer func() { cancel(); wg.Wait() }()
	lease := manager.Acquire(svid.Pod{UID: "test"}, id)
	defer lease.Release()
	return lease.Identity(ctx)
}

// Asked is a CONNECT that a network's gateway got.
type Asked struct{ Peer, Authority string }

// Gateway is the application of a network's gateway: it takes HBONE and sends what is
// in it on, as it is.
type Gateway struct {
	Asked  chan Asked
	server *Server
	cancel context.CancelFunc
	work   sync.WaitGroup
	set    *ready.Set
}

// ServeGateway starts one in the pod, which leads to target.
func (p *Pod) ServeGateway(self *mtls.Identity, target netip.AddrPort) (*Gateway, error) {
	return p.ServeGatewayTo(self, func(ctx context.Context, _ string) (*net.TCPConn, error) { return p.Dial(ctx, target) })
}

// ServeGatewayTo starts one in the pod. It leads where dial does for an authority.
func (p *Pod) ServeGatewayTo(self *mtls.Identity, dial func(ctx context.Context, authority string) (*net.TCPConn, error)) (*Gateway, error) {
	set, err := ready.New(1)
	if err != nil {
		return nil, err
	}
	g, flows := &Gateway{Asked: make(chan Asked, 64), set: set}, relay.New(set)
	ctx, cancel := context.WithCancel(context.Background())
	g.cancel = cancel
	handle := func(in *hbone.Incoming) {
		peer, _ := mtls.Peer(in.TLS())
		select {
		case g.Asked <- Asked{peer.String(), in.Authority}:
		default:
		}
		out, err := dial(ctx, in.Authority)
		if err != nil {
			in.Reject(http.StatusServiceUnavailable)
			return
		}
		g.work.Add(1)
		flows.Start(out, in.Accept(nil), nil, func(relay.Result) { g.work.Done() })
	}
	g.server, err = p.Serve(15008, func(c *net.TCPConn) {
		cfg := mtls.Server(func(context.Context) (*mtls.Identity, error) { return self, nil })
		_ = hbone.Serve(ctx, ctx, c, cfg, hbone.Config{}, hbone.HandlerFunc(func(in *hbone.Incoming) {
			g.work.Go(func() { handle(in) })
		}))
	})
	if err != nil {
		cancel()
		set.Close()
		return nil, err
	}
	return g, nil
}

// Close ends the gateway and what goes through it.
func (g *Gateway) Close() error {
	g.cancel()
	err := g.server.Close()
	g.work.Wait()
	g.set.Close()
	return err
}

// Told is what a waypoint's application learns about a connection.
type Told struct {
	From netip.Addr
	proxyproto.Header
}

// ServeWaypoint runs the application of a waypoint that takes PROXY protocol: it sends
// everything on to where the client wanted to go. What it is told goes to heard, unless
// that is full.
func (p *Pod) ServeWaypoint(port int, heard chan<- Told) (*Server, error) {
	return p.Serve(port, func(c *net.TCPConn) {
		r := bufio.NewReader(c)
		h, err := readHeader(r)
		if err != nil {
			return
		}
		select {
		case heard <- Told{c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap(), h}:
		default:
		}
		out, err := p.Dial(context.Background(), h.Dst)
		if err != nil {
			return
		}
		defer out.Close()
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = io.Copy(out, r); _ = out.CloseWrite() })
		_, _ = io.Copy(c, out)
		_ = c.CloseWrite()
		wg.Wait()
	})
}

func readHeader(r *bufio.Reader) (proxyproto.Header, error) {
	for size := 16; ; size++ {
		b, err := r.Peek(size)
		if err != nil {
			return proxyproto.Header{}, err
		}
		h, n, err := proxyproto.Parse(b)
		if err == nil {
			_, err = r.Discard(n)
		}
		if !errors.Is(err, proxyproto.ErrShort) {
			return h, err
		}
	}
}
