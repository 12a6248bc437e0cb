package kube

import (
	"maps"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/types"
)

// maxSiblings bounds the owners of pods of which one pod is remembered. Lists come
// sorted by name, so that those of one owner come together.
const maxSiblings = 1024

// siblings lets pods of one owner share what is the same in them, which is most of what
// is kept of a pod. What is shared is never changed.
type siblings struct {
	mu   sync.Mutex
	last map[types.UID]*corev1.Pod // by controller
}

func newSiblings() *siblings { return &siblings{last: make(map[types.UID]*corev1.Pod)} }

// share makes a pod, which is not in use yet, share with the one before it.
func (s *siblings) share(p *corev1.Pod) *corev1.Pod {
	if len(p.OwnerReferences) == 0 {
		return p
	}
	owner := p.OwnerReferences[0].UID
	s.mu.Lock()
	defer s.mu.Unlock()
	if o := s.last[owner]; o != nil {
		take(&p.OwnerReferences, o.OwnerReferences)
		takeMap(&p.Labels, o.Labels)
		takeMap(&p.Annotations, o.Annotations)
		take(&p.Spec.Containers, o.Spec.Containers)
		take(&p.Spec.InitContainers, o.Spec.InitContainers)
		take(&p.Status.Conditions, o.Status.Conditions)
	}
	if len(s.last) >= maxSiblings {
		clear(s.last)
	}
	s.last[p.OwnerReferences[0].UID] = p
	return p
}

func take[T any](mine *[]T, theirs []T) {
	if len(*mine) == len(theirs) && equality.Semantic.DeepEqual(*mine, theirs) {
		*mine = theirs
	}
}

func takeMap(mine *map[string]string, theirs map[string]string) {
	if maps.Equal(*mine, theirs) {
		*mine = theirs
	}
}
