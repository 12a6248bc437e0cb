package bearer_test

import (
	"strings"
	"testing"

	"google.golang.org/grpc/metadata"

	"github.com/warren-mesh/warren/ca/bearer"
)

func TestToken(t *testing.T) {
	for name, c := range map[string]struct {
		headers []string
		want    string // empty: an error
	}{
		"a token":           {[]string{"Bearer abc"}, "abc"},
		"in other letters":  {[]string{"bearer   abc "}, "abc"},
		"as long as may be": {[]string{"Bearer " + strings.Repeat("x", 10)}, strings.Repeat("x", 10)},
		"longer":            {[]string{"Bearer " + strings.Repeat("x", 11)}, ""},
		"none":              {nil, ""},
		"two":               {[]string{"Bearer abc", "Bearer abc"}, ""},
		"empty":             {[]string{"Bearer "}, ""},
		"another scheme":    {[]string{"Basic abc"}, ""},
		"no scheme":         {[]string{"abc"}, ""},
	} {
		ctx := metadata.NewIncomingContext(t.Context(), metadata.MD{"authorization": c.headers})
		got, err := bearer.Token(ctx, 10)
		if got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%s: %q, %v, want %q", name, got, err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), "xxx") {
			t.Errorf("%s: the token is in %v", name, err)
		}
	}
	if _, err := bearer.Token(t.Context(), 10); err == nil {
		t.Error("a token of a call that is none")
	}
}
