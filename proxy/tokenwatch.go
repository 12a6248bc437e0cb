package proxy

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// A projected token is replaced by kubelet at four fifths of its life. One that is not was projected with subPath, or
// kubelet or the API server do not work: it is read anew in each call and nobody notices until it has expired, and with it
// all certificates half a life later.
const (
	tokenEvery  = 2 * time.Second
	tokenFrozen = 0.9 // of its life
	// Tokens of a year are no kubelet's; a day is enough to replace them.
	tokenNotice = 24 * time.Hour
	alarmToken  = "token"
)

// tokenTimes are of a JSON Web Token, unverified: they are the issuer's word to us. ok is false for anything else.
func tokenTimes(text string) (issued, expires time.Time, ok bool) {
	parts := strings.Split(text, ".")
	if len(parts) != 3 {
		return issued, expires, false
	}
	payload, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(parts[1], "="))
	if err != nil {
		return issued, expires, false
	}
	var claims struct {
		Issued  float64 `json:"iat"`
		Expires float64 `json:"exp"`
	}
	if err := json.Unmarshal(payload, &claims); err != nil || claims.Expires <= 0 || claims.Expires > 1<<40 || claims.Issued < 0 {
		return issued, expires, false
	}
	return time.Unix(int64(claims.Issued), 0), time.Unix(int64(claims.Expires), 0), true
}

// tokenAlarm says what is wrong with the token, if anything, and when it expires.
func tokenAlarm(t Token, now time.Time) (text string, expires time.Time) {
	if t == (Token{}) {
		return "", expires
	}
	token, err := t.Read()
	if err != nil {
		return err.Error(), expires
	}
	issued, expires, ok := tokenTimes(token)
	if !ok {
		return "", time.Time{}
	}
	life := expires.Sub(issued)
	warn := max(time.Duration(float64(life)*tokenFrozen), life-tokenNotice)
	switch left := expires.Sub(now); {
	case left <= 0:
		return fmt.Sprintf("%s has expired at %s: no certificate can be renewed", t, expires.UTC().Format(time.RFC3339)), expires
	case now.Sub(issued) >= warn:
		return fmt.Sprintf("%s was not replaced and expires at %s, in %s: is it mounted without subPath, and does kubelet work?",
			t, expires.UTC().Format(time.RFC3339), left.Round(time.Second)), expires
	}
	return "", expires
}

// watchToken raises an alarm before the token expires. The next read after it was replaced ends it.
func (s *Server) watchToken(ctx context.Context) {
	tick := time.NewTicker(tokenEvery)
	defer tick.Stop()
	for {
		text, expires := tokenAlarm(s.cfg.Token, time.Now())
		s.alarms.set(alarmToken, text)
		at := 0.0
		if !expires.IsZero() {
			at = float64(expires.Unix())
		}
		s.metrics.tokenExpires.Set(at)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
