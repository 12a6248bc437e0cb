// Command warren-cni is the CNI plugin: a container runtime runs it, behind the
// plugin that made a pod's interface, to bring the pod into the mesh.
package main

import (
	"os"

	"github.com/warren-mesh/warren/cni"
)

var version = "dev" // set by the linker

func main() { os.Exit(cni.Main(version)) }
