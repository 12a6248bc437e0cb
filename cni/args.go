package cni

import (
	"errors"
	"fmt"
	"strings"
)

// pod is what CNI_ARGS says about the pod. It has no service account and no
// labels: those are the agent's to know.
type pod struct{ name, namespace, uid string }

func (p pod) String() string { return p.namespace + "/" + p.name }

// kubernetes says whether a kubelet stands behind the call.
func (p pod) kubernetes() bool { return p.name != "" }

// parseArgs reads CNI_ARGS, "K=V;K=V". Other keys are for others.
func parseArgs(args string) (pod, error) {
	var p pod
	for pair := range strings.SplitSeq(args, ";") {
		if pair == "" {
			continue
		}
		key, value, ok := strings.Cut(pair, "=")
		if !ok {
			return pod{}, fmt.Errorf("CNI_ARGS: %.64q is not a pair of the form KEY=value", pair)
		}
		switch key {
		case "K8S_POD_NAME":
			p.name = value
		case "K8S_POD_NAMESPACE":
			p.namespace = value
		case "K8S_POD_UID":
			p.uid = value
		}
	}
	if (p.name == "") != (p.namespace == "") {
		return pod{}, errors.New("CNI_ARGS: K8S_POD_NAME and K8S_POD_NAMESPACE come together or not at all")
	}
	return p, nil
}
