//go:build spire

package spire

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/fakeagent"
	"github.com/warren-mesh/warren/ca/mtls"
	"github.com/warren-mesh/warren/ca/source/broker"
	"github.com/warren-mesh/warren/ca/source/delegated"
	"github.com/warren-mesh/warren/ca/source/workloadapi"
	"github.com/warren-mesh/warren/ca/svid"
)

const (
	podA = "2c48913c-b29f-11e7-9350-020968147796"
	podB = "9f5d3a10-0c4e-4f7a-8b1d-7a2f6c1e0b55"
)

const bar, other = "/ns/foo/sa/bar", "/ns/foo/sa/other"

func unixUID(n int) []string { return []string{"-selector", fmt.Sprint("unix:uid:", n)} }

// The whole life of a pod's certificate: no entry yet, an entry, another that comes first in the agent's list, the
// entry's end and return.
func TestSPIREEntries(t *testing.T) {
	w := newWorld(t)
	m := w.manager(delegated.PID)
	p := w.pod(podA)
	p.process(uidBar)
	l := m.Acquire(p.Pod, id(bar))
	w.gone(l) // not entitled yet, which is said rather than waited out
	entry := w.entry(bar, 0, unixUID(uidBar)...)
	first := w.get(l)
	for _, path := range []string{"/ns/foo/sa/a", "/ns/foo/sa/b", "/ns/foo/sa/c", "/ns/foo/sa/d"} {
		w.entry(path, 0, append(unixUID(uidBar), "-hint", "first")...)
	}
	again := w.manager(delegated.PID).Acquire(p.Pod, id(bar))
	if i := w.get(again); i.ID() != first.ID() {
		t.Errorf("got %s", i.ID())
	}
	w.run("entry", "delete", "-entryID", entry)
	w.gone(l)
	w.entry(bar, 0, unixUID(uidBar)...)
	w.get(l)
}

// Each pod has its own word from SPIRE, and the material once.
func TestSPIRETwoPodsOneIdentity(t *testing.T) {
	w := newWorld(t)
	m := w.manager(delegated.PID)
	w.entry(bar, 0, unixUID(uidBar)...)
	a, b := w.pod(podA), w.pod(podB)
	a.process(uidBar)
	b.process(uidOther) // of the same service account by name, but SPIRE knows better
	if w.get(m.Acquire(a.Pod, id(bar))).ID() != id(bar) {
		t.Error("another identity")
	}
	w.gone(m.Acquire(b.Pod, id(bar)))
	b.process(uidBar)
	i, k := w.get(m.Acquire(a.Pod, id(bar))), w.get(w.manager(delegated.PID).Acquire(b.Pod, id(bar)))
	if i.Chain()[0].SerialNumber.Cmp(k.Chain()[0].SerialNumber) != 0 {
		t.Error("two certificates for one identity")
	}
}

// What the reuse levels give and take: a pod that SPIRE would refuse, of the same identity by name, proven here. At
// confirm it is found out, at local it is not, and a process of nobody's has nothing at either.
func TestSPIREReuse(t *testing.T) {
	w := newWorld(t)
	w.entry(bar, 0, unixUID(uidBar)...)
	a, b := w.pod(podA), w.pod(podB)
	first := a.process(uidBar)
	b.process(uidOther)
	stranger := svid.Pod{UID: "11111111-b29f-11e7-9350-020968147796", Namespace: "foo", Name: "x", ServiceAccount: "bar", Netns: a.Netns}
	for _, level := range []svid.Reuse{svid.Confirm, svid.Local} {
		m := w.reusing(delegated.PID, level)
		i := w.get(m.Acquire(a.Pod, id(bar)))
		l := m.Acquire(b.Pod, id(bar))
		if k := w.get(l); k.Chain()[0].SerialNumber.Cmp(i.Chain()[0].SerialNumber) != 0 {
			t.Errorf("%s: another certificate", level)
		}
		if k, err := m.Acquire(stranger, id(bar)).Identity(t.Context()); err == nil {
			t.Errorf("%s: a pod without a process uses %v", level, k)
		}
		switch level {
		case svid.Confirm:
			w.gone(l)
		case svid.Local:
			w.until("one stream serves both", func() bool {
				return slices.ContainsFunc(m.Dump(), func(st svid.State) bool { return st.Holder == podB && st.By == svid.ByProof })
			})
			if err := first.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			w.gone(l) // b is the anchor now, and SPIRE says what it thinks of it
		}
	}
}

// Certificates of a minute are replaced without being asked for, each time with another key.
func TestSPIRERotation(t *testing.T) {
	w := newWorld(t)
	w.entry(bar, 60, unixUID(uidBar)...)
	p := w.pod(podA)
	p.process(uidBar)
	l := w.manager(delegated.PID).Acquire(p.Pod, id(bar))
	last := w.get(l)
	for range 2 {
		w.until("a renewal", func() bool {
			i, err := l.Identity(t.Context())
			if err != nil {
				t.Fatalf("no certificate in between: %v", err)
			}
			if i == last {
				return false
			}
			last = i
			return true
		})
	}
}

// When the process ends that SPIRE attested, SPIRE's stream goes on; ours must not.
func TestSPIREProcessEnds(t *testing.T) {
	w := newWorld(t)
	w.entry(bar, 60, unixUID(uidBar)...)
	p := w.pod(podA)
	first := p.process(uidBar)
	m := w.manager(delegated.PID)
	l := m.Acquire(p.Pod, id(bar))
	w.get(l)
	if err := first.Process.Kill(); err != nil { // and nobody waits for it: it stays a zombie
		t.Fatal(err)
	}
	w.until("the stream ends", func() bool {
		err := m.Dump()[0].LastErr
		return err != nil && strings.Contains(err.Error(), "running container")
	})
	p.process(uidBar)
	w.until("another process stands for the pod", func() bool { return m.Dump()[0].LastErr == nil })
	w.get(l)
}

// A zombie attests with SPIRE. It proves nothing here.
func TestSPIREZombie(t *testing.T) {
	w := newWorld(t)
	w.entry(bar, 0, unixUID(uidBar)...)
	p := w.pod(podA)
	if err := p.process(uidBar).Process.Kill(); err != nil {
		t.Fatal(err)
	}
	l := w.manager(delegated.PID).Acquire(p.Pod, id(bar))
	if i, err := l.Identity(t.Context()); err == nil || !strings.Contains(err.Error(), "running container") {
		t.Errorf("%v, %v", i, err)
	}
}

// A process that is in the pod's control groups but in another's network namespace, and the other way around.
func TestSPIREStranger(t *testing.T) {
	w := newWorld(t)
	w.entry(bar, 0, unixUID(uidBar)...)
	p := w.pod(podA)
	p.process(uidBar)
	elsewhere := p.Pod
	elsewhere.Netns.Ino++
	if i, err := w.manager(delegated.PID).Acquire(elsewhere, id(bar)).Identity(t.Context()); err == nil {
		t.Errorf("a pod got %v by a process of another network namespace", i)
	}
	nobody := p.Pod
	nobody.UID = podB
	if i, err := w.manager(delegated.PID).Acquire(nobody, id(bar)).Identity(t.Context()); err == nil {
		t.Errorf("a pod got %v by a process of another pod", i)
	}
}

func TestSPIRESelectors(t *testing.T) {
	w := newWorld(t)
	w.entry(bar, 0, "-selector", "k8s:ns:foo", "-selector", "k8s:sa:bar")
	pod := svid.Pod{UID: podA, Namespace: "foo", Name: "p", ServiceAccount: "bar"}
	m := w.manager(delegated.Selectors)
	w.get(m.Acquire(pod, id(bar)))
	pod.UID, pod.ServiceAccount = podB, "other"
	w.gone(m.Acquire(pod, id(bar)))
}

// A root that is prepared is trusted, one that is tainted signs nothing more, one that is revoked is trusted by nobody.
func TestSPIRERoots(t *testing.T) {
	w := newWorld(t)
	w.entry(bar, 0, unixUID(uidBar)...)
	p := w.pod(podA)
	p.process(uidBar)
	l := w.manager(delegated.PID).Acquire(p.Pod, id(bar))
	first := w.get(l)
	roots := func(n int) func() bool { return func() bool { return len(w.get(l).Roots()) == n } }
	old := authorityID(t, w.run("localauthority", "x509", "show"), "Active")
	w.run("localauthority", "x509", "prepare")
	w.until("there are two roots", roots(2))
	w.run("localauthority", "x509", "activate", "-authorityID", authorityID(t, w.run("localauthority", "x509", "show"), "Prepared"))
	w.run("localauthority", "x509", "taint", "-authorityID", old)
	w.until("the certificate is of the new root", func() bool {
		return !samePublicKey(w.get(l).Chain()[0], first.Chain()[0])
	})
	w.run("localauthority", "x509", "revoke", "-authorityID", old)
	w.until("there is one root", roots(1))
	if _, err := w.get(l).VerifyPeer(first.Chain(), x509.ExtKeyUsageClientAuth, time.Now()); err == nil {
		t.Error("a certificate of the revoked root is accepted")
	}
}

func samePublicKey(a, b *x509.Certificate) bool {
	return string(a.RawSubjectPublicKeyInfo) == string(b.RawSubjectPublicKeyInfo)
}

// authorityID finds the ID under a heading such as "Active X.509 authority:".
func authorityID(t *testing.T, text, heading string) string {
	t.Helper()
	_, rest, _ := strings.Cut(text, heading+" X.509 authority:")
	_, rest, ok := strings.Cut(rest, "Authority ID:")
	if !ok {
		t.Fatalf("no %s authority in:\n%s", heading, text)
	}
	line, _, _ := strings.Cut(rest, "\n")
	return strings.TrimSpace(line)
}

// A foreign trust domain is accepted while the pod's entry federates with it, although SPIRE's stream of bundles never
// forgets one.
func TestSPIREFederation(t *testing.T) {
	w := newWorld(t)
	foreign, err := fakeagent.New(spiffeid.RequireTrustDomainFromString("else.test"), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: foreign.Roots()[0].Raw})
	if err := os.WriteFile(w.path("foreign.pem"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	w.run("bundle", "set", "-id", "spiffe://else.test", "-path", w.path("foreign.pem"))
	entry := w.entry(bar, 0, append(unixUID(uidBar), "-federatesWith", "spiffe://else.test")...)
	p := w.pod(podA)
	p.process(uidBar)
	l := w.manager(delegated.PID).Acquire(p.Pod, id(bar))
	stranger, err := foreign.Issue(spiffeid.RequireFromPath(foreign.TD, "/ns/x/sa/y"))
	if err != nil {
		t.Fatal(err)
	}
	accepted := func() bool {
		_, err := w.get(l).VerifyPeer(stranger.Chain, x509.ExtKeyUsageClientAuth, time.Now())
		return err == nil
	}
	w.until("the foreign workload is accepted", accepted)
	w.run("entry", "update", "-entryID", entry, "-parentID", "spiffe://example.org/node1", "-spiffeID", id(bar).String(), "-selector", fmt.Sprint("unix:uid:", uidBar))
	w.until("it is not any more", func() bool { return !accepted() })
}

// The agent goes and comes back under subscribers: what they have stays, and every one of them is told of what comes.
func TestSPIREAgentRestart(t *testing.T) {
	w := newWorld(t)
	m := w.manager(delegated.Selectors)
	w.entry(bar, 60, "-selector", "k8s:ns:foo", "-selector", "k8s:sa:bar")
	leases := make([]*svid.Lease, 250)
	for n := range leases {
		leases[n] = m.Acquire(svid.Pod{UID: fmt.Sprint("pod-", n), Namespace: "foo", ServiceAccount: "bar"}, id(bar))
	}
	before := make([]*mtls.Identity, len(leases))
	for n, l := range leases {
		before[n] = w.get(l)
	}
	w.stopAgent()
	for n, l := range leases {
		if i, err := l.Identity(t.Context()); err != nil || i != before[n] {
			t.Fatalf("pod %d without the agent: %v, %v", n, i, err)
		}
	}
	w.startAgent()
	for n, l := range leases {
		w.until("a new certificate", func() bool {
			i, err := l.Identity(t.Context())
			if err != nil {
				t.Fatalf("pod %d lost its certificate: %v", n, err)
			}
			return i != before[n]
		})
	}
}

// A thousand pods at once wedge an agent whose callers have no bound.
func TestSPIREBurst(t *testing.T) {
	const pods = 1000
	w := newWorld(t)
	m := w.manager(delegated.PID)
	w.entry(bar, 0, unixUID(uidBar)...)
	p := w.pod(podA)
	p.process(uidBar)
	w.get(m.Acquire(p.Pod, id(bar))) // the agent has heard of the entry
	start := time.Now()
	burst := w.manager(delegated.Selectors)
	w.entry("/ns/foo/sa/burst", 0, "-selector", "k8s:ns:foo", "-selector", "k8s:sa:burst")
	leases := make([]*svid.Lease, pods)
	for n := range leases {
		leases[n] = burst.Acquire(svid.Pod{UID: fmt.Sprint("pod-", n), Namespace: "foo", ServiceAccount: "burst"}, id("/ns/foo/sa/burst"))
	}
	for _, l := range leases {
		w.get(l)
	}
	t.Logf("%d streams opened after %s", pods, time.Since(start).Round(time.Millisecond))
	late := w.pod(podB)
	late.process(uidBar)
	w.get(m.Acquire(late.Pod, id(bar))) // the agent still attests: it is asked about its caller for each stream
}

// The proxy's own identity, and what a broker without Kubernetes says of a pod: a clear error, no certificate.
func TestSPIREBroker(t *testing.T) {
	w := newWorld(t)
	own, err := workloadapi.New("unix://"+w.path("public/api.sock"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	self := workloadapi.NewSelf(own, id("/warren/proxy"), slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- self.Run(ctx) }()
	defer func() { cancel(); <-done }()
	waiting, stop := context.WithTimeout(ctx, patience)
	defer stop()
	i, err := self.Identity(waiting)
	if err != nil || i.ID() != id("/warren/proxy") {
		t.Fatalf("own identity: %v, %v", i, err)
	}
	for name, tt := range map[string]struct {
		agent spiffeid.ID
		want  string
	}{
		// The agent's own words about a pod where it has no attestor for pods: everything before went well.
		"any of SPIRE's agents": {spiffeid.ID{}, "no workload attestor handled reference"},
		"another agent":         {id("/spire/agent/other"), "not by " + id("/spire/agent/other").String()},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := broker.New(broker.Config{Address: "unix://" + w.path("broker/broker.sock"), TLS: mtls.ToAgent(self.Identity, broker.AgentID(tt.agent))})
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			ctx, cancel := context.WithTimeout(ctx, time.Minute)
			defer cancel()
			err = b.Watch(ctx, svid.Pod{UID: podA, Namespace: "foo", Name: "p"}, id(bar), func(u svid.Update) {
				if len(u.SVIDs) > 0 {
					t.Errorf("the broker gave %v to a pod that does not exist", u.SVIDs[0].ID)
				}
			})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q in it", err, tt.want)
			}
			t.Logf("%v", err)
		})
	}
}
