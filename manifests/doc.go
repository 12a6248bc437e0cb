// Package manifests holds the ways to install Warren: a Helm chart
// (charts/warren), kustomize folders made of it (kustomize), and the tools that
// render both and build the images, in a module of their own (tools). In this
// package are only tests: they hold all of it to the programs.
//
// Kind: test.
package manifests
