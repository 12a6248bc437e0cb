package event

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// maxMessage bounds a packet. The largest, an add with every field full, is
// well below.
const maxMessage = 16 << 10

// oldest is the oldest protocol version that the agent serves.
const oldest = max(1, Version-1)

// kind says which message a packet is.
type kind string

const (
	kindAdd        kind = "add"
	kindDel        kind = "del"
	kindCheck      kind = "check"
	kindGC         kind = "gc"
	kindStatus     kind = "status"
	kindProgrammed kind = "programmed"
	kindFailed     kind = "failed"
	kindAnswer     kind = "answer"
	kindDone       kind = "done"
	kindError      kind = "error"
)

// message is one packet: the body that is set belongs to the kind. kindStatus
// and kindDone have none.
type message struct {
	Version int     `json:"version"`
	Kind    kind    `json:"kind"`
	Add     *Add    `json:"add,omitempty"`
	Del     *delReq `json:"del,omitempty"`
	Check   *Key    `json:"check,omitempty"`
	GC      *gcReq  `json:"gc,omitempty"`
	How     string  `json:"how,omitempty"` // kindProgrammed
	Answer  *Answer `json:"answer,omitempty"`
	Error   *Error  `json:"error,omitempty"` // kindError and kindFailed
}

type delReq struct {
	Key    Key    `json:"key"`
	PodUID string `json:"podUID,omitempty"`
}

type gcReq struct {
	Network string `json:"network"`
	Valid   []Key  `json:"valid"`
	More    bool   `json:"more,omitempty"`
}

// errVersion is decode's error for a version that is not served; the message
// then has its version and kind only.
var errVersion = errors.New("unsupported protocol version")

// decode reads a packet and checks every value in it.
func decode(data []byte) (message, error) {
	if len(data) > maxMessage {
		return message{}, fmt.Errorf("message of more than %d bytes", maxMessage)
	}
	var head struct {
		Version int  `json:"version"`
		Kind    kind `json:"kind"`
	}
	if err := unmarshal(data, &head); err != nil {
		return message{}, fmt.Errorf("not a message: %w", err)
	}
	if head.Kind != kindError && (head.Version < oldest || head.Version > Version) {
		return message{Version: head.Version}, fmt.Errorf("%w %d, served are %d to %d", errVersion, head.Version, oldest, Version)
	}
	var m message
	if err := unmarshal(data, &m); err != nil {
		return message{}, fmt.Errorf("malformed %.32q message: %w", string(head.Kind), err)
	}
	if err := m.check(); err != nil {
		return message{}, fmt.Errorf("bad %.32q message: %w", string(head.Kind), err)
	}
	return m, nil
}

// unmarshal is strict about what follows the value.
func unmarshal(data []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("data after the value")
	}
	return nil
}

// encode refuses what decode would.
func encode(m message) ([]byte, error) {
	if err := m.check(); err != nil {
		return nil, fmt.Errorf("%q message: %w", m.Kind, err)
	}
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(m); err != nil {
		return nil, fmt.Errorf("%q message: %w", m.Kind, err)
	}
	data := bytes.TrimSuffix(buf.Bytes(), []byte("\n"))
	if len(data) > maxMessage {
		return nil, fmt.Errorf("%q message of %d bytes, at most %d are allowed", m.Kind, len(data), maxMessage)
	}
	return data, nil
}

// chunk splits the valid attachments so that each part fits a packet.
func chunk(network string, valid []Key) []gcReq {
	const room = maxMessage - maxName - 256 // for the rest of the message
	parts := []gcReq{{Network: network, Valid: []Key{}}}
	size := 0
	for _, k := range valid {
		n := 6*(len(k.ContainerID)+len(k.IfName)) + 40 // as JSON, all escaped
		if size+n > room {
			parts[len(parts)-1].More = true
			parts, size = append(parts, gcReq{Network: network}), 0
		}
		last := &parts[len(parts)-1]
		last.Valid, size = append(last.Valid, k), size+n
	}
	return parts
}
