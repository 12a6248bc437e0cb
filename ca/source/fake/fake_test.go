package fake_test

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

	"github.com/warren-mesh/warren/ca/source/fake"
	"github.com/warren-mesh/warren/ca/svid"
)

var td = spiffeid.RequireTrustDomainFromString("td.test")

func TestItSaysThatItIsFake(t *testing.T) {
	var log bytes.Buffer
	if _, err := fake.New(td, slog.New(slog.NewTextHandler(&log, nil))); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(log.String(), "level=WARN") || !strings.Contains(log.String(), "FAKE") {
		t.Errorf("log: %s", &log)
	}
	if _, err := fake.New(spiffeid.TrustDomain{}, nil); err == nil {
		t.Error("a root without trust domain")
	}
}

func TestItServesAManager(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, err := fake.New(td, nil)
		if err != nil {
			t.Fatal(err)
		}
		f.TTL = time.Minute
		m := svid.New(svid.Config{Signer: f, TTL: time.Hour})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = m.Run(ctx)
		}()
		id := spiffeid.RequireFromPath(td, "/ns/app/sa/a")
		i, err := m.Acquire(svid.Pod{UID: "pod"}, id).Identity(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if left := time.Until(i.NotAfter()); left > time.Minute || left < 58*time.Second {
			t.Errorf("%s left", left)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(f.RootsPEM()) {
			t.Error("no root")
		}
		cancel()
		<-done
	})
}

func TestBefore(t *testing.T) {
	f, err := fake.New(td, nil)
	if err != nil {
		t.Fatal(err)
	}
	no := errors.New("no")
	f.Before = func(context.Context, spiffeid.ID) error { return no }
	if _, err := f.Sign(t.Context(), spiffeid.RequireFromPath(td, "/a"), nil, 0); !errors.Is(err, no) {
		t.Errorf("got %v", err)
	}
}
