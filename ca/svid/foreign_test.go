package svid_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/svid"
)

// federating is a Watcher whose messages carry foreign bundles.
type federating struct {
	*agent
	change func(u *svid.Update) // with agent.mu held
}

func (f *federating) Watch(ctx context.Context, pod svid.Pod, id spiffeid.ID, emit func(svid.Update)) error {
	return f.agent.Watch(ctx, pod, id, func(u svid.Update) {
		f.mu.Lock()
		f.change(&u)
		f.mu.Unlock()
		emit(u)
	})
}

// A partner's bundle that cannot be used costs the partner, and is told once: certificates come and are renewed, other
// partners are accepted.
func TestOneBadForeignBundle(t *testing.T) {
	good, bad := spiffeid.RequireTrustDomainFromString("good.test"), spiffeid.RequireTrustDomainFromString("bad.test")
	synctest.Test(t, func(t *testing.T) {
		f, r := &federating{agent: newAgent(t)}, &recorder{}
		root := mustParse(t, f.ca.RootsPEM())
		leaf := issue(f.ca, sa("x"), time.Hour).Chain[0] // no CA, as an X.509v1 root
		spoiled := true
		f.change = func(u *svid.Update) {
			u.Federated = map[spiffeid.TrustDomain][]*x509.Certificate{good: {root}, bad: {root}}
			if spoiled {
				u.Federated[bad] = []*x509.Certificate{leaf}
				u.Refused = map[string]error{"unread.test": errors.New("x509: malformed")}
			}
		}
		var text bytes.Buffer
		m, stop := run(t, svid.Config{Watcher: f, Observer: r, Log: slog.New(slog.NewTextHandler(&text, nil))})
		stopped := false
		defer func() {
			if !stopped {
				stop()
			}
		}()
		var leases []*svid.Lease
		for n := range 3 {
			f.give(pod(n).UID, sa("a"))
			leases = append(leases, m.Acquire(pod(n), sa("a")))
		}
		first := mustIdentity(t, leases[0])
		f.rotate(sa("a"))
		time.Sleep(time.Second)
		for n, l := range leases {
			i := mustIdentity(t, l)
			if i.Chain()[0].Equal(first.Chain()[0]) {
				t.Errorf("pod %d was not given the renewal", n)
			}
			if all := i.Federated(); len(all) != 1 || len(all[good]) != 1 {
				t.Errorf("pod %d accepts %v", n, all)
			}
		}
		f.mu.Lock()
		spoiled = false
		f.mu.Unlock()
		f.rotate(sa("a"))
		time.Sleep(time.Second)
		if all := mustIdentity(t, leases[0]).Federated(); len(all) != 2 {
			t.Errorf("accepts %v after it was mended", all)
		}
		f.mu.Lock()
		spoiled = true
		f.mu.Unlock()
		f.rotate(sa("a"))
		time.Sleep(time.Second)
		if all := mustIdentity(t, leases[0]).Federated(); len(all) != 1 {
			t.Errorf("accepts %v after it was spoiled again", all)
		}
		stop()
		stopped = true
		if got := strings.Count(text.String(), "trust_domain=bad.test"); got != 2 {
			t.Errorf("bad.test is told %d times, want 2", got)
		}
		if got := strings.Count(text.String(), "trust_domain=unread.test"); got != 1 {
			t.Errorf("unread.test is told %d times, want 1", got)
		}
		noted := 0
		for _, e := range r.events {
			if e == "noted bundle_refused" {
				noted++
			}
		}
		if noted != 3 {
			t.Errorf("noted %d times: %v", noted, r.events)
		}
	})
}

// The trust domain's own bundle is no partner's: without it nothing is used.
func TestBadOwnBundle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &federating{agent: newAgent(t)}
		leaf := issue(f.ca, sa("x"), time.Hour).Chain[0]
		f.change = func(u *svid.Update) { u.SVIDs[0].Roots = append(u.SVIDs[0].Roots, leaf) }
		m, stop := run(t, svid.Config{Watcher: f, Wait: time.Second})
		defer stop()
		f.give(pod(0).UID, sa("a"))
		if i, err := m.Acquire(pod(0), sa("a")).Identity(t.Context()); err == nil || !strings.Contains(err.Error(), "is not a CA") {
			t.Errorf("got %v, %v", i, err)
		}
	})
}

func TestParseBundles(t *testing.T) {
	ca := newFake(t)
	root := mustParse(t, ca.RootsPEM()).Raw
	long := strings.Repeat("X", 1000)
	out, refused := svid.ParseBundles(map[string][]byte{
		"spiffe://good.test": root, "empty.test": nil, "junk.test": []byte("junk"), "many.test": bytes.Repeat(root, 65), long: root,
	})
	if len(out) != 2 || len(out[spiffeid.RequireTrustDomainFromString("good.test")]) != 1 {
		t.Errorf("read %v", out)
	}
	if len(refused) != 3 || refused["junk.test"] == nil || refused["many.test"] == nil || refused[long[:255]] == nil {
		t.Errorf("refused %v", refused)
	}
}
