//go:build istiod

package istiod

import (
	"testing"

	"github.com/warren-mesh/warren/e2e/onehost"
)

// TestMultiNetwork: a service of two clusters on two networks is served from both, each
// pod of the other network by way of that network's gateway.
func TestMultiNetwork(t *testing.T) {
	for _, name := range []string{"warren", "istiod"} {
		t.Run(name, func(t *testing.T) {
			c := newClusters(t, name)
			s := c.share(t)
			t.Run("both ways", s.bothWays)
		})
	}
}

// shared is a service of both clusters.
type shared struct {
	*clusters
	near, far1, far2 *onehost.Pod
	to1, to2         *edge
}

const (
	sharedHost = "shared.app.svc.cluster.local:80"
	shared1VIP = "10.96.20.1" // in n1
	shared2VIP = "10.96.20.2" // in n2
)

// share has the clusters know each other, and a service in both.
func (c *clusters) share(t *testing.T) *shared {
	t.Helper()
	s := &shared{clusters: c}
	labels := map[string]string{"app": "shared"}
	s.near = c.n1.pod(t, 0, onehost.PodSpec{Namespace: "app", Name: "near", ServiceAccount: "shared-1", Labels: labels})
	s.far1 = c.n2.pod(t, 0, onehost.PodSpec{Namespace: "app", Name: "far-1", ServiceAccount: "shared-2", Labels: labels})
	s.far2 = c.n2.pod(t, 1, onehost.PodSpec{Namespace: "app", Name: "far-2", ServiceAccount: "shared-2", Labels: labels})
	s.to1, s.to2 = c.edge(t, c.n1, c.n2), c.edge(t, c.n2, c.n1)
	s.to1.lead(sharedHost, s.near)
	s.to2.lead(sharedHost, s.far1, s.far2)
	c.n1.put(t, "Service", "app", "shared", c.n1.global("shared", shared1VIP, ""))
	c.n2.put(t, "Service", "app", "shared", c.n2.global("shared", shared2VIP, ""))
	for _, e := range []*edge{s.to1, s.to2} {
		e.putGateway(t)
	}
	c.n1.remote(t, c.n2, "shared", "shared-2", 2)
	c.n2.remote(t, c.n1, "shared", "shared-1", 1)
	c.n1.join(t, c.n2)
	c.n2.join(t, c.n1)
	return s
}

func (s *shared) bothWays(t *testing.T) {
	spread(t, s.n1.client, at(shared1VIP, 80), "n1:app/near", "n2:app/far-1", "n2:app/far-2")
	spread(t, s.n2.client, at(shared2VIP, 80), "n1:app/near", "n2:app/far-1", "n2:app/far-2")
	for _, e := range []*edge{s.to1, s.to2} {
		asked, n := e.asked()
		if n == 0 || asked.Peer != "spiffe://cluster.local/ns/app/sa/client" || asked.Authority != sharedHost {
			t.Errorf("the gateway of %s was asked %d times, the last time %+v", e.of.network, n, asked)
		}
	}
}
