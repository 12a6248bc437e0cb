package file

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	node "go.yaml.in/yaml/v3"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

// maxExpanded bounds what the documents of a file are together, once every alias stands
// for a copy of its anchor: 80 KB of YAML can be 400 MB of JSON.
const maxExpanded = 2 * maxFileBytes

// yamlDocuments returns the JSON of one document after the other, then io.EOF.
func yamlDocuments(data []byte) func() (json.RawMessage, error) {
	r := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(data)))
	room := maxExpanded
	return func() (json.RawMessage, error) {
		doc, err := r.Read()
		if err != nil {
			return nil, err
		}
		size, err := inspect(doc)
		if err != nil {
			return nil, err
		}
		if room -= size; room < 0 {
			return nil, fmt.Errorf("with every alias written out, more than %d MiB", maxExpanded>>20)
		}
		return yaml.YAMLToJSONStrict(doc)
	}
}

// inspect finds out how large a document is with its aliases expanded, and refuses what the
// conversion to JSON would pass over without a word: everything after the end of the first
// document. The reader splits at "---" on a line of its own only, and YAML ends documents
// with "..." as well, and lines with more than \n.
func inspect(doc []byte) (size int, err error) {
	marks := bytes.Contains(doc, []byte("...")) || bytes.Contains(doc, []byte("---"))
	aliases := bytes.IndexByte(doc, '*') >= 0 && bytes.IndexByte(doc, '&') >= 0
	if !marks && !aliases {
		return len(doc), nil // most: they are parsed once
	}
	r := node.NewDecoder(bytes.NewReader(doc))
	var first, second node.Node
	if err := r.Decode(&first); err != nil {
		if errors.Is(err, io.EOF) {
			return len(doc), nil // nothing but comments
		}
		return 0, err
	}
	switch err := r.Decode(&second); {
	case err == nil:
		return 0, errors.New("another document follows that does not begin with a line \"---\"")
	case !errors.Is(err, io.EOF):
		return 0, err
	}
	return expanded(&first, make(map[*node.Node]int)), nil
}

// expanded is the size of a node with its aliases written out; no more than a little above
// maxExpanded is counted. Anchors that were counted are in known.
func expanded(n *node.Node, known map[*node.Node]int) int {
	if n.Kind == node.AliasNode {
		if size, ok := known[n.Alias]; ok {
			return size
		}
		return maxExpanded + 1 // inside its own anchor: it has no end
	}
	size := len(n.Value) + 4 // quotes, a comma, a colon
	for _, c := range n.Content {
		if size += expanded(c, known); size > maxExpanded {
			size = maxExpanded + 1
			break
		}
	}
	if n.Anchor != "" {
		known[n] = size
	}
	return size
}
