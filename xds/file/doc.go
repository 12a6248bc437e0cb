// Package file feeds translate.Objects from a folder of Kubernetes YAML, which
// stands in for an API server: the node agent and the control plane read the
// same folder and so the same world.
//
// Kind: adapter. Readers: nodeagent (standalone) and xds/controlplane (file mode).
//
// Every *.yaml, *.yml and *.json directly in the folder is read, with one or more
// documents a file and lists (kind List, PodList, …) taken apart. Names that begin
// with a dot are skipped, which leaves out editors' temporary files and the
// ..data folder of a mounted ConfigMap; symbolic links are followed. The folder is
// watched, and looked at anyway every few seconds for what a watch cannot see.
//
// A file is taken whole or not at all. One that cannot be read is reported by name
// and reason, and what it held when it was last good stays.
package file
