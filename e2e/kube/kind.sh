#!/bin/sh
# Runs the cluster tests on a cluster that kind makes and that is deleted afterwards.
#   KIND        the program (default: kind)
#   KIND_IMAGE  the nodes' image (default: kind's own)
#   E2E_KEEP    leave the cluster
# Called with "restart-kubelet NODE" it does only that.
set -eu
KIND=${KIND:-kind}
name=warren-e2e
here=$(cd "$(dirname "$0")" && pwd)

if [ "${1:-}" = restart-kubelet ]; then
	exec docker exec "$2" systemctl restart kubelet
fi
command -v "$KIND" >/dev/null || {
	echo "e2e-kind: there is no $KIND: go install sigs.k8s.io/kind, or set KIND" >&2
	exit 1
}
KUBECONFIG=$(mktemp)
export KUBECONFIG
end() {
	[ -n "${E2E_KEEP:-}" ] && echo "e2e-kind: cluster $name is left; KUBECONFIG=$KUBECONFIG" && return
	"$KIND" delete cluster --name "$name" --kubeconfig "$KUBECONFIG"
	rm -f "$KUBECONFIG"
}
trap end EXIT
trap 'exit 1' INT TERM
"$KIND" create cluster --name "$name" ${KIND_IMAGE:+--image "$KIND_IMAGE"} --config "$here/kind.yaml" --kubeconfig "$KUBECONFIG" --wait 180s
export E2E_LOAD="${E2E_LOAD:-$KIND load image-archive --name $name}"
export E2E_RESTART_KUBELET="${E2E_RESTART_KUBELET:-$here/kind.sh restart-kubelet}"
sh "$here/run.sh" "$@"
