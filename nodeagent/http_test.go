package nodeagent

import (
	"fmt"
	"testing"
)

func TestParseIstioAdd(t *testing.T) {
	// As the real plugin writes it.
	const real = `{"Netns":"/var/run/netns/cni-1","PodName":"a-1","PodNamespace":"app",
 "IPs":[{"Interface":1,"Address":{"IP":"10.1.0.3","Mask":"////AA=="},"Gateway":"10.1.0.1"},
        {"Interface":null,"Address":{"IP":"fd00::3","Mask":"//////////8AAAAAAAAAAA=="},"Gateway":""},
        {"Address":{"IP":"10.1.0.4","Mask":"/////////////////////w=="}}]}`
	got, err := parseIstioAdd([]byte(real))
	if err != nil {
		t.Fatal(err)
	}
	if s := fmt.Sprint(got); s != "{app/a-1 /var/run/netns/cni-1 [10.1.0.3/24 fd00::3/64 10.1.0.4/32]}" {
		t.Error(s)
	}
	for name, body := range map[string]string{
		"empty":            "",
		"no object":        "[]",
		"no pod":           `{"Netns":"/x","PodNamespace":"app"}`,
		"no netns":         `{"PodName":"a","PodNamespace":"app"}`,
		"no mask":          `{"Netns":"/x","PodName":"a","PodNamespace":"app","IPs":[{"Address":{"IP":"10.0.0.1"}}]}`,
		"mask with a hole": `{"Netns":"/x","PodName":"a","PodNamespace":"app","IPs":[{"Address":{"IP":"10.0.0.1","Mask":"/wD/AA=="}}]}`,
		"short mask":       `{"Netns":"/x","PodName":"a","PodNamespace":"app","IPs":[{"Address":{"IP":"fd00::1","Mask":"////AA=="}}]}`[:20],
		"no address":       `{"Netns":"/x","PodName":"a","PodNamespace":"app","IPs":[{"Address":{"IP":"x","Mask":"////AA=="}}]}`,
	} {
		if got, err := parseIstioAdd([]byte(body)); err == nil {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func FuzzParseIstioAdd(f *testing.F) {
	f.Add([]byte(`{"Netns":"/x","PodName":"a","PodNamespace":"app","IPs":[{"Address":{"IP":"10.0.0.1","Mask":"////AA=="}}]}`))
	f.Add([]byte(`{"Netns":"/x","PodName":"a","PodNamespace":"app","IPs":[{"Address":{"IP":"::ffff:10.0.0.1","Mask":"/////////////////////w=="}}]}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		got, err := parseIstioAdd(body)
		if err != nil {
			return
		}
		for _, p := range got.IPs {
			if !p.IsValid() || p.Addr().Is4In6() {
				t.Errorf("%q gave %v", body, p)
			}
		}
	})
}
