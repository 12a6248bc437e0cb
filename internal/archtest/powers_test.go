package archtest

import (
	"fmt"
	"go/ast"
	"strings"
)

// kernelPackages may make system calls; execPackages may start processes.
func kernelPackages() []string {
	return []string{
		"internal/*", "cni/event", "cni/redirect", "nodeagent/zds", "nodeagent/probe",
		"proxy/sockopt", "proxy/ready", "proxy/relay",
	}
}

func execPackages() []string { return []string{"cni/redirect", "nodeagent/probe"} }

// free are the files that these checks leave alone.
func (s *source) free() bool { return s.test || kindOf(s.dir()) == support }

// checkSystemCalls keeps the kernel's edge where it is looked at with care. The
// names of signals are not system calls, and package os lacks SIGTERM.
func checkSystemCalls(t *tree) (wrong []string) {
	for _, s := range t.sources {
		if s.free() || matches(kernelPackages(), s.dir()) {
			continue
		}
		paths, at := s.imports()
		for i, p := range paths {
			kernel := p == "unsafe" || p == "golang.org/x/sys" || strings.HasPrefix(p, "golang.org/x/sys/")
			if kernel || p == "syscall" && !s.onlySignals() {
				wrong = append(wrong, fmt.Sprintf("%s: imports %s, which is only for %v", s.at(at[i]), p, kernelPackages()))
			}
		}
	}
	return wrong
}

// onlySignals says whether all that a file takes of syscall is signals' names.
func (s *source) onlySignals() bool {
	only := true
	ast.Inspect(s.file, func(n ast.Node) bool {
		if sel, ok := n.(*ast.SelectorExpr); ok && s.isFrom(sel, "syscall") {
			only = only && strings.HasPrefix(sel.Sel.Name, "SIG")
		}
		return true
	})
	return only
}

// isFrom says whether an expression such as tls.Config is of that package.
func (s *source) isFrom(sel *ast.SelectorExpr, importPath string) bool {
	id, ok := sel.X.(*ast.Ident)
	return ok && id.Name == s.local(importPath) && id.Name != ""
}

func checkProcesses(t *tree) (wrong []string) {
	for _, s := range t.sources {
		if s.free() || matches(execPackages(), s.dir()) {
			continue
		}
		paths, at := s.imports()
		for i, p := range paths {
			if p == "os/exec" {
				wrong = append(wrong, fmt.Sprintf("%s: imports os/exec, which is only for %v", s.at(at[i]), execPackages()))
			}
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if ok && s.isFrom(sel, "os") && sel.Sel.Name == "StartProcess" {
				wrong = append(wrong, fmt.Sprintf("%s: starts a process, which is only for %v", s.at(n.Pos()), execPackages()))
			}
			return true
		})
	}
	return wrong
}

// checkTLS keeps every choice about TLS in one package.
func checkTLS(t *tree) (wrong []string) {
	for _, s := range t.sources {
		if s.free() || s.dir() == "ca/mtls" {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			var typ ast.Expr
			switch n := n.(type) {
			case *ast.CompositeLit:
				typ = n.Type
			case *ast.ValueSpec:
				typ = n.Type
			case *ast.CallExpr:
				if id, ok := n.Fun.(*ast.Ident); ok && id.Name == "new" && len(n.Args) == 1 {
					typ = n.Args[0]
				}
			}
			if sel, ok := typ.(*ast.SelectorExpr); ok && sel.Sel.Name == "Config" && s.isFrom(sel, "crypto/tls") {
				wrong = append(wrong, s.at(n.Pos())+": makes a tls.Config; only ca/mtls does")
			}
			return true
		})
	}
	return wrong
}
