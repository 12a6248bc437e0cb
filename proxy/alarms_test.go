package proxy_test

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/warren-mesh/warren/proxy"
)

// token is a JSON Web Token as kubelet projects it, of that age and life.
func token(age, life time.Duration) []byte {
	issued := time.Now().Add(-age)
	claims := fmt.Sprintf(`{"iat":%d,"exp":%d}`, issued.Unix(), issued.Add(life).Unix())
	enc := base64.RawURLEncoding.EncodeToString
	return []byte(enc([]byte(`{"alg":"RS256"}`)) + "." + enc([]byte(claims)) + ".c2ln")
}

// A token that kubelet does not replace is told everywhere before it expires, without the proxy being unready; when it is
// replaced, that is the end of it.
func TestFrozenToken(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	replace(t, path, token(11*time.Hour+30*time.Minute, 12*time.Hour))
	m := newMesh(t, 1, func(c *proxy.Config) { c.Token = proxy.Token{Path: path} })
	n := m.nodes[0]
	n.srv.AgentState(true, true) // so that it is ready, as nothing else keeps it from
	until(t, "it is ready", func() bool { return strings.HasPrefix(n.readiness(t), "ready") })
	page := func(at int, path string) string { return fetch(t, "http://"+n.srv.Addresses()[at]+path) }
	last := len(n.srv.Addresses()) - 1 // readiness; metrics are before it
	alarm := func() (where []string) {
		for name, text := range map[string]string{
			"readiness": page(last, "/healthz/ready"), "metrics": page(last-1, "/metrics"), "connections": page(0, "/debug/connections"),
		} {
			want := map[string]string{"readiness": "warning: token: file " + path, "metrics": `warren_alarm{alarm="token"} 1`, "connections": "was not replaced and expires at"}[name]
			if strings.Contains(text, want) {
				where = append(where, name)
			}
		}
		return where
	}
	until(t, "the alarm is everywhere", func() bool { return len(alarm()) == 3 })
	until(t, "it is in the log", func() bool { return strings.Contains(n.logs.text(), "ALARM: file "+path+" was not replaced") })
	if text, err := os.ReadFile(path); err != nil || strings.Contains(n.logs.text(), string(text)) {
		t.Errorf("the log has the token, or %v", err)
	}
	replace(t, path, token(0, 12*time.Hour))
	until(t, "the alarm is over", func() bool { return len(alarm()) == 0 })
	if text := n.logs.text(); !strings.Contains(text, "alarm is over") || strings.Count(text, "ALARM: ") != 1 {
		t.Error("the log does not say once that it began and that it ended")
	}
}
