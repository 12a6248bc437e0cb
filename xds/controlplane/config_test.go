package controlplane

import (
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
)

func TestValidateReportsEverything(t *testing.T) {
	c := Config{
		TrustDomain: "spiffe://x/y", ClusterID: "a/b", Domain: "-", RootNamespace: "A",
		Listen: "nowhere", PlaintextListen: "unix://relative", HealthListen: "unix:///x", MetricsListen: "1.2.3.4:99999",
		Selectors: "{}", Hosts: []string{"fine.example", "10.0.0.1", "not_fine"}, TTL: -1, MaxTTL: -2 * time.Second,
	}
	err := c.Validate()
	if err == nil {
		t.Fatal("accepted")
	}
	for _, flag := range []string{"kube-dir", "state-dir", "node-tokens", "trust-domain", "cluster-id", "domain", "root-namespace",
		"enablement-selectors", "listen", "plaintext-listen", "health-listen", "metrics-listen", "hosts", "ca-ttl", "max-ttl"} {
		if n := strings.Count("\n"+err.Error(), "\n--"+flag+": "); n != 1 {
			t.Errorf("--%s is named %d times, want once, in:\n%v", flag, n, err)
		}
	}
	c = Defaults()
	c.KubeDir, c.StateDir, c.NodeTokens, c.MetricsListen = "k", "s", "t", c.Listen
	if err := c.Validate(); err == nil || !strings.Contains(err.Error(), "--metrics-listen") || strings.Contains(err.Error(), "\n") {
		t.Errorf("err = %v, want only the address that is used twice", err)
	}
	c.MetricsListen, c.CAOverlap = "", c.TTL-1
	if err := c.Validate(); err == nil || !strings.Contains(err.Error(), "--ca-overlap: 23h59m59.999999999s is less than --ca-ttl 24h0m0s") {
		t.Errorf("an overlap that is shorter than certificates live: %v", err)
	}
	for _, overlap := range []time.Duration{0, c.TTL} {
		if c.CAOverlap = overlap; c.Validate() != nil {
			t.Errorf("an overlap of %s: %v", overlap, c.Validate())
		}
	}
}

func TestFlags(t *testing.T) {
	c := Defaults()
	fs := pflag.NewFlagSet("controlplane", pflag.ContinueOnError)
	c.RegisterFlags(fs)
	err := fs.Parse([]string{"--kube-dir=k", "--state-dir=s", "--node-tokens=t", "--hosts=a.example,10.0.0.9", "--ca-ttl=10s", "--health-listen="})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	if c.KubeDir != "k" || len(c.Hosts) != 2 || c.TTL != 10*time.Second || c.HealthListen != "" || c.Listen != ":15012" {
		t.Errorf("config = %+v", c)
	}
	n := 0
	fs.VisitAll(func(*pflag.Flag) { n++ })
	if groups := len(c.LogValue().Group()); groups != n {
		t.Errorf("%d flags, of which the log shows %d", n, groups)
	}
}

func TestCollectMistakes(t *testing.T) {
	cfg := Defaults()
	fs := pflag.NewFlagSet("test", pflag.ContinueOnError)
	cfg.RegisterFlags(fs)
	mistakes := CollectMistakes(fs)
	if err := fs.Parse([]string{"--ca-ttl=soon", "--dry-run-policies=maybe", "--listen=:1", "--max-ttl", "late"}); err != nil {
		t.Fatal(err)
	}
	err := mistakes()
	for _, want := range []string{`--ca-ttl: "soon"`, `--dry-run-policies: "maybe"`, `--max-ttl: "late"`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing in: %v", want, err)
		}
	}
	if cfg.Listen != ":1" {
		t.Errorf("a good value was lost: %+v", cfg)
	}
}

func TestValidateKubernetes(t *testing.T) {
	good := Defaults()
	good.Kubernetes = true
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	for flag, change := range map[string]func(*Config){
		"kube-dir":              func(c *Config) { c.KubeDir = "k" },
		"state-dir":             func(c *Config) { c.StateDir = "s" },
		"node-tokens":           func(c *Config) { c.NodeTokens = "t" },
		"namespace":             func(c *Config) { c.Namespace = "A" },
		"trusted-node-accounts": func(c *Config) { c.TrustedNodeAccounts = []string{"ztunnel"} },
		"root-configmap":        func(c *Config) { c.RootConfigMap = "_" },
	} {
		c := good
		change(&c)
		if err := c.Validate(); err == nil || !strings.HasPrefix(err.Error(), "--"+flag+": ") || strings.Contains(err.Error(), "\n") {
			t.Errorf("err = %v, want --%s alone", err, flag)
		}
	}
	c := good
	c.TrustedNodeAccounts = nil
	if err := c.Validate(); err == nil {
		t.Error("trusts nobody")
	}
	c = Defaults()
	c.KubeDir, c.StateDir, c.NodeTokens, c.Kubeconfig = "k", "s", "t", "kc"
	if err := c.Validate(); err == nil || !strings.HasPrefix(err.Error(), "--kubeconfig: ") {
		t.Errorf("err = %v", err)
	}
	o, err := good.options()
	if err != nil || o.AssumeRedirected {
		t.Errorf("options = %+v, %v: with an API server the agent's annotation decides", o, err)
	}
}
