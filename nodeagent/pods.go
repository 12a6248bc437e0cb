package nodeagent

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"strings"

	"github.com/warren-mesh/warren/internal/netns"
	"github.com/warren-mesh/warren/nodeagent/enroll"
	"github.com/warren-mesh/warren/nodeagent/podns"
)

// finder is podns for enroll, which knows the host's paths.
type finder struct {
	proc string
	f    *podns.Finder
}

func newFinder(proc string) *finder { return &finder{proc, podns.New(proc)} }

// Find implements enroll.Finder.
func (f *finder) Find(ctx context.Context, pods []enroll.Wanted) (map[string]enroll.Found, error) {
	wanted := make([]podns.Wanted, len(pods))
	for i, p := range pods {
		wanted[i] = podns.Wanted(p)
	}
	all, err := f.f.Find(ctx, wanted)
	found := make(map[string]enroll.Found, len(all))
	for uid, p := range all {
		path := p.Path
		if rest, ok := strings.CutPrefix(path, f.proc+"/"); ok {
			path = "/proc/" + rest
		}
		found[uid] = enroll.Found{NS: p.NS, Path: path, Container: p.Container, Err: p.Err}
	}
	return found, err
}

// connections is podns for enroll.
type connections struct{}

// List implements enroll.Connections.
func (connections) List(ns *netns.NS) ([]enroll.Conn, int, error) {
	all, more, err := podns.Connections(ns)
	return fromPodns(all), more, err
}

// Carried implements enroll.Connections.
func (connections) Carried(ns *netns.NS) (int, error) { return podns.Carried(ns) }

// Alive implements enroll.Connections.
func (connections) Alive(ns *netns.NS, conns []enroll.Conn) ([]enroll.Conn, error) {
	alive, err := podns.Alive(ns, toPodns(conns))
	return fromPodns(alive), err
}

// End implements enroll.Connections.
func (connections) End(ns *netns.NS, conns []enroll.Conn) ([]enroll.Conn, error) {
	left, err := podns.End(ns, toPodns(conns))
	return fromPodns(left), err
}

func fromPodns(in []podns.Conn) []enroll.Conn {
	out := make([]enroll.Conn, len(in))
	for i, c := range in {
		out[i] = enroll.Conn(c)
	}
	return out
}

func toPodns(in []enroll.Conn) []podns.Conn {
	out := make([]podns.Conn, len(in))
	for i, c := range in {
		out[i] = podns.Conn(c)
	}
	return out
}

// maxAsked bounds the connections of one question to the proxy.
const maxAsked = 4096

// Denied implements enroll.Policies: the proxy knows the policies.
func (p *proxyAdmin) Denied(ctx context.Context, uid string, conns []enroll.Conn) (denied []enroll.Conn, err error) {
	type plaintext struct {
		Src netip.AddrPort `json:"src"`
		Dst netip.AddrPort `json:"dst"`
	}
	for len(conns) > 0 {
		some := conns[:min(len(conns), maxAsked)]
		conns = conns[len(some):]
		ask := make([]plaintext, len(some))
		for i, c := range some {
			ask[i] = plaintext{Src: c.Remote, Dst: c.Local}
		}
		body, err := json.Marshal(ask)
		if err != nil {
			return nil, err
		}
		var reasons []string
		if err := p.post(ctx, "/debug/plaintext?pod="+uid, body, &reasons); err != nil {
			return nil, err
		}
		if len(reasons) != len(some) {
			return nil, fmt.Errorf("the proxy answered about %d connections of %d", len(reasons), len(some))
		}
		for i, reason := range reasons {
			if reason != "" {
				denied = append(denied, some[i])
			}
		}
	}
	return denied, nil
}

func (p *proxyAdmin) post(ctx context.Context, path string, body []byte, v any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://proxy"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	return p.do(req, v)
}
