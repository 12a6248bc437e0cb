package nodeagent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/warren-mesh/warren/nodeagent/enroll"
)

const (
	// istioTimeout is for one POST of Istio's plugin, which gives up at 5 s.
	istioTimeout = 4500 * time.Millisecond
	maxIstioBody = 1 << 20
)

// istioAdd is the body of /cmdadd as Istio's plugin writes it: Go's own encoding
// of net.IPNet, the address as text and the mask as base64.
type istioAdd struct {
	Netns        string
	PodName      string
	PodNamespace string
	IPs          []struct {
		Address struct {
			IP   net.IP
			Mask net.IPMask
		}
	}
}

// parseIstioAdd checks everything that comes from outside.
func parseIstioAdd(body []byte) (enroll.IstioAdd, error) {
	var in istioAdd
	if err := json.Unmarshal(body, &in); err != nil {
		return enroll.IstioAdd{}, err
	}
	out := enroll.IstioAdd{Pod: enroll.PodName{Namespace: in.PodNamespace, Name: in.PodName}, Netns: in.Netns}
	if in.PodName == "" || in.PodNamespace == "" || in.Netns == "" {
		return out, errors.New("PodName, PodNamespace and Netns must all be there")
	}
	for _, ip := range in.IPs {
		addr, ok := netip.AddrFromSlice(ip.Address.IP)
		ones, bits := ip.Address.Mask.Size()
		addr = addr.Unmap()
		if !ok || bits == 0 {
			return out, fmt.Errorf("%v with mask %v is no address", ip.Address.IP, ip.Address.Mask)
		}
		if bits == 128 && addr.Is4() {
			ones -= 96
		}
		p := netip.PrefixFrom(addr, ones)
		if !p.IsValid() {
			return out, fmt.Errorf("%v with mask %v is no address", ip.Address.IP, ip.Address.Mask)
		}
		out.IPs = append(out.IPs, p)
	}
	return out, nil
}

// istioHandler answers Istio's own CNI plugin: 200 when the pod is in the mesh,
// 400 for what cannot be understood, 500 with the reason otherwise.
func (a *Agent) istioHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /cmdadd", func(w http.ResponseWriter, r *http.Request) {
		code, text := a.istioAdd(r)
		a.metrics.plugin(code)
		if code != http.StatusOK {
			http.Error(w, text, code)
			a.log.Warn("refused a request of Istio's CNI plugin", "code", code, "err", text)
		}
	})
	return mux
}

func (a *Agent) istioAdd(r *http.Request) (code int, text string) {
	body, err := io.ReadAll(io.LimitReader(r.Body, maxIstioBody+1))
	if err == nil && len(body) > maxIstioBody {
		err = fmt.Errorf("more than %d bytes", maxIstioBody)
	}
	if err != nil {
		return http.StatusBadRequest, err.Error()
	}
	add, err := parseIstioAdd(body)
	if err != nil {
		return http.StatusBadRequest, err.Error()
	}
	ctx, cancel := context.WithTimeout(r.Context(), istioTimeout)
	defer cancel()
	if err := a.enroll.AddForIstio(ctx, add); err != nil {
		return http.StatusInternalServerError, err.Error()
	}
	return http.StatusOK, ""
}

// healthHandler serves /healthz, and /readyz, which says what is in the way. The
// proxy is not: it starts after the agent.
func (a *Agent) healthHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		if err := a.ready(r.Context()); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ready")
	})
	return mux
}
