package app

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"time"
)

// APIFront is a stand-in for an API server that behaves as it is told: it hands every
// request on with the token that came with it, or does not.
type APIFront struct {
	mode  atomic.Pointer[string]
	proxy *httputil.ReverseProxy
}

// The modes of an APIFront.
const (
	FrontOpen     = "open"
	FrontGone     = "gone"      // connections are reset
	FrontBusy     = "busy"      // 429, come again in a second
	FrontSlow     = "slow"      // answers take two seconds to begin
	FrontModePath = "/e2e-mode" // POST sets the mode
)

// serveFront serves on addr with the certificate and key that lie in a folder as
// tls.crt and tls.key, in front of the cluster's API server.
func serveFront(ctx context.Context, addr, folder string) error {
	root, err := os.ReadFile("/var/run/secrets/kubernetes.io/serviceaccount/ca.crt")
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(root)
	to := &url.URL{Scheme: "https", Host: os.Getenv("KUBERNETES_SERVICE_HOST") + ":" + os.Getenv("KUBERNETES_SERVICE_PORT")}
	f := &APIFront{proxy: &httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(to) },
		Transport:     &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}, ForceAttemptHTTP2: true},
		FlushInterval: -1, // watches are streams
	}}
	f.set(FrontOpen)
	srv := &http.Server{Addr: addr, Handler: f, ReadHeaderTimeout: 10 * time.Second}
	go func() {
		<-ctx.Done()
		srv.Close()
	}()
	if err := srv.ListenAndServeTLS(folder+"/tls.crt", folder+"/tls.key"); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func (f *APIFront) set(mode string) { f.mode.Store(&mode) }

// ServeHTTP implements http.Handler. A watch that goes on is cut when the mode changes.
func (f *APIFront) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if mode, ok := strings.CutPrefix(r.URL.Path, FrontModePath+"/"); ok {
		f.set(mode)
		return
	}
	began := *f.mode.Load()
	switch began {
	case FrontGone:
		panic(http.ErrAbortHandler) // the connection is reset
	case FrontBusy:
		w.Header().Set("Retry-After", "1")
		http.Error(w, "too many requests", http.StatusTooManyRequests)
		return
	case FrontSlow:
		pause(r.Context(), 2*time.Second)
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	go f.cutWhenChanged(ctx, cancel, began)
	f.proxy.ServeHTTP(w, r.WithContext(ctx))
}

func (f *APIFront) cutWhenChanged(ctx context.Context, cancel context.CancelFunc, began string) {
	for ctx.Err() == nil && *f.mode.Load() == began {
		pause(ctx, 100*time.Millisecond)
	}
	cancel()
}

// setFront sets the mode of the one that serves on addr.
func setFront(ctx context.Context, addr, mode string) error {
	// Whoever it is, it is on this node's loopback address, and takes a word.
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+addr+FrontModePath+"/"+mode, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err == nil {
		resp.Body.Close()
	}
	return err
}
