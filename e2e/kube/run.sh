#!/bin/sh
# Runs the cluster tests on the cluster of $KUBECONFIG, with the images of this tree;
# further arguments go to go test (such as -run TestPaths).
#   E2E_ARCH        architecture of the nodes (default: of this machine)
#   E2E_LOAD        a command that is called with an image's tar and puts it on all
#                   nodes; unset, the images are taken as present
#   VERSION         the images' tag
#   E2E_MANIFESTS   rendered manifests to install, in place of this tree's
# See doc.go for those that the tests read.
set -eu
: "${KUBECONFIG:?is not set: name the file that leads to the cluster under test, or run make e2e-kind, which makes one}"
: "${VERSION:?is not set: run this by make e2e-kube}"
GO=${GO:-go}
arch=${E2E_ARCH:-$($GO env GOARCH)}
cd "$(dirname "$0")/../.."
here=$(pwd)
if [ -n "${E2E_LOAD:-}" ]; then
	for image in "$here"/bin/images/*-"$arch".tar; do
		$E2E_LOAD "$image"
	done
fi
export E2E_APP_IMAGE="${E2E_APP_IMAGE:-warren-e2e-app:$VERSION}"
export E2E_RENDER="${E2E_RENDER:-$here/bin/render}" E2E_HELM="${E2E_HELM:-$here/bin/helm}" E2E_MANIFESTS_DIR="${E2E_MANIFESTS_DIR:-$here/manifests}"
export E2E_VALUES="${E2E_VALUES:-image.tag=$VERSION image.pullPolicy=Never namespace.create=true}"
$GO test -tags kube -count=1 -timeout 120m -v ./e2e/kube "$@"
