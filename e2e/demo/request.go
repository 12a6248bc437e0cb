package demo

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/warren-mesh/warren/e2e/onehost"
	"github.com/warren-mesh/warren/internal/capture"
)

// wire is what the capture on the bridge must have seen of a request.
type wire int

const (
	wireTLS   wire = iota // TLS to 15008 and nothing else
	wirePlain             // readable, outside the mesh's protection
	wireNone              // nothing: both ends are on one node
)

// step is one request of the story.
type step struct {
	what     string
	from, to *onehost.Pod
	dst      netip.AddrPort
	wire     wire
	denied   bool
}

// request makes one request, holds the outcome against what the step says, and
// prints its line. A request to the Service is repeated until the endpoint of
// the step was picked.
func (s *story) request(ctx context.Context, st step) error {
	const tries = 50
	for range tries {
		got, err := s.attempt(ctx, st)
		if err != nil {
			return err
		}
		if got {
			return nil
		}
	}
	return fmt.Errorf("the Service never picked %s in %d tries", st.to.Spec.Name, tries)
}

func (s *story) attempt(ctx context.Context, st step) (bool, error) {
	if err := s.mesh.Capture.Quiet(ctx, 25*time.Millisecond); err != nil {
		return false, err
	}
	marker := "plain-" + rand.Text()
	s.mesh.Capture.Mark(marker)
	before := s.mesh.Capture.Counts()
	logs := s.mesh.AccessLogs()
	body, err := st.from.Get(ctx, st.dst, marker)
	switch {
	case st.denied && err == nil:
		return false, fmt.Errorf("was answered %q, but a policy denies it", body)
	case !st.denied && err != nil:
		return false, err
	case !st.denied && !strings.Contains(body, "hello from "+st.to.Spec.Namespace+"/"+st.to.Spec.Name+" "):
		return false, nil // the Service's other endpoint
	}
	lines, err := logs.Wait(ctx, st.from.IPs, st.to.IPs, st.wantLines())
	if err != nil {
		return false, err
	}
	counts, err := s.settle(ctx, before, st.wire)
	if err != nil {
		return false, err
	}
	s.told++
	outcome := body
	if st.denied {
		outcome = "refused: " + lines.DenyReason()
	}
	fmt.Fprintf(s.out, "%-34s %s → %s %s | %s | %s | %s\n", st.what, st.from.Spec.Name, st.to.Spec.Name, st.dst, lines, wireText(counts), outcome)
	return true, nil
}

// wantLines says which proxies report the request: each end that is in the mesh.
func (st step) wantLines() []string {
	var want []string
	if st.from.Spec.Namespace == ambient {
		want = append(want, "outbound")
	}
	if st.to.Spec.Namespace == ambient {
		want = append(want, "inbound")
	}
	return want
}

// settle waits until the capture has seen what it must see, then judges it.
func (s *story) settle(ctx context.Context, before capture.Counts, w wire) (capture.Counts, error) {
	deadline := time.Now().Add(3 * time.Second)
	for {
		c := s.mesh.Capture.Counts().Since(before)
		if w == wireTLS && c.TLS > 0 || w == wirePlain && c.Marker > 0 || w == wireNone {
			return c, w.judge(c)
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			return c, errors.Join(ctx.Err(), fmt.Errorf("the capture on the bridge saw %+v", c))
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (w wire) judge(c capture.Counts) error {
	switch w {
	case wireTLS:
		if c.NotTLS > 0 || c.OtherTCP > 0 || c.Marker > 0 {
			return fmt.Errorf("bytes outside TLS crossed the bridge: %+v", c)
		}
	case wireNone:
		if c.NotTLS > 0 || c.OtherTCP > 0 || c.Marker > 0 {
			return fmt.Errorf("traffic of one node crossed the bridge in the open: %+v", c)
		}
	case wirePlain:
		if c.OtherTCP == 0 {
			return fmt.Errorf("plain traffic was expected on the bridge: %+v", c)
		}
	}
	return nil
}

func wireText(c capture.Counts) string {
	switch {
	case c.TLS > 0 && c.OtherTCP == 0 && c.Marker == 0:
		return fmt.Sprintf("bridge: %d B TLS to 15008, 0 B readable", c.TLS)
	case c.OtherTCP > 0:
		return fmt.Sprintf("bridge: %d B plain", c.OtherTCP)
	default:
		return "bridge: 0 B"
	}
}

// cutLive opens a connection, lets it carry something, denies it by a new
// policy and waits until it is cut.
func (s *story) cutLive(ctx context.Context) error {
	st := step{what: "cut live by a policy change", from: s.client2, to: s.web1, dst: netip.AddrPortFrom(s.web1.IP4(), 7070)}
	srv, err := st.to.Serve(7070, onehost.Echo)
	if err != nil {
		return err
	}
	s.servers = append(s.servers, srv)
	before, logs := s.mesh.Capture.Counts(), s.mesh.AccessLogs()
	conn, err := st.from.Dial(ctx, st.dst)
	if err != nil {
		return err
	}
	defer conn.Close()
	buf := make([]byte, 64)
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := conn.Write([]byte("alive?")); err != nil {
		return err
	}
	if n, err := conn.Read(buf); err != nil || string(buf[:n]) != "alive?" {
		return fmt.Errorf("echo: %q, %w", buf[:n], err)
	}
	changed := time.Now()
	if err := s.mesh.PutPolicy(ambient, "deny-client-on-7070", denyPrincipalOnPort("client", 7070)); err != nil {
		return err
	}
	if n, err := conn.Read(buf); err == nil {
		return fmt.Errorf("the connection still carried %d bytes", n)
	} else if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("the connection was not cut in 10 s")
	}
	took := time.Since(changed)
	conn.Close() // the client's own end; its proxy then reports
	lines, err := logs.Wait(ctx, st.from.IPs, st.to.IPs, st.wantLines())
	if err != nil {
		return err
	}
	counts, err := s.settle(ctx, before, wireTLS)
	if err != nil {
		return err
	}
	s.told++
	fmt.Fprintf(s.out, "%-34s %s → %s %s | %s | %s | cut after %d ms: %s\n", st.what, st.from.Spec.Name, st.to.Spec.Name, st.dst,
		lines, wireText(counts), took.Milliseconds(), lines.DenyReason())
	return nil
}
