package enroll

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/warren-mesh/warren/cni/event"
	"github.com/warren-mesh/warren/internal/netns"
)

// IstioAdd is a new pod as Istio's own CNI plugin announces it.
type IstioAdd struct {
	Pod   PodName
	Netns string // path on the host
	IPs   []netip.Prefix
}

// AddForIstio does the whole of an ADD, the redirection included. That plugin
// has asked the API server itself whether the pod belongs into the mesh, so a
// pod that does not is an error here.
func (e *Enroller) AddForIstio(ctx context.Context, a IstioAdd) error {
	pod, err := e.findPod(ctx, a.Pod, "")
	if err != nil {
		return e.refused(a.Pod, "", err)
	}
	if !pod.Eligible.InMesh {
		return fmt.Errorf("enroll: pod %s is not to be in the mesh: %s", a.Pod, pod.Eligible.Reason)
	}
	ns, err := netns.Open(e.hostPath(a.Netns))
	if err != nil {
		return e.refused(a.Pod, "", fmt.Errorf("enroll: %w", err))
	}
	uid := firstOf(pod.UID, a.Pod.Namespace+"."+a.Pod.Name)
	s, answer, err := e.decide(ctx, event.Add{
		// It names no container, and says DEL to nobody.
		Key:     event.Key{ContainerID: "istio-cni-" + uid, IfName: "eth0"},
		PodName: a.Pod.Name, PodNamespace: a.Pod.Namespace, PodUID: uid, IPs: a.IPs, Netns: a.Netns,
	}, SourceIstio, ns)
	switch {
	case err != nil:
		return err
	case s == nil:
		return fmt.Errorf("enroll: pod %s is not to be in the mesh: %s", a.Pod, answer.Reason)
	default:
		return s.Programmed(ctx, event.ByAgent)
	}
}
