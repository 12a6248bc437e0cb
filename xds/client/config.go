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

	// OnDemand follows, of workloads and services, only those of the node and what is
	// asked for by Ask. All policies are followed in any case.
	OnDemand bool
	Log      *slog.Logger // nil: silent
	Observer Observer     // nil: nobody counts
}

// Observer counts. It is called from Run's goroutine and must not block.
type Observer interface {
	// Received tells of a response: its type, one of the two that are asked for,
	// and the bytes of its resources.
	Received(typeURL string, bytes int)
	// Applied tells that a response of a type has taken effect: how many of its
	// resources were refused, and how many refused ones there are by now of which
	// no earlier version is in force. What such policies guard is closed.
	Applied(typeURL string, refused, unheld int)
	// Ended tells why an attempt, or the connection that came of it, is over.
	Ended(Reason)
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
	if t, err := parseTarget(c.Address); err != nil {
		errs = append(errs, err)
	} else if t.tls && c.TLS == nil {
		errs = append(errs, errors.New("xds: an https address needs a TLS configuration"))
	}
	if c.OnDemand && c.Node.NodeName == "" {
		errs = append(errs, errors.New("xds: to follow workloads on demand the control plane has to be told the node's name (NODE_NAME)"))
	}
	for _, h := range c.Headers {
		if err := checkHeader(h[0], h[1]); err != nil {
			errs = append(errs, err)
		}
	}
	for k := range c.Node.Metadata {
		if _, err := metadataValue(c.Node.Metadata[k]); err != nil {
			errs = append(errs, fmt.Errorf("xds: node metadata %s: %w", k, err))
		}
	}
	return errors.Join(errs...)
}

// checkHeader accepts what gRPC can send as metadata. Values are not quoted: they
// may be secret.
func checkHeader(name, value string) error {
	valid := name != "" && strings.Trim(strings.ToLower(name), "abcdefghijklmnopqrstuvwxyz0123456789-_.") == ""
	if !valid || strings.HasPrefix(strings.ToLower(name), "grpc-") {
		return fmt.Errorf("xds: header %q: not a name of gRPC metadata", name)
	}
	if i := notPrintable(value); i >= 0 {
		return fmt.Errorf("xds: header %s: its value has a byte at %d that cannot be in a header", name, i)
	}
	return nil
}

// notPrintable is where the first byte other than printable ASCII is, or -1.
func notPrintable(s string) int {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return i
		}
	}
	return -1
}

// target is an address in the form that is dialled.
type target struct {
	network   string // tcp or unix
	address   string
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
		return target{network: "unix", address: u.Path, authority: "localhost"}, nil
	case "http", "https":
		if u.Hostname() == "" || u.Port() == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
			return target{}, fmt.Errorf("xds: address %q: want %s://host:port", address, u.Scheme)
		}
		return target{network: "tcp", address: u.Host, authority: u.Host, tls: u.Scheme == "https"}, nil
	default:
		return target{}, fmt.Errorf("xds: address %q: want https://host:port, http://host:port or unix:///path", address)
	}
}
