package proxy

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/warren-mesh/warren/ca/mtls"
)

const (
	originEvery  = 2 * time.Second
	maxSVIDFile  = 64 << 10
	maxRootsFile = 256 << 10
	maxRoots     = 32
)

// Names of alarms of this file.
const (
	alarmSource = "certificate source"
	alarmRoots  = "extra roots"
)

// changeable are the settings that SVID_CONFIG's file may have.
var changeable = []string{
	"SVID_SOURCE", "SVID_REUSE", "SPIFFE_ENDPOINT_SOCKET", "SPIFFE_BROKER_SOCKET", "SPIRE_ADMIN_SOCKET", "SPIRE_ATTEST", "HOST_PROC", "SPIFFE_ID",
	"SPIRE_AGENT_ID", "SPIFFE_SOCKET_UID", "SVID_DIR", "SVID_EXTRA_ROOTS", "SVID_OVERLAP", "CA_ADDRESS", "CA_ADDR", "CA_ROOT_CA", "ALT_CA_HOSTNAME",
}

// overlay is c with the settings of text, lines of NAME=value as in the environment; # begins a comment.
func (c Config) overlay(text string) (Config, error) {
	var list []string
	var errs []error
	for n, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		name, _, ok := strings.Cut(line, "=")
		switch {
		case !ok:
			errs = append(errs, fmt.Errorf("line %d: want NAME=value", n+1)) // not the line: it may be a secret
		case !slices.Contains(changeable, name):
			errs = append(errs, fmt.Errorf("line %d: %.100q cannot be changed while the proxy runs; set it in the environment", n+1, name))
		default:
			list = append(list, line)
		}
	}
	e := newEnviron(list)
	e.errs = errs
	e.ca(&c)
	if len(e.errs) == 0 {
		e.errs = append(e.errs, c.Validate())
	}
	return c, errors.Join(e.errs...)
}

// ca reads where certificates come from; c has what holds where nothing is said.
func (e *environ) ca(c *Config) {
	c.CA.Address = e.address("CA_ADDR", c.CA.Address) // an older name of the next
	c.CA.Address = e.address("CA_ADDRESS", c.CA.Address)
	c.CA.RootCA = e.text("CA_ROOT_CA", c.CA.RootCA)
	c.CA.AltName = e.text("ALT_CA_HOSTNAME", c.CA.AltName)
	e.svids(c)
}

// readBounded is a file's text. One that is not there has none.
func readBounded(path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(text)) > most {
		err = fmt.Errorf("%s has more than %d bytes", path, most)
	}
	return text, err
}

// withSVIDFile is c with what SVID_CONFIG's file says now.
func (c Config) withSVIDFile() (Config, error) {
	if c.SVIDFile == "" {
		return c, nil
	}
	text, err := readBounded(c.SVIDFile, maxSVIDFile)
	if err != nil {
		return c, fmt.Errorf("SVID_CONFIG: %s: %w", c.SVIDFile, err)
	}
	return c.withSVIDs(text)
}

func (c Config) withSVIDs(text []byte) (Config, error) {
	next, err := c.overlay(string(text))
	if err != nil {
		return c, fmt.Errorf("SVID_CONFIG: %s: %w", c.SVIDFile, err)
	}
	return next, nil
}

// settled is of a file that is looked at again and again. Writers empty what they write anew, or remove it, and write it in
// parts: what it says counts when two looks have found the same.
type settled struct {
	text   []byte
	looked bool
}

func (s *settled) twice(text []byte) bool {
	same := s.looked && bytes.Equal(s.text, text)
	s.text, s.looked = text, true
	return same
}

// lookAtSVIDFile is c with what SVID_CONFIG's file says, or now while that is not settled.
func (c Config) lookAtSVIDFile(file *settled, now Config) (Config, error) {
	text, err := readBounded(c.SVIDFile, maxSVIDFile)
	if err != nil {
		return c, fmt.Errorf("SVID_CONFIG: %s: %w", c.SVIDFile, err)
	}
	if !file.twice(text) {
		return now, nil
	}
	return c.withSVIDs(text)
}

// followOrigin runs the source of certificates, and puts another in its place when its settings change.
func (s *Server) followOrigin(ctx context.Context) {
	s.origin.run(ctx)
	now := s.origin.cfg
	var roots []byte
	var file settled
	tick := time.NewTicker(originEvery)
	defer tick.Stop()
	for {
		roots = s.loadExtraRoots(now.SVIDs.Roots, roots)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if s.cfg.SVIDFile == "" || s.given {
			continue
		}
		next, err := s.cfg.lookAtSVIDFile(&file, now)
		switch {
		case err != nil:
		case !sameOrigin(now, next):
			err = s.changeOrigin(ctx, next)
		case next.SVIDs.Overlap < now.SVIDs.Overlap: // of changes that have been, too
			s.certs.Overlap(next.SVIDs.Overlap)
			s.log.Info("the roots of certificate sources of before are trusted for less long", "overlap", next.SVIDs.Overlap.String())
		}
		if err != nil {
			s.alarms.set(alarmSource, "certificates still come from "+s.origin.address+": "+err.Error())
			continue
		}
		now = next
		s.alarms.set(alarmSource, "")
	}
}

// sameOrigin: what is trusted beside the source does not make it another.
func sameOrigin(a, b Config) bool {
	a.SVIDs.Roots, a.SVIDs.Overlap = b.SVIDs.Roots, b.SVIDs.Overlap
	return a.SVIDs == b.SVIDs && reflect.DeepEqual(a.CA, b.CA)
}

func (s *Server) changeOrigin(ctx context.Context, cfg Config) error {
	next, err := s.newOrigin(cfg)
	if err != nil {
		return err
	}
	next.run(ctx)
	if err := s.certs.Switch(next.Source, cfg.SVIDs.Overlap); err != nil {
		return errors.Join(err, next.close())
	}
	old := s.origin
	s.originLock.Lock()
	s.origin = next
	s.originLock.Unlock()
	s.lines.ca.address(next.address)
	s.log.Info("certificates come from another source now; connections go on, and both roots are trusted for a while",
		"before", old.address, "now", next.address, "overlap", cfg.SVIDs.Overlap.String())
	if err := old.close(); err != nil {
		s.log.Warn("the certificate source of before did not close", "err", err)
	}
	return nil
}

// loadExtraRoots has the roots of a file trusted if it is not as it was. One that cannot be read or understood leaves
// what was loaded.
func (s *Server) loadExtraRoots(path string, before []byte) []byte {
	var text []byte
	if path != "" {
		var err error
		if text, err = readBounded(path, maxRootsFile); err == nil && text == nil {
			err = fs.ErrNotExist
		}
		if err != nil {
			s.alarms.set(alarmRoots, fmt.Sprintf("SVID_EXTRA_ROOTS: %s is not loaded: %v", path, err))
			return before
		}
		if s.rootsEmptied.justNow(text) {
			return before
		}
	}
	if bytes.Equal(text, before) {
		s.alarms.set(alarmRoots, "") // it may have been away
		return before
	}
	roots, err := s.parseRoots(text)
	if err != nil {
		s.alarms.set(alarmRoots, fmt.Sprintf("SVID_EXTRA_ROOTS: %s stays as it was: %v", path, err))
		return before
	}
	s.certs.Trust(roots)
	s.alarms.set(alarmRoots, "")
	s.log.Info("extra roots are trusted", "path", path, "trust_domains", len(roots))
	return text
}

// parseRoots sorts roots by the trust domain that they name, or TRUST_DOMAIN where they name none.
func (s *Server) parseRoots(text []byte) (map[spiffeid.TrustDomain][]*x509.Certificate, error) {
	out := map[spiffeid.TrustDomain][]*x509.Certificate{}
	if len(bytes.TrimSpace(text)) == 0 {
		return out, nil
	}
	certs, err := mtls.ParsePEM(text, maxRoots)
	if err != nil {
		return nil, err
	}
	for _, c := range certs {
		if !c.IsCA {
			return nil, fmt.Errorf("%.200q is no CA's certificate", c.Subject.String())
		}
		name := s.cfg.TrustDomain
		if len(c.URIs) > 0 {
			name = c.URIs[0].Host
		}
		td, err := spiffeid.TrustDomainFromString(name)
		if err != nil {
			return nil, err
		}
		out[td] = append(out[td], c)
	}
	return out, nil
}
