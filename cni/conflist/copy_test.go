package conflist

import (
	"bytes"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/google/go-cmp/cmp"
)

func TestCopy(t *testing.T) {
	for _, tc := range []struct {
		name, in string
		guests   []Plugin
		without  string
		want     string
	}{
		{
			name: "a list",
			in:   "{\n  \"name\": \"n\",\n  \"cniVersion\": \"1.0.0\",\n  \"plugins\": [\n    {\"type\": \"a\", \"big\": 12345678901234567890}\n  ]\n}\n",
			want: "{\n  \"warrenCopyOf\": \"10-x.conf\",\n  \"name\": \"n\",\n  \"cniVersion\": \"1.0.0\",\n  \"plugins\": [\n    {\"type\": \"a\", \"big\": 12345678901234567890},\n    {\n      \"type\": \"warren-cni\",\n      \"runDir\": \"/run/warren\",\n      \"withoutAgent\": \"refuse\"\n    }\n  ]\n}\n",
		},
		{
			name: "in one line, with our entry in it already",
			in:   `{"name":"n","cniVersion":"1.0.0","plugins":[{"type":"a"},{"type":"warren-cni"}]}`,
			want: `{"warrenCopyOf": "10-x.conf", "name":"n","cniVersion":"1.0.0","plugins":[{"type":"a"},` + ours + `]}`,
		},
		{
			name:    "with guests and without one",
			in:      `{"name":"n","cniVersion":"1.0.0","plugins":[{"type":"gone"},{"type":"a"},{"type":"b"}]}`,
			guests:  []Plugin{{"istio-cni", []byte(`{ "type": "istio-cni" }`)}},
			without: "gone",
			want:    `{"warrenCopyOf": "10-x.conf", "name":"n","cniVersion":"1.0.0","plugins":[{"type":"a"},{"type":"b"},{"type":"istio-cni"},` + ours + `]}`,
		},
		{
			name: "a single configuration",
			in:   `{"type":"bridge","name":"n","cniVersion":"0.4.0"}`,
			want: "{\n  \"warrenCopyOf\": \"10-x.conf\",\n  \"cniVersion\": \"0.4.0\",\n  \"name\": \"n\",\n  \"plugins\": [\n    {\n      \"type\": \"bridge\",\n      \"name\": \"n\",\n      \"cniVersion\": \"0.4.0\"\n    },\n    {\n      \"type\": \"warren-cni\",\n      \"runDir\": \"/run/warren\",\n      \"withoutAgent\": \"refuse\"\n    }\n  ]\n}\n",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := Copy([]byte(tc.in), "10-x.conf", entry, func(p Plugin) bool { return p.Type == tc.without }, tc.guests...)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, string(got)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if of := CopyOf(got); of != "10-x.conf" {
				t.Errorf("it is a copy of %q", of)
			}
			if _, err := libcni.ConfListFromBytes(got); err != nil {
				t.Error(err)
			}
			if _, err := Copy(got, "10-x.conf", entry, nil); err == nil {
				t.Error("a copy was copied")
			}
		})
	}
	for _, bad := range []string{``, `{}`, `[]`, `{"type":"warren-cni"}`, `{"cniVersion":"0.2.0","plugins":[{"type":"a"}]}`, `{"cniVersion":"1.0.0","plugins":[{"type":"warren-cni"}]}`} {
		if _, err := Copy([]byte(bad), "x.conf", entry, nil); err == nil {
			t.Errorf("%s was copied", bad)
		}
		if CopyOf([]byte(bad)) != "" {
			t.Errorf("%s is a copy", bad)
		}
	}
}

func TestPlugins(t *testing.T) {
	for in, want := range map[string]string{
		`{"plugins":[{"type":"a"},{"type":"warren-cni"}]}`: "a warren-cni",
		`{"type":"a"}`:       "a",
		`{"plugins":[]}`:     "",
		`{"name":"n"}`:       "error",
		`{"plugins":[{}]}`:   "error",
		`{"warrenCopyOf":1}`: "error",
	} {
		all, err := Plugins([]byte(in))
		var types []string
		for _, p := range all {
			types = append(types, p.Type)
		}
		got := strings.Join(types, " ")
		if err != nil {
			got = "error"
		}
		if got != want {
			t.Errorf("%s: %s, %v; want %s", in, got, err, want)
		}
	}
}

// Where our entry is does not matter as long as something is before it.
func TestAddKeepsPlace(t *testing.T) {
	first := `{"cniVersion":"1.1.0","plugins":[` + ours + `,{"type":"a"}]}`
	between := `{"cniVersion":"1.1.0","plugins":[{"type":"a"},` + ours + `,{"type":"istio-cni"}]}`
	if got, err := Add([]byte(between), entry); err != nil || string(got) != between {
		t.Errorf("%v\n%s", err, got)
	}
	want := `{"cniVersion":"1.1.0","plugins":[{"type":"a"},` + ours + `]}`
	if got, err := Add([]byte(first), entry); err != nil || string(got) != want {
		t.Errorf("%v\n%s", err, got)
	}
}

func TestEntryValidate(t *testing.T) {
	good := []Entry{{}, entry, {RunDir: "/r", StateDir: "/s/", LogFile: "/l", LogLevel: "warn", WithoutAgent: "allow", Namespace: "a-1"}}
	for _, e := range good {
		if err := e.Validate(); err != nil {
			t.Errorf("%+v: %v", e, err)
		}
	}
	bad := Entry{RunDir: "r", StateDir: "/a/../b", LogFile: "/\n", LogLevel: "INFO", WithoutAgent: "no", Namespace: strings.Repeat("a", 64)}
	err := bad.Validate()
	for _, key := range []string{"runDir", "stateDir", "logFile", "logLevel", "withoutAgent", "namespace"} {
		if err == nil || !strings.Contains(err.Error(), key) {
			t.Errorf("%v does not name %s", err, key)
		}
	}
}

func FuzzCopy(f *testing.F) {
	for _, s := range []string{
		`{"cniVersion":"1.1.0","name":"n","plugins":[{"type":"bridge"}]}`, ` {"plugins":[ {"type":"warren-cni"},{"type":"b"}],"cniVersion":"0.3.1" }`,
		`{"type":"bridge","name":"n"}`, "{\n\t\"cniVersion\":\"1.0.0\",\"plugins\":[{\"type\":\"a\"},{\"type\":\"istio-cni\"}]}", `{"warrenCopyOf":"","type":"a"}`,
	} {
		f.Add([]byte(s))
	}
	guest := Plugin{"istio-cni", []byte(`{"type":"istio-cni","x":1}`)}
	f.Fuzz(func(t *testing.T, data []byte) {
		before := bytes.Clone(data)
		got, err := Copy(data, "10-x.conf", entry, nil, guest)
		if !bytes.Equal(before, data) {
			t.Fatal("the input was changed")
		}
		if err != nil {
			return
		}
		if CopyOf(got) != "10-x.conf" {
			t.Fatalf("not marked:\n%s", got)
		}
		wantRest, wantPlugins := foreign(t, data)
		rest, plugins := foreign(t, got)
		delete(rest, copyKey)
		if wantPlugins == nil {
			wantPlugins, wantRest = []any{wantRest}, rest
		}
		wantPlugins = append(wantPlugins, map[string]any{"type": "istio-cni", "x": plugins[len(plugins)-1].(map[string]any)["x"]})
		if diff := cmp.Diff([]any{wantRest, wantPlugins}, []any{rest, plugins}); diff != "" {
			t.Fatalf("others' fields changed (-want +got):\n%s", diff)
		}
	})
}
