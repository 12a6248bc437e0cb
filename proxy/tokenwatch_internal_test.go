package proxy

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func jwt(issued, expires time.Time) string {
	enc := base64.RawURLEncoding.EncodeToString
	return enc([]byte(`{"alg":"RS256"}`)) + "." + enc(fmt.Appendf(nil, `{"iss":"k","iat":%d,"exp":%d}`, issued.Unix(), expires.Unix())) + ".c2ln"
}

func TestTokenAlarm(t *testing.T) {
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	for name, tt := range map[string]struct {
		text string
		want string
	}{
		"fresh":                     {jwt(now.Add(-time.Hour), now.Add(11*time.Hour)), ""},
		"as kubelet replaces it":    {jwt(now.Add(-600*time.Minute), now.Add(120*time.Minute)), ""},
		"not replaced":              {jwt(now.Add(-660*time.Minute), now.Add(60*time.Minute)), "in 1h0m0s"},
		"expired":                   {jwt(now.Add(-13*time.Hour), now.Add(-time.Hour)), "has expired at 2026-05-01T11:00:00Z"},
		"of a year":                 {jwt(now.Add(-340*24*time.Hour), now.Add(25*24*time.Hour)), ""},
		"of a year, the last hours": {jwt(now.Add(-364*24*time.Hour), now.Add(20*time.Hour)), "in 20h0m0s"},
		"no JWT":                    {"opaque", ""},
		"no times":                  {"e30.e30.c2ln", ""},
		"no JSON":                   {"a.!!.b", ""},
	} {
		t.Run(name, func(t *testing.T) {
			got, _ := tokenAlarm(Token{Text: tt.text}, now)
			if tt.want == "" && got != "" || !strings.Contains(got, tt.want) || strings.Contains(got, tt.text) {
				t.Errorf("%q, want %q", got, tt.want)
			}
		})
	}
	// A file that is replaced ends the alarm without a restart.
	path := filepath.Join(t.TempDir(), "token")
	for _, step := range []struct {
		text string
		want bool
	}{{jwt(now.Add(-11*time.Hour), now.Add(time.Hour)), true}, {jwt(now, now.Add(12*time.Hour)), false}, {"", true}} {
		if err := os.WriteFile(path, []byte(step.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if text, _ := tokenAlarm(Token{Path: path}, now); (text != "") != step.want {
			t.Errorf("alarm %q, want one: %v", text, step.want)
		}
	}
}

func FuzzTokenTimes(f *testing.F) {
	f.Add(jwt(time.Unix(1, 0), time.Unix(2, 0)))
	f.Add("a.b.c")
	f.Add("e30.eyJleHAiOjFlOTl9.c")
	f.Fuzz(func(t *testing.T, text string) {
		if _, expires, ok := tokenTimes(text); ok && (expires.IsZero() || expires.Year() > 40000) {
			t.Errorf("%q expires %s", text, expires)
		}
	})
}
