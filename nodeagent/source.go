package nodeagent

import (
	"fmt"
	"log/slog"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/warren-mesh/warren/nodeagent/podwatch"
	"github.com/warren-mesh/warren/xds/file"
	"github.com/warren-mesh/warren/xds/kube"
)

// source is where the objects come from.
type source struct {
	podwatch.Source
	name     string          // for people
	problems func() []string // what cannot be taken, or not now
	// stale says why no news arrive; empty: they do, as far as is known.
	stale func() string
	// untaken names what has never been readable, so that what it holds is not known.
	untaken func() []string
	// whole: what is not there does not exist.
	whole  bool
	client *client // nil: no API server
}

// client is one of an API server.
type client struct {
	kubernetes.Interface
	pods podwatch.Metadata
}

// connect makes one of the kubeconfig, and says where that is.
func connect(cfg *Config) (_ *client, where string, err error) {
	at, err := kube.Connect(cfg.Kubeconfig)
	if err != nil {
		return nil, "", fmt.Errorf("nodeagent: %w", err)
	}
	var c client
	if c.pods, err = podwatch.PodMetadata(at); err != nil {
		return nil, "", err
	}
	binary := rest.CopyConfig(at)
	binary.AcceptContentTypes, binary.ContentType = "application/vnd.kubernetes.protobuf,application/json", "application/vnd.kubernetes.protobuf"
	if c.Interface, err = kubernetes.NewForConfig(binary); err != nil {
		return nil, "", fmt.Errorf("nodeagent: %w", err)
	}
	return &c, " at " + at.Host, nil
}

// folderSource is a folder of YAML.
func folderSource(dir string, log *slog.Logger) *source {
	f := file.Feed(dir, log)
	return &source{
		Source: f, name: dir,
		problems: func() []string { return texts(f.Problems()) },
		stale:    func() string { return "" },
		untaken:  func() []string { return texts(f.Untaken()) },
	}
}

// clusterSource is an API server; the client is made of the kubeconfig unless it is
// given.
func clusterSource(cfg *Config, client *client, log *slog.Logger) (*source, error) {
	name := "the API server"
	if client == nil {
		var err error
		var where string
		if client, where, err = connect(cfg); err != nil {
			return nil, err
		}
		name += where
	}
	f, err := kube.New(kube.Config{Client: client.Interface, Node: cfg.NodeName, Log: log})
	if err != nil {
		return nil, err
	}
	return &source{
		Source: f, name: name, whole: true, client: client,
		problems: func() []string { return texts(f.Problems()) },
		stale: func() string {
			for _, s := range f.Status() {
				if s.Err != "" {
					return s.Kind + ": " + s.Err
				}
			}
			return ""
		},
		untaken: func() []string { return nil },
	}, nil
}

func texts[T fmt.Stringer](list []T) (out []string) {
	for _, s := range list {
		out = append(out, s.String())
	}
	return out
}
