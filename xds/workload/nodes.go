package workload

// rebuildNodes brings the lists of the nodes up to date.
func (e *viewEditor) rebuildNodes(rest func()) {
	rebuild(&e.byNode, &e.onNode, rest, func(_ string, old []*Workload, changes []change[*Workload]) ([]*Workload, bool) {
		list := relisted(old, changes, compareWorkloads)
		return list, len(list) > 0
	})
}
