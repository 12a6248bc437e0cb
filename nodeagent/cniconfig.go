package nodeagent

import (
	"log/slog"

	"github.com/spf13/pflag"

	"github.com/warren-mesh/warren/cni/conflist"
	"github.com/warren-mesh/warren/nodeagent/install"
	"github.com/warren-mesh/warren/nodeagent/probe"
)

// CNIConfig is where the plugin goes. Paths are the host's, but for Plugin.
type CNIConfig struct {
	ConfDir, BinDir       string
	ConfName, OwnConfName string
	Chained, KeepBinary   bool
	Plugin                string // the binary, in the agent's image
	WithoutAgent          string // refuse or allow
	LogLevel              string
}

func defaultCNI() CNIConfig {
	p := install.Platforms()[0]
	return CNIConfig{
		ConfDir: p.CNIConfDir, BinDir: p.CNIBinDir, Chained: p.Chained, KeepBinary: p.KeepBinary,
		OwnConfName: install.OwnConfName, Plugin: "/opt/cni/bin/" + conflist.Type, WithoutAgent: "refuse", LogLevel: "info",
	}
}

func (c *CNIConfig) registerFlags(fs *pflag.FlagSet) {
	fs.StringVar(&c.ConfDir, "cni-conf-dir", c.ConfDir, "folder on the node where the runtime reads network configurations")
	fs.StringVar(&c.BinDir, "cni-bin-dir", c.BinDir, "folder on the node where the runtime finds plugins")
	fs.BoolVar(&c.Chained, "cni-chained", c.Chained, "put our entry into the primary CNI's file; else into a file of ours that comes before it")
	fs.StringVar(&c.ConfName, "cni-conf-name", c.ConfName, "the primary CNI's file; empty for the first")
	fs.StringVar(&c.OwnConfName, "cni-own-conf-name", c.OwnConfName, "our own file")
	fs.BoolVar(&c.KeepBinary, "cni-keep-binary", c.KeepBinary, "leave the plugin on the node at uninstall, for runtimes that remember it")
	fs.StringVar(&c.Plugin, "cni-plugin", c.Plugin, "the plugin's binary, where the agent sees it")
	fs.StringVar(&c.WithoutAgent, "cni-without-agent", c.WithoutAgent, "what the plugin does with a pod of which nothing is known while the agent is away: refuse or allow")
	fs.StringVar(&c.LogLevel, "cni-log-level", c.LogLevel, "the plugin's log level: debug, info, warn or error")
}

// installer is what install works with.
func (c *CNIConfig) installer(cfg *Config, log *slog.Logger) install.Config {
	return install.Config{
		HostRoot: cfg.HostRoot, CNIConfDir: c.ConfDir, CNIBinDir: c.BinDir, ConfName: c.ConfName,
		Chained: c.Chained, OwnConfName: c.OwnConfName, KeepBinary: c.KeepBinary, PluginBinary: c.Plugin, Log: log,
		PluginConfig: conflist.Entry{
			RunDir: cfg.RunDir, StateDir: cfg.StateDir, LogLevel: c.LogLevel, WithoutAgent: c.WithoutAgent, Namespace: cfg.OwnNamespace,
		},
	}
}

// The words of --probes beside probe's own.
const (
	ProbesAuto = "auto"
	ProbesOff  = "off"
)

// probesFor is --probes, decided.
func (c *Config) probesFor() string {
	switch {
	case c.Probes != ProbesAuto:
		return c.Probes
	case c.Kubernetes:
		return probe.OnlyKubelet
	default:
		return ProbesOff
	}
}
