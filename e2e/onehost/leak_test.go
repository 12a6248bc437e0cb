package onehost_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/warren-mesh/warren/e2e/onehost"
)

// settled reads what each proxy holds, once two readings in a row agree.
func settled(t *testing.T, m *onehost.Mesh) []onehost.Resources {
	t.Helper()
	var last []onehost.Resources
	eventually(t, 20*time.Second, "the proxies are at rest", func() error {
		now := resources(t, m)
		same := len(last) == len(now)
		for i := range now {
			same = same && last[i].FDs == now[i].FDs && last[i].Goroutines == now[i].Goroutines
		}
		if last = now; !same {
			return fmt.Errorf("still moving: %+v", now)
		}
		return nil
	})
	return last
}

func resources(t *testing.T, m *onehost.Mesh) []onehost.Resources {
	t.Helper()
	var all []onehost.Resources
	for _, n := range m.Nodes {
		r, err := n.ProxyResources(testContext(t))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, r)
	}
	return all
}

// Slack for what may rightly be there that was not before: a pooled tunnel
// that was opened meanwhile (one fd and three goroutines), threads that the Go
// runtime keeps for later.
const (
	slackFDs        = 12
	slackGoroutines = 40
	slackThreads    = 24
)

// noLeak waits until every proxy is back to what it held before.
func noLeak(t *testing.T, m *onehost.Mesh, before []onehost.Resources) {
	t.Helper()
	eventually(t, 20*time.Second, "the proxies hold no more than before", func() error {
		for i, r := range resources(t, m) {
			b := before[i]
			if r.FDs > b.FDs+slackFDs || r.Goroutines > b.Goroutines+slackGoroutines || r.Threads > b.Threads+slackThreads {
				return fmt.Errorf("%s: %+v, before: %+v", m.Nodes[i].Name, r, b)
			}
		}
		return nil
	})
}
