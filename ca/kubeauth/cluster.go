package kubeauth

import (
	"sync"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	corev1 "k8s.io/api/core/v1"
)

// Source is where news of pods comes from.
type Source interface {
	// Read returns what is known now, nil before everything was read once, and a channel that is closed when there
	// is something newer.
	Read() (Cluster, <-chan struct{})
}

// Cluster is what is known of pods at one moment. It does not change.
type Cluster interface {
	// Pod finds a pod by "namespace/name".
	Pod(name string) (Pod, bool)
	// Runs reports whether a pod of an identity that has not finished is on a node.
	Runs(node string, id spiffeid.ID) bool
}

// Pod is what counts of the pod that a proxy runs in.
type Pod struct {
	UID      string
	Account  string // the name of its service account
	Node     string
	Finished bool
}

// Index makes a Cluster of all pods, of which it looks at none before somebody asks, and of an answer to Runs.
func Index(pods []*corev1.Pod, runs func(node string, id spiffeid.ID) bool) Cluster {
	return &index{runs: runs, pods: sync.OnceValue(func() map[string]*corev1.Pod {
		m := make(map[string]*corev1.Pod, len(pods))
		for _, p := range pods {
			m[p.Namespace+"/"+p.Name] = p
		}
		return m
	})}
}

type index struct {
	pods func() map[string]*corev1.Pod
	runs func(node string, id spiffeid.ID) bool
}

func (x *index) Pod(name string) (Pod, bool) {
	p := x.pods()[name]
	if p == nil {
		return Pod{}, false
	}
	account := p.Spec.ServiceAccountName
	if account == "" {
		account = "default"
	}
	return Pod{
		UID: string(p.UID), Account: account, Node: p.Spec.NodeName,
		Finished: p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed,
	}, true
}

func (x *index) Runs(node string, id spiffeid.ID) bool { return x.runs(node, id) }
