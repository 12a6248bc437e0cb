package capture

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/warren-mesh/warren/internal/netns"
)

// maxFrame is larger than the largest segment that offloads can hand over.
const maxFrame = 128 << 10

// Counts are the TCP payload bytes seen so far, both directions together.
type Counts struct {
	TLS       int64 // on the watched port, in flows that began with a TLS handshake record
	NotTLS    int64 // on the watched port, in flows that did not
	OtherTCP  int64 // on any other port
	Marker    int   // frames in which the marker could be read
	Dropped   int64 // frames that the kernel had no room for: with these the rest is a lower bound
	TLSFlows  int   // flows counted under TLS
	OtherPort map[uint16]int64
}

// Since returns what was counted after an earlier reading.
func (c Counts) Since(old Counts) Counts {
	d := Counts{
		TLS: c.TLS - old.TLS, NotTLS: c.NotTLS - old.NotTLS, OtherTCP: c.OtherTCP - old.OtherTCP,
		Marker: c.Marker - old.Marker, Dropped: c.Dropped - old.Dropped, TLSFlows: c.TLSFlows - old.TLSFlows,
		OtherPort: make(map[uint16]int64),
	}
	for port, n := range c.OtherPort {
		if n -= old.OtherPort[port]; n != 0 {
			d.OtherPort[port] = n
		}
	}
	return d
}

// Capture reads one interface until it is closed.
type Capture struct {
	f      *os.File
	port   uint16
	ignore netip.Prefix
	done   chan struct{}
	frames atomic.Int64

	mu     sync.Mutex
	counts Counts        // guarded by mu
	flows  map[flow]bool // true: began as TLS; guarded by mu
	marker []byte        // guarded by mu
}

type flow struct{ a, b netip.AddrPort } // a < b, so that both directions share it

// Open starts counting on an interface inside ns. Flows with an end in ignore
// (a control plane, say) are left out; the zero prefix ignores nothing. The
// caller closes the Capture.
func Open(ns *netns.NS, ifname string, port uint16, ignore netip.Prefix) (*Capture, error) {
	// Without a protocol it receives nothing before it is bound: with one it
	// would take every interface's frames until then.
	fd, err := ns.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
	if err != nil {
		return nil, fmt.Errorf("capture on %s: %w", ifname, err)
	}
	index := 0
	err = ns.Do(func() error {
		ifi, err := net.InterfaceByName(ifname)
		if err == nil {
			index = ifi.Index
		}
		return err
	})
	if err == nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20) // more room, where allowed
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: bigEndian(unix.ETH_P_ALL), Ifindex: index})
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("capture on %s: %w", ifname, err), unix.Close(fd))
	}
	c := &Capture{
		f: os.NewFile(uintptr(fd), "capture:"+ifname), port: port, ignore: ignore,
		done: make(chan struct{}), flows: make(map[flow]bool),
	}
	c.counts.OtherPort = make(map[uint16]int64)
	go c.run()
	return c, nil
}

// Mark sets the text to look for in every frame from now on.
func (c *Capture) Mark(text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.marker = []byte(text)
}

// Counts returns what was counted so far.
func (c *Capture) Counts() Counts {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.counts
	n.OtherPort = make(map[uint16]int64, len(c.counts.OtherPort))
	for port, b := range c.counts.OtherPort {
		n.OtherPort[port] = b
	}
	return n
}

// Quiet waits until no frame has come for d, so that what follows is not mixed
// with the end of what came before. It gives up at ctx' end.
func (c *Capture) Quiet(ctx context.Context, d time.Duration) error {
	seen, since := c.frames.Load(), time.Now()
	tick := time.NewTicker(d / 5)
	defer tick.Stop()
	for time.Since(since) < d {
		select {
		case <-ctx.Done():
			return fmt.Errorf("the wire did not become quiet: %w", ctx.Err())
		case <-tick.C:
		}
		if n := c.frames.Load(); n != seen {
			seen, since = n, time.Now()
		}
	}
	return nil
}

// Close ends the capture and waits for its goroutine.
func (c *Capture) Close() error {
	err := c.f.Close()
	<-c.done
	return err
}

func (c *Capture) run() {
	defer close(c.done)
	buf := make([]byte, maxFrame)
	for {
		n, err := c.f.Read(buf)
		if err != nil {
			return
		}
		c.frames.Add(1)
		c.frame(buf[:n])
		c.drops()
	}
}

// drops adds what the kernel could not queue; reading the statistic resets it.
func (c *Capture) drops() {
	raw, err := c.f.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		if st, err := unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
			c.mu.Lock()
			c.counts.Dropped += int64(st.Drops)
			c.mu.Unlock()
		}
	})
}

func (c *Capture) frame(b []byte) {
	src, dst, payload, ok := parse(b)
	if !ok || len(payload) == 0 || c.ignore.Contains(src.Addr()) || c.ignore.Contains(dst.Addr()) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.marker) > 0 && bytes.Contains(payload, c.marker) {
		c.counts.Marker++
	}
	n := int64(len(payload))
	if src.Port() != c.port && dst.Port() != c.port {
		c.counts.OtherTCP += n
		c.counts.OtherPort[min(src.Port(), dst.Port())] += n
		return
	}
	f := flow{src, dst}
	if dst.Compare(src) < 0 {
		f = flow{dst, src}
	}
	isTLS, known := c.flows[f]
	if !known {
		isTLS = clientHello(payload)
		c.flows[f] = isTLS
		if isTLS {
			c.counts.TLSFlows++
		}
	}
	if isTLS {
		c.counts.TLS += n
	} else {
		c.counts.NotTLS += n
	}
}

// clientHello reports whether b begins with a TLS handshake record that holds
// a ClientHello (RFC 8446 §5.1, §4.1.2).
func clientHello(b []byte) bool {
	return len(b) > 5 && b[0] == 22 && b[1] == 3 && b[5] == 1
}

// parse takes an Ethernet frame apart down to the TCP payload.
func parse(b []byte) (src, dst netip.AddrPort, payload []byte, ok bool) {
	if len(b) < 14 {
		return
	}
	var proto byte
	var srcIP, dstIP netip.Addr
	etherType, b := binary.BigEndian.Uint16(b[12:]), b[14:]
	switch etherType {
	case unix.ETH_P_IP:
		if len(b) < 20 {
			return
		}
		head, total := int(b[0]&0x0f)*4, int(binary.BigEndian.Uint16(b[2:]))
		if head < 20 || total < head || len(b) < total {
			return
		}
		proto = b[9]
		srcIP, dstIP = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
		b = b[head:total]
	case unix.ETH_P_IPV6:
		if len(b) < 40 {
			return
		}
		total := int(binary.BigEndian.Uint16(b[4:]))
		proto = b[6]
		srcIP, dstIP = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
		if b = b[40:]; total > 0 && total <= len(b) { // 0: a jumbogram from segmentation offload
			b = b[:total]
		}
	default:
		return
	}
	if proto != unix.IPPROTO_TCP || len(b) < 20 {
		return
	}
	head := int(b[12]>>4) * 4
	if head < 20 || head > len(b) {
		return
	}
	src = netip.AddrPortFrom(srcIP, binary.BigEndian.Uint16(b[0:]))
	dst = netip.AddrPortFrom(dstIP, binary.BigEndian.Uint16(b[2:]))
	return src, dst, b[head:], true
}

func bigEndian(v uint16) uint16 { return v<<8 | v>>8 }
