package route

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

const (
	maxHostname  = 253 // RFC 1035 §2.3.4, in text and without the last dot
	maxLabel     = 63
	maxAuthority = maxHostname + len(":65535")
)

// ParseAuthority reads ip:port, [ip6]:port or hostname:port. It is strict: user
// information, zones, a missing port, signs and leading zeros are errors, and a
// hostname is one of DNS, so that what reaches a log or a lookup is harmless.
func ParseAuthority(s string) (Authority, error) {
	if len(s) > maxAuthority {
		return Authority{}, fmt.Errorf("authority of %d bytes is too long", len(s))
	}
	colon := strings.LastIndexByte(s, ':')
	if colon < 0 {
		return Authority{}, fmt.Errorf("authority %q has no port", s)
	}
	port, err := parsePort(s[colon+1:])
	if err != nil {
		return Authority{}, fmt.Errorf("authority %q: %w", s, err)
	}
	host := s[:colon]
	if strings.HasPrefix(host, "[") {
		inner, ok := strings.CutSuffix(host[1:], "]")
		a, err := netip.ParseAddr(inner)
		if !ok || err != nil || !a.Is6() || a.Zone() != "" {
			return Authority{}, fmt.Errorf("authority %q: want an IPv6 address in brackets", s)
		}
		return Authority{Addr: a.Unmap(), Port: port}, nil
	}
	if host != "" && isDigit(host[len(host)-1]) { // the error about what is no address costs an allocation
		if a, err := netip.ParseAddr(host); err == nil && a.Is4() {
			return Authority{Addr: a, Port: port}, nil
		}
	}
	if err := checkHostname(host); err != nil {
		return Authority{}, fmt.Errorf("authority %q: %w", s, err)
	}
	return Authority{Host: strings.ToLower(host), Port: port}, nil
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

func parsePort(s string) (uint16, error) {
	if s == "" || s[0] < '1' || s[0] > '9' { // no sign, no leading zero, not 0
		return 0, fmt.Errorf("port %q is not a number from 1 to 65535", s)
	}
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil {
		return 0, fmt.Errorf("port %q is not a number from 1 to 65535", s)
	}
	return uint16(n), nil
}

var errHostname = errors.New("not a hostname")

// checkHostname takes names of letters, digits, hyphens and underscores in dotted
// labels. A name that ends in a number is a mistyped address.
func checkHostname(s string) error {
	if s == "" || len(s) > maxHostname {
		return errHostname
	}
	label, digits := 0, true
	for i := range len(s) {
		c := s[i]
		switch {
		case c == '.':
			if label == 0 {
				return errHostname
			}
			label, digits = 0, true
			continue
		case c >= '0' && c <= '9':
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c == '_', c == '-' && label > 0:
			digits = false
		default:
			return errHostname
		}
		if label++; label > maxLabel {
			return errHostname
		}
	}
	if label == 0 || digits || s[len(s)-1] == '-' {
		return errHostname
	}
	return nil
}
