//go:build envoy

package envoy

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/e2e/onehost"
)

// object is a piece of Envoy's configuration, in JSON.
type object = map[string]any

// envoy is one that runs in a pod.
type envoy struct {
	*onehost.Pod
	dir string
	pid int
}

// newEnvoy is one that has not been started.
func newEnvoy(t *testing.T, p *onehost.Pod) *envoy {
	t.Helper()
	dir, err := os.MkdirTemp(p.Node().StateDir(), "envoy-")
	if err != nil {
		t.Fatal(err)
	}
	return &envoy{Pod: p, dir: dir}
}

// start runs Envoy with listeners and clusters until the mesh ends, and returns when it
// serves.
func (e *envoy) start(t *testing.T, listeners, clusters []object) {
	t.Helper()
	config, err := json.MarshalIndent(object{
		"admin": object{"address": object{"pipe": object{"path": e.file("admin.sock")}}}, "node": object{"id": e.Spec.Name, "cluster": "warren"},
		"static_resources":     object{"listeners": listeners, "clusters": clusters},
		"bootstrap_extensions": []object{typed("internal", "envoy.extensions.bootstrap.internal_listener.v3.InternalListener", object{})},
	}, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(e.file("bootstrap.json"), config, 0o600); err != nil {
		t.Fatal(err)
	}
	e.pid, err = e.Run(program, "-c", e.file("bootstrap.json"), "--use-dynamic-base-id", "--concurrency", "1", "--log-level", "warning", "--drain-time-s", "2")
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "Envoy is ready", func() error {
		text, err := e.admin(http.MethodGet, "/ready")
		if err == nil && text != "LIVE" {
			err = errors.New(text)
		}
		return err
	})
}

func (e *envoy) file(name string) string { return filepath.Join(e.dir, name) }

// admin asks Envoy's administration port.
func (e *envoy) admin(method, path string) (string, error) {
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", e.file("admin.sock"))
		},
	}}
	req, err := http.NewRequest(method, "http://envoy"+path, nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return strings.TrimSpace(string(b)), err
}

// stat is the value of one of Envoy's counters or gauges.
func (e *envoy) stat(t *testing.T, name string) (n int) {
	t.Helper()
	text, err := e.admin(http.MethodGet, "/stats?filter=^"+url.QueryEscape(name)+"$")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscanf(text, name+": %d", &n); err != nil {
		t.Fatalf("statistic %s: %q", name, text)
	}
	return n
}

// kill ends Envoy as a crash would.
func (e *envoy) kill(t *testing.T) {
	t.Helper()
	p, err := os.FindProcess(e.pid)
	if err == nil {
		err = p.Kill()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// asked is one CONNECT, or connection, as Envoy's access log has it.
type asked struct {
	Authority, Peer, Baggage, Forwarded, Traceparent, Source, Flags string
	Code                                                            int
}

// connects are the fields of a CONNECT.
var connects = object{
	"authority": "%REQ(:AUTHORITY)%", "peer": "%DOWNSTREAM_PEER_URI_SAN%", "baggage": "%REQ(BAGGAGE)%", "forwarded": "%REQ(FORWARDED)%",
	"traceparent": "%REQ(TRACEPARENT)%", "source": "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%", "code": "%RESPONSE_CODE%", "flags": "%RESPONSE_FLAGS%",
}

func (e *envoy) accessLog(fields object) object {
	return typed("envoy.access_loggers.file", "envoy.extensions.access_loggers.file.v3.FileAccessLog", object{
		"path": e.file("access.json"), "log_format": object{"json_format": fields},
	})
}

// log is what Envoy has been asked so far.
func (e *envoy) log(t *testing.T) (all []asked) {
	t.Helper()
	f, err := os.Open(e.file("access.json"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var a asked
		if err := json.Unmarshal(lines.Bytes(), &a); err != nil {
			t.Fatalf("access log: %v: %s", err, lines.Text())
		}
		all = append(all, a)
	}
	return all
}

// typed is an extension's entry in a list, in Envoy's own form.
func typed(name, kind string, config object) object {
	return object{"name": name, "typed_config": with(config, "@type", "type.googleapis.com/"+kind)}
}

// with is o with one more field.
func with(o object, key string, value any) object {
	all := object{key: value}
	for k, v := range o {
		all[k] = v
	}
	return all
}

// credentials is a certificate of the mesh's CA, with its key, in PEM.
type credentials struct{ chain, key, root string }

// issue gets a certificate for a pod's service account.
func issue(t *testing.T, p *onehost.Pod) (c credentials) {
	t.Helper()
	id := spiffeid.RequireFromPath(spiffeid.RequireTrustDomainFromString("cluster.local"), "/ns/"+p.Spec.Namespace+"/sa/"+p.Spec.ServiceAccount)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	request, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{id.URL()}}, key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := p.Node().CA()
	if err != nil {
		t.Fatal(err)
	}
	defer ca.Close()
	request = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: request})
	chain, err := ca.Sign(t.Context(), id, request, time.Hour)
	if err != nil || len(chain) < 2 {
		t.Fatalf("certificate of %s: %d parts, %v", id, len(chain), err)
	}
	c.key = string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	c.chain, c.root = strings.Join(chain[:len(chain)-1], "\n"), chain[len(chain)-1]
	return c
}
