package controlplane

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"slices"
	"testing"
	"time"
)

func TestServingRenews(t *testing.T) {
	const life = 10 * time.Hour
	start := time.Unix(1_000_000, 0)
	var fail error
	issued := 0
	s, err := newServing(func(now time.Time) (*tls.Certificate, string, error) {
		if fail != nil {
			return nil, "", fail
		}
		issued++
		return &tls.Certificate{Leaf: &x509.Certificate{NotAfter: now.Add(life)}}, "", nil
	}, slog.New(slog.DiscardHandler), start)
	if err != nil {
		t.Fatal(err)
	}
	at := func(d time.Duration, want int, ok bool) {
		t.Helper()
		cert, err := s.certificate(start.Add(d))
		if issued != want || (err == nil) != ok || ok && cert == nil {
			t.Errorf("after %v: %d issued, err %v, want %d, ok %v", d, issued, err, want, ok)
		}
	}
	at(0, 1, true)
	at(life/2-1, 1, true)
	at(life/2, 2, true) // valid until 15 h
	fail = errors.New("no")
	at(10*time.Hour, 2, true) // the old one is good
	at(10*time.Hour+retryServing/2, 2, true)
	at(15*time.Hour+1, 2, false)
	fail = nil
	at(16*time.Hour, 3, true)

	if _, err := newServing(func(time.Time) (*tls.Certificate, string, error) { return nil, "", errors.New("no") }, slog.New(slog.DiscardHandler), start); err == nil {
		t.Error("no first certificate, no error")
	}
}

func TestServingHosts(t *testing.T) {
	c := Defaults()
	c.Listen, c.Hosts = "10.0.0.7:15012", []string{"Mesh.Example", "fd00::1", "localhost"}
	got := c.hosts()
	for _, want := range []string{"istiod.istio-system.svc", "istiod-remote.istio-system.svc", "localhost", "127.0.0.1", "::1", "10.0.0.7", "mesh.example", "fd00::1"} {
		if !slices.Contains(got, want) {
			t.Errorf("hosts %v lack %s", got, want)
		}
	}
	if n := len(slices.Compact(slices.Clone(got))); n != len(got) {
		t.Errorf("hosts %v are not unique", got)
	}
}
