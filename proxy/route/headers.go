package route

import (
	"encoding/hex"
	"errors"
	"net/netip"
	"strings"

	"github.com/warren-mesh/warren/xds/workload"
)

// Names of the headers of a CONNECT, in lower case as HTTP/2 has them.
const (
	HeaderBaggage          = "baggage"
	HeaderForwarded        = "forwarded"
	HeaderTraceparent      = "traceparent"
	HeaderForwardedNetwork = "x-forwarded-network"
)

// Longest value of one baggage entry that is taken: Kubernetes names have at most
// 253 bytes. Longer ones could fill memory with metric labels.
const maxValue = 253

// Baggage is what a proxy tells the other side about a workload, for telemetry
// only: the peer's identity comes from TLS. Empty fields are left out.
type Baggage struct {
	Cluster      string
	Namespace    string
	WorkloadType string // deployment, cronjob, pod or job
	WorkloadName string
	Service      string // canonical name
	Version      string // canonical revision
	Region       string
	Zone         string
}

// Keys of baggage. That of the workload's name holds its type.
const (
	keyCluster   = "k8s.cluster.name"
	keyNamespace = "k8s.namespace.name"
	keyService   = "service.name"
	keyVersion   = "service.version"
	keyRegion    = "cloud.region"
	keyZone      = "cloud.availability_zone"
)

// BaggageOf describes a workload.
func BaggageOf(w *workload.Workload) Baggage {
	return Baggage{
		Cluster: w.ClusterID, Namespace: w.Namespace,
		WorkloadType: w.Type.String(), WorkloadName: w.WorkloadName,
		Service: w.CanonicalName, Version: w.CanonicalRevision,
		Region: w.Locality.Region, Zone: w.Locality.Zone,
	}
}

// String is the header's value; empty if there is nothing to say. Readers do not
// decode percent signs, so a value that would not survive is left out.
func (b Baggage) String() string {
	var out strings.Builder
	add := func(key, value string) {
		if !plainValue(value) {
			return
		}
		if out.Len() > 0 {
			out.WriteByte(',')
		}
		out.WriteString(key)
		out.WriteByte('=')
		out.WriteString(value)
	}
	add(keyCluster, b.Cluster)
	add(keyNamespace, b.Namespace)
	if workloadKey("k8s." + b.WorkloadType + ".name") {
		add("k8s."+b.WorkloadType+".name", b.WorkloadName)
	}
	add(keyService, b.Service)
	add(keyVersion, b.Version)
	add(keyRegion, b.Region)
	add(keyZone, b.Zone)
	return out.String()
}

// ParseBaggage reads all lines of a baggage header. Of two entries with one key
// the later holds; what is not understood is left out. The workload's type is the
// one in its key.
func ParseBaggage(lines []string) Baggage {
	var b Baggage
	for _, line := range lines {
		for entry := range strings.SplitSeq(line, ",") {
			key, value, _ := strings.Cut(entry, "=")
			value, _, _ = strings.Cut(value, "=")
			if value != "" && !plainValue(value) {
				continue
			}
			b.set(key, value)
		}
	}
	return b
}

func (b *Baggage) set(key, value string) {
	switch key {
	case keyCluster:
		b.Cluster = value
	case keyNamespace:
		b.Namespace = value
	case keyService:
		b.Service = value
	case keyVersion:
		b.Version = value
	case keyRegion:
		b.Region = value
	case keyZone:
		b.Zone = value
	default:
		if workloadKey(key) {
			b.WorkloadName, b.WorkloadType = value, ""
			if value == "" {
				return
			}
			b.WorkloadType = strings.TrimSuffix(strings.TrimPrefix(key, "k8s."), ".name")
		}
	}
}

func workloadKey(key string) bool {
	switch key {
	case "k8s.deployment.name", "k8s.cronjob.name", "k8s.pod.name", "k8s.job.name":
		return true
	default:
		return false
	}
}

// plainValue: visible ASCII that neither ends an entry nor needs quoting.
func plainValue(s string) bool {
	if s == "" || len(s) > maxValue {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case c <= ' ' || c >= 0x7f, c == ',', c == '=', c == ';', c == '"', c == '\\':
			return false
		}
	}
	return true
}

// Forwarded is the value of the forwarded header (RFC 7239): the client's address
// and, if not empty, the hostname of the service that it addressed.
func Forwarded(client netip.AddrPort, host string) string {
	s := `for="` + client.String() + `"`
	if plainValue(host) {
		s += ";host=" + host
	}
	return s
}

// ParseForwarded returns the host that a forwarded header names, or an empty
// string. Of several lines the first with a host counts.
func ParseForwarded(lines []string) (host string) {
	for _, line := range lines {
		for part := range strings.SplitSeq(line, ";") {
			h, ok := strings.CutPrefix(strings.Trim(part, " \t"), "host=")
			if !ok {
				continue
			}
			if len(h) >= 2 && h[0] == '"' && h[len(h)-1] == '"' {
				h = h[1 : len(h)-1]
			}
			if plainValue(h) {
				return h
			}
			return ""
		}
	}
	return ""
}

// Traceparent is the W3C trace context of one connection.
type Traceparent struct {
	TraceID [16]byte
	SpanID  [8]byte
	Flags   byte
}

// String is the header's value, version 00.
func (t Traceparent) String() string {
	buf := make([]byte, 0, traceparentLen)
	buf = append(buf, "00-"...)
	buf = hex.AppendEncode(buf, t.TraceID[:])
	buf = append(buf, '-')
	buf = hex.AppendEncode(buf, t.SpanID[:])
	buf = append(buf, '-')
	return string(hex.AppendEncode(buf, []byte{t.Flags}))
}

const traceparentLen = len("00-") + 32 + len("-") + 16 + len("-00")

var errTraceparent = errors.New("route: not a traceparent of version 00")

// ParseTraceparent reads the header's value. IDs of zeros and hexadecimal in upper
// case are invalid (W3C Trace Context §3.2.2).
func ParseTraceparent(s string) (Traceparent, error) {
	var t Traceparent
	if len(s) != traceparentLen || s[:3] != "00-" || s[35] != '-' || s[52] != '-' || strings.ToLower(s) != s {
		return t, errTraceparent
	}
	var flags [1]byte
	for _, f := range []struct {
		to   []byte
		from string
	}{{t.TraceID[:], s[3:35]}, {t.SpanID[:], s[36:52]}, {flags[:], s[53:]}} {
		if _, err := hex.Decode(f.to, []byte(f.from)); err != nil {
			return Traceparent{}, errTraceparent
		}
	}
	t.Flags = flags[0]
	if t.TraceID == ([16]byte{}) || t.SpanID == ([8]byte{}) {
		return Traceparent{}, errTraceparent
	}
	return t, nil
}
