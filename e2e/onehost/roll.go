package onehost

import (
	"context"
	"fmt"
	"strconv"
)

// WaitReady waits until every proxy has heard that the pod is ready.
func (p *Pod) WaitReady(ctx context.Context) error {
	return p.node.mesh.WaitDumps(ctx, "it knows that pod "+p.Spec.key()+" is ready", func(d *Dump) error {
		for _, w := range d.Workloads {
			if w.Namespace == p.Spec.Namespace && w.Name == p.Spec.Name && w.Status == "Healthy" {
				return nil
			}
		}
		return fmt.Errorf("pod %s is not ready yet", p.Spec.key())
	})
}

// Vanish ends the pod as its node sees it: CNI DEL, and its namespace is gone. Its
// object stays, and with it everybody's belief that it runs, until Forget.
func (p *Pod) Vanish(ctx context.Context) error {
	delete(p.node.Pods, p.Spec.key())
	return p.node.end(ctx, p)
}

// Forget removes the object of a pod that has vanished.
func (p *Pod) Forget() error {
	return p.node.mesh.kube.remove("Pod", p.Spec.Namespace, p.Spec.Name)
}

// Refuse has the pod answer new connections to a port as if nobody listened.
// Those that are there go on.
func (p *Pod) Refuse(port int) error {
	for _, bin := range []string{"iptables", "ip6tables"} {
		_, err := output(p.NS, bin, "-w", "5", "-t", "filter", "-I", "INPUT", "-p", "tcp", "--syn",
			"--dport", strconv.Itoa(port), "-j", "REJECT", "--reject-with", "tcp-reset")
		if err != nil {
			return err
		}
	}
	return nil
}
