package onehost

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"github.com/warren-mesh/warren/internal/netns"
)

// dialIn connects from inside ns. The socket belongs to the namespace it was
// made in; the connection can be used from anywhere.
func dialIn(ctx context.Context, ns *netns.NS, addr string) (net.Conn, error) {
	var conn net.Conn
	err := ns.Do(func() (err error) {
		conn, err = new(net.Dialer).DialContext(ctx, "tcp", addr)
		return err
	})
	return conn, err
}

// Dial connects as an application in the pod does.
func (p *Pod) Dial(ctx context.Context, dst netip.AddrPort) (*net.TCPConn, error) {
	conn, err := dialIn(ctx, p.NS, dst.String())
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}

// Listen opens an application's listener in the pod, on both families.
func (p *Pod) Listen(port int) (*net.TCPListener, error) {
	var l net.Listener
	err := p.NS.Do(func() (err error) {
		l, err = net.Listen("tcp", ":"+strconv.Itoa(port))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen in pod %s: %w", p.Spec.key(), err)
	}
	return l.(*net.TCPListener), nil
}

// Server runs one function a connection until it is closed.
type Server struct {
	l  *net.TCPListener
	wg sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]struct{} // guarded by mu
}

// Serve starts an application in the pod. handle owns the connection only for
// the time of its call; it is closed afterwards.
func (p *Pod) Serve(port int, handle func(*net.TCPConn)) (*Server, error) {
	l, err := p.Listen(port)
	if err != nil {
		return nil, err
	}
	s := &Server{l: l, conns: make(map[net.Conn]struct{})}
	s.wg.Go(func() {
		for {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.conns[c] = struct{}{}
			s.mu.Unlock()
			s.wg.Go(func() {
				handle(c)
				c.Close()
				s.mu.Lock()
				delete(s.conns, c)
				s.mu.Unlock()
			})
		}
	})
	return s, nil
}

// Close ends the listener and every connection, and waits.
func (s *Server) Close() error {
	err := s.l.Close()
	s.mu.Lock()
	for c := range s.conns {
		c.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
	return err
}

// Echo sends back what it reads and half-closes after the peer did.
func Echo(c *net.TCPConn) {
	if _, err := io.Copy(c, c); err == nil {
		c.CloseWrite()
	}
}

// ServeHTTP starts a web server in the pod that says who it is and whom it
// sees; curl inside another pod can be pointed at it.
func (p *Pod) ServeHTTP(port int) (io.Closer, error) {
	l, err := p.Listen(port)
	if err != nil {
		return nil, err
	}
	srv := &http.Server{
		ReadHeaderTimeout: 5 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "hello from %s to %s\n", p.Spec.key(), r.RemoteAddr)
		}),
	}
	go srv.Serve(l) // ends with Close
	return srv, nil
}

// Get makes one HTTP request from the pod on a connection of its own and
// returns the body. header travels in the request, so that a capture can look
// for its text.
func (p *Pod) Get(ctx context.Context, dst netip.AddrPort, header string) (string, error) {
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, a string) (net.Conn, error) { return dialIn(ctx, p.NS, a) },
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+dst.String()+"/", nil)
	if err != nil {
		return "", err
	}
	req.Header.Set("X-Warren-Demo", header)
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return string(bytes.TrimSpace(body)), errors.Join(err, statusError(resp))
}

func statusError(resp *http.Response) error {
	if resp.StatusCode == http.StatusOK {
		return nil
	}
	return errors.New(resp.Status)
}
