package conflist

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
)

// copyKey marks a list as a file of our own, and says whose copy it is. To
// runtimes it is one of the keys that they do not know.
const copyKey = "warrenCopyOf"

// Plugin is one plugin of a list.
type Plugin struct {
	Type string
	Text []byte // its configuration
}

// Plugins returns those of a list in its order, or the one that a single
// configuration is.
func Plugins(data []byte) ([]Plugin, error) {
	l, err := parse(data)
	if err != nil {
		return nil, err
	}
	if !l.isList {
		if l.typ == "" {
			return nil, errNoPlugins
		}
		return []Plugin{{l.typ, bytes.TrimSpace(data)}}, nil
	}
	all := make([]Plugin, 0, len(l.plugins))
	for _, p := range l.plugins {
		all = append(all, Plugin{p.typ, p.text})
	}
	return all, nil
}

// CopyOf returns the name of the file that data is our copy of; empty if it is
// not one of ours.
func CopyOf(data []byte) string {
	l, err := parse(data)
	if err != nil {
		return ""
	}
	return l.copyOf
}

// Copy returns the content of a file of our own: the plugins of another one,
// called of, except those that without refuses; then guests; then entry. A
// single configuration becomes a list.
func Copy(data []byte, of string, entry Entry, without func(Plugin) bool, guests ...Plugin) ([]byte, error) {
	ours, err := entry.JSON()
	if err != nil {
		return nil, err
	}
	l, err := parse(data)
	if err != nil {
		return nil, err
	}
	if !l.isList {
		if data, err = wrap(l, entry); err != nil {
			return nil, err
		}
		if l, err = parse(data); err != nil {
			return nil, err
		}
	}
	if err := l.checkVersion(); err != nil {
		return nil, err
	}
	var kept []plugin
	for _, p := range l.others() {
		if without == nil || !without(Plugin{p.typ, p.text}) {
			kept = append(kept, p)
		}
	}
	if len(kept) == 0 {
		return nil, errNobody
	}
	var more [][]byte
	for _, g := range guests {
		var compact bytes.Buffer
		if err := json.Compact(&compact, g.Text); err != nil {
			return nil, fmt.Errorf("conflist: plugin %.64q: %w", g.Type, err)
		}
		more = append(more, compact.Bytes())
	}
	l, err = parse(l.splice(l.array(kept, append(more, ours)...)))
	if err != nil {
		return nil, err
	}
	return l.mark(of)
}

// mark puts copyKey first, laid out like the key that was.
func (l list) mark(of string) ([]byte, error) {
	if l.marked {
		return nil, errors.New("conflist: it is a copy of ours already")
	}
	name, err := marshal(of)
	if err != nil {
		return nil, err
	}
	out := bytes.Clone(l.data[:l.first])
	out = fmt.Appendf(out, "%q: %s,", copyKey, name)
	if l.first == l.brace {
		out = append(out, ' ')
	}
	out = append(out, l.data[l.brace:l.first]...)
	return append(out, l.data[l.first:]...), nil
}
