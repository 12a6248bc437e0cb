package event

import (
	"encoding/json"
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func messages() []message {
	key := Key{ContainerID: "abc", IfName: "eth0"}
	add := testAdd()
	add.IPs = []netip.Prefix{netip.MustParsePrefix("10.1.2.3/24"), netip.MustParsePrefix("fd00::3/64")}
	return []message{
		{Version: 1, Kind: kindAdd, Add: &add},
		{Version: 1, Kind: kindDel, Del: &delReq{Key: key, PodUID: "u"}},
		{Version: 1, Kind: kindCheck, Check: &key},
		{Version: 1, Kind: kindGC, GC: &gcReq{Network: "n", Valid: []Key{key}, More: true}},
		{Version: 1, Kind: kindStatus},
		{Version: 1, Kind: kindProgrammed, How: ByAgent},
		{Version: 1, Kind: kindFailed, Error: &Error{Msg: "no"}},
		{Version: 1, Kind: kindAnswer, Answer: &Answer{Action: Leave, Reason: "not selected"}},
		{Version: 1, Kind: kindAnswer, Answer: &Answer{Action: RedirectSo, Redirect: &Redirect{
			IPv6: true, DNS: true, VirtualInterfaces: []string{"vnet0"},
			ProbeIP4: netip.MustParseAddr("169.254.7.127"), ProbeIP6: netip.MustParseAddr("fd16::1"), Backend: "iptables-nft",
		}}},
		{Version: 1, Kind: kindDone},
		{Version: 1, Kind: kindError, Error: &Error{Retryable: true, Msg: "m", Details: "d"}},
	}
}

var cmpAddr = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
var cmpPrefix = cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })

func TestWireRoundTrip(t *testing.T) {
	for _, m := range messages() {
		data, err := encode(m)
		if err != nil {
			t.Errorf("%s: %v", m.Kind, err)
			continue
		}
		got, err := decode(data)
		if err != nil {
			t.Errorf("%s: %v", m.Kind, err)
		}
		if diff := cmp.Diff(m, got, cmpAddr, cmpPrefix); diff != "" {
			t.Errorf("%s (-want +got):\n%s", m.Kind, diff)
		}
	}
}

// What a later minor revision adds must not stop this one.
func TestWireIgnoresUnknownFields(t *testing.T) {
	got, err := decode([]byte(`{"version":1,"kind":"check","check":{"containerID":"c","ifName":"e","new":[1]},"newer":{}}`))
	if err != nil || *got.Check != (Key{"c", "e"}) {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestWireRefuses(t *testing.T) {
	long := strings.Repeat("x", 300)
	for _, tc := range []struct{ in, want string }{
		{``, "not a message"},
		{`null`, "unsupported protocol version 0"},
		{`[]`, "not a message"},
		{`{"version":1,"kind":"status"} {}`, "data after"},
		{`{"version":1,"kind":"status"}x`, "data after"},
		{`{"version":0,"kind":"status"}`, "unsupported protocol version 0"},
		{`{"version":2,"kind":"status"}`, "unsupported protocol version 2"},
		{`{"version":"1","kind":"status"}`, "not a message"},
		{`{"version":1,"kind":"launch"}`, "unknown kind"},
		{`{"version":1}`, "unknown kind"},
		{`{"version":1,"kind":"status","how":"agent"}`, "a body"},
		{`{"version":1,"kind":"done","error":{"msg":"x"}}`, "a body"},
		{`{"version":1,"kind":"add"}`, "missing"},
		{`{"version":1,"kind":"programmed"}`, "how"},
		{`{"version":1,"kind":"programmed","how":"nobody"}`, "how"},
		{`{"version":1,"kind":"programmed","how":"agent","check":{"containerID":"c","ifName":"e"}}`, "another kind"},
		{`{"version":1,"kind":"check","check":{"containerID":"../x","ifName":"e"}}`, "containerID"},
		{`{"version":1,"kind":"check","check":{"containerID":"` + long + `","ifName":"e"}}`, "containerID"},
		{`{"version":1,"kind":"check","check":{"containerID":"c","ifName":"a/b"}}`, "interface name"},
		{`{"version":1,"kind":"check","check":{"containerID":"c","ifName":"a\nb"}}`, "interface name"},
		{`{"version":1,"kind":"check","check":{"containerID":"c","ifName":"0123456789abcdef"}}`, "interface name"},
		{`{"version":1,"kind":"del","del":{"key":{"containerID":"c","ifName":"e"},"podUID":"a b"}}`, "pod UID"},
		{`{"version":1,"kind":"gc","gc":{"network":"","valid":[]}}`, "network"},
		{`{"version":1,"kind":"gc","gc":{"network":"n","valid":[{"containerID":"c"}]}}`, "interface name"},
		{`{"version":1,"kind":"answer","answer":{"action":"explode"}}`, "action"},
		{`{"version":1,"kind":"answer","answer":{"action":"redirect"}}`, "belong together"},
		{`{"version":1,"kind":"answer","answer":{"action":"leave","redirect":{"probeIP4":"","probeIP6":""}}}`, "belong together"},
		{`{"version":1,"kind":"answer","answer":{"action":"redirect","redirect":{"probeIP4":"fd00::1"}}}`, "IPv4 probe"},
		{`{"version":1,"kind":"answer","answer":{"action":"redirect","redirect":{"probeIP6":"fe80::1%eth0"}}}`, "IPv6 probe"},
		{`{"version":1,"kind":"answer","answer":{"action":"redirect","redirect":{"virtualInterfaces":["-j ACCEPT"]}}}`, "virtual interface"},
		{`{"version":1,"kind":"answer","answer":{"action":"redirect","redirect":{"backend":"../x"}}}`, "backend"},
		{`{"version":1,"kind":"error","error":{"msg":"` + strings.Repeat("x", maxText+1) + `"}}`, "msg"},
		{`{"version":1,"kind":"add","add":{"key":{"containerID":"c","ifName":"e"},"network":"n","podName":"p","podNamespace":"q","netns":"a\u0000b"}}`, "netns path"},
		{`{"version":1,"kind":"add","add":{"key":{"containerID":"c","ifName":"e"},"network":"n","podName":"p","podNamespace":"q","ips":["::ffff:1.2.3.4/96"]}}`, "address"},
		{`{"version":1,"kind":"add","add":{"key":{"containerID":"c","ifName":"e"},"network":"n","podName":"p","podNamespace":"q","ips":["1.2.3.4/33"]}}`, "malformed"},
		{`{"version":1,"kind":"add","add":{"key":{"containerID":"c","ifName":"e"},"network":"n","podName":"p","podNamespace":"q","ips":[` + strings.Repeat(`"1.2.3.4/32",`, 64) + `"1.2.3.4/32"]}}`, "65 addresses"},
		{strings.Repeat(" ", maxMessage+1), "more than"},
		{strings.Repeat("[", 5000), "not a message"},
	} {
		if _, err := decode([]byte(tc.in)); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%.80s: error %v, want one with %q", tc.in, err, tc.want)
		}
	}
	if _, err := decode([]byte(`{"version":7,"kind":"error","error":{"msg":"x"}}`)); err != nil {
		t.Errorf("an error of another version: %v", err)
	}
}

func TestChunk(t *testing.T) {
	for _, n := range []int{0, 1, 5000} {
		var keys []Key
		for range n {
			keys = append(keys, Key{ContainerID: strings.Repeat("c", maxName), IfName: "<<<<<<<<<<<<<<<"})
		}
		var got []Key
		parts := chunk(strings.Repeat("n", maxName), keys)
		for i, p := range parts {
			data, err := encode(message{Version: Version, Kind: kindGC, GC: &p})
			if err != nil {
				t.Fatal(err)
			}
			m, err := decode(data)
			if err != nil {
				t.Fatal(err)
			}
			if m.GC.More != (i < len(parts)-1) {
				t.Errorf("part %d of %d says more: %v", i, len(parts), m.GC.More)
			}
			got = append(got, m.GC.Valid...)
		}
		if !reflect.DeepEqual(got, keys) && n > 0 {
			t.Errorf("%d keys became %d", n, len(got))
		}
	}
}

func TestCut(t *testing.T) {
	for _, s := range []string{"", "short", strings.Repeat("é", maxText), strings.Repeat("x", maxText), "\xff"} {
		got := cut(s)
		if err := checkText("text", got); err != nil {
			t.Error(err)
		}
		data, err := json.Marshal(got)
		if err != nil || strings.Contains(string(data), `\ufffd`) {
			t.Errorf("%.20q became %.20q", s, got)
		}
	}
}

// The largest messages that pass the checks must fit a packet.
func TestLargestFit(t *testing.T) {
	name, text := strings.Repeat("x", maxName), cut(strings.Repeat("\"\n", maxText))
	add := Add{Key: Key{name, "012345678901234"}, Network: name, PodName: name, PodNamespace: name, PodUID: name, Netns: strings.Repeat("\"", maxPath)}
	for range maxIPs {
		add.IPs = append(add.IPs, netip.MustParsePrefix("fd00:1111:2222:3333:4444:5555:6666:7777/128"))
	}
	r := Redirect{Backend: name, ProbeIP4: netip.MustParseAddr("169.254.7.127"), ProbeIP6: netip.MustParseAddr("fd00:1111:2222:3333:4444:5555:6666:7777")}
	for range maxVirtual {
		r.VirtualInterfaces = append(r.VirtualInterfaces, "012345678901234")
	}
	for _, m := range []message{
		{Kind: kindAdd, Add: &add},
		{Kind: kindAnswer, Answer: &Answer{Action: RedirectSo, Redirect: &r, Reason: text}},
		{Kind: kindError, Error: &Error{Msg: text, Details: text}},
	} {
		if _, err := encode(m); err != nil {
			t.Error(err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, m := range messages() {
		data, err := encode(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte(`{"version":2,"kind":"add"}`))
	f.Add([]byte(`{"version":1,"kind":"error","error":{"msg":"\ud800"}}`))
	f.Add([]byte(`{"version":1,"kind":"add","add":{"key":{"containerID":"abc","ifName":"eth0"},"network":"n","podName":"p","podNamespace":"a","ips":[],"netns":"/x"}}`))
	f.Add([]byte(`{"version":1,"kind":"answer","answer":{"action":"redirect","redirect":{"virtualInterfaces":[],"probeIP4":"","probeIP6":"","backend":""}}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := decode(data)
		if err != nil {
			if errors.Is(err, errVersion) && m.Kind != "" {
				t.Fatal("a message of an unserved version has content")
			}
			return
		}
		again, err := encode(m)
		if err != nil {
			if len(data) > maxMessage/6 {
				return // escaping may have made it longer than a packet
			}
			t.Fatalf("cannot encode what was decoded: %v", err)
		}
		got, err := decode(again)
		if err != nil {
			t.Fatalf("%s: %v", again, err)
		}
		if diff := cmp.Diff(m, got, cmpAddr, cmpPrefix, cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("changed on the way (-first +second):\n%s", diff)
		}
	})
}

func FuzzAway(f *testing.F) {
	f.Add([]byte(`{"version":1,"namespaces":{"app":"in","kube-system":"out","x":"mixed"}}`))
	f.Add([]byte(`{"version":1,"namespaces":{}}`))
	f.Add([]byte(`{"version":2}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		a, err := parseAway(data)
		if err != nil {
			return
		}
		if a.Namespaces == nil || a.validate() != nil {
			t.Fatalf("accepted %s", data)
		}
	})
}
