package archtest

import (
	"fmt"
	"go/ast"
	"path"
	"slices"
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
// names of signals are not system calls, and package os lacks SIGTERM. What is
// not Go could do anything, so there is none.
func checkSystemCalls(t *tree) (wrong []string) {
	wrong = t.notGo()
	for _, s := range t.sources {
		if s.free() || matches(kernelPackages(), s.dir()) {
			continue
		}
		paths, at := s.imports()
		for i, p := range paths {
			if p == "C" {
				wrong = append(wrong, s.at(at[i])+": imports C; everything here is Go")
			}
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

// notGo finds files that the go tool compiles or links beside Go's.
func (t *tree) notGo() (wrong []string) {
	_ = t.walk(func(p string) error { // load walked it already
		switch path.Ext(p) {
		case ".s", ".S", ".sx", ".c", ".cc", ".cpp", ".cxx", ".m", ".f", ".h", ".swig", ".syso":
			wrong = append(wrong, p+": everything here is Go")
		}
		return nil
	})
	return wrong
}

// isFrom says whether an expression such as tls.Config is of that package.
func (s *source) isFrom(sel *ast.SelectorExpr, importPath string) bool {
	id, ok := sel.X.(*ast.Ident)
	return ok && slices.Contains(s.locals(importPath), id.Name)
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

// checkTLS keeps every choice about TLS in one package: elsewhere there are
// pointers to configurations only, and nobody stops verifying.
func checkTLS(t *tree) (wrong []string) {
	for _, s := range t.sources {
		if s.free() || s.dir() == "ca/mtls" {
			continue
		}
		pointed := map[ast.Node]bool{}
		ast.Inspect(s.file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.StarExpr:
				pointed[n.X] = true
			case *ast.SelectorExpr:
				if n.Sel.Name == "Config" && s.isFrom(n, "crypto/tls") && !pointed[n] {
					wrong = append(wrong, s.at(n.Pos())+": makes a tls.Config; only ca/mtls does")
				}
			case *ast.Ident:
				if n.Name == "InsecureSkipVerify" {
					wrong = append(wrong, s.at(n.Pos())+": decides who is verified; only ca/mtls does")
				}
			}
			return true
		})
	}
	return wrong
}
