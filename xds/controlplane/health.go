package controlplane

import (
	"fmt"
	"net/http"
	"strings"
	"time"
)

// healthHandler serves /healthz/live, and /healthz/ready (also /ready, as istiod has
// it), which says what is in the way, or what is not as it should be although it serves.
func (p *ControlPlane) healthHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz/live", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "live") })
	ready := func(w http.ResponseWriter, _ *http.Request) {
		if reasons := p.unready(time.Now()); len(reasons) > 0 {
			http.Error(w, strings.Join(reasons, "\n"), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ready")
		for _, note := range p.notes() {
			fmt.Fprintln(w, note)
		}
	}
	mux.HandleFunc("GET /healthz/ready", ready)
	mux.HandleFunc("GET /ready", ready)
	return mux
}

func (p *ControlPlane) unready(now time.Time) []string {
	var reasons []string
	select {
	case <-p.feed.Synced():
		if why := p.model.unready(); why != "" {
			reasons = append(reasons, why)
		}
	default:
		reasons = append(reasons, p.feed.Unsynced())
	}
	ca := p.keeper.Authority()
	switch why := p.noCA.Load(); {
	case ca == nil && why == nil:
		reasons = append(reasons, "the CA has not been read yet")
	case ca == nil:
		reasons = append(reasons, "the CA has not been read yet: "+*why)
	case now.After(ca.NotAfter()):
		reasons = append(reasons, "the CA's certificate has expired")
	}
	return reasons
}

// notes says what is wrong and keeps nobody from being served.
func (p *ControlPlane) notes() []string {
	notes := p.feed.Stale()
	if why := p.keeper.Differs(); why != "" {
		notes = append(notes, "this replica signs with a CA that is not the one that is kept: "+why)
	}
	if ends := p.keeper.Ending(time.Now()); ends != "" {
		notes = append(notes, ends)
	}
	if note := p.keeper.Note(); note != "" {
		notes = append(notes, note)
	}
	return notes
}
