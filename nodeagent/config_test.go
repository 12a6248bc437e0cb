package nodeagent

import (
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

func TestFlagsCoverTheConfig(t *testing.T) {
	cfg := Defaults()
	cfg.KubeDir = ""
	fs := pflag.NewFlagSet("test", pflag.ContinueOnError)
	cfg.RegisterFlags(fs)
	args := []string{
		"--node-name=n1", "--kubernetes", "--kubeconfig=/k", "--kube-dir=", "--run-dir=/r", "--state-dir=/s", "--zds-socket=/z/z.sock", "--host-root=/host",
		"--redirect=iptables", "--ipv6=false", "--dns-capture", "--own-namespace=mesh", "--exclude-namespaces=a,b",
		`--enablement-selectors=[{podSelector: {}}]`, "--drain-deadline=1m", "--linger=3s", "--termination-grace-period=1m",
		"--daemonset=warren-nodeagent", "--on-exit=keep", "--self-probe=false", "--install-cni", "--cni-conf-dir=/c", "--cni-bin-dir=/b", "--cni-chained=false",
		"--cni-conf-name=10-x.conflist", "--cni-own-conf-name=00-w.conflist", "--cni-keep-binary", "--cni-plugin=/p", "--cni-without-agent=allow",
		"--cni-log-level=debug", "--probes=host", "--remove-taints=cni.istio.io/not-ready", "--health-listen=", "--metrics-listen=:1",
	}
	if err := fs.Parse(args); err != nil {
		t.Fatal(err)
	}
	if err := cfg.Validate(); err != nil {
		t.Error(err)
	}
	n := 0
	fs.VisitAll(func(f *pflag.Flag) {
		n++
		if !f.Changed {
			t.Errorf("--%s is not in this test", f.Name)
		}
	})
	if n != len(args) || cfg.HealthListen != "" || cfg.IPv6 || !cfg.DNSCapture || len(cfg.ExcludeNamespaces) != 2 {
		t.Errorf("%d flags, %+v", n, cfg)
	}
}

func TestBadValuesDoNotHideOtherMistakes(t *testing.T) {
	cmd := Command()
	cmd.SetArgs([]string{"run", "--node-name=n1", "--drain-deadline=soon", "--ipv6=maybe", "--log-level=loud", "--redirect=magic", "--log-format=xml"})
	err := cmd.ExecuteContext(t.Context())
	if err == nil {
		t.Fatal("no error")
	}
	if strings.Count(err.Error(), "--drain-deadline") != 1 {
		t.Errorf("one mistake is told twice:\n%v", err)
	}
	for _, want := range []string{`--drain-deadline: "soon"`, `--ipv6: "maybe"`, `--log-level: "loud"`, `--redirect: "magic"`, "--kubernetes", `--log-format: "xml"`} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing in:\n%v", want, err)
		}
	}
}

func TestValidateNamesAllMistakes(t *testing.T) {
	cfg := Defaults()
	cfg.RunDir, cfg.StateDir, cfg.ZDSSocket, cfg.HostRoot = "run", "state", "/"+strings.Repeat("z", 110), "host"
	cfg.Redirect, cfg.OwnNamespace, cfg.ExcludeNamespaces, cfg.Selectors = "magic", "A_B", []string{"ok", "../x"}, "{"
	cfg.DrainDeadline, cfg.TerminationGracePeriod, cfg.HealthListen, cfg.MetricsListen = -1, 0, "here", "here"
	err := cfg.Validate()
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{
		"--node-name", "--kubernetes: give this", "--run-dir", "--state-dir", "--zds-socket", "--host-root", "--redirect: \"magic\" is none of auto, iptables and nftables",
		"--own-namespace", "--exclude-namespaces: \"../x\"", "--enablement-selectors", "--drain-deadline", "--termination-grace-period", "--health-listen", "--metrics-listen",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing in:\n%v", want, err)
		}
	}
	cfg = Defaults()
	cfg.NodeName, cfg.KubeDir = "n", "k"
	if err := cfg.Validate(); err != nil {
		t.Errorf("the defaults: %v", err)
	}
}
