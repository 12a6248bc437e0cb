package nodeagent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// ownerFile says in the state folder whose it is.
const ownerFile = "node.json"

// maxOwner bounds what is read of it.
const maxOwner = 4 << 10

// owner is the node whose agent has a state folder.
type owner struct {
	Node string `json:"node"`
	Boot string `json:"bootID,omitempty"`
}

// claimState makes a state folder this node's. Two agents that share one, as nodes that
// are containers of one machine easily do, would each forget the pods of the other, so
// another node's is refused. What another node left before the machine was started for
// the last time, because it was renamed or its disk copied, speaks of nothing that is
// there, and is taken over.
func claimState(dir, node, boot string) error {
	path := filepath.Join(dir, ownerFile)
	for range 3 { // others may change it meanwhile
		there, err := readOwner(path)
		switch {
		case err != nil:
			return fmt.Errorf("nodeagent: whose state this is: %w", err)
		case there.Node == node && there.Boot == boot:
			return nil
		case there.Node != "" && there.Node != node && (boot == "" || there.Boot == "" || there.Boot == boot):
			return fmt.Errorf("nodeagent: --state-dir %s is that of node %q, and this is node %q: give every node's agent a folder of its own; if the node was renamed, remove %s", dir, there.Node, node, path)
		}
		err = writeOwner(path, owner{node, boot}, there.Node != "")
		if err == nil || !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return fmt.Errorf("nodeagent: %s: others write it again and again", path)
}

// readOwner returns the zero owner for no file, and for one that says nothing.
func readOwner(path string) (o owner, err error) {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return owner{}, nil
	}
	if err != nil {
		return owner{}, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxOwner {
		return owner{}, fmt.Errorf("%s is not a small file: remove it", path)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return owner{}, err
	}
	if json.Unmarshal(text, &o) != nil || o.Node == "" {
		// A crash of the machine while it was written: nothing of before is there.
		return owner{}, os.Remove(path)
	}
	return o, nil
}

// writeOwner puts a file in place as a whole. Unless there is one to replace, one that
// came meanwhile is fs.ErrExist.
func writeOwner(path string, o owner, replace bool) error {
	text, err := json.Marshal(o)
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+ownerFile+".*")
	if err != nil {
		return fmt.Errorf("nodeagent: %w", err)
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(append(text, '\n'))
	if err = errors.Join(err, tmp.Close()); err != nil {
		return fmt.Errorf("nodeagent: %w", err)
	}
	if replace {
		err = os.Rename(tmp.Name(), path)
	} else {
		err = os.Link(tmp.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("nodeagent: %w", err)
	}
	return nil
}
