package nodeagent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"time"

	"github.com/warren-mesh/warren/nodeagent/zds"
)

const (
	adminTimeout = 1500 * time.Millisecond
	maxAdmin     = 32 << 20 // bytes of an answer
)

// errNoAdmin says that the proxy has no administration socket, as Istio's has
// none. What only the proxy knows is then unknown.
var errNoAdmin = errors.New("the proxy has no administration socket")

// proxyAdmin reads the proxy's administration socket. It implements
// enroll.Flows.
type proxyAdmin struct {
	client *http.Client
	serves func(took time.Duration) time.Duration // how long an answer does

	mu     sync.Mutex
	shared *flowsAnswer // the newest, or the one that is on its way
}

// flowsAnswer is what the proxy says of all pods, for all who ask about one of them: a
// namespace that leaves the mesh asks about hundreds, each every quarter of a second.
type flowsAnswer struct {
	began time.Time     // it tells of no moment before
	done  chan struct{} // closed when the rest is there
	fresh time.Time     // until when it serves
	pods  map[string]adminPod
	err   error
}

// An answer serves for flowsFresh, and for so many times what it took, so that asking
// is a small part of a busy proxy's work.
const flowsFresh, flowsShare, flowsStale = 200 * time.Millisecond, 10, 3 * time.Second

func flowsServe(took time.Duration) time.Duration {
	return min(max(flowsFresh, flowsShare*took), flowsStale)
}

func newProxyAdmin(zdsSocket string) *proxyAdmin {
	path := filepath.Join(filepath.Dir(zdsSocket), adminSocket)
	return &proxyAdmin{serves: flowsServe, client: &http.Client{
		Timeout:   adminTimeout,
		Transport: unixTransport(path),
	}}
}

// unixTransport talks to one Unix socket, a connection a request: these are few,
// and the other end may be another process each time.
func unixTransport(path string) *http.Transport {
	return &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		},
	}
}

// adminPod is an element of /debug/pods.
type adminPod struct {
	UID       string     `json:"uid"`
	State     string     `json:"state"` // Up or Pending
	Listeners []string   `json:"listeners"`
	Identity  string     `json:"identity"`
	CertState string     `json:"certState"`
	Expires   *time.Time `json:"expires"`
	Inbound   int        `json:"inbound"`
	Outbound  int        `json:"outbound"`
	Error     string     `json:"error"`
}

// adminLine is what the proxy knows of a line to something it depends on.
type adminLine struct {
	Address     string     `json:"address"`
	State       string     `json:"state"`
	Since       *time.Time `json:"since"`
	LastError   string     `json:"lastError"`
	LastSuccess *time.Time `json:"lastSuccess"`
}

// adminLines are the top keys of /debug/connections. The connections themselves are not asked
// for; an older proxy tells of them all the same.
type adminLines struct {
	XDS adminLine `json:"xds"`
	CA  adminLine `json:"ca"`
	// Alarms are what the proxy says somebody has to look at, by name.
	Alarms map[string]string `json:"alarms"`
}

func (p *proxyAdmin) pods(ctx context.Context) (map[string]adminPod, error) {
	var list []adminPod
	if err := p.get(ctx, "/debug/pods", &list); err != nil {
		return nil, err
	}
	pods := make(map[string]adminPod, len(list))
	for _, pod := range list {
		pods[pod.UID] = pod
	}
	return pods, nil
}

func (p *proxyAdmin) lines(ctx context.Context) (l adminLines, err error) {
	return l, p.get(ctx, "/debug/connections?connections=false", &l)
}

// Flows counts the connections of one pod, as they were at some moment not before since.
func (p *proxyAdmin) Flows(ctx context.Context, uid string, since time.Time) (int, error) {
	pods, err := p.sharedPods(ctx, since)
	if err != nil {
		return 0, err
	}
	pod, ok := pods[uid]
	if !ok {
		return 0, fmt.Errorf("nodeagent: the proxy does not serve uid %s", uid)
	}
	return pod.Inbound + pod.Outbound, nil
}

// sharedPods is pods, asked once for all who ask at about the same time and are content
// with how old the answer is. What it answers is read only.
func (p *proxyAdmin) sharedPods(ctx context.Context, since time.Time) (map[string]adminPod, error) {
	for {
		a := p.answer(ctx, since)
		select {
		case <-a.done:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		if !a.began.Before(since) {
			return a.pods, a.err
		} // it was on its way before; the next one is not
	}
}

// answer is the one that is on its way, or the newest if it serves, or else a new one.
func (p *proxyAdmin) answer(ctx context.Context, since time.Time) *flowsAnswer {
	p.mu.Lock()
	defer p.mu.Unlock()
	a := p.shared
	if there := a != nil && !a.fresh.IsZero(); a == nil || there && (time.Now().After(a.fresh) || a.began.Before(since)) {
		a = &flowsAnswer{began: time.Now(), done: make(chan struct{})}
		p.shared = a
		go p.ask(context.WithoutCancel(ctx), a)
	}
	return a
}

func (p *proxyAdmin) ask(ctx context.Context, a *flowsAnswer) {
	pods, err := p.pods(ctx) // within the client's time
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	a.pods, a.err = pods, err
	a.fresh = now.Add(p.serves(now.Sub(a.began)))
	close(a.done)
}

func (p *proxyAdmin) get(ctx context.Context, path string, v any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://proxy"+path, nil)
	if err != nil {
		return err
	}
	return p.do(req, v)
}

func (p *proxyAdmin) do(req *http.Request, v any) error {
	err := doJSON(p.client, req, maxAdmin, v)
	if zds.NobodyListens(err) { // or only the socket of a proxy that was killed before
		return errNoAdmin
	}
	return err
}

// getJSON fetches a document of at most limit bytes.
func getJSON(ctx context.Context, client *http.Client, url string, limit int64, v any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	return doJSON(client, req, limit, v)
}

func doJSON(client *http.Client, req *http.Request, limit int64, v any) error {
	url := req.URL.Redacted()
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, resp.Status)
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return fmt.Errorf("%s: %w", url, err)
	}
	if int64(len(b)) > limit {
		return fmt.Errorf("%s: more than %d bytes", url, limit)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%s: %w", url, err)
	}
	return nil
}
