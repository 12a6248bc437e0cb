package probe_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/warren-mesh/warren/internal/netns"
	"github.com/warren-mesh/warren/internal/nstest"
	"github.com/warren-mesh/warren/nodeagent/probe"
)

// helperEnv makes the test binary a process of the host's: what it dials is
// read from standard input, a line an address.
const helperEnv = "WARREN_PROBE_HELPER"

func TestMain(m *testing.M) {
	// The host's lock is not for a test to hold, and root's.
	os.Setenv("XTABLES_LOCKFILE", filepath.Join(os.TempDir(), fmt.Sprintf("warren-probe-test-%d.lock", os.Getuid())))
	switch os.Getenv(helperEnv) {
	case "dial":
		dialLines()
	case "limit", "limit contained":
		sayLimit()
	default:
		nstest.Main(m)
	}
}

// patience is for what should happen, on a loaded machine.
const patience = 20 * time.Second

func dialLines() {
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		c, err := net.DialTimeout("tcp", in.Text(), patience)
		if err != nil {
			fmt.Println("error", err)
			continue
		}
		c.Close()
		fmt.Println("ok")
	}
}

// sayLimit prints whom a Probe of this process would let through.
func sayLimit() {
	p, err := probe.New(probe.Config{Backend: os.Getenv("BACKEND"), Proc: os.Getenv("PROC")})
	if err != nil {
		fmt.Println("error", err)
		return
	}
	fmt.Println(p.State().Limit, "trial:", p.TryCgroups())
}

// process is one of the host's.
type process struct {
	cmd *exec.Cmd
	in  *os.File
	out *bufio.Scanner
}

// start runs the test binary in ns under a name, as a user and in a cgroup if
// that is not "".
func start(t *testing.T, ns *netns.NS, mode, name string, user uint32, cgroup string, env ...string) *process {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), name)
	if err := os.Link(self, link); err != nil { // its name is the process's
		t.Fatal(err)
	}
	for dir := filepath.Dir(link); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil { // another user runs it
			t.Fatal(err)
		}
	}
	cmd := exec.Command(link)
	cmd.Env = append(os.Environ(), append(env, helperEnv+"="+mode)...)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	if mode == "limit contained" { // as a container has it: its cgroup is the root that it sees
		cmd.SysProcAttr.Unshareflags = syscall.CLONE_NEWCGROUP
	}
	if user != 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: user, Gid: user}
	}
	if cgroup != "" {
		dir, err := os.Open(cgroup)
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(dir.Fd())
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := ns.Do(cmd.Start); err != nil {
		t.Fatalf("start %s: %v", name, err)
	}
	p := &process{cmd: cmd, in: in.(*os.File), out: bufio.NewScanner(out)}
	t.Cleanup(p.stop)
	return p
}

func (p *process) stop() {
	p.in.Close()
	p.cmd.Process.Kill()
	p.cmd.Wait()
}

func (p *process) line() string {
	p.out.Scan()
	return p.out.Text()
}

func (p *process) dial(t *testing.T, to netip.AddrPort) {
	t.Helper()
	if _, err := fmt.Fprintln(p.in, to); err != nil {
		t.Fatal(err)
	}
	if got := p.line(); got != "ok" {
		t.Fatalf("connect to %s: %s", to, got)
	}
}

// app is a pod's application, which says where connections come from.
type app struct {
	at   netip.AddrPort
	seen chan netip.Addr
}

func listen(t *testing.T, pod *nstest.Pod, ip netip.Addr) app {
	t.Helper()
	l, err := pod.Listen("tcp", netip.AddrPortFrom(ip, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	a := app{l.Addr().(*net.TCPAddr).AddrPort(), make(chan netip.Addr, 1000)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			a.seen <- c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return a
}

// from is the source of the next connection.
func (a app) from(t *testing.T) netip.Addr {
	t.Helper()
	select {
	case ip := <-a.seen:
		return ip
	case <-time.After(patience):
		t.Fatal("no connection arrived")
		return netip.Addr{}
	}
}

// cgroups makes cgroups (v2) below one of the test's own, and returns the
// folder and the path as rules have it.
func cgroups(t *testing.T, paths ...string) (dir, path string) {
	t.Helper()
	root := ""
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 5 && strings.Contains(line, " - cgroup2 ") && f[3] == "/" {
			root = f[4]
		}
	}
	if root == "" {
		nstest.Need(t, fmt.Errorf("no cgroup2 is mounted"))
	}
	dir, err := os.MkdirTemp(root, "warren-probe-test-*.slice")
	if err != nil {
		nstest.Need(t, err)
	}
	made := []string{dir}
	t.Cleanup(func() {
		for i := len(made) - 1; i >= 0; i-- {
			remove(t, made[i])
		}
	})
	for _, p := range paths {
		d := dir
		for _, part := range strings.Split(p, "/") {
			d = filepath.Join(d, part)
			if os.Mkdir(d, 0o755) == nil {
				made = append(made, d)
			}
		}
	}
	return dir, filepath.Base(dir)
}

// remove removes a cgroup, which the last process leaves when it is gone.
func remove(t *testing.T, dir string) {
	t.Helper()
	var err error
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if err = unix.Rmdir(dir); err == nil || err == unix.ENOENT {
			return
		}
	}
	t.Errorf("remove cgroup %s: %v", dir, err)
}

func backends() []string { return []string{"iptables-nft", "iptables-legacy", "nftables"} }

// newProbe makes one for a node; the caller closes it.
func newProbe(t *testing.T, node *nstest.Node, backend, limit string) *probe.Probe {
	t.Helper()
	p, err := probe.New(probe.Config{Backend: backend, Limit: limit, NS: node.NS})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func ctx(t *testing.T) context.Context {
	t.Helper()
	c, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	return c
}

// output runs a program in a namespace.
func output(t *testing.T, ns *netns.NS, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := ns.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, errs.String())
	}
	return out.String()
}

// ruleset is all there is of rules and sets, without times and counters.
func ruleset(t *testing.T, ns *netns.NS) string {
	t.Helper()
	var lines []string
	text := output(t, ns, "nft", "-s", "list", "ruleset") + output(t, ns, "ipset", "list")
	if used, err := readIn(ns, "/proc/thread-self/net/ip_tables_names"); err == nil && used != "" {
		text += output(t, ns, "iptables-legacy-save") + output(t, ns, "ip6tables-legacy-save")
	}
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "#") {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "")
}

func readIn(ns *netns.NS, path string) (text string, err error) {
	err = ns.Do(func() error {
		b, err := os.ReadFile(path)
		text = string(b)
		return err
	})
	return text, err
}
