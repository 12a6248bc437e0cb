package controlplane

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/warren-mesh/warren/ca/authority"
	"github.com/warren-mesh/warren/ca/rotation"
	caserver "github.com/warren-mesh/warren/ca/server"
	"github.com/warren-mesh/warren/xds/kube"
)

// defaultSettle is how long a root is given out before it signs: kubelet looks at
// ConfigMaps once a minute, and may go by what it read a minute before.
const defaultSettle = 2 * time.Minute

const commandTimeout = 30 * time.Second

// caCommand is what `controlplane ca` was told, and the store that it works on.
type caCommand struct {
	cfg    Config
	settle time.Duration
	json   bool

	store rotation.Store
	// unread counts the places where the root is read from and a new one is not yet.
	unread func(ctx context.Context, id string) (missing, of int, err error)
}

// CACommand is `controlplane ca`. It works on what the control planes keep and follow,
// and asks none of them.
func CACommand() *cobra.Command {
	c := &caCommand{cfg: Defaults(), settle: defaultSettle}
	cmd := &cobra.Command{Use: "ca", Short: "Look after the CA's root: rotate it in three steps", Args: cobra.NoArgs,
		Long: `The root that the control plane made for itself is rotated in three steps. Each is refused while it
would cut pods off from each other, and says until when:

  prepare   a new root is made and given to everybody beside the old one, which signs
  activate  the new one signs; both are trusted
  retire    the old one is trusted no more, and its key is removed; connections that were opened before
            activate, and are still open, are ended by the proxies

A CA that was plugged in (the Secret cacerts, or --ca-dir) is replaced by putting another one there.`}
	c.register(cmd.PersistentFlags())
	for _, step := range []struct {
		use, short string
		run        func(context.Context, time.Time) error
	}{
		{"status", "Say which CA signs, what is under way, and what the next step waits for", func(context.Context, time.Time) error { return nil }},
		{"prepare", "Make a new root and have everybody trust it", c.prepare},
		{"activate", "Have the new root sign", c.activate},
		{"retire", "Have nobody trust the old root any more, and forget it", c.retire},
	} {
		cmd.AddCommand(&cobra.Command{Use: step.use, Short: step.short, Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), commandTimeout)
			defer cancel()
			if err := c.open(); err != nil {
				return err
			}
			if err := step.run(ctx, time.Now()); err != nil {
				return err
			}
			return c.status(ctx, cmd.OutOrStdout(), time.Now())
		}})
	}
	return cmd
}

func (c *caCommand) register(fs *pflag.FlagSet) {
	fs.StringVar(&c.cfg.StateDir, "state-dir", "", "folder that the control plane keeps its CA in (this or --kubernetes is required)")
	fs.StringVar(&c.cfg.CADir, "ca-dir", "", "with --state-dir: folder of a plugged-in CA, as the control plane is given it")
	fs.BoolVar(&c.cfg.Kubernetes, "kubernetes", false, "the CA is in a Secret")
	fs.StringVar(&c.cfg.Kubeconfig, "kubeconfig", "", "with --kubernetes: how to reach the API server; empty for that of the cluster we run in")
	fs.StringVar(&c.cfg.Namespace, "namespace", "", "with --kubernetes: namespace of the control plane; empty for that of our service account")
	fs.StringVar(&c.cfg.RootConfigMap, "root-configmap", c.cfg.RootConfigMap, "with --kubernetes: ConfigMap with the root that is kept in every namespace, as the control plane is given it; empty for none")
	fs.DurationVar(&c.cfg.CAOverlap, "ca-overlap", c.cfg.CAOverlap, "as the control plane is given it, to say how long a replacement takes")
	fs.DurationVar(&c.settle, "settle", c.settle, "activate: for how long the new root must have been given out, so that those who read it from a file or a ConfigMap have it")
	fs.BoolVar(&c.json, "json", false, "print the status as JSON")
}

func (c *caCommand) open() error {
	switch {
	case c.cfg.Kubernetes == (c.cfg.StateDir != ""):
		return errors.New("exactly one is needed: --state-dir, or --kubernetes")
	case c.cfg.Kubernetes && c.cfg.CADir != "":
		return errors.New("--ca-dir is for --state-dir")
	case c.settle < 0:
		return fmt.Errorf("--settle: %s is less than zero", c.settle)
	case c.store != nil:
		return nil
	case !c.cfg.Kubernetes:
		c.store = &caserver.StateDir{Path: c.cfg.StateDir, Plugged: c.cfg.CADir}
		return nil
	}
	log := slog.New(slog.DiscardHandler)
	if c.cfg.Namespace == "" {
		c.cfg.Namespace = ownNamespace(log)
	}
	rest, err := kube.Connect(c.cfg.Kubeconfig)
	if err != nil {
		return fmt.Errorf("--kubeconfig: %w", err)
	}
	clients, err := connect(rest)
	if err != nil {
		return fmt.Errorf("--kubeconfig: %w", err)
	}
	c.use(clients.kubernetes, log)
	return nil
}

func (c *caCommand) use(client kubernetes.Interface, log *slog.Logger) {
	c.store = &caSecret{client: client, namespace: c.cfg.Namespace, log: log}
	if c.cfg.RootConfigMap != "" {
		c.unread = func(ctx context.Context, id string) (int, int, error) {
			return mapsWithout(ctx, client, c.cfg.RootConfigMap, id)
		}
	}
}

// mapsWithout counts the root ConfigMaps that lack a root.
func mapsWithout(ctx context.Context, client kubernetes.Interface, name, id string) (missing, of int, err error) {
	list, err := client.CoreV1().ConfigMaps(corev1.NamespaceAll).List(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + name})
	if err != nil {
		return 0, 0, fmt.Errorf("configmaps %s: %w", name, err)
	}
	for _, m := range list.Items {
		if m.Name != name {
			continue
		}
		of++
		if !authority.InBundle([]byte(m.Data[rootKey]), id) {
			missing++
		}
	}
	return missing, of, nil
}

func (c *caCommand) prepare(ctx context.Context, now time.Time) error {
	k, replicas, err := c.both(ctx)
	if err != nil {
		return err
	}
	r, err := rotation.Prepare(k, replicas, now)
	if err != nil {
		return err
	}
	return c.store.WriteRecord(ctx, k, r)
}

// both reads all that a guard wants to know.
func (c *caCommand) both(ctx context.Context) (rotation.Kept, []rotation.Replica, error) {
	k, err := c.store.Read(ctx)
	if err != nil {
		return k, nil, err
	}
	replicas, err := c.store.Replicas(ctx)
	return k, replicas, err
}

func (c *caCommand) activate(ctx context.Context, now time.Time) error {
	k, replicas, err := c.both(ctx)
	if err != nil {
		return err
	}
	r, err := rotation.Activate(k, replicas, c.settle, now)
	if err != nil {
		return err
	}
	if c.unread != nil {
		switch missing, of, err := c.unread(ctx, authority.CertID(r.Other.Cert)); {
		case err != nil:
			return err
		case of == 0: // there is a namespace at least, which is that of the control plane
			return fmt.Errorf("too early: there is no ConfigMap %s, so that nobody who reads the root from one has the new root; the log of the control plane that leads says why, and --root-configmap must be the control plane's: empty if it has none", c.cfg.RootConfigMap)
		case missing > 0:
			return fmt.Errorf("too early: %d of %d ConfigMaps %s do not have the new root; the log of the control plane that leads says why", missing, of, c.cfg.RootConfigMap)
		}
	}
	return c.store.WriteRecord(ctx, k, r)
}

func (c *caCommand) retire(ctx context.Context, now time.Time) error {
	k, replicas, err := c.both(ctx)
	if err != nil {
		return err
	}
	r, err := rotation.Retire(k, replicas, now)
	if err != nil {
		return err
	}
	if err := c.store.WriteRecord(ctx, k, r); err != nil {
		return err
	}
	if k, err = c.store.Read(ctx); err != nil {
		return err
	}
	// A control plane may do the same at this time, or will if we end here.
	if err := rotation.Finish(ctx, c.store, k); err != nil && !errors.Is(err, rotation.ErrChanged) {
		return err
	}
	return nil
}

func (c *caCommand) status(ctx context.Context, out io.Writer, now time.Time) error {
	k, replicas, err := c.both(ctx)
	if err != nil {
		return err
	}
	looks := rotation.Config{Lifetimes: c.cfg.lifetimes(), Overlap: c.cfg.CAOverlap}
	s, err := looks.Look(k, replicas, c.settle, now)
	if err != nil {
		return err
	}
	if c.json {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		return e.Encode(s)
	}
	return printStatus(out, s)
}

func printStatus(out io.Writer, s rotation.Status) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%s\t%s\n", name, strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", "\n\t"))
	}
	line("kept in", "%s", s.From)
	line("signing", "%s", about(s.Signing))
	switch s.Phase {
	case rotation.Settled:
	case rotation.Prepared:
		line("prepared", "%s, since %s", about(s.Other), s.Since.UTC().Format(time.RFC3339))
	default:
		line("beside it", "%s, since %s", about(s.Other), s.Since.UTC().Format(time.RFC3339))
	}
	line("valid SVIDs", "%s", counted(s.Live))
	for _, r := range s.Replicas {
		state := "is at this step"
		switch {
		case r.Ended:
			state = "has ended"
		case !r.AtStep:
			state = "is not at this step"
		}
		line("replica", "%s %s (%s); signed of them: %s", r.Name, state, r.At.UTC().Format(time.RFC3339), counted(r.Live))
	}
	if s.Note != "" {
		line("under way", "%s", s.Note)
	}
	if s.Next != "" {
		line("next step", "controlplane ca %s", s.Next)
	}
	if s.Wait != "" {
		line("", "%s", s.Wait)
	}
	return w.Flush()
}

func about(a authority.About) string {
	return fmt.Sprintf("%.16s (%s, until %s)", a.ID, a.Subject, a.NotAfter.Format(time.RFC3339))
}

func counted(l rotation.Live) string {
	if l.Count == 0 {
		return "none"
	}
	return fmt.Sprintf("%d, the last until %s", l.Count, l.Until.UTC().Format(time.RFC3339))
}
