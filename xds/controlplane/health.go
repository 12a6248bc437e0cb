package controlplane

import (
	"fmt"
	"net/http"
	"strings"
	"time"
)

// healthHandler serves /healthz/live, and /healthz/ready (also /ready, as istiod has
// it), which says what is in the way.
func (p *ControlPlane) healthHandler(caExpires time.Time) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz/live", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "live") })
	ready := func(w http.ResponseWriter, _ *http.Request) {
		if reasons := p.unready(caExpires, time.Now()); len(reasons) > 0 {
			http.Error(w, strings.Join(reasons, "\n"), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ready")
	}
	mux.HandleFunc("GET /healthz/ready", ready)
	mux.HandleFunc("GET /ready", ready)
	return mux
}

func (p *ControlPlane) unready(caExpires, now time.Time) []string {
	var reasons []string
	if why := p.model.unready(); why != "" {
		reasons = append(reasons, why)
	}
	if now.After(caExpires) {
		reasons = append(reasons, "the CA's certificate has expired")
	}
	return reasons
}
