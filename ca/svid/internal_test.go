package svid

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/pem"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/source/fake"
)

var testTD = spiffeid.RequireTrustDomainFromString("td.test")

func testID(name string) spiffeid.ID { return spiffeid.RequireFromPathf(testTD, "/ns/app/sa/%s", name) }

func fakeCA(t testing.TB) *fake.Signer {
	t.Helper()
	f, err := fake.New(testTD, nil)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// The request is byte for byte in the shape that ztunnel sends.
func TestRequestProfile(t *testing.T) {
	key, text, err := newRequest(testID("a"))
	if err != nil {
		t.Fatal(err)
	}
	block, rest := pem.Decode(text)
	if block.Type != "CERTIFICATE REQUEST" || len(rest) != 0 {
		t.Errorf("block %q, rest %q", block.Type, rest)
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if err := csr.CheckSignature(); err != nil {
		t.Error(err)
	}
	if csr.SignatureAlgorithm != x509.ECDSAWithSHA256 || csr.Subject.String() != "" {
		t.Errorf("%s, subject %q", csr.SignatureAlgorithm, csr.Subject)
	}
	pub, ok := csr.PublicKey.(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() || !pub.Equal(key.Public()) {
		t.Errorf("key %v", csr.PublicKey)
	}
	if len(csr.Extensions) != 1 || !csr.Extensions[0].Critical || csr.Extensions[0].Id.String() != "2.5.29.17" {
		t.Errorf("extensions %v", csr.Extensions)
	}
	if len(csr.URIs) != 1 || csr.URIs[0].String() != testID("a").String() {
		t.Errorf("URIs %v", csr.URIs)
	}
	other, _, err := newRequest(testID("a"))
	if err != nil || pub.Equal(other.Public()) {
		t.Errorf("two requests have one key, %v", err)
	}
}

// The wall clock jumps while the monotonic one does not: what a suspended machine or a corrected clock looks like.
func TestClockJump(t *testing.T) {
	tests := []struct {
		name string
		jump time.Duration
		by   time.Duration // renewed within, after the manager noticed
	}{
		{"a little", 4 * time.Second, 0},
		{"past the end", 2 * time.Hour, afterJump},
		{"past half of it", 50 * time.Minute, 6 * time.Minute},
		{"back before the beginning", -2 * time.Hour, afterJump},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := New(Config{Signer: fakeCA(t), TTL: time.Hour})
				var jump atomic.Int64
				m.wall = func() time.Time { return time.Now().Round(0).Add(time.Duration(jump.Load())) }
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan struct{})
				go func() {
					defer close(done)
					_ = m.Run(ctx)
				}()
				defer func() {
					cancel()
					<-done
				}()
				m.Prefetch(testID("a"), "w")
				synctest.Wait()
				before := m.Dump()[0].NextRefresh
				jump.Store(int64(tt.jump))
				time.Sleep(clockCheck)
				synctest.Wait()
				after := m.Dump()[0].NextRefresh
				if tt.by == 0 {
					if !after.Equal(before) {
						t.Errorf("renewal moved from %s to %s", before, after)
					}
					return
				}
				if d := time.Until(after); d > tt.by {
					t.Errorf("renewal in %s, want within %s", d, tt.by)
				}
			})
		})
	}
}

func TestDelays(t *testing.T) {
	for range 1000 {
		for _, life := range []time.Duration{10 * time.Second, time.Hour, 24 * time.Hour} {
			if d := refreshAfter(life); d < life*45/100 || d > life*55/100 {
				t.Fatalf("renewal of %s after %s", life, d)
			}
		}
		for _, life := range []time.Duration{-time.Hour, 0, time.Millisecond} {
			if d := refreshAfter(life); d != retryFloor {
				t.Fatalf("renewal of %s after %s", life, d)
			}
		}
		for failures := range 100 {
			if d := retryAfter(failures, 0); d < retryFloor || d > retryMaxNone {
				t.Fatalf("retry %d without a certificate after %s", failures, d)
			}
			if d := retryAfter(failures, time.Hour); d < retryFloor || d > retryMax {
				t.Fatalf("retry %d with one after %s", failures, d)
			}
			if d := retryAfter(failures, 4*time.Second); d > time.Second {
				t.Fatalf("retry %d near the end after %s", failures, d)
			}
			if d := demandGap(failures); d > demandGapMax {
				t.Fatalf("demand %d after %s", failures, d)
			}
		}
		if d := retryAfter(1, 0); d > retryBase {
			t.Fatalf("first retry after %s", d)
		}
	}
}

func TestParseChain(t *testing.T) {
	d := fakeCA(t)
	_, csr, err := newRequest(testID("a"))
	if err != nil {
		t.Fatal(err)
	}
	answer, err := d.Sign(t.Context(), testID("a"), csr, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	leaf, root := answer[0], answer[1]
	more := string(fakeCA(t).RootsPEM())
	for _, tt := range []struct {
		name         string
		answer       []string
		chain, roots int
	}{
		{"as we answer", []string{leaf, root}, 1, 1},
		{"intermediate", []string{leaf, more, root}, 2, 1},
		{"chain in one element", []string{leaf + more, root}, 2, 1},
		{"several intermediates in one", []string{leaf, more + more, root + more}, 3, 2},
		{"without final newline", []string{strings.TrimSpace(leaf), strings.TrimSpace(root)}, 1, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			chain, roots, err := parseChain(testID("a"), tt.answer)
			if err != nil || len(chain) != tt.chain || len(roots) != tt.roots {
				t.Errorf("%d and %d, %v", len(chain), len(roots), err)
			}
		})
	}
	for name, answer := range map[string][]string{
		"nothing": nil, "one": {leaf}, "empty leaf": {"", root}, "many elements": make([]string, 17), "many roots": {leaf, strings.Repeat(root, 17)},
		"a key": {leaf + "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", root},
	} {
		if _, _, err := parseChain(testID("a"), answer); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}

func FuzzParseChain(f *testing.F) {
	root := string(fakeCA(f).RootsPEM())
	f.Add(root, root)
	f.Add("", "x")
	f.Add(root+root, root+"tail")
	f.Fuzz(func(t *testing.T, first, last string) {
		chain, roots, err := parseChain(testID("a"), []string{first, last})
		if err == nil && (len(chain) == 0 || len(chain) > maxChainCerts || len(roots) > maxAnswerRoots) {
			t.Errorf("%d and %d", len(chain), len(roots))
		}
	})
}

// A hostile or broken CA sends another root each time: what is trusted stays bounded.
func TestTrustIsBounded(t *testing.T) {
	tr := &trust{refs: map[fingerprint]*rootRef{}}
	var held [][]*x509.Certificate
	for range 70 {
		_, roots, err := parseChain(testID("a"), []string{string(fakeCA(t).RootsPEM()), string(fakeCA(t).RootsPEM())})
		if err != nil {
			t.Fatal(err)
		}
		if changed, err := tr.swap(nil, roots); !changed || err != nil {
			t.Fatalf("%v, %v", changed, err)
		}
		held = append(held, roots)
	}
	if got := tr.roots.Certificates(); len(got) != 1 || !got[0].Equal(held[69][0]) {
		t.Errorf("%d roots, want the newest alone", len(got))
	}
	for _, roots := range held {
		if _, err := tr.swap(roots, nil); err != nil {
			t.Fatal(err)
		}
	}
	if len(tr.order) != 1 || len(tr.refs) != 1 {
		t.Errorf("%d roots are still counted, want the newest", len(tr.order))
	}
	if changed, _ := tr.swap(held[69], held[69]); changed {
		t.Error("the same roots are a change")
	}
}

// What was forgotten leaves no key behind, even where somebody holds the ended lease, and no roots of a trust domain
// that nobody here is in.
func TestForgetLeavesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := New(Config{Signer: fakeCA(t), TTL: time.Hour})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = m.Run(ctx)
		}()
		l := m.Acquire(Pod{UID: "pod"}, testID("a"))
		if _, err := l.Identity(t.Context()); err != nil {
			t.Fatal(err)
		}
		e := l.e.Load()
		m.Forget("pod")
		if e.current.Load() != nil {
			t.Error("the ended lease leads to a key")
		}
		m.mu.Lock()
		if n := len(m.trust) + len(m.entries) + len(m.holders) + m.timers.Len() + m.due.Len() + len(m.flying); n != 0 {
			t.Errorf("%d things are left: %d trust domains", n, len(m.trust))
		}
		m.mu.Unlock()
		cancel()
		<-done
	})
}

// A source can ask for a pause, not for the end.
func TestAPauseIsBounded(t *testing.T) {
	m := New(Config{})
	e := &entry{id: testID("a"), phase: flying}
	m.failedLocked(e, &RetryAfterError{After: 1000 * time.Hour, Err: context.Canceled})
	if d := time.Until(m.paused); d > pauseMax || d < pauseMax-time.Second {
		t.Errorf("pause of %s, want %s", d, pauseMax)
	}
}
