package route

import (
	"net/netip"
	"testing"

	"github.com/warren-mesh/warren/xds/workload"
)

func TestInbound(t *testing.T) {
	web := service("web", "app", "10.96.0.1")
	hidden := service("hidden", "other", "10.96.0.2", func(s *workload.Service) { s.Visibility = workload.NamespacePrivate })
	loop := service("loop", "app", "10.96.0.3", func(s *workload.Service) {
		s.Ports = workload.NewPortMap(workload.Port{Service: 80, Target: 15006})
	})
	self := pod("self", "app", ips("10.0.0.1", "fd00::1"), endpointOf(web, workload.Port{Service: 81, Target: 9091}))
	v := apply(workload.Batch{Services: []*workload.Service{web, hidden, loop}, Workloads: []*workload.Workload{self}})
	for _, tt := range []struct {
		name      string
		dst       string
		authority string
		want      string // target
		status    int
		err       string
	}{
		{name: "address", authority: "10.0.0.1:8080", want: "10.0.0.1:8080"},
		{name: "v6 address", dst: "[fd00::1]:15008", authority: "[fd00::1]:8080", want: "[fd00::1]:8080"},
		{name: "mapped connection", dst: "[::ffff:10.0.0.1]:15008", authority: "10.0.0.1:80", want: "10.0.0.1:80"},
		{name: "mapped authority", authority: "[::ffff:10.0.0.1]:80", want: "10.0.0.1:80"},
		{name: "another address", authority: "10.0.0.2:80", status: 400, err: "ip mismatch: 10.0.0.1 != 10.0.0.2"},
		{name: "our other address", authority: "[fd00::1]:80", status: 400, err: "ip mismatch: 10.0.0.1 != fd00::1"},
		{name: "loopback", authority: "127.0.0.1:80", status: 400, err: "ip mismatch: 10.0.0.1 != 127.0.0.1"},
		{name: "a service's address", authority: "10.96.0.1:80", status: 400, err: "ip mismatch: 10.0.0.1 != 10.96.0.1"},
		{name: "port of the proxy", authority: "10.0.0.1:15001", status: 503, err: "attempted recursive call to ourselves"},
		{name: "port of the proxy behind a service", authority: "loop.app.svc.cluster.local:80", status: 503, err: "attempted recursive call to ourselves"},
		{name: "hostname", authority: "web.app.svc.cluster.local:80", want: "10.0.0.1:8080"},
		{name: "hostname in capitals", authority: "WEB.app.svc.cluster.local:80", want: "10.0.0.1:8080"},
		{name: "named port", authority: "web.app.svc.cluster.local:81", want: "10.0.0.1:9091"},
		{name: "unknown port", authority: "web.app.svc.cluster.local:82", status: 503, err: "requested service web.app.svc.cluster.local:82 found, but cannot resolve port"},
		{name: "unknown hostname", authority: "nope.example:80", status: 503, err: "no service or workload for hostname: nope.example"},
		{name: "hidden hostname", authority: "hidden.other.svc.cluster.local:80", status: 503, err: "no service or workload for hostname: hidden.other.svc.cluster.local"},
		{name: "no port", authority: "10.0.0.1", status: 400, err: `no valid authority pseudo header: authority "10.0.0.1" has no port`},
		{name: "empty", authority: "", status: 400, err: `no valid authority pseudo header: authority "" has no port`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			me, dst := self, ap("10.0.0.1:15008")
			if tt.dst != "" {
				dst = ap(tt.dst)
			}
			got, refusal := Inbound(v, me, dst, tt.authority)
			if tt.status == 0 {
				if refusal != nil || got.Target != ap(tt.want) {
					t.Errorf("target %v, refusal %v; want %s", got.Target, refusal, tt.want)
				}
				return
			}
			if refusal == nil || refusal.Status != tt.status || refusal.Error() != tt.err {
				t.Errorf("refusal %v, want %d %s", refusal, tt.status, tt.err)
			}
			if got.Target.IsValid() {
				t.Errorf("a target beside a refusal: %v", got.Target)
			}
		})
	}
	if _, refusal := Inbound(v, nil, ap("10.0.0.1:15008"), "10.0.0.1:80"); refusal == nil || refusal.Status != 503 {
		t.Errorf("without a workload: %v", refusal)
	}
}

// TestInboundWaypoint: a waypoint in the mesh is asked for what it guards.
func TestInboundWaypoint(t *testing.T) {
	v, pods, _ := waypointWorld()
	headless := service("headless", "app", "10.96.0.99", func(s *workload.Service) { s.VIPs = nil })
	both := service("both", "app", "10.96.0.98", func(s *workload.Service) {
		s.VIPs = []workload.NetworkAddr{{Network: "n2", Addr: ap("10.0.0.1:1").Addr()}, {Addr: ap("[fd96::1]:1").Addr()}, {Addr: ap("10.96.0.98:1").Addr()}, {Addr: ap("10.96.0.97:1").Addr()}}
	})
	hidden := service("hidden", "secret", "10.96.0.96", behind(named("infra", "wp.infra.svc.cluster.local")), func(s *workload.Service) { s.Visibility = workload.NamespacePrivate })
	ranged := service("ranged", "app", "10.96.0.95", behind(named("infra", "wp.infra.svc.cluster.local")), func(s *workload.Service) {
		s.VIPs, s.CIDRs = nil, []workload.NetworkPrefix{{Prefix: netip.MustParsePrefix("192.0.2.0/24")}}
	})
	store := workload.NewStore()
	store.Apply(workload.Batch{Services: append(v.Services(), headless, both, hidden, ranged), Workloads: v.Workloads()})
	v = store.View()
	at := func(name string, mods ...func(*workload.Workload)) *workload.Workload {
		w := *pods[name]
		for _, m := range mods {
			m(&w)
		}
		return &w
	}
	for _, tt := range []struct {
		name      string
		self      *workload.Workload
		authority string
		want      string // target
		told      string // by PROXY protocol; empty: none
		status    int
		err       string
	}{
		{name: "its service", self: at("wp-a"), authority: "10.96.0.1:80", want: "10.0.1.1:80"},
		{name: "its workload", self: at("wp-a"), authority: "10.0.0.2:80", want: "10.0.1.1:80"},
		{name: "a service that has it by address", self: at("wp-a"), authority: "10.96.0.2:80", want: "10.0.1.1:80"},
		{name: "a service of whose weighted ones it is one", self: at("wp-b"), authority: "10.96.0.8:80", want: "10.0.1.2:80"},
		{name: "a service that only others see", self: at("wp-a"), authority: "10.96.0.96:80", want: "10.0.1.1:80"},
		{name: "an address in a range of its service", self: at("wp-a"), authority: "192.0.2.7:80", want: "10.0.1.1:80"},
		{name: "another's service", self: at("wp-b"), authority: "10.96.0.1:80", status: 400, err: "ip mismatch: 10.0.1.2 != 10.96.0.1"},
		{name: "another's workload", self: at("wp-b"), authority: "10.0.0.2:80", status: 400, err: "ip mismatch: 10.0.1.2 != 10.0.0.2"},
		{name: "a workload without a waypoint", self: at("wp-a"), authority: "10.0.0.1:80", status: 400, err: "ip mismatch: 10.0.1.1 != 10.0.0.1"},
		{name: "an address that nobody has", self: at("wp-a"), authority: "203.0.113.1:80", status: 400, err: "ip mismatch: 10.0.1.1 != 203.0.113.1"},
		{name: "a port of the proxy", self: at("wp-a"), authority: "10.96.0.1:15006", status: 503, err: "attempted recursive call to ourselves"},

		{name: "tunnel", self: at("wp-a", inTunnel(workload.TunnelNone, 15088)), authority: "10.96.0.1:80", want: "10.0.1.1:15088"},
		{name: "tunnel, and anything", self: at("wp-a", inTunnel(workload.TunnelNone, 15088)), authority: "203.0.113.1:80", want: "10.0.1.1:15088"},
		{name: "tunnel on the port that was asked for", self: at("wp-a", inTunnel(workload.TunnelNone, 0)), authority: "203.0.113.1:80", want: "10.0.1.1:80"},
		{name: "tunnel to the proxy", self: at("wp-a", inTunnel(workload.TunnelNone, 15001)), authority: "10.96.0.1:80", status: 503, err: "attempted recursive call to ourselves"},
		{name: "PROXY", self: at("wp-c"), authority: "10.96.0.10:80", want: "10.0.1.3:15088", told: "10.96.0.10:80"},
		{name: "PROXY v6", self: at("wp-c"), authority: "[fd96::7]:80", want: "10.0.1.3:15088", told: "[fd96::7]:80"},
		{name: "PROXY by hostname", self: at("wp-c"), authority: "both.app.svc.cluster.local:80", want: "10.0.1.3:15088", told: "10.96.0.98:80"},
		{name: "PROXY by hostname and named port", self: at("wp-c"), authority: "both.app.svc.cluster.local:81", want: "10.0.1.3:15088", told: "10.96.0.98:81"},
		{name: "PROXY by hostname without address", self: at("wp-c"), authority: "headless.app.svc.cluster.local:80", status: 503,
			err: "service app/headless.app.svc.cluster.local has no address that the application could be told by PROXY protocol"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, refusal := Inbound(v, tt.self, netip.AddrPortFrom(tt.self.Addresses[0], 15008), tt.authority)
			if tt.status != 0 {
				if refusal == nil || refusal.Status != tt.status || refusal.Error() != tt.err {
					t.Errorf("refusal %v, want %d %s", refusal, tt.status, tt.err)
				}
				return
			}
			if refusal != nil || got.Target != ap(tt.want) || got.Proxied != (tt.told != "") || got.Proxied && got.Told != ap(tt.told) {
				t.Errorf("%+v, refusal %v; want %s told %s", got, refusal, tt.want, tt.told)
			}
		})
	}
}

func TestParseAuthority(t *testing.T) {
	for s, want := range map[string]Authority{
		"1.2.3.4:80":          {Addr: netip.MustParseAddr("1.2.3.4"), Port: 80},
		"[fd00::1]:65535":     {Addr: netip.MustParseAddr("fd00::1"), Port: 65535},
		"[::ffff:1.2.3.4]:80": {Addr: netip.MustParseAddr("1.2.3.4"), Port: 80},
		"a:1":                 {Host: "a", Port: 1},
		"A-b_c.D4:1":          {Host: "a-b_c.d4", Port: 1},
		"4.example:1":         {Host: "4.example", Port: 1},
	} {
		if got, err := ParseAuthority(s); err != nil || got != want {
			t.Errorf("ParseAuthority(%q) = %+v, %v; want %+v", s, got, err, want)
		}
	}
	for _, s := range []string{
		"", ":", ":80", "a", "a:", "a:0", "a:080", "a:+80", "a:65536", "a:99999999999999999999", "a: 80", "a:80 ", "a:80/",
		"1.2.3:80", "1.2.3.4.5:80", "1.2.3.256:80", "01.2.3.4:80", "fd00::1:80", "[fd00::1]", "[fd00::1", "[fd00::1]x:80", "[fe80::1%eth0]:80",
		"[1.2.3.4]:80", "user@host:80", "http://a:80", "a..b:80", ".a:80", "a.:80", "-a:80", "a-:80", "a/b:80", "a\n:80", "ä:80", "a%41:80",
		string(make([]byte, 300)) + ":80",
	} {
		if got, err := ParseAuthority(s); err == nil {
			t.Errorf("ParseAuthority(%q) = %+v, want an error", s, got)
		}
	}
}

// FuzzAuthority: whatever is accepted reads back as itself.
func FuzzAuthority(f *testing.F) {
	for _, s := range []string{"1.2.3.4:80", "[fd00::1]:80", "[::ffff:1.2.3.4]:80", "web.app.svc:80", "A:1", "fd00::1:80", "[fe80::1%25e]:1", "a:0", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := ParseAuthority(s)
		if err != nil {
			return
		}
		if a.Port == 0 || (a.Host == "") != a.Addr.IsValid() || a.Addr.Is4In6() || a.Addr.Zone() != "" {
			t.Fatalf("%q gave %+v", s, a)
		}
		again, err := ParseAuthority(a.String())
		if err != nil || again != a {
			t.Fatalf("%q gave %+v, and %q gave %+v (%v)", s, a, a.String(), again, err)
		}
	})
}
