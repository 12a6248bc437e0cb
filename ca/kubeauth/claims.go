package kubeauth

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

// claims is what a token says of itself. Nobody has looked at its signature.
type claims struct {
	Audiences audiences `json:"aud"`
	Expires   float64   `json:"exp"` // seconds
}

// audiences is a text or a list of texts.
type audiences []string

// UnmarshalJSON implements json.Unmarshaler.
func (a *audiences) UnmarshalJSON(data []byte) error {
	var one string
	if json.Unmarshal(data, &one) == nil {
		*a = audiences{one}
		return nil
	}
	return json.Unmarshal(data, (*[]string)(a))
}

func readClaims(token string) (claims, error) {
	var c claims
	part := strings.Split(token, ".")
	if len(part) != 3 {
		return c, errors.New("the bearer token is not a JWT")
	}
	payload, err := base64.RawURLEncoding.DecodeString(part[1])
	if err != nil {
		return c, fmt.Errorf("the bearer token is not a JWT: %w", err)
	}
	if err := json.Unmarshal(payload, &c); err != nil {
		return c, errors.New("the bearer token is not a JWT: its claims are not JSON") // the error would quote it
	}
	return c, nil
}

// limit is until when something found out now may be kept.
func (c claims) limit(now time.Time, keep time.Duration) time.Time {
	until := now.Add(keep)
	if c.Expires > 0 && c.Expires < float64(until.Unix()) {
		return time.Unix(int64(c.Expires), 0)
	}
	return until
}
