package dns

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	// maxResolvers is how many a resolver asks, as the C library does.
	maxResolvers = 3
	maxResolv    = 64 << 10
	// rereadAfter is how long what a file said is believed.
	rereadAfter = 5 * time.Second
	port        = 53
)

// Resolv is what a resolv.conf says.
type Resolv struct {
	Servers []netip.AddrPort
	Search  []string // in lower case, no dot at the end
	Skipped []string // what it has for servers and is no address
}

// ParseResolv reads the text of a resolv.conf. Without a server it means one on
// this host, and what is no address of one is skipped, as everywhere.
func ParseResolv(text []byte) (Resolv, error) {
	c, err := dns.ClientConfigFromReader(bytes.NewReader(text))
	if err != nil {
		return Resolv{}, fmt.Errorf("dns: resolv.conf: %w", err)
	}
	var r Resolv
	for _, s := range c.Servers {
		a, err := netip.ParseAddr(s)
		if err != nil {
			r.Skipped = append(r.Skipped, s)
			continue
		}
		if len(r.Servers) < maxResolvers {
			r.Servers = append(r.Servers, netip.AddrPortFrom(a.Unmap(), port))
		}
	}
	switch {
	case len(r.Servers) > 0:
	case len(r.Skipped) > 0:
		return Resolv{}, fmt.Errorf("dns: resolv.conf: nameserver %.100q is not an IP address, and there is no other", r.Skipped[0])
	default:
		r.Servers = []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port)}
	}
	for _, d := range c.Search {
		if d = strings.ToLower(strings.Trim(d, ".")); d != "" {
			r.Search = append(r.Search, d)
		}
	}
	return r, nil
}

// ResolvFile is a resolv.conf that is read anew when it is some seconds old. One
// serves all pods.
type ResolvFile struct {
	path string

	mu   sync.Mutex
	last Resolv
	read time.Time
}

// OpenResolv reads the file once, so that a bad one is found at start. That is no reason to
// do without: with an error the file has no server until it can be read.
func OpenResolv(path string) (*ResolvFile, error) {
	f := &ResolvFile{path: path, read: time.Now()}
	var err error
	f.last, err = f.load()
	return f, err
}

func (f *ResolvFile) load() (Resolv, error) {
	file, err := os.Open(f.path)
	if err != nil {
		return Resolv{}, fmt.Errorf("dns: %w", err)
	}
	defer file.Close()
	text := make([]byte, maxResolv)
	n, err := file.ReadAt(text, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return Resolv{}, fmt.Errorf("dns: read %s: %w", f.path, err)
	}
	return ParseResolv(text[:n])
}

// Servers are the file's resolvers. A file that has become unreadable keeps its
// last ones.
func (f *ResolvFile) Servers() []netip.AddrPort {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now := time.Now(); now.Sub(f.read) > rereadAfter {
		f.read = now
		if r, err := f.load(); err == nil {
			f.last = r
		}
	}
	return f.last.Servers
}

// Skipped are what the file has for servers and is no address.
func (f *ResolvFile) Skipped() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.last.Skipped
}

// Search are the file's search domains.
func (f *ResolvFile) Search() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.last.Search
}
