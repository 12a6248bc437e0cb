package svid_test

import (
	"crypto/x509"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/warren-mesh/warren/ca/svid"
)

// ahead is a CA whose clock is ahead of ours.
func ahead(by time.Duration) func(*x509.Certificate, *any) {
	return func(c *x509.Certificate, _ *any) {
		c.NotBefore, c.NotAfter = time.Now().Add(by), time.Now().Add(by+10*time.Minute)
	}
}

// A certificate that comes before its time is used when that comes, whatever the source sends meanwhile; one that comes
// far before it is not. The one in use stays in use until then.
func TestEarlyCertificatesWait(t *testing.T) {
	for kind, config := range map[string]func(l *liar) svid.Config{
		"signer":  func(l *liar) svid.Config { return svid.Config{Signer: l} },
		"watcher": func(l *liar) svid.Config { return svid.Config{Watcher: l} },
	} {
		t.Run(kind+": the first one", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLiar(t)
				cfg := config(l)
				cfg.Wait = time.Minute
				m, stop := run(t, cfg)
				defer stop()
				l.lie(ahead(50 * time.Second)) // when nothing else is due
				start := time.Now()
				lease := m.Acquire(pod(0), sa("a"))
				synctest.Wait()
				if i := lease.Current(); i != nil {
					t.Fatalf("in use before its time: %v", i)
				}
				i := mustIdentity(t, lease) // a connection waits
				if took := time.Since(start); took < 50*time.Second || took > 51*time.Second {
					t.Errorf("in use after %s", took)
				}
				if i.NotBefore().After(time.Now()) {
					t.Errorf("not valid before %s", i.NotBefore())
				}
				s := m.Dump()[0]
				if s.Condition != svid.Available || s.LastErr != nil || s.Failures != 0 {
					t.Errorf("%+v", s)
				}
				if left := time.Until(s.NextRefresh); left < 50*time.Second { // a tenth of its life
					t.Errorf("renewed again in %s", left)
				}
			})
		})
		t.Run(kind+": a renewal", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLiar(t)
				m, stop := run(t, config(l))
				defer stop()
				lease := m.Acquire(pod(0), sa("a"))
				first := mustIdentity(t, lease)
				l.lie(ahead(time.Minute))
				for time.Now().Before(first.NotAfter().Add(time.Hour)) {
					time.Sleep(500 * time.Millisecond)
					switch i := lease.Current(); {
					case i == nil:
						t.Fatal("there was a good one, and now there is none")
					case i.NotBefore().After(time.Now()):
						t.Fatalf("in use before its time: %v", i)
					}
				}
			})
		})
		t.Run(kind+": far too early", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLiar(t)
				m, stop := run(t, config(l))
				defer stop()
				l.lie(func(c *x509.Certificate, _ *any) {
					c.NotBefore, c.NotAfter = time.Now().Add(time.Hour), time.Now().Add(2*time.Hour)
				})
				lease := m.Acquire(pod(0), sa("a"))
				time.Sleep(90 * time.Minute) // the first is valid by now
				if i := lease.Current(); i != nil {
					t.Errorf("kept for an hour: %v", i)
				}
			})
		})
	}
}

// What is taken back, or belongs to a source of before, does not come into use later.
func TestEarlyCertificatesAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLiar(t)
		m, stop := run(t, svid.Config{Signer: l})
		defer stop()
		l.lie(ahead(30 * time.Second))
		lease := m.Acquire(pod(0), sa("a"))
		time.Sleep(time.Second)
		good := newLiar(t)
		if err := m.Switch(svid.Source{Signer: good}, 0); err != nil {
			t.Fatal(err)
		}
		mustIdentity(t, lease)
		before := lease.Current()
		time.Sleep(45 * time.Second)
		if got := lease.Current(); got != before || !got.Chain()[0].NotAfter.Equal(before.NotAfter()) || got.Chain()[0].CheckSignatureFrom(good.root) != nil {
			t.Errorf("%v came into use, of the source of before", got)
		}
	})
}

// One that waits is forgotten when something better comes, its source is left without having said anything, or nobody
// wants it any more.
func TestEarlyCertificatesGiveWay(t *testing.T) {
	for kind, config := range map[string]func(l *liar) svid.Config{
		"signer":  func(l *liar) svid.Config { return svid.Config{Signer: l} },
		"watcher": func(l *liar) svid.Config { return svid.Config{Watcher: l} },
	} {
		t.Run(kind+": to a good one", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLiar(t)
				m, stop := run(t, config(l))
				defer stop()
				l.lie(ahead(3 * time.Minute))
				lease := m.Acquire(pod(0), sa("a"))
				time.Sleep(time.Second)
				l.lie(func(c *x509.Certificate, _ *any) { c.NotAfter = time.Now().Add(time.Hour) })
				time.Sleep(2 * time.Minute)
				good := lease.Current()
				if good == nil {
					t.Fatal("no good one came")
				}
				time.Sleep(90 * time.Second)
				if got := lease.Current(); !got.NotAfter().After(time.Now().Add(30 * time.Minute)) {
					t.Errorf("%v was put in the place of %v", got, good)
				}
			})
		})
		t.Run(kind+": to another source", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLiar(t)
				m, stop := run(t, config(l))
				defer stop()
				l.lie(ahead(time.Minute))
				lease := m.Acquire(pod(0), sa("a"))
				time.Sleep(time.Second)
				away := newSigner(t)
				away.fail(errors.New("away"))
				if err := m.Switch(svid.Source{Signer: away}, 0); err != nil {
					t.Fatal(err)
				}
				time.Sleep(2 * time.Minute)
				if got := lease.Current(); got != nil {
					t.Errorf("%v came into use, of the source of before", got)
				}
			})
		})
		t.Run(kind+": to nobody", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLiar(t)
				m, stop := run(t, config(l))
				defer stop()
				l.lie(ahead(time.Minute))
				m.Acquire(pod(0), sa("a"))
				time.Sleep(time.Second)
				if m.Health().Ahead == 0 {
					t.Fatal("nothing waits")
				}
				m.Forget(pod(0).UID)
				synctest.Wait()
				if m.Health().Ahead != 0 {
					t.Error("it waits for nobody")
				}
			})
		})
	}
}

// A new source's first answer is for all pods of its identity, also if it comes before its time.
func TestAnEarlyAnswerIsForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, log := newAgent(t), &lines{}
		m, stop := run(t, svid.Config{Watcher: a, Log: slog.New(slog.NewTextHandler(log, nil))})
		defer stop()
		var leases []*svid.Lease
		for n := range 3 {
			a.give(pod(n).UID, sa("a"))
			leases = append(leases, m.Acquire(pod(n), sa("a")))
			mustIdentity(t, leases[n])
		}
		l := newLiar(t)
		l.lie(ahead(time.Minute))
		if err := m.Switch(svid.Source{Signer: l}, time.Hour); err != nil {
			t.Fatal(err)
		}
		before := log.count("rotation completed")
		time.Sleep(75 * time.Second) // no renewal has come by then
		for n, lease := range leases {
			if got := lease.Current(); got == nil || got.Chain()[0].CheckSignatureFrom(l.root) != nil {
				t.Errorf("pod %d has %v, not what the new source gave", n, got)
			}
		}
		if n := len(m.Dump()); n != 1 {
			t.Errorf("one certificate for all is held %d times", n)
		}
		if log.count("rotation completed") == before {
			t.Error("no line says so")
		}
	})
}
