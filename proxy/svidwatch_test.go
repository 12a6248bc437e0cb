package proxy_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// A CA that is away while the token is good is told everywhere before the first certificate ends, and so is when it is back.
func TestTheCAIsAway(t *testing.T) {
	var away atomic.Bool
	m := newMesh(t, 1)
	m.ca.TTL = 20 * time.Second
	m.ca.Before = func(context.Context, spiffeid.ID) error {
		if away.Load() {
			return errors.New("the CA is away")
		}
		return nil
	}
	n := m.nodes[0]
	n.srv.AgentState(true, true)
	until(t, "it is ready", func() bool { return strings.HasPrefix(n.readiness(t), "ready") })
	n.meshPod("app")
	page := func(at int, path string) string { return fetch(t, "http://"+n.srv.Addresses()[at]+path) }
	last := len(n.srv.Addresses()) - 1
	available := func() bool {
		return strings.Contains(page(last-1, "/metrics"), `warren_svid_identities{state="available"} 1`)
	}
	until(t, "the pod has a certificate", available)
	away.Store(true)
	alarm := func() (where []string) {
		for name, text := range map[string]string{
			"readiness": page(last, "/healthz/ready"), "metrics": page(last-1, "/metrics"), "connections": page(0, "/debug/connections"),
		} {
			want := map[string]string{"readiness": "warning: certificates: 1 in use", "metrics": `warren_alarm{alarm="certificates"} 1`, "connections": "1 in use are not renewed by"}[name]
			if strings.Contains(text, want) {
				where = append(where, name)
			}
		}
		return where
	}
	// The first renewal comes at up to 11 s, and must have failed for 2.5 s.
	untilWithin(t, time.Minute, "the alarm is everywhere", func() bool { return len(alarm()) == 3 })
	if !available() {
		t.Error("it came after the end")
	}
	metrics := page(last-1, "/metrics")
	for _, want := range []string{
		"warren_svid_overdue 1", `warren_svid_expiry_seconds_count{source="istio"} 1`, "warren_svid_agent_stuck 0", `warren_svid_requests_total{code="OK",priority="`,
		`warren_svid_requests_total{code="Unknown",priority="`, `warren_svid_identities{state="unavailable"} 0`, `warren_svid_entitlements{by="`, "warren_svid_generations 1",
		"warren_svid_expires_seconds ", "warren_svid_clock_behind_seconds 0", "warren_svid_in_flight ", "warren_svid_queued ", "warren_svid_on_notice 0",
		`warren_svid_roots{trust_domain="cluster.local"} 1`, `warren_svid_root_expires_seconds{trust_domain="cluster.local"} `, "warren_svid_request_seconds_count{priority=",
		`warren_svid_notes_total{what="served_expired"} 0`, `warren_svid_notes_total{what="redacted"} 0`, `warren_svid_notes_total{what="mismatch"} 0`,
		`warren_peers_refused_total{reason="revoked"} 0`,
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("metrics lack %s", want)
		}
	}
	away.Store(false)
	until(t, "the alarm is over", func() bool { return len(alarm()) == 0 })
}
