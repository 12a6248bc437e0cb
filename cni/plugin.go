package cni

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"runtime/debug"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/warren-mesh/warren/cni/conflist"
	"github.com/warren-mesh/warren/cni/event"
	"github.com/warren-mesh/warren/cni/redirect"
)

// Plugin holds what a call needs beside its arguments.
type Plugin struct {
	Stdout, Stderr io.Writer
	// Backend returns the redirection of that name, or the host's own choice
	// for an empty one.
	Backend func(name string) (redirect.Backend, error)
	// Timeout is event.PluginTimeout but in tests.
	Timeout time.Duration
}

// Versions are the specification's that the plugin speaks.
func Versions() version.PluginInfo {
	return version.PluginSupports(conflist.Versions()...)
}

// Funcs are the verbs, as skel calls them.
func (p *Plugin) Funcs() skel.CNIFuncs {
	return skel.CNIFuncs{
		Add:    p.verb("ADD", (*call).add),
		Del:    p.verb("DEL", (*call).del),
		Check:  p.verb("CHECK", (*call).check),
		GC:     p.verb("GC", (*call).gc),
		Status: p.verb("STATUS", (*call).status),
	}
}

// call is one run of the plugin.
type call struct {
	*Plugin
	args   *skel.CmdArgs
	conf   Config
	pod    pod
	badPod error // what is wrong with CNI_ARGS
	client event.Client
	log    *slog.Logger
}

// verb makes one of skel's functions: what all verbs have in common. Whatever
// goes wrong, a panic too, becomes a CNI error, and is logged.
func (p *Plugin) verb(name string, do func(*call, context.Context) error) func(*skel.CmdArgs) error {
	return func(args *skel.CmdArgs) (err error) {
		ctx, cancel := context.WithTimeout(context.Background(), p.Timeout)
		defer cancel()
		began := time.Now()
		c := &call{Plugin: p, args: args}
		var confErr error
		c.conf, confErr = parseConfig(args.StdinData)
		c.pod, c.badPod = parseArgs(args.Args)
		c.client.Path = filepath.Join(c.conf.RunDir, event.SocketName)
		log, closer := newLog(p.Stderr, c.conf)
		defer closer.Close()
		c.log = log.With("verb", name)
		if args.ContainerID != "" {
			c.log = c.log.With("container", args.ContainerID, "ifname", args.IfName)
		}
		if c.pod.kubernetes() {
			c.log = c.log.With("pod", c.pod.String(), "uid", c.pod.uid)
		}

		defer func() {
			if r := recover(); r != nil {
				c.log.Error("panic", "err", fmt.Sprint(r), "stack", string(debug.Stack()))
				err = types.NewError(types.ErrInternal, fmt.Sprintf("%s %s panicked: %v", conflist.Type, name, r), "this is a mistake in the plugin; its log has the stack")
			}
			if err != nil {
				c.log.Error("failed", "err", err, "took", time.Since(began))
			} else {
				c.log.Debug("done", "took", time.Since(began))
			}
		}()
		if confErr != nil {
			if name != "DEL" {
				return failure(types.ErrInvalidNetworkConfig, fmt.Errorf("the configuration of %s is wrong: %w", conflist.Type, confErr), "correct its entry in the network's conflist")
			}
			c.log.Warn("the configuration is wrong; going on with defaults", "err", confErr)
		}
		return asCNIError(do(c, ctx))
	}
}

// asCNIError keeps a nil *types.Error from becoming an error.
func asCNIError(err error) error {
	var e *types.Error
	if errors.As(err, &e) && e == nil {
		return nil
	}
	return err
}

func (c *call) key() event.Key {
	return event.Key{ContainerID: c.args.ContainerID, IfName: c.args.IfName}
}

// outside says why a pod is none of ours, without asking anybody; empty if it
// may be one.
func (c *call) outside() string {
	switch {
	case !c.pod.kubernetes():
		return "not called for a Kubernetes pod"
	case c.pod.namespace == c.conf.Namespace:
		return "the mesh's own namespace is exempt"
	}
	return ""
}

// chained checks what ADD and CHECK need: the result of the plugin before.
func (c *call) chained() (prevResult, error) {
	if c.conf.PrevResult == nil {
		return prevResult{}, types.NewError(types.ErrInvalidNetworkConfig,
			conflist.Type+" was called without a prevResult: it is a chained plugin and makes no interface itself",
			"put its entry into a conflist, behind the plugin that makes the interface")
	}
	prev, err := parsePrev(c.conf.PrevResult)
	if err != nil {
		return prev, failure(types.ErrDecodingFailure, err, "the plugin before "+conflist.Type+" in the conflist, or the runtime, is at fault")
	}
	if c.badPod != nil {
		return prev, failure(types.ErrInvalidEnvironmentVariables, c.badPod, "the runtime is at fault")
	}
	return prev, nil
}
