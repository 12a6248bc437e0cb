package archtest

import (
	"fmt"
	"path"
	"strings"
)

// kind is a layer. Imports point down: to a smaller kind, or to an equal one
// where that is said below.
type kind int

const (
	unknown kind = iota
	bottom       // internal/netns, internal/dirwatch, internal/hostdir, internal/nswatch
	contract
	pure
	core
	adapter
	root
	program // package main
	support // of tests; imported by tests only
)

func (k kind) String() string {
	return [...]string{"unknown", "bottom", "contract", "pure", "core", "adapter", "root", "main", "test"}[k]
}

// kinds is the layout of DESIGN.md. A pattern is a folder; "*" stands for one
// element of it.
func kinds() map[string]kind {
	return map[string]kind{
		"internal/netns":    bottom,
		"internal/dirwatch": bottom,
		"internal/hostdir":  bottom,
		"internal/nstest":   support,
		"internal/archtest": support,
		"internal/capture":  support,
		"internal/nswatch":  bottom,
		"internal/podproc":  bottom,
		"internal/nodump":   bottom,
		"internal/owner":    bottom,

		"cni":          root,
		"cni/event":    contract,
		"cni/conflist": pure,
		"cni/redirect": pure,

		"nodeagent":          root,
		"nodeagent/enroll":   core,
		"nodeagent/podwatch": adapter,
		"nodeagent/podns":    adapter,
		"nodeagent/probe":    adapter,
		"nodeagent/zds":      contract,
		"nodeagent/install":  adapter,

		"proxy":              root,
		"proxy/route":        pure,
		"proxy/rbac":         pure,
		"proxy/hbone":        adapter,
		"proxy/hbone/h2":     pure,
		"proxy/hbone/record": pure,
		"proxy/relay":        adapter,
		"proxy/ready":        adapter,
		"proxy/track":        pure,
		"proxy/sockopt":      adapter,
		"proxy/dns":          adapter,
		"proxy/socks5":       adapter,
		"proxy/admin":        adapter,
		"proxy/resolve":      adapter,
		"proxy/proxyproto":   pure,

		"xds/workload":     pure,
		"xds/client":       adapter,
		"xds/server":       adapter,
		"xds/translate":    pure,
		"xds/kube":         adapter,
		"xds/file":         adapter,
		"xds/controlplane": root,

		"ca/svid":      core,
		"ca/source/*":  adapter,
		"ca/authority": pure,
		"ca/bearer":    pure,
		"ca/rotation":  core,
		"ca/server":    adapter,
		"ca/kubeauth":  adapter,
		"ca/mtls":      pure,
		"ca/fakeagent": support,

		"manifests": support,
	}
}

func kindOf(dir string) kind {
	for pattern, k := range kinds() {
		if ok, _ := path.Match(pattern, dir); ok {
			return k
		}
	}
	if dir == "e2e" || strings.HasPrefix(dir, "e2e/") || strings.HasPrefix(dir, "manifests/") {
		return support
	}
	if ok, _ := path.Match("*/cmd/*", dir); ok {
		return program
	}
	return unknown
}

// sideways lists the imports between adapters.
func sideways() map[string][]string {
	return map[string][]string{
		"proxy/hbone": {"proxy/ready"},
		"proxy/relay": {"proxy/ready"},
	}
}

// across lists what a part, or one package of it, may import of other parts.
func across() map[string][]string {
	return map[string][]string{
		"nodeagent":        {"cni/event", "cni/conflist", "cni/redirect", "xds/translate", "xds/kube", "xds/file"},
		"proxy":            {"nodeagent/zds", "xds/workload", "xds/client", "ca/svid", "ca/source/*", "ca/mtls"},
		"xds/controlplane": {"ca/authority", "ca/rotation", "ca/server", "ca/kubeauth", "ca/mtls"},
	}
}

func part(dir string) string {
	first, _, _ := strings.Cut(dir, "/")
	return first
}

// checkImports holds the packages to the import matrix. Tests may import
// anything.
func checkImports(t *tree) (wrong []string) {
	strangers := map[string]bool{}
	for _, s := range t.sources {
		from := s.dir()
		if kindOf(from) == unknown && !strangers[from] {
			strangers[from] = true
			wrong = append(wrong, from+": not in the layout; add it to DESIGN.md's table and to this one")
		}
		if s.test || kindOf(from) == support || kindOf(from) == unknown {
			continue
		}
		paths, at := s.imports()
		for i, p := range paths {
			if name := s.file.Imports[i].Name; name != nil && name.Name == "." {
				wrong = append(wrong, fmt.Sprintf("%s: a dot import of %s hides whose the names are", s.at(at[i]), p))
			}
			to, ours := strings.CutPrefix(p, module+"/")
			if !ours {
				continue
			}
			if why := mayNotImport(from, to); why != "" {
				wrong = append(wrong, fmt.Sprintf("%s: %s may not import %s: %s", s.at(at[i]), from, to, why))
			}
		}
	}
	return wrong
}

// mayNotImport returns the reason, or "".
func mayNotImport(from, to string) string {
	f, k := kindOf(from), kindOf(to)
	switch {
	case k == support:
		return "it is for tests"
	case k == unknown:
		return "it is not in the layout"
	case k == bottom:
		return ""
	case k == program:
		return "it is a program"
	case part(from) != part(to) && !matches(across()[part(from)], to) && !matches(across()[from], to):
		return "it belongs to another part"
	case k > f:
		return fmt.Sprintf("imports point down, and it is %s above %s", k, f)
	case k == f && (k == adapter || k == root) && !matches(sideways()[from], to):
		return fmt.Sprintf("both are %s", k)
	}
	return ""
}

func matches(patterns []string, dir string) bool {
	for _, p := range patterns {
		if ok, _ := path.Match(p, dir); ok {
			return true
		}
	}
	return false
}

// checkLinks says which of a program's dependencies it must never link. The
// plugin is exec'd for every pod.
func checkLinks(program string, deps []string, never ...string) (wrong []string) {
	for _, d := range deps {
		for _, n := range never {
			if d == n || strings.HasPrefix(d, n+"/") {
				wrong = append(wrong, program+" links "+d)
			}
		}
	}
	return wrong
}

// notInThePlugin is what no package below cni/ may link.
func notInThePlugin() []string {
	return []string{"k8s.io", "sigs.k8s.io", "istio.io", "google.golang.org", "github.com/golang/protobuf", "github.com/gogo/protobuf", "github.com/envoyproxy"}
}
