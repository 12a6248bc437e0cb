package onehost

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// PutNamespace writes or replaces a Namespace.
func (m *Mesh) PutNamespace(name string, labels map[string]string) error {
	return m.kube.putObject("Namespace", "", name, &corev1.Namespace{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels},
	})
}

// PutService writes or replaces a Service with one port.
func (m *Mesh) PutService(namespace, name string, vip netip.AddrPort, target int, selector map[string]string) error {
	return m.kube.putObject("Service", namespace, name, &corev1.Service{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace},
		Spec: corev1.ServiceSpec{
			ClusterIP: vip.Addr().String(), ClusterIPs: []string{vip.Addr().String()}, Selector: selector,
			Ports: []corev1.ServicePort{{Name: "tcp", Port: int32(vip.Port()), TargetPort: intstr.FromInt(target)}},
		},
	})
}

// PutPolicy writes or replaces an AuthorizationPolicy; spec is YAML, indented by two.
func (m *Mesh) PutPolicy(namespace, name, spec string) error {
	return m.putRaw("AuthorizationPolicy", namespace, name, spec)
}

// PutPeerAuthentication writes or replaces a PeerAuthentication; spec as for PutPolicy.
func (m *Mesh) PutPeerAuthentication(namespace, name, spec string) error {
	return m.putRaw("PeerAuthentication", namespace, name, spec)
}

func (m *Mesh) putRaw(kind, namespace, name, spec string) error {
	return m.kube.write(m.kube.file(kind, namespace, name), fmt.Appendf(nil,
		"apiVersion: security.istio.io/v1\nkind: %s\nmetadata: {name: %s, namespace: %s}\nspec:\n%s", kind, name, namespace, spec))
}

// Break puts something in the place of an object's file that is no object.
func (m *Mesh) Break(kind, namespace, name string) error {
	return m.kube.write(m.kube.file(kind, namespace, name), []byte("kind: ["))
}

// Remove deletes an object's file.
func (m *Mesh) Remove(kind, namespace, name string) error {
	return m.kube.remove(kind, namespace, name)
}

// Dump is what the mesh reads of a proxy's config_dump.
type Dump struct {
	Workloads []struct {
		UID                       string
		Name, Namespace, Protocol string
		Status                    string
		WorkloadIPs               []string
		Services                  []string
		AuthorizationPolicies     []string
	}
	Services []struct {
		Name, Namespace string
		Endpoints       map[string]any
	}
	Policies     []struct{ Name, Namespace string }
	Certificates []struct{ Identity, State string }
}

// WaitDumps waits until ok holds for every running proxy's dump.
func (m *Mesh) WaitDumps(ctx context.Context, what string, ok func(*Dump) error) error {
	for _, n := range m.Nodes {
		if n.proxy == nil || !n.proxy.running() {
			continue
		}
		err := n.proxy.until(ctx, what, func() error {
			var d Dump
			if err := n.ConfigDump(ctx, &d); err != nil {
				return err
			}
			return ok(&d)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// WaitPods waits until every proxy knows every pod at its addresses.
func (m *Mesh) WaitPods(ctx context.Context) error {
	return m.WaitDumps(ctx, "it knows every pod", func(d *Dump) error {
		for _, n := range m.Nodes {
			for _, p := range n.Pods {
				if !d.knows(p) {
					return fmt.Errorf("pod %s is not known yet", p.Spec.key())
				}
			}
		}
		return nil
	})
}

func (d *Dump) knows(p *Pod) bool {
	for _, w := range d.Workloads {
		if w.Namespace == p.Spec.Namespace && w.Name == p.Spec.Name && slices.Contains(w.WorkloadIPs, p.IPs[0].String()) {
			return true
		}
	}
	return false
}

// WaitPolicy waits until every proxy holds a policy, named namespace/name.
func (m *Mesh) WaitPolicy(ctx context.Context, name string) error {
	return m.WaitDumps(ctx, "it holds policy "+name, func(d *Dump) error {
		for _, p := range d.Policies {
			if p.Namespace+"/"+p.Name == name {
				return nil
			}
		}
		return fmt.Errorf("policy %s is not known yet", name)
	})
}

// WaitNoPolicy waits until no proxy holds a policy any more.
func (m *Mesh) WaitNoPolicy(ctx context.Context, name string) error {
	return m.WaitDumps(ctx, "it dropped policy "+name, func(d *Dump) error {
		for _, p := range d.Policies {
			if p.Namespace+"/"+p.Name == name {
				return fmt.Errorf("policy %s is still known", name)
			}
		}
		return nil
	})
}

// WaitService waits until every proxy knows a service by its object's name, or none does.
func (m *Mesh) WaitService(ctx context.Context, namespace, name string, there bool) error {
	return m.WaitDumps(ctx, fmt.Sprintf("it knows service %s/%s: %v", namespace, name, there), func(d *Dump) error {
		known := false
		for _, s := range d.Services {
			known = known || s.Namespace == namespace && s.Name == name
		}
		if known != there {
			return fmt.Errorf("known: %v", known)
		}
		return nil
	})
}
