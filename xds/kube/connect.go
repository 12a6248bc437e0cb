package kube

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Requests a second to the API server, and how many at once. Watches cost one request
// each; the rest is for those who write status and ConfigMaps.
const (
	clientQPS   = 50
	clientBurst = 100
)

// Connect says how to reach an API server: the one of the cluster that this process runs
// in for an empty path, else the one that a kubeconfig's current context names.
func Connect(kubeconfig string) (*rest.Config, error) {
	cfg, err := load(kubeconfig)
	if err != nil {
		return nil, err
	}
	cfg.QPS, cfg.Burst = clientQPS, clientBurst
	cfg.UserAgent = "warren-" + filepath.Base(os.Args[0])
	cfg.WarningHandler = rest.NoWarnings{} // about what the API's authors would have us do
	return cfg, nil
}

func load(kubeconfig string) (*rest.Config, error) {
	if kubeconfig == "" {
		cfg, err := rest.InClusterConfig()
		if errors.Is(err, rest.ErrNotInCluster) {
			return nil, errors.New("this is no pod of a cluster (KUBERNETES_SERVICE_HOST is not set): name a kubeconfig")
		}
		if err != nil {
			return nil, fmt.Errorf("the API server of this cluster: %w: mount the pod's service account token", err)
		}
		return cfg, nil
	}
	// Without this a file that is missing is an empty configuration: localhost:8080.
	if _, err := os.Stat(kubeconfig); err != nil {
		return nil, fmt.Errorf("kubeconfig: %w", err)
	}
	cfg, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("kubeconfig %s: %w", kubeconfig, err)
	}
	return cfg, nil
}
