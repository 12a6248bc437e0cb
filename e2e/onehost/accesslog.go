package onehost

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"
)

// AccessLine is one line of a proxy's access log (LOG_FORMAT=json).
type AccessLine struct {
	Node        string `json:"-"`
	Scope       string `json:"scope"`
	Message     string `json:"message"`
	Direction   string `json:"direction"`
	Src         string `json:"src.addr"`
	SrcIdentity string `json:"src.identity"`
	Dst         string `json:"dst.addr"`
	HBONE       string `json:"dst.hbone_addr"`
	DstIdentity string `json:"dst.identity"`
	DstService  string `json:"dst.service"`
	BytesSent   int64  `json:"bytes_sent"`
	BytesRecv   int64  `json:"bytes_recv"`
	Err         string `json:"error"`
}

// AccessLines are lines about one connection, one a proxy that saw it.
type AccessLines []AccessLine

// LogMark is a place in the logs of all proxies.
type LogMark struct {
	mesh    *Mesh
	offsets map[string]int64
}

// AccessLogs marks the end of every proxy's log; Wait reads from there.
func (m *Mesh) AccessLogs() LogMark {
	mark := LogMark{mesh: m, offsets: make(map[string]int64)}
	for _, n := range m.Nodes {
		if n.proxy == nil {
			continue
		}
		if fi, err := os.Stat(n.proxy.log); err == nil {
			mark.offsets[n.Name] = fi.Size()
		}
	}
	return mark
}

// Lines returns the access lines written since the mark.
func (k LogMark) Lines() (AccessLines, error) {
	var all AccessLines
	for _, n := range k.mesh.Nodes {
		if n.proxy == nil {
			continue
		}
		lines, err := readAccess(n.proxy.log, k.offsets[n.Name])
		if err != nil {
			return nil, err
		}
		for i := range lines {
			lines[i].Node = n.Name
		}
		all = append(all, lines...)
	}
	return all, nil
}

func readAccess(path string, offset int64) (AccessLines, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return nil, err
	}
	var lines AccessLines
	sc := bufio.NewScanner(f)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		var l AccessLine
		if json.Unmarshal(sc.Bytes(), &l) == nil && strings.HasSuffix(l.Scope, "access") && l.Message != "connection opened" {
			lines = append(lines, l)
		}
	}
	return lines, sc.Err()
}

// Wait returns one line for each of the directions, about a connection from
// one of src to one of dst.
func (k LogMark) Wait(ctx context.Context, src, dst []netip.Addr, directions []string) (AccessLines, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		all, err := k.Lines()
		if err != nil {
			return nil, err
		}
		if found := all.between(src, dst, directions); len(found) == len(directions) {
			return found, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("no access line of a proxy for %v → %v %v: %w; seen: %+v", src, dst, directions, ctx.Err(), all)
		case <-tick.C:
		}
	}
}

func (ls AccessLines) between(src, dst []netip.Addr, directions []string) AccessLines {
	var found AccessLines
	for _, dir := range directions {
		for _, l := range ls {
			if l.Direction == dir && has(src, l.Src) && has(dst, l.Dst) {
				found = append(found, l)
				break
			}
		}
	}
	return found
}

func has(ips []netip.Addr, addr string) bool {
	ap, err := netip.ParseAddrPort(addr)
	return err == nil && slices.Contains(ips, ap.Addr())
}

// String says which identities the proxies saw and how many bytes went through.
func (ls AccessLines) String() string {
	if len(ls) == 0 {
		return "no proxy"
	}
	var parts []string
	for _, l := range ls {
		parts = append(parts, fmt.Sprintf("%s on %s: %s ⇒ %s, %d B sent, %d B received",
			l.Direction, l.Node, identity(l.SrcIdentity), identity(l.DstIdentity), l.BytesSent, l.BytesRecv))
	}
	return strings.Join(parts, "; ")
}

func identity(id string) string {
	if id == "" {
		return "(no identity)"
	}
	return id
}

// DenyReason is the error that the proxies gave, the destination's first.
func (ls AccessLines) DenyReason() string {
	for _, dir := range []string{"inbound", "outbound"} {
		for _, l := range ls {
			if l.Direction == dir && l.Err != "" {
				return l.Err
			}
		}
	}
	return "no reason logged"
}
