// Command render prints Warren's manifests.
//
//	render chart [-f FILE] [-set NAME=VALUE]... [-namespace NAME] [-existing FILE] [-hooks] DIR
//	render kustomize DIR
//	render split CHART DIR     writes the parts of kustomize's that the chart has
package main

import (
	"fmt"
	"os"

	"github.com/warren-mesh/warren/manifests/tools/render"
)

func main() {
	if err := render.Run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "render:", err)
		os.Exit(1)
	}
}
