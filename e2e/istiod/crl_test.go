//go:build istiod

package istiod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/warren-mesh/warren/e2e/onehost"
)

// TestCRL (ZtunnelCrlOutbound, ZtunnelCrlInbound): a certificate that is revoked, or that
// of an issuer, is refused by either end and on one node; what it carries is cut. Nobody
// else is. Proxies that start anew get certificates of the issuer that is left.
func TestCRL(t *testing.T) {
	for _, name := range []string{"warren", "istiod"} {
		t.Run(name, func(t *testing.T) {
			w := &world{name: name, pki: newPKI(t)}
			alone(t, w, nil)
			w.publish(t)
			t.Run("a client", w.revokedClient)
			t.Run("a server", w.revokedServer)
			t.Run("an issuer", w.revokedIssuer)
		})
	}
}

func (w *world) revokedClient(t *testing.T) {
	far, near, unmoved := live(t, w.client, w.server), live(t, w.client, w.second), live(t, w.other, w.server)
	before := [...]float64{w.rejections(t, 0, "destination"), w.rejections(t, 1, "destination")}
	w.pki.issuer().revoke(w.serial(t, w.client))
	w.publish(t)
	ends(t, far)
	ends(t, near)
	w.refused(t, w.client, on(w.server, 18080), "revoked")
	w.refused(t, w.client, on(w.second, 18080), "revoked")
	carries(t, unmoved)
	reaches(t, w.other, on(w.server, 18080), "app/server")
	for n := range w.Nodes { // the cut, and the refusals
		if got := w.rejections(t, n, "destination"); got < before[n]+1+steady {
			t.Errorf("node %d counts %v rejections, and %v before", n+1, got, before[n])
		}
	}
}

func (w *world) revokedServer(t *testing.T) {
	far, unmoved := live(t, w.other, w.server), live(t, w.other, w.second)
	before := w.rejections(t, 0, "source")
	w.pki.issuer().revoke(w.serial(t, w.server))
	w.publish(t)
	ends(t, far)
	w.refused(t, w.other, on(w.server, 18080), "revoked")
	carries(t, unmoved)
	reaches(t, w.other, on(w.second, 18080), "app/second")
	if got := w.rejections(t, 0, "source"); got < before+1+steady {
		t.Errorf("node 1 counts %v rejections, and %v before", got, before)
	}
}

func (w *world) revokedIssuer(t *testing.T) {
	old := w.pki.issuer()
	w.pki.replace(t)
	w.publish(t)
	eventually(t, "the new issuer issues", func() error {
		if by := w.certificate(t, 0, "app", "client").Chain()[0].Issuer.CommonName; by != w.pki.issuer().cert.Subject.CommonName {
			return fmt.Errorf("%s does", by)
		}
		return nil
	})
	left, right := w.pod(t, 0, onehost.PodSpec{Namespace: "app", Name: "left"}), w.pod(t, 1, onehost.PodSpec{Namespace: "app", Name: "right"})
	reaches(t, left, on(right, 18080), "app/right")
	reaches(t, w.other, on(right, 18080), "app/right") // two issuers of one root
	far, near, unmoved := live(t, w.other, right), live(t, w.other, w.second), live(t, left, right)
	w.pki.root.revoke(old.cert.SerialNumber)
	w.publish(t)
	ends(t, far)
	ends(t, near)
	w.refused(t, w.other, on(right, 18080), "revoked")
	w.refused(t, left, on(w.server, 18080), "revoked")
	w.refused(t, w.other, on(w.second, 18080), "revoked")
	carries(t, unmoved)
	reaches(t, left, on(right, 18080), "app/right")
	for _, n := range w.Nodes {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		err := errors.Join(n.StopProxy(), n.StartProxy(ctx), n.WaitProxyReady(ctx))
		cancel()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, from := range []*onehost.Pod{w.client, w.other, left} {
		reaches(t, from, on(w.server, 18080), "app/server")
	}
}

// live is a connection that has answered.
func live(t *testing.T, from, to *onehost.Pod) *net.TCPConn {
	t.Helper()
	var c *net.TCPConn
	eventually(t, fmt.Sprintf("%s has a connection to %s", from.Spec.Name, to.Spec.Name), func() (err error) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if c, err = from.Dial(ctx, on(to, 18080)); err != nil {
			return err
		}
		who := make([]byte, len(to.Spec.Namespace+"/"+to.Spec.Name))
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err = io.ReadFull(c, who); err == nil && string(who) != to.Spec.Namespace+"/"+to.Spec.Name {
			err = fmt.Errorf("%s answered", who)
		}
		if err != nil {
			_ = c.Close()
		}
		return err
	})
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// ends waits until a connection is cut, which must not look like an end in good order.
func ends(t *testing.T, c *net.TCPConn) {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := io.Copy(io.Discard, c); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the connection to %s is not cut: %v", c.RemoteAddr(), err)
	}
}

// carries has a connection bring something back.
func carries(t *testing.T, c *net.TCPConn) {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	const word = "still there"
	_, err := io.WriteString(c, word)
	var back strings.Builder
	for b := make([]byte, 64); err == nil && !strings.HasSuffix(back.String(), word); {
		var n int
		n, err = c.Read(b)
		back.Write(b[:n])
	}
	if err != nil {
		t.Errorf("a connection to %s that nobody should have cut: %v after %q", c.RemoteAddr(), err, back.String())
	}
}

// serial is that of the certificate which the pod's proxy uses for it.
func (w *world) serial(t *testing.T, p *onehost.Pod) *big.Int {
	t.Helper()
	want := peers(p)[0].String()
	for _, n := range w.Nodes {
		if n.Pods[p.Spec.Namespace+"/"+p.Spec.Name] != p {
			continue
		}
		var dump struct {
			Certificates []struct {
				Identity  string
				CertChain []struct{ SerialNumber string }
			}
		}
		if err := n.ConfigDump(t.Context(), &dump); err != nil {
			t.Fatal(err)
		}
		for _, c := range dump.Certificates {
			if c.Identity != want || len(c.CertChain) == 0 {
				continue
			}
			if s, ok := new(big.Int).SetString(c.CertChain[0].SerialNumber, 10); ok {
				return s
			}
		}
	}
	t.Fatalf("no proxy has a certificate of %s", want)
	return nil
}

// rejections is what a node's proxy counts at one end of connections.
func (w *world) rejections(t *testing.T, node int, reporter string) float64 {
	t.Helper()
	text, err := w.Nodes[node].Metrics(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(text, fmt.Sprintf("istio_crl_policy_rejections_total{reporter=%q} ", reporter))
	var n float64
	if _, err := fmt.Sscan(rest, &n); err != nil {
		t.Fatalf("node %d has no count of rejections by the %s: %v", node+1, reporter, err)
	}
	return n
}
