package admin

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
)

// Readiness is the set of things that are still to be done before traffic
// should come. Use [NewReadiness].
type Readiness struct {
	// Notes are what somebody should look at, though traffic may come; nil: nothing. Set it before first use.
	Notes func() []string

	mu      sync.Mutex
	pending map[string]bool
}

// NewReadiness returns a readiness with these tasks pending.
func NewReadiness(tasks ...string) *Readiness {
	r := &Readiness{pending: make(map[string]bool)}
	for _, t := range tasks {
		r.pending[t] = true
	}
	return r
}

// Set says whether a task is done; it may become undone again.
func (r *Readiness) Set(task string, done bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if done {
		delete(r.pending, task)
	} else {
		r.pending[task] = true
	}
}

// Pending lists what is not done, sorted.
func (r *Readiness) Pending() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []string
	for t := range r.pending {
		out = append(out, t)
	}
	slices.Sort(out)
	return out
}

// ServeHTTP answers a readiness probe: 200, or 500 with what is pending.
func (r *Readiness) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if req.Method != http.MethodGet {
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if p := r.Pending(); len(p) > 0 {
		w.WriteHeader(http.StatusInternalServerError)
		fmt.Fprintf(w, "not ready, pending: %s\n", strings.Join(p, ", "))
	} else {
		fmt.Fprintln(w, "ready")
	}
	if r.Notes != nil {
		for _, n := range r.Notes() {
			fmt.Fprintf(w, "warning: %s\n", n)
		}
	}
}

// ReadyHandler serves the readiness port: whether traffic should come, and, for
// who may end the process, whether it answers at all.
func ReadyHandler(r *Readiness) http.Handler {
	live := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "live") })
	return routes(map[string]http.Handler{"/healthz/ready": r, "/healthz/live": live})
}

// routes is a mux of exact paths; any other is 404 without a body.
func routes(paths map[string]http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if h, ok := paths[r.URL.Path]; ok {
			h.ServeHTTP(w, r)
			return
		}
		w.WriteHeader(http.StatusNotFound)
	})
}
