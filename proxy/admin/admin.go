package admin

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/pprof"
	"strconv"
	"time"

	"github.com/warren-mesh/warren/ca/svid"
	"github.com/warren-mesh/warren/proxy/track"
	"github.com/warren-mesh/warren/xds/workload"
)

// Source is what the handlers show. All fields are required.
type Source struct {
	View        func() *workload.View
	Static      func() workload.Batch // what a file configured, or nothing
	Certs       func() []svid.State
	Pods        func() []Pod // sorted by UID
	Connections func() map[string][]track.Facts
	Lines       func() Lines
	Config      func() map[string]any
	Version     map[string]string
	Ready       *Readiness
	Logging     Logging
	Quit        func() // begins the drain; called at most once a request, must not block
	// Plaintext says which plaintext connections to a pod its policies deny, and why.
	Plaintext func(uid string, conns []Plaintext) (reasons []string, err error)
	// Alarms are what somebody has to look at, by name.
	Alarms func() map[string]string
	// Origin says where certificates come from, and what pods may use of each other.
	Origin func() (address, reuse string)
}

// Logging is the log's filter.
type Logging interface {
	Level() string
	SetLevel(spec string, reset bool) error
}

// Pod is one pod as its proxy sees it.
type Pod struct {
	UID            string     `json:"uid"`
	Name           string     `json:"name"`
	Namespace      string     `json:"namespace"`
	ServiceAccount string     `json:"serviceAccount"`
	Netns          string     `json:"netns"`
	State          string     `json:"state"` // Up or Pending
	Listeners      []string   `json:"listeners"`
	Identity       string     `json:"identity"`
	CertState      string     `json:"certState"`
	Expires        *time.Time `json:"expires,omitempty"`
	Inbound        int        `json:"inbound"`
	Outbound       int        `json:"outbound"`
	Error          string     `json:"error"`
}

// Line is the state of a line to something that the proxy depends on.
type Line struct {
	Address     string     `json:"address"`
	State       string     `json:"state"`
	Since       *time.Time `json:"since,omitempty"`
	LastError   string     `json:"lastError"`
	LastSuccess *time.Time `json:"lastSuccess,omitempty"`
}

// Lines are the lines to the control plane, the CA and the node agent.
type Lines struct{ XDS, CA, ZDS Line }

// Handler serves the administration port and socket.
func Handler(s Source) http.Handler {
	return routes(map[string]http.Handler{
		"/":                         http.HandlerFunc(index),
		"/config_dump":              s.configDump(),
		"/debug/certs":              s.json(func(*http.Request) any { return certList(s.Certs()) }),
		"/debug/connections":        http.HandlerFunc(s.connections),
		"/debug/entitlements":       s.json(func(*http.Request) any { return s.entitlements() }),
		"/debug/plaintext":          http.HandlerFunc(s.plaintext),
		"/debug/pods":               s.json(func(*http.Request) any { return list(s.Pods()) }),
		"/healthz/ready":            s.Ready,
		"/logging":                  http.HandlerFunc(s.logging),
		"/quitquitquit":             http.HandlerFunc(s.quit),
		"/debug/pprof/":             http.HandlerFunc(pprof.Index),
		"/debug/pprof/profile":      http.HandlerFunc(profile),
		"/debug/pprof/heap":         pprof.Handler("heap"),
		"/debug/pprof/allocs":       pprof.Handler("allocs"),
		"/debug/pprof/block":        pprof.Handler("block"),
		"/debug/pprof/mutex":        pprof.Handler("mutex"),
		"/debug/pprof/goroutine":    pprof.Handler("goroutine"),
		"/debug/pprof/threadcreate": pprof.Handler("threadcreate"),
		"/debug/pprof/trace":        http.HandlerFunc(pprof.Trace),
		"/debug/pprof/symbol":       http.HandlerFunc(pprof.Symbol),
		"/debug/pprof/cmdline":      http.HandlerFunc(pprof.Cmdline),
	})
}

func (s Source) json(f func(*http.Request) any) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := json.MarshalIndent(f(r), "", "  ")
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(append(b, '\n')) // the client left
	})
}

// connections shows the lines to what the proxy depends on, alarms, and the connections that
// it carries, unless these are not asked for: there may be very many.
func (s Source) connections(w http.ResponseWriter, r *http.Request) {
	l := s.Lines()
	all := []section{{name: "alarms", value: s.Alarms()}, {name: "ca", value: l.CA}}
	if r.URL.Query().Get("connections") != "false" {
		all = append(all, section{name: "connections", members: eachOf(s.Connections(), func(_ string, f []track.Facts) any { return newConnections(f) })})
	}
	all = append(all, section{name: "sds", value: l.CA}, section{name: "xds", value: l.XDS}, section{name: "zds", value: l.ZDS})
	w.Header().Set("Content-Type", "application/json")
	_ = writeSections(patient{w, http.NewResponseController(w)}, all) // the client left
}

const loggingHelp = `usage: POST /logging                      (what is logged now)
usage: POST /logging?level=LEVEL           (error, warn, info, debug, trace or off)
usage: POST /logging?level=SCOPE=LEVEL,... (of parts of the proxy, such as access=debug)
usage: POST /logging?reset                 (back to what it was at the start)
`

func (s Source) logging(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		w.WriteHeader(http.StatusMethodNotAllowed)
		_, _ = io.WriteString(w, loggingHelp)
		return
	}
	q := r.URL.Query()
	if level, reset := q.Get("level"), q.Has("reset"); level != "" || reset {
		if err := s.Logging.SetLevel(level, reset); err != nil {
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprintf(w, "Invalid level provided: %v\n%s", err, loggingHelp)
			return
		}
	}
	fmt.Fprintf(w, "current log level is %s\n", s.Logging.Level())
}

func (s Source) quit(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	_, _ = io.WriteString(w, "shutdown now\n")
	s.Quit()
}

// profile is pprof's, with ztunnel's bounds.
func profile(w http.ResponseWriter, r *http.Request) {
	if v := r.URL.Query().Get("seconds"); v != "" {
		if n, err := strconv.Atoi(v); err != nil || n < 1 || n > 300 {
			http.Error(w, "seconds: want a number from 1 to 300", http.StatusBadRequest)
			return
		}
	} else {
		q := r.URL.Query()
		q.Set("seconds", "10")
		r.URL.RawQuery = q.Encode()
		r.Form = nil
	}
	pprof.Profile(w, r)
}

func index(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, _ = io.WriteString(w, indexPage)
}

const indexPage = `<!DOCTYPE html><html><head><title>Warren proxy</title></head><body><h1>Warren proxy</h1><table>
<tr><td><a href="config_dump">config_dump</a></td><td>workloads, services, policies, certificates, pods, configuration</td></tr>
<tr><td><a href="debug/pods">debug/pods</a></td><td>the pods that are served</td></tr>
<tr><td><a href="debug/certs">debug/certs</a></td><td>certificates</td></tr>
<tr><td><a href="debug/entitlements">debug/entitlements</a></td><td>which pod has which identity, and how it came by it</td></tr>
<tr><td><a href="debug/connections">debug/connections</a></td><td>lines to the control plane, and proxied connections</td></tr>
<tr><td><a href="healthz/ready">healthz/ready</a></td><td>readiness</td></tr>
<tr><td>logging</td><td>POST: log levels</td></tr>
<tr><td>quitquitquit</td><td>POST: drain and end</td></tr>
<tr><td><a href="debug/pprof/">debug/pprof</a></td><td>profiles</td></tr>
</table></body></html>
`

// list makes an empty list, not null, out of nothing.
func list[T any](l []T) []T {
	if l == nil {
		return []T{}
	}
	return l
}
