package nodeagent

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/warren-mesh/warren/nodeagent/probe"
	"github.com/warren-mesh/warren/xds/translate"
)

// mistakes collects what is wrong with flags.
type mistakes []error

func (m *mistakes) add(flag, format string, args ...any) {
	*m = append(*m, fmt.Errorf("--%s: %s", flag, fmt.Sprintf(format, args...)))
}

// name wants a DNS label, or nothing.
func (m *mistakes) name(flag, value string) {
	if why := validation.IsDNS1123Label(value); value != "" && len(why) > 0 {
		m.add(flag, "%q: %s", value, strings.Join(why, "; "))
	}
}

// oneOf wants one of some words.
func (m *mistakes) oneOf(flag, value string, words ...string) {
	for _, w := range words {
		if value == w {
			return
		}
	}
	last := len(words) - 1
	m.add(flag, "%q is none of %s and %s", value, strings.Join(words[:last], ", "), words[last])
}

// Validate returns all mistakes at once.
func (c *Config) Validate() error {
	var m mistakes
	if c.NodeName == "" {
		m.add("node-name", "must name this node")
	}
	c.checkSource(&m)
	c.checkPaths(&m)
	m.oneOf("redirect", c.Redirect, RedirectAuto, RedirectIPTables, RedirectNFTables)
	m.oneOf("probes", c.Probes, ProbesAuto, ProbesOff, probe.OnlyKubelet, probe.WholeHost)
	m.oneOf("cni-without-agent", c.CNI.WithoutAgent, "refuse", "allow")
	m.oneOf("cni-log-level", c.CNI.LogLevel, "debug", "info", "warn", "error")
	m.oneOf("on-exit", c.OnExit, OnExitAuto, OnExitKeep, OnExitUninstall)
	for _, ns := range c.ExcludeNamespaces {
		if ns == "" {
			m.add("exclude-namespaces", "%q is no name", ns)
		}
		m.name("exclude-namespaces", ns)
	}
	m.name("own-namespace", c.OwnNamespace)
	if _, err := translate.ParseSelectors(c.Selectors); err != nil {
		m.add("enablement-selectors", "%v", err)
	}
	if c.DrainDeadline < 0 {
		m.add("drain-deadline", "%s must not be negative", c.DrainDeadline)
	}
	if c.Linger < 0 || c.Linger > time.Minute {
		m.add("linger", "%s must be from 0 to a minute", c.Linger)
	}
	if c.TerminationGracePeriod <= 0 {
		m.add("termination-grace-period", "%s must be positive", c.TerminationGracePeriod)
	}
	c.checkAddresses(&m)
	return errors.Join(m...)
}

// checkSource is about where the objects come from, and what can be done there.
func (c *Config) checkSource(m *mistakes) {
	switch {
	case !c.Kubernetes && c.KubeDir == "":
		m.add("kubernetes", "give this to follow an API server, or --kube-dir with a folder of Kubernetes YAML")
	case c.Kubernetes && c.KubeDir != "":
		m.add("kube-dir", "the objects come from an API server (--kubernetes) or from a folder, not from both")
	}
	if c.Kubernetes {
		for _, key := range c.RemoveTaints {
			if why := validation.IsQualifiedName(key); len(why) > 0 {
				m.add("remove-taints", "%q: %s", key, strings.Join(why, "; "))
			}
		}
		if why := validation.IsDNS1123Subdomain(c.DaemonSet); c.DaemonSet != "" && len(why) > 0 {
			m.add("daemonset", "%q: %s", c.DaemonSet, strings.Join(why, "; "))
		}
		return
	}
	for _, f := range []struct {
		flag string
		set  bool
	}{{"kubeconfig", c.Kubeconfig != ""}, {"remove-taints", len(c.RemoveTaints) > 0}, {"daemonset", c.DaemonSet != ""}} {
		if f.set {
			m.add(f.flag, "is for --kubernetes")
		}
	}
}

func (c *Config) checkPaths(m *mistakes) {
	for _, p := range []struct{ flag, value string }{
		{"run-dir", c.RunDir}, {"state-dir", c.StateDir}, {"zds-socket", c.ZDSSocket}, {"host-root", c.HostRoot},
	} {
		if !filepath.IsAbs(p.value) {
			m.add(p.flag, "%q must be an absolute path", p.value)
		}
	}
	// sun_path holds 108 bytes with its end; the longest name counts.
	for _, p := range []struct{ flag, value string }{
		{"run-dir", filepath.Join(c.RunDir, pluginSocket)}, {"zds-socket", c.ZDSSocket}, {"zds-socket", filepath.Join(filepath.Dir(c.ZDSSocket), adminSocket)},
	} {
		if len(p.value) > 107 {
			m.add(p.flag, "the socket's path %s is longer than the 107 bytes that are possible", p.value)
		}
	}
}

func (c *Config) checkAddresses(m *mistakes) {
	if c.HealthListen != "" && c.HealthListen == c.MetricsListen && !strings.HasSuffix(c.HealthListen, ":0") {
		m.add("metrics-listen", "%q is the address of --health-listen", c.MetricsListen)
	}
	for _, l := range []struct{ flag, value string }{{"health-listen", c.HealthListen}, {"metrics-listen", c.MetricsListen}} {
		if l.value != "" && !hostPort(l.value) {
			m.add(l.flag, "%q is not an address, such as 127.0.0.1:8000 or :8000", l.value)
		}
	}
}

func hostPort(s string) bool {
	_, port, err := net.SplitHostPort(s)
	if err != nil {
		return false
	}
	_, err = strconv.ParseUint(port, 10, 16)
	return err == nil
}
