package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/kubernetes"

	"github.com/warren-mesh/warren/nodeagent/podwatch"
	"github.com/warren-mesh/warren/xds/kube"
)

// leaveOptions are the flags of `nodeagent leave`.
type leaveOptions struct {
	kubeconfig, namespace, daemonSet string
	within                           time.Duration
}

// leaveCommand is what the chart's hook runs before an uninstall: the agents take the
// mesh out of the pods while they still may, and while the proxies serve.
func leaveCommand() *cobra.Command {
	d := Defaults()
	o := leaveOptions{namespace: d.OwnNamespace, within: 2 * time.Minute}
	cmd := &cobra.Command{
		Use:   "leave",
		Short: "Have the agents of all nodes leave",
		Long: `Delete the agents' DaemonSet and wait until each agent has taken the mesh out of its
node. The exit status is 0 as well when some have not in time, such as those of nodes
that do not answer: they are not waited for for ever.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.daemonSet == "" || o.within <= 0 {
				return errors.New("--daemonset is needed, and --within is more than nothing")
			}
			cfg, err := kube.Connect(o.kubeconfig)
			if err != nil {
				return fmt.Errorf("--kubeconfig: %w", err)
			}
			client, err := kubernetes.NewForConfig(cfg)
			if err != nil {
				return fmt.Errorf("--kubeconfig: %w", err)
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), o.within)
			defer cancel()
			if err := podwatch.EndDaemonSet(ctx, client, o.namespace, o.daemonSet); err != nil {
				fmt.Fprintf(cmd.ErrOrStderr(), "nodeagent: leave: not all within %s: %v\n", o.within, err)
			}
			return cmd.Context().Err()
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.kubeconfig, "kubeconfig", "", "file that leads to the API server (default: the pod's own account)")
	f.StringVar(&o.namespace, "own-namespace", o.namespace, "namespace of the agents")
	f.StringVar(&o.daemonSet, "daemonset", "", "the agents' DaemonSet")
	f.DurationVar(&o.within, "within", o.within, "how long they are waited for")
	return cmd
}
