package workload

// rebuildNodes brings the lists of the nodes up to date.
func (e *viewEditor) rebuildNodes(rest func()) {
	e.onNode.each(func(node string, changes []change) {
		rest()
		old, _ := e.byNode.get(node)
		list := merged(old, changes, func(w *Workload) *Workload { return w }, func(w *Workload) *Workload { return w })
		if len(list) > 0 {
			e.byNode.set(node, list)
		} else {
			e.byNode.delete(node)
		}
	})
}
