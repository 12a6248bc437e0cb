package conflist

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// list is a network configuration and where its plugins are.
type list struct {
	data     []byte
	isList   bool // it has "plugins"
	first    int  // offset of the first key
	brace    int  // offset behind the opening brace
	copyOf   string
	marked   bool // it has copyKey
	name     string
	typ      string // of a single configuration
	version  string
	versions []string // "cniVersions": the runtime takes the highest that it knows
	open     int      // offset behind the plugins' bracket
	plugins  []plugin
}

// plugin is one element: data[start:end] is text, data[gap:start] the comma and
// space before it.
type plugin struct {
	gap, start, end int
	text            []byte
	typ             string
	ours            bool
}

func (l list) others() []plugin {
	var kept []plugin
	for _, p := range l.plugins {
		if !p.ours {
			kept = append(kept, p)
		}
	}
	return kept
}

// parse finds the plugins. Offsets come from the decoder, so that nothing else
// need be understood or written anew.
func parse(data []byte) (list, error) {
	l := list{data: data}
	if len(data) > maxSize {
		return l, fmt.Errorf("conflist: the file has more than %d bytes", maxSize)
	}
	if !json.Valid(data) {
		var v any
		return l, fmt.Errorf("conflist: %w", json.Unmarshal(data, &v))
	}
	d := json.NewDecoder(bytes.NewReader(data))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return l, errors.New("conflist: not a JSON object")
	}
	l.brace = int(d.InputOffset())
	l.first = l.brace + len(data[l.brace:]) - len(bytes.TrimLeft(data[l.brace:], " \t\r\n"))
	seen := map[string]bool{}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return l, fmt.Errorf("conflist: %w", err)
		}
		key, _ := t.(string)
		if ours := slices.Contains([]string{"plugins", "name", "type", "cniVersion", "cniVersions", copyKey}, key); ours && seen[key] {
			return l, fmt.Errorf("conflist: %q is there twice", key)
		}
		seen[key] = true
		if err := l.value(d, key); err != nil {
			return l, fmt.Errorf("conflist: %q: %w", key, err)
		}
	}
	return l, nil
}

// value reads one key's value.
func (l *list) value(d *json.Decoder, key string) error {
	switch key {
	case "plugins":
		l.isList = true
		return l.elements(d)
	case "name":
		return d.Decode(&l.name)
	case "type":
		return d.Decode(&l.typ)
	case "cniVersion":
		return d.Decode(&l.version)
	case "cniVersions":
		return d.Decode(&l.versions)
	case copyKey:
		l.marked = true
		return d.Decode(&l.copyOf)
	}
	var skip json.RawMessage
	return d.Decode(&skip)
}

func (l *list) elements(d *json.Decoder) error {
	if t, err := d.Token(); err != nil || t != json.Delim('[') {
		return errors.New("not a list")
	}
	l.open = int(d.InputOffset())
	for gap := l.open; d.More(); {
		var text json.RawMessage
		if err := d.Decode(&text); err != nil {
			return err
		}
		end := int(d.InputOffset())
		var keys map[string]json.RawMessage
		var typ string
		if err := json.Unmarshal(text, &keys); err != nil {
			return fmt.Errorf("plugin %d is not an object", len(l.plugins))
		}
		if err := json.Unmarshal(keys["type"], &typ); err != nil || typ == "" {
			return fmt.Errorf("plugin %d has no type", len(l.plugins))
		}
		l.plugins = append(l.plugins, plugin{gap: gap, start: end - len(text), end: end, text: text, typ: typ, ours: typ == Type})
		gap = end
	}
	_, err := d.Token()
	return err
}

// checkVersion refuses a list in which our plugin would fail for every pod.
func (l list) checkVersion() error {
	all := l.versions
	if l.version != "" {
		if !slices.Contains(Versions(), l.version) {
			return l.badVersion(l.version)
		}
		all = append(slices.Clone(all), l.version)
	}
	if len(all) == 0 {
		return errors.New(`conflist: there is no "cniVersion", which means 0.1.0; our plugin speaks ` + strings.Join(Versions(), ", "))
	}
	if highest := slices.MaxFunc(all, compareVersions); !slices.Contains(Versions(), highest) {
		return l.badVersion(highest)
	}
	return nil
}

func (l list) badVersion(v string) error {
	return fmt.Errorf("conflist: version %.32q is not one that our plugin speaks (%s)", v, strings.Join(Versions(), ", "))
}

func compareVersions(a, b string) int {
	return slices.Compare(numbers(a), numbers(b))
}

// numbers reads "1.0.0"; what is not a number sorts last, to be refused.
func numbers(v string) []int {
	var ns []int
	for part := range strings.SplitSeq(v, ".") {
		n, err := strconv.Atoi(part)
		if err != nil {
			n = 1 << 30
		}
		ns = append(ns, n)
	}
	return ns
}
