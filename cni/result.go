package cni

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"

	"github.com/containernetworking/cni/pkg/types/create"
)

// prevResult is the part of a result that matters here. It is the same in all
// versions that we speak.
type prevResult struct {
	CNIVersion string `json:"cniVersion"`
	Interfaces []struct {
		Sandbox string `json:"sandbox"`
	} `json:"interfaces"`
	IPs []struct {
		Address   string `json:"address"`
		Interface *int   `json:"interface"`
	} `json:"ips"`
}

// maxIPs is cni/event's bound.
const maxIPs = 64

func parsePrev(raw json.RawMessage) (prevResult, error) {
	var prev prevResult
	if raw == nil {
		return prev, errors.New("there is no prevResult")
	}
	if err := json.Unmarshal(raw, &prev); err != nil {
		return prev, fmt.Errorf("prevResult: %w", err)
	}
	return prev, nil
}

// addresses returns the pod's own: not those of interfaces on the host.
func (p prevResult) addresses() ([]netip.Prefix, error) {
	var found []netip.Prefix
	for _, ip := range p.IPs {
		if i := ip.Interface; i != nil && *i >= 0 && *i < len(p.Interfaces) && p.Interfaces[*i].Sandbox == "" {
			continue
		}
		prefix, err := netip.ParsePrefix(ip.Address)
		if err != nil {
			return nil, fmt.Errorf("prevResult: address %.64q: want an IP with a prefix length", ip.Address)
		}
		if a := prefix.Addr(); a.Is4In6() {
			prefix = netip.PrefixFrom(a.Unmap(), max(prefix.Bits()-96, 0))
		}
		found = append(found, prefix)
	}
	if len(found) > maxIPs {
		return nil, fmt.Errorf("prevResult: %d addresses, at most %d are allowed", len(found), maxIPs)
	}
	return found, nil
}

// render is what ADD prints: prevResult byte for byte if it is of the
// configuration's version, as runtimes see to it; otherwise converted, with
// what the target version has a place for.
func render(raw json.RawMessage, prev prevResult, version string) ([]byte, error) {
	if prev.CNIVersion == "" || prev.CNIVersion == version {
		return raw, nil
	}
	if err := withoutNulls(raw); err != nil {
		return nil, err
	}
	result, err := create.Create(prev.CNIVersion, raw)
	if err == nil {
		result, err = result.GetAsVersion(version)
	}
	if err != nil {
		return nil, fmt.Errorf("prevResult: convert from version %.16q to %s: %w", prev.CNIVersion, version, err)
	}
	var out bytes.Buffer
	if err := result.PrintTo(&out); err != nil {
		return nil, fmt.Errorf("prevResult: print: %w", err)
	}
	return out.Bytes(), nil
}

// withoutNulls refuses lists with nothing in the place of an element, of which the
// library's conversions panic.
func withoutNulls(raw json.RawMessage) error {
	var prev map[string]json.RawMessage
	if err := json.Unmarshal(raw, &prev); err != nil {
		return fmt.Errorf("prevResult: %w", err)
	}
	for name, value := range prev {
		var list []json.RawMessage
		if json.Unmarshal(value, &list) != nil {
			continue // no list
		}
		for i, e := range list {
			if string(e) == "null" {
				return fmt.Errorf("prevResult: %.64s[%d] is null", name, i)
			}
		}
	}
	return nil
}
