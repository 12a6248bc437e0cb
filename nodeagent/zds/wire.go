package zds

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"istio.io/istio/pkg/zdsapi"
)

// kind says which message of the agent a request is.
type kind uint8

const (
	kindAdd kind = iota + 1
	kindKeep
	kindDel
	kindSnapshot
)

// String is the name in the protocol.
func (k kind) String() string {
	switch k {
	case kindAdd:
		return "AddWorkload"
	case kindKeep:
		return "KeepWorkload"
	case kindDel:
		return "DelWorkload"
	case kindSnapshot:
		return "SnapshotSent"
	default:
		return "no message"
	}
}

// request is one message from agent to proxy, without its descriptor.
type request struct {
	kind kind
	uid  string // empty for SnapshotSent
	info Info   // AddWorkload only
}

var marshal = proto.MarshalOptions{Deterministic: true}

// encode refuses what the other end could not receive.
func (r request) encode() ([]byte, error) {
	m := new(zdsapi.WorkloadRequest)
	switch r.kind {
	case kindAdd:
		m.Payload = &zdsapi.WorkloadRequest_Add{Add: &zdsapi.AddWorkload{Uid: r.uid, WorkloadInfo: &zdsapi.WorkloadInfo{
			Name: r.info.Name, Namespace: r.info.Namespace, ServiceAccount: r.info.ServiceAccount,
		}}}
	case kindKeep:
		m.Payload = &zdsapi.WorkloadRequest_Keep{Keep: &zdsapi.KeepWorkload{Uid: r.uid}}
	case kindDel:
		m.Payload = &zdsapi.WorkloadRequest_Del{Del: &zdsapi.DelWorkload{Uid: r.uid}}
	case kindSnapshot:
		m.Payload = &zdsapi.WorkloadRequest_SnapshotSent{SnapshotSent: &zdsapi.SnapshotSent{}}
	default:
		return nil, fmt.Errorf("zds: encode: no message of kind %d", r.kind)
	}
	if r.kind != kindSnapshot && r.uid == "" {
		return nil, fmt.Errorf("zds: encode %s: no uid", r.kind)
	}
	b, err := marshal.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("zds: encode %s for uid %q: %w", r.kind, r.uid, err)
	}
	if len(b) > maxPacket {
		return nil, fmt.Errorf("zds: encode %s for uid %.64q: %d bytes, but a packet holds %d: shorten the names", r.kind, r.uid, len(b), maxPacket)
	}
	return b, nil
}

// decodeRequest reads a packet from the agent. Fields it does not know are
// skipped: a newer agent may send them.
func decodeRequest(b []byte) (request, error) {
	var m zdsapi.WorkloadRequest
	if err := proto.Unmarshal(b, &m); err != nil {
		return request{}, fmt.Errorf("not a WorkloadRequest: %w", err)
	}
	var r request
	switch p := m.GetPayload().(type) {
	case *zdsapi.WorkloadRequest_Add:
		i := p.Add.GetWorkloadInfo()
		if i == nil {
			return request{}, errors.New("AddWorkload without workload_info")
		}
		r = request{kind: kindAdd, uid: p.Add.GetUid(), info: Info{
			Name: i.GetName(), Namespace: i.GetNamespace(), ServiceAccount: i.GetServiceAccount(),
		}}
	case *zdsapi.WorkloadRequest_Keep:
		r = request{kind: kindKeep, uid: p.Keep.GetUid()}
	case *zdsapi.WorkloadRequest_Del:
		r = request{kind: kindDel, uid: p.Del.GetUid()}
	case *zdsapi.WorkloadRequest_SnapshotSent:
		return request{kind: kindSnapshot}, nil
	default:
		return request{}, errors.New("a WorkloadRequest that holds no message known here")
	}
	if r.uid == "" {
		return request{}, fmt.Errorf("%s without uid", r.kind)
	}
	return r, nil
}

func encodeHello() ([]byte, error) {
	return marshal.Marshal(&zdsapi.ZdsHello{Version: zdsapi.Version_V1})
}

func decodeHello(b []byte) error {
	var m zdsapi.ZdsHello
	if err := proto.Unmarshal(b, &m); err != nil {
		return fmt.Errorf("not a ZdsHello: %w", err)
	}
	if v := m.GetVersion(); v != zdsapi.Version_V1 {
		return fmt.Errorf("the proxy speaks version %d, this agent only %d", v, zdsapi.Version_V1)
	}
	return nil
}

// encodeAck shortens text to what fits, and makes it a string that protobuf
// takes.
func encodeAck(text string) ([]byte, error) {
	return marshal.Marshal(&zdsapi.WorkloadResponse{Payload: &zdsapi.WorkloadResponse_Ack{
		Ack: &zdsapi.Ack{Error: shorten(text, maxAckText)},
	}})
}

// decodeAck returns the error text of an ack, empty for success.
func decodeAck(b []byte) (string, error) {
	var m zdsapi.WorkloadResponse
	if err := proto.Unmarshal(b, &m); err != nil {
		return "", fmt.Errorf("not a WorkloadResponse: %w", err)
	}
	p, ok := m.GetPayload().(*zdsapi.WorkloadResponse_Ack)
	if !ok {
		return "", errors.New("a WorkloadResponse without ack")
	}
	return p.Ack.GetError(), nil
}

// shorten makes s valid UTF-8 of at most limit bytes.
func shorten(s string, limit int) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= limit {
		return s
	}
	const more = " …"
	cut := limit - len(more)
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + more
}
