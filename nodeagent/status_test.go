package nodeagent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/warren-mesh/warren/cni/event"
	"github.com/warren-mesh/warren/internal/netns"
	"github.com/warren-mesh/warren/nodeagent/enroll"
	"github.com/warren-mesh/warren/nodeagent/zds"
)

func moment() time.Time { return time.Date(2026, 9, 1, 12, 0, 0, 0, time.UTC) }

func at(d time.Duration) *time.Time {
	t := moment().Add(d)
	return &t
}

func enrolled(name string) enroll.Report {
	return enroll.Report{
		Name: enroll.PodName{Namespace: "app", Name: name}, UID: "uid-" + name, IPs: []netip.Addr{netip.MustParseAddr("10.1.0.3")},
		Netns: "/var/run/netns/cni-1", NetnsID: netns.ID{Dev: 4, Ino: 7}, Phase: enroll.PhaseEnrolled, Since: moment().Add(-time.Hour),
		Known: true, Eligible: true, Redirect: &event.Redirect{}, Reason: "its namespace has the label",
	}
}

func served(name string) adminPod {
	return adminPod{
		UID: "uid-" + name, State: "Up", Listeners: []string{"15001", "15006", "15008"}, Identity: "spiffe://cluster.local/ns/app/sa/" + name,
		CertState: "Available", Expires: at(23*time.Hour + 59*time.Minute), Inbound: 2, Outbound: 1,
	}
}

func TestProblemsOfAPod(t *testing.T) {
	for _, c := range []struct {
		name        string
		report      func(*enroll.Report)
		redirection string
		asked       bool
		pod         func(*adminPod)
		want        string // part of the problem; empty: none
	}{
		{name: "all well", asked: true},
		{name: "a proxy that cannot be asked"},
		{name: "outside", report: func(r *enroll.Report) { r.Phase, r.Eligible = enroll.PhaseLeft, false }, redirection: "none"},
		{name: "outside but wanted", report: func(r *enroll.Report) { r.Phase, r.Reason = enroll.PhaseLeft, "no proxy" }, redirection: "none", want: "no proxy"},
		{name: "being made", report: func(r *enroll.Report) { r.Phase, r.IPs = enroll.PhaseAbsent, nil }, redirection: "none"},
		{name: "refused", report: func(r *enroll.Report) {
			r.Phase, r.IPs, r.Reason = enroll.PhaseAbsent, nil, "foreign"
			r.Refusal = &enroll.Refusal{Reason: "foreign"}
		}, redirection: "none", want: "foreign"},
		{name: "older than the plugin", report: func(r *enroll.Report) { r.Phase, r.Reason = enroll.PhaseAbsent, "recreate it" }, redirection: "none", want: "recreate it"},
		{name: "wrong rules", redirection: "differs: a rule is missing", asked: true, want: "a rule is missing"},
		{name: "no listeners", asked: true, pod: func(p *adminPod) { p.State, p.Error = "Pending", "port 15001 is taken" }, want: "port 15001 is taken"},
		{name: "not served", asked: true, pod: func(p *adminPod) { p.UID = "another" }, want: "no listeners"},
		{name: "unknown to the control plane", asked: true, pod: func(p *adminPod) { p.Identity, p.Error = "", "the control plane does not know this pod" }, want: "does not know"},
		{name: "no certificate", asked: true, pod: func(p *adminPod) { p.CertState, p.Expires = "Unavailable: CA says no", nil }, want: "CA says no"},
		{name: "requested certificate", asked: true, pod: func(p *adminPod) { p.CertState, p.Expires = "Initializing", nil }},
		{name: "expired", asked: true, pod: func(p *adminPod) { p.Expires = at(-time.Second) }, want: "expired"},
	} {
		r := enrolled("a")
		if c.report != nil {
			c.report(&r)
		}
		words := c.redirection
		if words == "" {
			words = redirectionOK
		}
		p := podStatus(r, words)
		if c.asked {
			a := served("a")
			if c.pod != nil {
				c.pod(&a)
			}
			p.fromProxy(map[string]adminPod{a.UID: a})
		}
		got := problem(p, r, moment())
		if (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// On a node with hundreds of pods there is no time for a look at each; what the audit
// found counts then.
func TestRedirectionByAudit(t *testing.T) {
	late, cancel := context.WithCancel(t.Context())
	cancel()
	for proof, want := range map[enroll.Proof]string{
		enroll.ProofWhole: redirectionOK, enroll.ProofSilent: redirectionOK, enroll.ProofListeners: redirectionOK,
		enroll.ProofRules: "differs: a rule is missing", enroll.ProofNone: "not checked: no time left",
	} {
		r := enroll.Report{Redirect: &event.Redirect{}, Proof: proof, Flaw: "a rule is missing"}
		if got := (&Agent{}).verifyOne(late, r); got != want {
			t.Errorf("%s: %q, want %q", proof, got, want)
		}
	}
}

func TestParts(t *testing.T) {
	now := moment()
	connected := adminLine{Address: "https://cp:15012", State: "connected", Since: at(-time.Minute), LastSuccess: at(-2 * time.Second)}
	failing := adminLine{Address: "https://cp:15012", State: "failing", Since: at(-time.Minute), LastError: "rpc error: code = Unauthenticated desc = no", LastSuccess: at(-time.Hour)}
	waiting := adminLine{Address: "https://cp:15012", State: "waiting", Since: at(-time.Minute), LastError: "connection refused"}
	xds := func(p, _, _ Part) Part { return p }
	ca := func(_, p, _ Part) Part { return p }
	token := func(_, _, p Part) Part { return p }
	for _, c := range []struct {
		name  string
		part  Part
		state string
		text  string
	}{
		{"no proxy", proxyPart(zds.State{LastError: "EOF"}, nil, now), Degraded, "none is connected: EOF"},
		{"a new proxy", proxyPart(zds.State{Connections: 1}, nil, now), Degraded, "not taken all pods"},
		{"a proxy", proxyPart(zds.State{Connections: 1, Ready: 1, Since: *at(-time.Minute)}, nil, now), Healthy, "connected for 1m0s"},
		{"two proxies", proxyPart(zds.State{Connections: 2, Ready: 2, Since: *at(-time.Minute)}, nil, now), Healthy, "2 are connected"},
		{"a proxy without admin socket", proxyPart(zds.State{Connections: 1, Ready: 1, Since: now}, errNoAdmin, now), Healthy, "unknown"},
		{"a proxy that hangs", proxyPart(zds.State{Connections: 1, Ready: 1, Since: now}, errors.New("timeout"), now), Degraded, "does not answer: timeout"},
		{"unknown lines", xds(lineParts(adminLines{}, errNoAdmin, now)), Unknown, "cannot be asked"},
		{"connected", xds(lineParts(adminLines{XDS: connected}, nil, now)), Healthy, "connected to https://cp:15012 for 1m0s"},
		{"not connected", xds(lineParts(adminLines{XDS: waiting}, nil, now)), Degraded, "for 1m0s: connection refused"},
		{"no control plane wanted", xds(lineParts(adminLines{XDS: adminLine{State: "off", Address: "/static.yaml"}}, nil, now)), Healthy, "not used (/static.yaml)"},
		{"CA", ca(lineParts(adminLines{CA: connected}, nil, now)), Healthy, "last certificate 2s ago"},
		{"CA fails", ca(lineParts(adminLines{CA: failing}, nil, now)), Degraded, "gives no certificates for 1m0s: rpc error"},
		{"CA unused", ca(lineParts(adminLines{CA: adminLine{State: "idle"}}, nil, now)), Healthy, "not asked"},
		{"token accepted", token(lineParts(adminLines{XDS: connected}, nil, now)), Healthy, "accepted"},
		{"token refused by one", token(lineParts(adminLines{XDS: connected, CA: failing}, nil, now)), Degraded, "refused by"},
		{"token not replaced", token(lineParts(adminLines{XDS: connected, Alarms: map[string]string{"token": "it expires in 1h"}}, nil, now)), Degraded, "expires in 1h"},
		{"another alarm", ca(lineParts(adminLines{CA: connected, Alarms: map[string]string{"extra roots": "no file", "token": "x"}}, nil, now)), Degraded, "ago; extra roots: no file"},
		{"token not tried", token(lineParts(adminLines{XDS: waiting}, nil, now)), Unknown, "not tried"},
	} {
		if c.part.State != c.state || !strings.Contains(c.part.Detail, c.text) {
			t.Errorf("%s: %+v, want %s, %q", c.name, c.part, c.state, c.text)
		}
	}
}

func TestAgo(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 1500 * time.Millisecond: "1s", 61 * time.Second: "1m1s", 24*time.Hour - time.Second: "23h59m", 49*time.Hour + 5*time.Minute: "2d1h",
	} {
		if got := ago(d); got != want {
			t.Errorf("%s: %q, want %q", d, got, want)
		}
	}
}

// example is a status with a pod of each kind.
func example() Status {
	s := Status{
		Node: "n1", Time: moment(),
		Agent: Part{Healthy, "up for 1m0s"}, Proxy: Part{Healthy, "connected for 1m0s"}, ControlPlane: Part{Healthy, "connected"},
		CA: Part{Healthy, "fine"}, Token: Part{Healthy, "accepted"}, Certificates: Part{Healthy, "1 valid"},
	}
	a, b, c := enrolled("a"), enrolled("b"), enrolled("c")
	c.Phase, c.Eligible, c.Redirect = enroll.PhaseLeft, false, nil
	for _, r := range []enroll.Report{a, b, c} {
		redirection := redirectionOK
		if r.Redirect == nil {
			redirection = "none"
		}
		p := podStatus(r, redirection)
		if r.Name.Name == "a" {
			p.fromProxy(map[string]adminPod{"uid-a": served("a")})
		}
		p.Problem = problem(p, r, moment())
		s.Pods = append(s.Pods, p)
	}
	s.judge()
	return s
}

func TestTable(t *testing.T) {
	s := example()
	s.hideOutsiders()
	s.Pods[1].Redirection = "differs: a rule is missing"
	s.Pods[1].Problem = "its redirection differs: a rule is missing"
	s.judge()
	var out bytes.Buffer
	if err := s.table(&out, false); err != nil {
		t.Fatal(err)
	}
	want := `node n1: degraded
  agent          healthy  up for 1m0s
  proxy          healthy  connected for 1m0s
  control plane  healthy  connected
  CA             healthy  fine
  token          healthy  accepted
  certificates   healthy  1 valid

NAMESPACE  POD  IPS       NETNS  REDIRECTION  LISTENERS          IDENTITY                            EXPIRES IN  IN       OUT      OUTSIDE
app        a    10.1.0.3  cni-1  verified     15001,15006,15008  spiffe://cluster.local/ns/app/sa/a  23h59m      2        1        0
app        b    10.1.0.3  cni-1  differs      unknown            unknown                             unknown     unknown  unknown  0

problems:
  pod app/b: its redirection differs: a rule is missing
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	out.Reset()
	if err := example().table(&out, true); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"NETNS PATH", "uid-a", "Available", "left", "/var/run/netns/cni-1", "its namespace has the label", "1h0m"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is missing in\n%s", want, out.String())
		}
	}
}

// serveStatus is an agent that answers what it is told to.
func serveStatus(t *testing.T, answer any) (runDir string) {
	t.Helper()
	runDir = t.TempDir()
	l, err := zds.Listen("unix", filepath.Join(runDir, statusSocket))
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if err := json.NewEncoder(w).Encode(answer); err != nil {
			t.Error(err)
		}
	})}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	t.Cleanup(func() { srv.Close(); <-done })
	return runDir
}

func runStatus(t *testing.T, args ...string) (out string, code int) {
	t.Helper()
	cmd := Command()
	var b bytes.Buffer
	cmd.SetOut(&b)
	cmd.SetErr(&b)
	cmd.SetArgs(append([]string{"status"}, args...))
	err := cmd.ExecuteContext(t.Context())
	if err == nil {
		return b.String(), 0
	}
	exit := &ExitError{Code: -1}
	errors.As(err, &exit)
	return b.String() + err.Error(), exit.Code
}

func TestStatusCommand(t *testing.T) {
	healthy, bad := example(), example()
	bad.CA = Part{Degraded, "gives no certificates"}
	bad.judge()
	for _, c := range []struct {
		name   string
		answer any
		args   []string
		code   int
		want   string
	}{
		{"healthy", healthy, nil, 0, "node n1: healthy"},
		{"degraded", bad, nil, exitDegraded, "CA: gives no certificates"},
		{"outsiders are hidden", healthy, []string{"-o", "wide"}, 0, "uid-b"},
		{"outsiders", healthy, []string{"--all"}, 0, "app        c "},
		{"one pod", healthy, []string{"--pod", "app/a"}, 0, "app        a "},
		{"one pod outside", healthy, []string{"--pod", "c"}, 0, "app        c "},
		{"no such pod", healthy, []string{"--pod", "x\x1b[31m"}, exitCannotTell, `no pod x\u001b[31m`},
		{"json", healthy, []string{"-o", "json"}, 0, `"node": "n1"`},
		{"yaml", healthy, []string{"-o", "yaml"}, 0, "node: n1"},
		{"unknown format", healthy, []string{"-o", "xml"}, exitCannotTell, "none of table"},
		{"all mistakes", healthy, []string{"-o", "xml", "--interval", "soon"}, exitCannotTell, "--interval: \"soon\": time: invalid duration \"soon\"\n--output: \"xml\""},
		{"an argument", healthy, []string{"app/a"}, exitCannotTell, "app/a"},
		{"unknown flag", healthy, []string{"--colour"}, exitCannotTell, "unknown flag"},
		{"nonsense", []string{"no", "status"}, nil, exitCannotTell, "does not answer"},
	} {
		out, code := runStatus(t, append([]string{"--run-dir", serveStatus(t, c.answer)}, c.args...)...)
		if code != c.code || !strings.Contains(out, c.want) {
			t.Errorf("%s: exit status %d, want %d; want %q in\n%s", c.name, code, c.code, c.want, out)
		}
		if strings.Contains(c.name, "hidden") && strings.Contains(out, "uid-c") {
			t.Errorf("%s:\n%s", c.name, out)
		}
	}
	if out, code := runStatus(t, "--run-dir", t.TempDir()); code != exitCannotTell || !strings.Contains(out, "does not answer") {
		t.Errorf("without an agent: exit status %d\n%s", code, out)
	}
}

// TestNothingFromOutsideReachesTheTerminal puts control characters into every
// string that an answer has.
func TestNothingFromOutsideReachesTheTerminal(t *testing.T) {
	const evil = "x\x1b[2J\x07\r\n\u009b31m\u202e\u2028\x00y"
	p := PodStatus{
		Namespace: evil, Name: evil, UID: evil, IPs: []string{evil}, Netns: "/" + evil, NetnsID: evil, State: evil, Redirection: evil, Proxy: true,
		Listeners: []string{evil}, Identity: evil, Certificate: evil, Reason: evil, Problem: evil,
	}
	part := Part{evil, evil}
	s := Status{
		Node: evil, Verdict: evil, Problems: []string{evil}, Agent: part, Proxy: part, ControlPlane: part, CA: part, Token: part, Certificates: part,
		Pods: []PodStatus{p},
	}
	dir := serveStatus(t, s)
	for _, format := range []string{"table", "wide", "json", "yaml"} {
		out, _ := runStatus(t, "--run-dir", dir, "-o", format)
		if i := strings.IndexFunc(out, func(r rune) bool {
			return r != '\n' && (r < ' ' || r >= 0x7f && r < 0xa0 || r == '\u202e' || r == '\u2028')
		}); i >= 0 {
			t.Errorf("-o %s: %q", format, out[max(0, i-20):min(len(out), i+20)])
		}
		if !strings.Contains(out, "x") {
			t.Errorf("-o %s: nothing is left: %q", format, out)
		}
	}
}
