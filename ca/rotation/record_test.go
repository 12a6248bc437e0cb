package rotation_test

import (
	"strings"
	"testing"
	"time"

	"github.com/warren-mesh/warren/ca/authority"
	"github.com/warren-mesh/warren/ca/rotation"
)

func TestRecords(t *testing.T) {
	f := newCA(t)
	r := rotation.Record{Phase: rotation.Prepared, Since: epoch, Other: f, For: "x"}
	text, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := rotation.Decode(text)
	if err != nil || got.Phase != r.Phase || !got.Since.Equal(epoch) || authority.CertID(got.Other.Cert) != authority.CertID(f.Cert) || string(got.Other.Key) != string(f.Key) {
		t.Errorf("%+v, %v", got, err)
	}
	for name, text := range map[string]string{
		"junk": "x", "a phase of tomorrow": strings.Replace(string(text), "prepared", "doubled", 1), "no certificate": `{"phase":"prepared","since":"2026-01-01T00:00:00Z","for":"x"}`,
		"no time": strings.Replace(string(text), `"since":"2026-01-01T00:00:00Z",`, "", 1), "cut off": string(text[:len(text)/2]),
	} {
		if _, err := rotation.Decode([]byte(text)); err == nil || strings.Contains(err.Error(), "LS0t") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	ca := newCA(f)
	text, err := rotation.Record{Phase: rotation.Activated, Since: epoch, Other: ca, For: authority.CertID(ca.Cert)}.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(`{"phase":"retired"}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := rotation.Decode(text)
		if err != nil {
			return
		}
		again, err := r.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := rotation.Decode(again); err != nil {
			t.Errorf("what was read cannot be read again: %v", err)
		}
		// Nothing that can be stored makes us fall.
		k := rotation.Kept{Files: ca, Name: "fuzz", Record: r}
		_, _ = (&rotation.Config{}).Look(k, nil, 0, epoch)
		_, _ = rotation.Activate(k, nil, 0, epoch.Add(time.Hour))
		_, _ = rotation.Retire(k, nil, epoch.Add(time.Hour))
	})
}
