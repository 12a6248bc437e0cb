package cni

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/types/create"

	"github.com/warren-mesh/warren/cni/conflist"
	"github.com/warren-mesh/warren/cni/event"
	"github.com/warren-mesh/warren/cni/redirect"
)

// stdinTimeout is how long the runtime may take to give us the configuration.
const stdinTimeout = 5 * time.Second

// lifetime is when a call ends whatever it is at. What has a bound of its own
// needs less; this is for pipes that nobody reads and disks that hang. The agent
// then undoes what was done.
const lifetime = stdinTimeout + event.PluginTimeout + 2*redirect.OpTimeout + 2*time.Second

// Main is the program: one verb, chosen by the environment. It returns the exit
// status. version is the build's, for people.
func Main(version string) int { return mainWithin(version, lifetime) }

func mainWithin(version string, lifetime time.Duration) int {
	defer time.AfterFunc(lifetime, func() { os.Exit(1) }).Stop()
	p := &Plugin{Stdout: os.Stdout, Stderr: os.Stderr, Backend: backend, Timeout: event.PluginTimeout}
	conf, err := p.run(version)
	if err == nil {
		return 0
	}
	confVersion, _ := create.DecodeVersion(conf) // as far as it can be known
	if err := printError(os.Stdout, confVersion, err); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	return 1
}

// run lets skel read a configuration whose size and time have been bounded.
func (p *Plugin) run(version string) (conf []byte, _ *types.Error) {
	about := fmt.Sprintf("CNI plugin %s %s", conflist.Type, version)
	switch os.Getenv("CNI_COMMAND") {
	case "ADD", "DEL", "CHECK", "GC", "STATUS":
		conf, err := readStdin(os.Stdin, maxStdin, stdinTimeout)
		if err != nil {
			return nil, failure(types.ErrIOFailure, err, "the runtime is at fault")
		}
		stdin, err := refill(conf)
		if err != nil {
			return conf, failure(types.ErrIOFailure, err, "")
		}
		defer stdin.Close()
		os.Stdin = stdin
		return conf, skel.PluginMainFuncsWithError(p.Funcs(), Versions(), about)
	}
	return nil, skel.PluginMainFuncsWithError(p.Funcs(), Versions(), about)
}

// readStdin reads to the end. If that does not come in time the read is left
// behind: the program is about to end.
func readStdin(r io.Reader, limit int, timeout time.Duration) ([]byte, error) {
	type result struct {
		data []byte
		err  error
	}
	read := make(chan result, 1)
	go func() {
		data, err := io.ReadAll(io.LimitReader(r, int64(limit)+1))
		read <- result{data, err}
	}()
	select {
	case got := <-read:
		if got.err == nil && len(got.data) > limit {
			return nil, fmt.Errorf("the configuration on stdin has more than %d bytes", limit)
		}
		return got.data, got.err
	case <-time.After(timeout):
		return nil, errors.New("the configuration on stdin did not come to an end in time")
	}
}

// refill returns a pipe to read data from. The caller closes it.
func refill(data []byte) (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	go func() {
		_, _ = w.Write(data) // fails when the reader has had enough
		w.Close()
	}()
	return r, nil
}

// backend is the host's redirection: the one that the agent named, because it
// chose once for all pods, or the one that the host's rules suggest.
func backend(name string) (redirect.Backend, error) {
	if name == "" {
		return redirect.Detect()
	}
	return redirect.Named(name)
}
