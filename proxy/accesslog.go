package proxy

import (
	"errors"
	"log/slog"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"github.com/warren-mesh/warren/proxy/track"
)

// accessScope is the scope by which RUST_LOG=access=… filters these lines.
const accessScope = "access"

// accessLine is what the access log says of one connection. What is empty is
// left out.
type accessLine struct {
	l              *labels
	srcPod, dstPod string
	src, dst       netip.AddrPort
	hbone          string // the authority of the CONNECT
	via            string // not ztunnel's: how it travelled, if not by the wire
	tried          string // not ztunnel's: the endpoints that did not accept it, and why
	sent, received int64  // as the pod sees it
	duration       time.Duration
	ended          bool
	err            error
}

// access writes the line of a connection: one when it ends, and at level debug
// one when it opens.
func (l *logs) access(a *accessLine) {
	level, msg := slog.LevelInfo, "connection complete"
	switch {
	case !a.ended:
		level, msg = slog.LevelDebug, "connection opened"
	case a.err != nil:
		level = slog.LevelError
	}
	if !l.enabled(accessScope, level) {
		return
	}
	list := accessAttrs.Get().(*[]slog.Attr)
	*list = a.attrs((*list)[:0])
	l.write(time.Now(), level, accessScope, msg, nil, *list)
	clear(*list)
	accessAttrs.Put(list)
}

var accessAttrs = sync.Pool{New: func() any { return new(make([]slog.Attr, 0, 20)) }}

// early writes the line of a connection that was refused before anything was
// known of it.
func (l *logs) early(d track.Direction, src, dst netip.AddrPort, err error) {
	level := slog.LevelWarn
	if errors.Is(err, errRecursive) && src.Addr().IsLoopback() {
		level = slog.LevelDebug // as a rule the node agent's, which looks whether we answer
	}
	if !l.enabled(accessScope, level) {
		return
	}
	list := make([]slog.Attr, 0, 4)
	if src.IsValid() {
		list = append(list, slog.Any("src.addr", src))
	}
	if dst.IsValid() { // the client may have left before it could be asked for
		list = append(list, slog.Any("dst.addr", dst))
	}
	list = append(list, slog.String("direction", d.String()), slog.String("error", err.Error()))
	l.write(time.Now(), level, accessScope, "connection failed", nil, list)
}

// attrs are the keys of ztunnel's access log, in its order.
func (a *accessLine) attrs(list []slog.Attr) []slog.Attr {
	add := func(key, value string) {
		if value != "" {
			list = append(list, slog.String(key, value))
		}
	}
	end := func(side, pod string, p *party) {
		if pod == "" {
			pod = p.canonicalService
		}
		add(side+".workload", pod)
		add(side+".namespace", p.namespace)
		if a.l.mtls {
			add(side+".identity", p.principal)
		}
		add(side+".cluster", p.cluster)
	}
	list = append(list, slog.Any("src.addr", a.src))
	end("src", a.srcPod, &a.l.src)
	list = append(list, slog.Any("dst.addr", a.dst))
	if ap, err := netip.ParseAddrPort(a.hbone); err == nil {
		list = append(list, slog.Any("dst.hbone_addr", ap))
	} else {
		add("dst.hbone_addr", a.hbone) // a hostname, which came from outside: quoted
	}
	add("dst.service", a.l.service)
	end("dst", a.dstPod, &a.l.dst)
	add("direction", a.l.direction.String())
	add("via", a.via)
	add("tried", a.tried)
	if a.ended {
		list = append(list, slog.Int64("bytes_sent", a.sent), slog.Int64("bytes_recv", a.received),
			slog.String("duration", strconv.FormatInt(a.duration.Milliseconds(), 10)+"ms"))
	}
	if a.err != nil {
		add("error", a.err.Error())
	}
	return list
}
