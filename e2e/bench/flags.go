package bench

import (
	"flag"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// RegisterFlags adds a flag for each field to fs, with its default.
func (c *Config) RegisterFlags(fs *flag.FlagSet) {
	fs.StringVar(&c.Bins, "bin", "bin", "folder with Warren's programs and the CNI plugins bridge and host-local")
	fs.Func("peer", "another proxy that the others are held against: [NAME=]PATH[,VARIABLE=VALUE...]", func(s string) error {
		p, err := parseProxy(s, "peer")
		c.Peer = &p
		return err
	})
	fs.Func("proxy", "one more proxy to measure, as -peer; may be repeated", func(s string) error {
		p, err := parseProxy(s, fmt.Sprintf("proxy %d", len(c.Proxies)+2))
		c.Proxies = append(c.Proxies, p)
		return err
	})
	fs.BoolVar(&c.NoOurs, "without-ours", false, "leave out the proxy in the folder of -bin")
	expression(fs, "only", "measure only the loads whose id matches this regular `expression` (-list prints them)", &c.Only)
	expression(fs, "subjects", "measure only the subjects whose name matches this regular `expression`", &c.Subjects)
	fs.IntVar(&c.Rounds, "rounds", 5, "rounds; the tables show medians")
	fs.DurationVar(&c.Warm, "warm", 300*time.Millisecond, "traffic before each measurement")
	fs.DurationVar(&c.Length, "length", time.Second, "length of each measurement")
	fs.IntVar(&c.Idle, "idle", 10_000, "idle connections")
	fs.IntVar(&c.Crowd, "crowd", 250, "pods a node where many are compared with few")
	fs.DurationVar(&c.Patience, "patience", 0, "wait so long at most, before each measurement, until the machine is quiet")
	fs.BoolVar(&c.Alone, "alone", true, "take turns with other runs of the bench on this machine, round by round")
	fs.StringVar(&c.JSON, "json", "", "write everything to this `file` as JSON")
	fs.StringVar(&c.Profiles, "profiles", "", "leave CPU profiles of the proxies under each load in this `folder` (costs a little; give -length 2s or more)")
	fs.StringVar(&c.HTML, "html", "", "write one page with tables and plots to this `file`")
}

func expression(fs *flag.FlagSet, name, usage string, to **regexp.Regexp) {
	fs.Func(name, usage, func(s string) (err error) {
		*to, err = regexp.Compile(s)
		return err
	})
}

// parseProxy reads [NAME=]PATH[,VARIABLE=VALUE...].
func parseProxy(s, name string) (Proxy, error) {
	parts := strings.Split(s, ",")
	p := Proxy{Name: name, Path: parts[0], Env: parts[1:]}
	if n, path, ok := strings.Cut(parts[0], "="); ok {
		p.Name, p.Path = n, path
	}
	for _, kv := range p.Env {
		if !strings.Contains(kv, "=") {
			return p, fmt.Errorf("%q is not VARIABLE=VALUE", kv)
		}
	}
	var err error
	p.Path, err = filepath.Abs(p.Path)
	return p, err
}
