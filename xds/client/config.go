package client

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
)

// Config says which control plane to follow and as whom.
type Config struct {
	// Address is https://host:port, http://host:port or unix:///path. Plain HTTP
	// carries the token in the clear and is meant for loopback.
	Address string
	// TLS is asked at each connect, so that changed roots take effect. Required
	// for https.
	TLS func() (*tls.Config, error)
	// Token is asked at each connect; surrounding white space is removed. Nil or
	// an empty token sends none.
	Token func() (string, error)

	Node    Node
	Headers [][2]string // XDS_HEADER_*; sent besides authorization and clusterid

	// OnDemand is refused: every workload is followed.
	OnDemand bool
	Log      *slog.Logger
}

// Node is what the control plane is told about this proxy.
type Node struct {
	IP        string // INSTANCE_IP; empty means 1.1.1.1
	PodName   string
	Namespace string
	NodeName  string
	ClusterID string
	// Metadata is added to NAME, NAMESPACE, INSTANCE_IPS, NODE_NAME and CLUSTER_ID;
	// values are what structpb.NewValue takes.
	Metadata map[string]any
}

// Validate reports all mistakes at once.
func (c *Config) Validate() error {
	var errs []error
	if _, err := parseTarget(c.Address); err != nil {
		errs = append(errs, err)
	} else if strings.HasPrefix(c.Address, "https://") && c.TLS == nil {
		errs = append(errs, errors.New("xds: an https address needs a TLS configuration"))
	}
	if c.OnDemand {
		errs = append(errs, errors.New("xds: on-demand xDS (XDS_ON_DEMAND) is not supported; unset it to follow all workloads"))
	}
	for k := range c.Node.Metadata {
		if _, err := metadataValue(c.Node.Metadata[k]); err != nil {
			errs = append(errs, fmt.Errorf("xds: node metadata %s: %w", k, err))
		}
	}
	return errors.Join(errs...)
}

// target is an address in the form that gRPC dials.
type target struct {
	dial      string
	authority string
	tls       bool
}

func parseTarget(address string) (target, error) {
	u, err := url.Parse(address)
	if err != nil {
		return target{}, fmt.Errorf("xds: address: %w", err)
	}
	switch u.Scheme {
	case "unix":
		if u.Host != "" || !strings.HasPrefix(u.Path, "/") {
			return target{}, fmt.Errorf("xds: address %q: want unix:///absolute/path", address)
		}
		return target{dial: "unix://" + u.Path, authority: "localhost"}, nil
	case "http", "https":
		if u.Hostname() == "" || u.Port() == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
			return target{}, fmt.Errorf("xds: address %q: want %s://host:port", address, u.Scheme)
		}
		return target{dial: "dns:///" + u.Host, authority: u.Host, tls: u.Scheme == "https"}, nil
	default:
		return target{}, fmt.Errorf("xds: address %q: want https://host:port, http://host:port or unix:///path", address)
	}
}
