package conflist

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/google/go-cmp/cmp"
)

var entry = Entry{RunDir: "/run/warren", WithoutAgent: "refuse"}

const ours = `{"type":"warren-cni","runDir":"/run/warren","withoutAgent":"refuse"}`

func TestAddRemove(t *testing.T) {
	for _, tc := range []struct{ name, in, added, removed string }{
		{
			name:    "one line",
			in:      `{"cniVersion":"1.1.0","name":"n","plugins":[{"type":"bridge"}]}`,
			added:   `{"cniVersion":"1.1.0","name":"n","plugins":[{"type":"bridge"},` + ours + `]}`,
			removed: `{"cniVersion":"1.1.0","name":"n","plugins":[{"type":"bridge"}]}`,
		},
		{
			name: "indented, with unknown keys, odd order and numbers that floats cannot hold",
			in: `{
  "plugins": [
    {"type": "bridge", "big": 12345678901234567890, "x": 1.50},
    {
      "type": "portmap"
    }
  ],
  "zzz": {"b": 1, "a": 2},
  "name": "n",
  "cniVersion": "0.3.1"
}
`,
			added: `{
  "plugins": [
    {"type": "bridge", "big": 12345678901234567890, "x": 1.50},
    {
      "type": "portmap"
    },
    {
      "type": "warren-cni",
      "runDir": "/run/warren",
      "withoutAgent": "refuse"
    }
  ],
  "zzz": {"b": 1, "a": 2},
  "name": "n",
  "cniVersion": "0.3.1"
}
`,
			removed: `{
  "plugins": [
    {"type": "bridge", "big": 12345678901234567890, "x": 1.50},
    {
      "type": "portmap"
    }
  ],
  "zzz": {"b": 1, "a": 2},
  "name": "n",
  "cniVersion": "0.3.1"
}
`,
		},
		{
			name:    "ours is there, older, twice and not last",
			in:      `{"cniVersion":"1.0.0","name":"n","plugins":[ {"type":"warren-cni","old":1} , {"type":"a"},{"type":"warren-cni"}, {"type":"b"} ]}`,
			added:   `{"cniVersion":"1.0.0","name":"n","plugins":[ {"type":"a"}, {"type":"b"}, ` + ours + ` ]}`,
			removed: `{"cniVersion":"1.0.0","name":"n","plugins":[ {"type":"a"}, {"type":"b"} ]}`,
		},
		{
			name:  "tabs",
			in:    "{\"cniVersion\":\"0.4.0\",\"name\":\"n\",\"plugins\":[\n\t{\"type\":\"a\"}\n]}",
			added: "{\"cniVersion\":\"0.4.0\",\"name\":\"n\",\"plugins\":[\n\t{\"type\":\"a\"},\n\t{\n\t\t\"type\": \"warren-cni\",\n\t\t\"runDir\": \"/run/warren\",\n\t\t\"withoutAgent\": \"refuse\"\n\t}\n]}",
		},
		{
			name:  "several versions",
			in:    `{"cniVersions":["0.4.0","1.1.0"],"name":"n","plugins":[{"type":"a"}]}`,
			added: `{"cniVersions":["0.4.0","1.1.0"],"name":"n","plugins":[{"type":"a"},` + ours + `]}`,
		},
		{
			name: "a single configuration",
			in:   `{"type":"bridge","name":"n","cniVersion":"0.4.0","ipam":{"b":1,"a":12345678901234567890}}`,
			added: `{
  "cniVersion": "0.4.0",
  "name": "n",
  "plugins": [
    {
      "type": "bridge",
      "name": "n",
      "cniVersion": "0.4.0",
      "ipam": {
        "b": 1,
        "a": 12345678901234567890
      }
    },
    {
      "type": "warren-cni",
      "runDir": "/run/warren",
      "withoutAgent": "refuse"
    }
  ]
}
`,
		},
		{
			name: "a single configuration without name and version",
			in:   `{"type":"bridge"}`,
			added: `{
  "cniVersion": "0.3.1",
  "name": "k8s-pod-network",
  "plugins": [
    {
      "type": "bridge"
    },
    {
      "type": "warren-cni",
      "runDir": "/run/warren",
      "withoutAgent": "refuse"
    }
  ]
}
`,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			added, err := Add([]byte(tc.in), entry)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.added, string(added)); diff != "" {
				t.Errorf("added (-want +got):\n%s", diff)
			}
			again, err := Add(added, entry)
			if err != nil || !bytes.Equal(again, added) {
				t.Errorf("adding twice: %v\n%s", err, again)
			}
			list, err := libcni.ConfListFromBytes(added)
			if err != nil {
				t.Fatal(err)
			}
			if last := list.Plugins[len(list.Plugins)-1]; last.Network.Type != Type {
				t.Errorf("the last plugin is %s", last.Network.Type)
			}
			removed, err := Remove(added)
			if err != nil {
				t.Fatal(err)
			}
			if tc.removed != "" {
				if diff := cmp.Diff(tc.removed, string(removed)); diff != "" {
					t.Errorf("removed (-want +got):\n%s", diff)
				}
			}
			if has, err := Has(removed); has || err != nil {
				t.Errorf("still there: %v, %v", has, err)
			}
			if again, err := Remove(removed); err != nil || !bytes.Equal(again, removed) {
				t.Errorf("removing twice: %v\n%s", err, again)
			}
		})
	}
}

// What is in the list changes when the entry does.
func TestAddReplaces(t *testing.T) {
	first, err := Add([]byte(`{"cniVersion":"1.1.0","name":"n","plugins":[{"type":"a"}]}`), entry)
	if err != nil {
		t.Fatal(err)
	}
	second, err := Add(first, Entry{RunDir: "/other"})
	if err != nil {
		t.Fatal(err)
	}
	want := `{"cniVersion":"1.1.0","name":"n","plugins":[{"type":"a"},{"type":"warren-cni","runDir":"/other"}]}`
	if string(second) != want {
		t.Errorf("got  %s\nwant %s", second, want)
	}
}

func TestRefused(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		{``, "unexpected end"},
		{`{`, "unexpected end"},
		{`[]`, "not a JSON object"},
		{`{} {}`, "after top-level value"},
		{`{"name":"n"}`, `neither "plugins" nor "type"`},
		{`{"type":"warren-cni"}`, "only ours"},
		{`{"cniVersion":"1.1.0","plugins":[]}`, "no plugin in the list"},
		{`{"cniVersion":"1.1.0","plugins":[{"type":"warren-cni"}]}`, "no plugin in the list"},
		{`{"cniVersion":"1.1.0","plugins":{}}`, "not a list"},
		{`{"cniVersion":"1.1.0","plugins":[1]}`, "plugin 0 is not an object"},
		{`{"cniVersion":"1.1.0","plugins":[null]}`, "plugin 0 has no type"},
		{`{"cniVersion":"1.1.0","plugins":[{"type":"a"},{}]}`, "plugin 1 has no type"},
		{`{"cniVersion":"1.1.0","plugins":[{"type":"a"}],"plugins":[]}`, "twice"},
		{`{"plugins":[{"type":"a"}]}`, "means 0.1.0"},
		{`{"cniVersion":"0.2.0","plugins":[{"type":"a"}]}`, `version "0.2.0"`},
		{`{"cniVersion":"1.2.0","plugins":[{"type":"a"}]}`, `version "1.2.0"`},
		{`{"cniVersion":"1.0.0","cniVersions":["1.0.0","9.0.0"],"plugins":[{"type":"a"}]}`, `version "9.0.0"`},
		{`{"cniVersion":1,"plugins":[{"type":"a"}]}`, `"cniVersion"`},
		{strings.Repeat(" ", maxSize+1), "more than"},
	} {
		if _, err := Add([]byte(tc.in), entry); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%.60s: error %v, want one with %q", tc.in, err, tc.want)
		}
	}
	if _, err := Remove([]byte(`{"plugins":[{"type":"warren-cni"}]}`)); !errors.Is(err, ErrEmpty) {
		t.Errorf("error %v, want %v", err, ErrEmpty)
	}
}

// Removing must work whatever the version: it is the way out.
func TestRemoveAnyVersion(t *testing.T) {
	got, err := Remove([]byte(`{"cniVersion":"9.9.9","plugins":[{"type":"a"},{"type":"warren-cni"}]}`))
	if err != nil || string(got) != `{"cniVersion":"9.9.9","plugins":[{"type":"a"}]}` {
		t.Errorf("%s, %v", got, err)
	}
}

func FuzzConflist(f *testing.F) {
	for _, s := range []string{
		`{"cniVersion":"1.1.0","name":"n","plugins":[{"type":"bridge"}]}`,
		`{"cniVersion":"1.1.0","name":"n","plugins":[ {"type":"warren-cni"},{"type":"bridge"} , {"type":"warren-cni","a":[1,{}]} ]}`,
		"{\"plugins\":[\n\t{\"type\":\"a\",\"big\":12345678901234567890}\n],\"x\":[],\"cniVersion\":\"0.3.1\"}",
		`{"type":"bridge","name":"n"}`, `{"plugins":[]}`, `[]`, `{"cniVersions":["1.0.0","x"],"plugins":[{"type":"a"}]}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		before := bytes.Clone(data)
		added, err := Add(data, entry)
		if !bytes.Equal(before, data) {
			t.Fatal("the input was changed")
		}
		if err != nil {
			return
		}
		if again, err := Add(added, entry); err != nil || !bytes.Equal(again, added) {
			t.Fatalf("adding twice: %v\n%s\n%s", err, added, again)
		}
		removed, err := Remove(added)
		if err != nil {
			t.Fatal(err)
		}
		if has, err := Has(removed); has || err != nil {
			t.Fatalf("still there: %v, %v", has, err)
		}
		wantRest, wantPlugins := foreign(t, data)
		rest, plugins := foreign(t, removed)
		if wantPlugins == nil { // a single configuration, which became the only plugin
			wantPlugins, wantRest = []any{wantRest}, rest
		}
		if diff := cmp.Diff([]any{wantRest, wantPlugins}, []any{rest, plugins}); diff != "" {
			t.Fatalf("others' fields changed (-want +got):\n%s", diff)
		}
	})
}

// foreign is everything in a list but our plugin, as values with exact numbers.
func foreign(t *testing.T, data []byte) (rest map[string]any, plugins []any) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	if err := d.Decode(&rest); err != nil {
		t.Fatal(err)
	}
	all, _ := rest["plugins"].([]any)
	for _, p := range all {
		if p.(map[string]any)["type"] != Type {
			plugins = append(plugins, p)
		}
	}
	delete(rest, "plugins")
	return rest, plugins
}
