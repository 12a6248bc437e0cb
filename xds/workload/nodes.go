package workload

import (
	"maps"
	"slices"
	"strings"
)

// nodeChanges are the changes of one node's workloads within a batch, by UID; nil takes
// one away.
type nodeChanges map[string]*Workload

// onNode notes that a workload has come to its node, or left it.
func (e *viewEditor) onNode(uid string, node string, w *Workload) {
	if node == "" {
		return // nobody asks for those
	}
	c := e.nodeChanges[node]
	if c == nil {
		c = nodeChanges{}
		e.nodeChanges[node] = c
	}
	c[uid] = w
}

// rebuildNodes brings the lists of the nodes up to date, each once.
func (e *viewEditor) rebuildNodes(rest func()) {
	for node, c := range e.nodeChanges {
		rest()
		old, _ := e.byNode.get(node)
		list := make([]*Workload, 0, len(old)+len(c))
		for _, uid := range slices.Sorted(maps.Keys(c)) {
			i, found := slices.BinarySearchFunc(old, uid, func(w *Workload, uid string) int { return strings.Compare(w.UID, uid) })
			list = append(list, old[:i]...)
			if found {
				i++
			}
			old = old[i:]
			if w := c[uid]; w != nil {
				list = append(list, w)
			}
		}
		if list = append(list, old...); len(list) > 0 {
			e.byNode.set(node, list)
		} else {
			e.byNode.delete(node)
		}
	}
}
