package onehost

import "strings"

// PutYAML writes or replaces an object of any kind; doc is the whole of it.
func (m *Mesh) PutYAML(kind, namespace, name, doc string) error {
	return m.kube.write(m.kube.file(kind, namespace, name), []byte(strings.TrimSpace(doc)+"\n"))
}
