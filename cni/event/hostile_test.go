package event

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/warren-mesh/warren/internal/netns"
	"github.com/warren-mesh/warren/internal/nstest"
)

// peek says whether a packet is there.
func peek(fd int) bool {
	_, _, err := unix.Recvfrom(fd, make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
	return err == nil
}

// Junk on the agent's socket: each peer is refused or let go, nothing is asked
// of the handler, nothing leaks, and the next plugin is served.
func TestAgentSurvivesJunk(t *testing.T) {
	nstest.LeakCheck(t)
	ns := podNS(t)
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	f := &Fake{}
	c := serve(t, f, func(l *limits) { l.first = 100 * time.Millisecond })
	add, err := encode(message{Version: Version, Kind: kindAdd, Add: new(testAdd())})
	if err != nil {
		t.Fatal(err)
	}
	many := slices.Repeat([]int{int(ns.Fd())}, 200)
	for _, tc := range []struct {
		name   string
		data   []byte
		fds    []int
		answer string // part of the refusal; empty: none
	}{
		{"nothing", nil, nil, "in time"},
		{"an empty packet", []byte{}, nil, ""},
		{"garbage", []byte("\x16\x03\x01\x02\x00hello"), nil, "not a message"},
		{"HTTP", []byte("POST /cmdadd HTTP/1.1\r\n\r\n"), nil, "not a message"},
		{"another version", []byte(`{"version":99,"kind":"add"}`), many[:1], "speaks versions 1 to 1"},
		{"too long", []byte(strings.Repeat(" ", maxMessage+1)), nil, "more than 16384 bytes"},
		{"far too long, with a descriptor", []byte(strings.Repeat(" ", 100<<10)), many[:1], "more than 16384 bytes"},
		{"not a request", []byte(`{"version":1,"kind":"done"}`), nil, "does not begin with done"},
		{"no request of a plugin's", []byte(`{"version":1,"kind":"programmed","how":"agent"}`), nil, "does not begin with programmed"},
		{"an add without a descriptor", add, nil, "without the descriptor"},
		{"an add with two", add, many[:2], "more than one descriptor"},
		{"an add with more than fit", add, many, "more than one descriptor"},
		{"an add with another file", add, []int{int(file.Fd())}, "not a network namespace"},
		{"a status with a descriptor", []byte(`{"version":1,"kind":"status"}`), many[:1], "a descriptor with a status"},
		{"a gc that goes on as something else", []byte(`{"version":1,"kind":"gc","gc":{"network":"n","valid":[],"more":true}}`), nil, "in time"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			uc := dialRaw(t, c.Path)
			if tc.data != nil {
				var oob []byte
				if tc.fds != nil {
					oob = unix.UnixRights(tc.fds...)
				}
				if _, _, err := uc.WriteMsgUnix(tc.data, oob, nil); err != nil {
					t.Fatal(err)
				}
			}
			m, err := conn{uc}.recv(testContext(t))
			switch {
			case tc.answer == "" && err == nil:
				t.Errorf("answered %+v", m)
			case tc.answer != "" && (err != nil || m.Error == nil || !strings.Contains(m.Error.Msg, tc.answer)):
				t.Errorf("answered %+v %v, %v; want %q", m.Kind, m.Error, err, tc.answer)
			}
		})
	}
	if len(f.Calls()) > 0 {
		t.Errorf("the handler was asked %v", verbs(f))
	}
	if err := c.Status(testContext(t)); err != nil {
		t.Error(err)
	}
}

func dialRaw(t *testing.T, path string) *net.UnixConn {
	t.Helper()
	uc, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { uc.Close() })
	return uc
}

// A plugin that speaks out of turn, with a descriptor at that, ends the work.
func TestOutOfTurn(t *testing.T) {
	nstest.LeakCheck(t)
	ns := podNS(t)
	causes := make(chan error, 1)
	f := &Fake{OnAdd: func(ctx context.Context, _ Add, _ *netns.NS) (Answer, error) {
		err := stuck(ctx)
		causes <- context.Cause(ctx)
		return Answer{}, err
	}}
	c := dialAdd(t, serve(t, f, nil), ns)
	if err := c.send(testContext(t), message{Version: Version, Kind: kindProgrammed, How: ByPlugin}, ns); err != nil {
		t.Fatal(err)
	}
	if err := <-causes; !errors.Is(err, errTurn) {
		t.Errorf("cause %v, want %v", err, errTurn)
	}
}

// After the answer only programmed or failed may come.
func TestWrongSecondMessage(t *testing.T) {
	nstest.LeakCheck(t)
	ns := podNS(t)
	for _, data := range []string{"garbage", `{"version":1,"kind":"status"}`, `{"version":1,"kind":"programmed","how":"me"}`} {
		f := &Fake{OnAdd: redirectAll}
		c := dialAdd(t, serve(t, f, nil), ns)
		if _, err := c.answer(testContext(t)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.c.Write([]byte(data)); err != nil {
			t.Fatal(err)
		}
		var refusal *Error
		if err := c.done(testContext(t)); !errors.As(err, &refusal) {
			t.Errorf("%s: %v", data, err)
		}
		if got := verbs(f); !slices.Equal(got, []string{"Add", "Abort"}) {
			t.Errorf("%s: agent was asked %v", data, got)
		}
	}
}

// A GC that never ends does not fill the agent's memory.
func TestEndlessGC(t *testing.T) {
	nstest.LeakCheck(t)
	f := &Fake{}
	uc := dialRaw(t, serve(t, f, nil).Path)
	c := conn{uc}
	keys := make([]Key, 400)
	for i := range keys {
		keys[i] = Key{"c", "e"}
	}
	// Just as many as are too many: a refusal that meets packets nobody reads any
	// more is lost to the reset that they cause.
	for range 16384/len(keys) + 1 {
		if err := c.send(testContext(t), message{Version: Version, Kind: kindGC, GC: &gcReq{Network: "net", Valid: keys, More: true}}, nil); err != nil {
			t.Fatal(err)
		}
	}
	var refusal *Error
	if err := c.done(testContext(t)); !errors.As(err, &refusal) || !strings.Contains(refusal.Msg, "more than 16384 attachments") {
		t.Errorf("got %v", err)
	}
	if got := verbs(f); len(got) > 0 {
		t.Errorf("agent was asked %v", got)
	}
}

// The number of silent peers is bounded in time as well: they cannot keep
// plugins out.
func TestSilentPeers(t *testing.T) {
	nstest.LeakCheck(t)
	c := serve(t, &Fake{}, func(l *limits) { l.conversations, l.first = 2, 20*time.Millisecond })
	for range 10 {
		dialRaw(t, c.Path)
	}
	if err := c.Status(testContext(t)); err != nil {
		t.Error(err)
	}
}

// Only root may speak to the agent, whatever the socket's mode.
func TestPeerMustBeRoot(t *testing.T) {
	nstest.Require(t)
	nstest.LeakCheck(t)
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: "@warren-event-test-" + filepath.Base(t.TempDir()) + t.Name(), Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	f := &Fake{}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- Serve(ctx, l, f, slog.New(slog.DiscardHandler)) }()
	defer func() { cancel(); <-ended }()

	c := &Client{Path: l.Addr().String()}
	if err := c.Status(testContext(t)); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	asNobody(t, func() { err = unix.Connect(fd, &unix.SockaddrUnix{Name: c.Path}) })
	file := os.NewFile(uintptr(fd), "socket")
	defer file.Close()
	if err != nil {
		t.Fatal(err)
	}
	nc, err := net.FileConn(file)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	nc.SetDeadline(time.Now().Add(patience))
	_, _ = nc.Write([]byte(`{"version":1,"kind":"status"}`)) // may find the end already
	if n, err := nc.Read(make([]byte, 100)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read %d bytes, %v; want the end", n, err)
	}
	if got := verbs(f); len(got) != 1 {
		t.Errorf("the handler was asked %v", got)
	}
}

// asNobody runs fn on a thread with another effective user, which a Unix
// socket remembers of whoever connects it.
func asNobody(t *testing.T, fn func()) {
	t.Helper()
	done := make(chan unix.Errno)
	go func() {
		runtime.LockOSThread() // and never unlocked if the way back fails
		set := func(uid uintptr) unix.Errno {
			keep := ^uintptr(0)
			_, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, keep, uid, keep)
			return errno
		}
		errno := set(65534)
		if errno == 0 {
			fn()
			errno = set(0)
		}
		if errno == 0 {
			runtime.UnlockOSThread()
		}
		done <- errno
	}()
	if errno := <-done; errno != 0 {
		t.Skipf("setresuid: %v (the user namespace has only one user)", errno)
	}
}

// fakeAgent accepts one plugin, and answers each of its packets with the next
// reply; then it closes.
func fakeAgent(t *testing.T, replies ...func(*net.UnixConn)) *Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), SocketName)
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		uc, err := l.AcceptUnix()
		if err != nil {
			return
		}
		defer uc.Close()
		uc.SetDeadline(time.Now().Add(patience))
		for _, reply := range replies {
			if _, file, err := (conn{uc}).packet(context.Background()); err == nil && file != nil {
				file.Close()
			}
			reply(uc)
		}
	}()
	t.Cleanup(func() { l.Close(); <-ended })
	return &Client{Path: path}
}

func text(s string) func(*net.UnixConn) { return func(uc *net.UnixConn) { uc.Write([]byte(s)) } }

// The plugin believes nothing that the agent's end sends out of order, and knows
// whether a decision had been made.
func TestPluginSurvivesJunk(t *testing.T) {
	nstest.LeakCheck(t)
	ns := podNS(t)
	answer := text(`{"version":1,"kind":"answer","answer":{"action":"redirect","redirect":{"probeIP4":"","probeIP6":""}}}`)
	nothing := func(*net.UnixConn) {}
	for _, tc := range []struct {
		name    string
		replies []func(*net.UnixConn)
		want    error
	}{
		{"the end at once", nil, ErrAway},
		{"the end instead of an answer", []func(*net.UnixConn){nothing}, ErrAway},
		{"garbage for an answer", []func(*net.UnixConn){text("garbage")}, ErrAway},
		{"done for an answer", []func(*net.UnixConn){text(`{"version":1,"kind":"done"}`)}, ErrAway},
		{"too long an answer", []func(*net.UnixConn){text(strings.Repeat(" ", maxMessage+1))}, ErrAway},
		{"a descriptor with the answer", []func(*net.UnixConn){func(uc *net.UnixConn) {
			uc.WriteMsgUnix([]byte(`{"version":1,"kind":"answer","answer":{"action":"leave"}}`), unix.UnixRights(int(ns.Fd())), nil)
		}}, ErrAway},
		{"the end instead of done", []func(*net.UnixConn){answer, nothing}, ErrLost},
		{"garbage for done", []func(*net.UnixConn){answer, text("[]")}, ErrLost},
		{"an answer for done", []func(*net.UnixConn){answer, answer}, ErrLost},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := fakeAgent(t, tc.replies...)
			if _, err := c.Add(testContext(t), testAdd(), ns, byPlugin); !errors.Is(err, tc.want) {
				t.Errorf("error %v, want %v", err, tc.want)
			}
		})
	}
}

// An agent that hangs costs the plugin no more than its own time.
func TestPluginGivesUp(t *testing.T) {
	nstest.LeakCheck(t)
	c := fakeAgent(t, func(uc *net.UnixConn) { io.Copy(io.Discard, uc) })
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	_, err := c.Add(ctx, testAdd(), podNS(t), never)
	if !errors.Is(err, ErrAway) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
}

func TestNobodyThere(t *testing.T) {
	nstest.LeakCheck(t)
	path := filepath.Join(t.TempDir(), SocketName)
	c := &Client{Path: path}
	if err := c.Status(testContext(t)); !errors.Is(err, ErrAway) {
		t.Errorf("no socket: %v", err)
	}
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := c.Del(testContext(t), Key{"c", "e"}, ""); !errors.Is(err, ErrAway) {
		t.Errorf("a socket without a listener: %v", err)
	}
}
