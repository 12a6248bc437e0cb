package conflist

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// maxSize bounds a file; real ones have a few KiB.
const maxSize = 1 << 20

// What a single configuration without them gets as a list.
const (
	defaultName    = "k8s-pod-network"
	defaultVersion = "0.3.1"
)

// ErrEmpty is returned by Remove when nothing would be left: the file is to be
// removed instead.
var ErrEmpty = errors.New("no other plugin is left in the list")

var (
	errNobody    = errors.New("conflist: there is no plugin in the list to chain behind")
	errNoPlugins = errors.New(`conflist: neither "plugins" nor "type" is there: not a network configuration whose plugins are in this file`)
)

// Add returns the list with entry as its last plugin, in place of every other
// of our type. An entry that is there already, once and behind another plugin,
// stays where it is: another mesh that also wants to be the last would put
// itself behind us again for ever. A single configuration (.conf) becomes a
// list, whose file must be called .conflist. The error says what in data is in
// the way; data is never changed.
func Add(data []byte, entry Entry) ([]byte, error) {
	l, err := parse(data)
	if err != nil {
		return nil, err
	}
	if !l.isList {
		return wrap(l, entry)
	}
	if err := l.checkVersion(); err != nil {
		return nil, err
	}
	others := l.others()
	if len(others) == 0 {
		return nil, errNobody
	}
	compact, err := entry.JSON()
	if err != nil {
		return nil, err
	}
	if l.inPlace(compact) {
		return data, nil
	}
	return l.splice(l.array(others, compact)), nil
}

// Remove returns the list without plugins of our type. One without any, and a
// single configuration, is returned as it is.
func Remove(data []byte) ([]byte, error) {
	l, err := parse(data)
	if err != nil {
		return nil, err
	}
	others := l.others()
	switch {
	case !l.isList, len(others) == len(l.plugins):
		return data, nil
	case len(others) == 0:
		return nil, ErrEmpty
	}
	return l.splice(l.array(others)), nil
}

// Has says whether our plugin is in the list.
func Has(data []byte) (bool, error) {
	l, err := parse(data)
	return err == nil && len(l.others()) < len(l.plugins), err
}

// inPlace says whether our entry is there, once and not as the first.
func (l list) inPlace(compact []byte) bool {
	i := slices.IndexFunc(l.plugins, func(p plugin) bool { return p.ours })
	return i > 0 && len(l.others()) == len(l.plugins)-1 && same(l.plugins[i].text, compact)
}

// wrap makes a list of a single configuration.
func wrap(l list, entry Entry) ([]byte, error) {
	if l.typ == "" {
		return nil, errNoPlugins
	}
	if l.typ == Type {
		return nil, errors.New("conflist: there is no plugin to chain behind, only ours")
	}
	if l.version == "" {
		l.version = defaultVersion
	}
	if err := l.checkVersion(); err != nil {
		return nil, err
	}
	if l.name == "" {
		l.name = defaultName
	}
	ours, err := entry.JSON()
	if err != nil {
		return nil, err
	}
	head, err := marshal(struct {
		CNIVersion string `json:"cniVersion"`
		Name       string `json:"name"`
	}{l.version, l.name})
	if err != nil {
		return nil, err
	}
	var list, out bytes.Buffer
	list.Write(bytes.TrimSuffix(head, []byte("}")))
	list.WriteString(`,"plugins":[`)
	list.Write(bytes.TrimSpace(l.data))
	list.WriteString(",")
	list.Write(ours)
	list.WriteString("]}")
	if err := json.Indent(&out, list.Bytes(), "", "  "); err != nil {
		return nil, fmt.Errorf("conflist: %w", err)
	}
	out.WriteByte('\n')
	return out.Bytes(), nil
}

// array is the text between the brackets, up to the last plugin: those kept,
// each with the text that was before it, the first with the array's first; and
// new ones behind them, laid out alike.
func (l list) array(kept []plugin, more ...[]byte) []byte {
	lead := l.data[l.open:l.plugins[0].start]
	text := bytes.Clone(lead)
	for i, p := range kept {
		if i > 0 {
			text = append(text, l.data[p.gap:p.start]...)
		}
		text = append(text, p.text...)
	}
	for _, m := range more {
		text = append(text, l.separator(lead)...)
		text = append(text, layOut(m, lead)...)
	}
	return text
}

// separator is what goes between the last plugin and a new one: what was before
// the last of several, or, behind a single one, a comma and what was before it.
func (l list) separator(lead []byte) []byte {
	if n := len(l.plugins); n > 1 {
		last := l.plugins[n-1]
		return l.data[last.gap:last.start]
	}
	return append([]byte(","), lead...)
}

// splice puts a new array's text in the place of the old one's.
func (l list) splice(array []byte) []byte {
	end := l.plugins[len(l.plugins)-1].end
	out := make([]byte, 0, len(l.data)+len(array))
	out = append(out, l.data[:l.open]...)
	out = append(out, array...)
	return append(out, l.data[end:]...)
}

// layOut indents a plugin like those beside it, whose first is preceded by lead.
func layOut(compact, lead []byte) []byte {
	i := bytes.LastIndexByte(lead, '\n')
	if i < 0 {
		return compact
	}
	prefix, unit := string(lead[i+1:]), "  "
	if strings.HasPrefix(prefix, "\t") {
		unit = "\t"
	}
	var out bytes.Buffer
	if err := json.Indent(&out, compact, prefix, unit); err != nil {
		return compact // cannot be: we marshalled it
	}
	return out.Bytes()
}

// same compares two JSON texts but for the space between tokens.
func same(a, b []byte) bool {
	var ca, cb bytes.Buffer
	return json.Compact(&ca, a) == nil && json.Compact(&cb, b) == nil && bytes.Equal(ca.Bytes(), cb.Bytes())
}
