package proxy

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"runtime"
	"strings"

	"sigs.k8s.io/yaml"
)

// meshFile is where Istio mounts the mesh's configuration.
const meshFile = "./etc/istio/config/mesh"

// proxyConfig is what we use of Istio's ProxyConfig.
type proxyConfig struct {
	DiscoveryAddress string            `json:"discoveryAddress"`
	ProxyAdminPort   uint16            `json:"proxyAdminPort"`
	StatsPort        uint16            `json:"statsPort"`
	Concurrency      *uint16           `json:"concurrency"` // 0: all CPUs
	ProxyMetadata    map[string]string `json:"proxyMetadata"`
}

// meshConfig applies the mesh's file, then PROXY_CONFIG, both optional.
func (e *environ) meshConfig(c *Config) {
	c.Metadata, c.MetadataJSON = map[string]string{}, map[string]string{}
	text, err := os.ReadFile(meshFile)
	switch {
	case err == nil:
		var mesh struct {
			DefaultConfig proxyConfig `json:"defaultConfig"`
		}
		if err := yaml.Unmarshal(text, &mesh); err != nil {
			e.bad(meshFile, "%w", err)
		}
		mesh.DefaultConfig.apply(c)
	case !errors.Is(err, fs.ErrNotExist):
		e.bad(meshFile, "%w", err)
	}
	var own proxyConfig
	if err := yaml.Unmarshal([]byte(e.text("PROXY_CONFIG", "")), &own); err != nil {
		e.bad("PROXY_CONFIG", "%w", err)
	}
	own.apply(c)
}

func (p proxyConfig) apply(c *Config) {
	if a := p.DiscoveryAddress; a != "" {
		c.XDS.Address, c.CA.Address = "https://"+a, "https://"+a
	}
	if p.ProxyAdminPort != 0 {
		c.Admin = netip.AddrPortFrom(c.Admin.Addr(), p.ProxyAdminPort)
	}
	if p.StatsPort != 0 {
		c.Stats = netip.AddrPortFrom(c.Stats.Addr(), p.StatsPort)
	}
	if p.Concurrency != nil {
		if c.Threads = int(*p.Concurrency); c.Threads == 0 {
			c.Threads = runtime.NumCPU()
		}
	}
	for k, v := range p.ProxyMetadata {
		c.Metadata[trimMeta(k)] = v
	}
}

// trimMeta takes the prefix off that metadata has as an environment variable.
func trimMeta(k string) string { return strings.TrimPrefix(k, "ISTIO_META_") }
