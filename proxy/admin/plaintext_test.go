package admin_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/warren-mesh/warren/proxy/admin"
)

func TestPlaintext(t *testing.T) {
	s := source()
	s.Plaintext = func(uid string, conns []admin.Plaintext) ([]string, error) {
		if uid != "u1" {
			return nil, errors.New("not served")
		}
		reasons := make([]string, len(conns))
		for i, c := range conns {
			if c.Dst.Port() == 80 {
				reasons[i] = "strict"
			}
		}
		return reasons, nil
	}
	h := admin.Handler(s)
	for _, c := range []struct {
		method, pod, body string
		code              int
		want              string
	}{
		{http.MethodPost, "u1", `[{"src":"10.0.0.1:1","dst":"10.0.0.2:80"},{"src":"[fd00::1]:1","dst":"[fd00::2]:81"}]`, http.StatusOK, "[\n  \"strict\",\n  \"\"\n]\n"},
		{http.MethodPost, "u1", `[]`, http.StatusOK, "[]\n"},
		{http.MethodPost, "u2", `[]`, http.StatusNotFound, "not served"},
		{http.MethodPost, "u1", `[{"src":"nowhere"}]`, http.StatusBadRequest, "want a JSON list"},
		{http.MethodPost, "u1", "[" + strings.Repeat(" ", 5<<20) + "]", http.StatusBadRequest, "want a JSON list"},
		{http.MethodGet, "u1", "", http.StatusMethodNotAllowed, ""},
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(c.method, "/debug/plaintext?pod="+c.pod, strings.NewReader(c.body)))
		if w.Code != c.code || !strings.Contains(w.Body.String(), c.want) {
			t.Errorf("%s %s %.60s: %d %s", c.method, c.pod, c.body, w.Code, w.Body.String())
		}
	}
}
