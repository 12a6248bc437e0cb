#!/bin/sh
# Runs the cluster tests on a cluster that kind makes and that is deleted afterwards.
#   KIND        the program (default: kind)
#   KIND_IMAGE  the nodes' image (default: kind's own)
#   E2E_KEEP    leave the cluster
# Called with "restart-kubelet NODE", "apiserver stop", "apiserver start" or "reboot
# NODE" it does only that.
set -eu
KIND=${KIND:-kind}
name=warren-e2e
here=$(cd "$(dirname "$0")" && pwd)

control=$name-control-plane
api_answers() {
	docker exec "$control" kubectl --kubeconfig /etc/kubernetes/admin.conf --request-timeout 2s get --raw /readyz >/dev/null 2>&1
}
case "${1:-} ${2:-}" in
"restart-kubelet "*)
	exec docker exec "$2" systemctl restart kubelet
	;;
"reboot "*)
	exec docker restart "$2"
	;;
"apiserver stop") # kubelet ends a static pod whose file is gone
	docker exec "$control" mv /etc/kubernetes/manifests/kube-apiserver.yaml /etc/kubernetes/
	while api_answers; do sleep 0.5; done
	exit
	;;
"apiserver start")
	docker exec "$control" sh -c 'cd /etc/kubernetes; [ ! -e kube-apiserver.yaml ] || mv kube-apiserver.yaml manifests/'
	until api_answers; do sleep 0.5; done
	exit
	;;
esac
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
export E2E_APISERVER="${E2E_APISERVER:-$here/kind.sh apiserver}"
export E2E_REBOOT="${E2E_REBOOT:-$here/kind.sh reboot}"
# As the chart's profile for kind: see there.
export E2E_VALUES="${E2E_VALUES:-image.tag=$VERSION image.pullPolicy=Never namespace.create=true nodeagent.cni.chained=false}"
sh "$here/run.sh" "$@"
