package workload

import (
	"math"
	"net/netip"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
)

// ServiceFromWire is WorkloadFromWire for a service: an ordinary one has addresses and
// ports.
func (s *Sharer) ServiceFromWire(packed []byte) (svc *Service, ok bool) {
	b, rest, ok := leadingField(packed, 2)
	if !ok || len(rest) > 0 {
		return nil, false
	}
	s.limit()
	svc = &Service{}
	s.ports = s.ports[:0]
	ok = fields(b, func(num protowire.Number, v []byte) bool { return s.serviceText(svc, num, v) },
		func(num protowire.Number, v uint64) bool { return serviceNumber(svc, num, v) })
	return svc, ok && s.finishService(svc)
}

// serviceText takes a field that has a length.
func (s *Sharer) serviceText(svc *Service, num protowire.Number, v []byte) (ok bool) {
	switch num {
	case 1: // most often the beginning of the hostname, which comes later
		svc.Name = string(v)
		return utf8.Valid(v)
	case 2:
		svc.Namespace, ok = s.bytes(v)
		return ok
	case 3:
		svc.Hostname = strings.ToLower(string(v))
		return utf8.Valid(v)
	case 4:
		a, ok := s.vip(v)
		svc.VIPs = append(svc.VIPs, a)
		return ok && len(svc.VIPs) <= maxAddresses
	case 5:
		s.ports, ok = appendPort(s.ports, v)
		return ok
	}
	return false // waypoints, names, preferences, and what is not known
}

// serviceNumber takes a field that is a number.
func serviceNumber(svc *Service, num protowire.Number, v uint64) bool {
	switch num {
	case 9:
		svc.IPFamilies = IPFamilies(v)
		return v < uint64(len(familyNames))
	case 11:
		svc.Canonical = v != 0
		return v < 2
	}
	return false
}

// vip reads an address that is no range.
func (s *Sharer) vip(b []byte) (a NetworkAddr, ok bool) {
	ok = fields(b, func(num protowire.Number, v []byte) (ok bool) {
		switch num {
		case 1:
			a.Network, ok = s.bytes(v)
		case 2:
			a.Addr, ok = netip.AddrFromSlice(v)
			a.Addr = a.Addr.Unmap()
		}
		return ok
	}, noNumber)
	return a, ok && a.Addr.IsValid()
}

// finishService is finish for a service.
func (s *Sharer) finishService(svc *Service) bool {
	svc.Ports = NewPortMap(s.ports...)
	if cap(s.ports) > maxSharedText {
		s.ports = nil
	}
	if strings.HasPrefix(svc.Hostname, svc.Name) {
		svc.Name = svc.Hostname[:len(svc.Name)] // the same memory
	}
	ns, host := svc.Namespace, svc.Hostname
	return ns != "" && host != "" && len(host) <= maxHostname && !strings.Contains(ns, "/") && !strings.Contains(host, "/")
}

// leadingField is the content of the field that b begins with, which must be this one,
// and what follows it.
func leadingField(b []byte, want protowire.Number) (v, rest []byte, ok bool) {
	num, typ, n := protowire.ConsumeTag(b)
	if n < 0 || num != want || typ != protowire.BytesType {
		return nil, nil, false
	}
	v, m := protowire.ConsumeBytes(b[n:])
	if m < 0 {
		return nil, nil, false
	}
	return v, b[n+m:], true
}

// appendPort reads a port.
func appendPort(to []Port, b []byte) (_ []Port, ok bool) {
	var p Port
	ok = fields(b, noText, func(num protowire.Number, v uint64) bool {
		switch num {
		case 1:
			p.Service = uint16(v)
		case 2:
			p.Target = uint16(v)
		case 3:
			p.AppProtocol = AppProtocol(min(v, math.MaxUint8))
		default:
			return false
		}
		return v <= math.MaxUint16
	})
	return append(to, p), ok
}
