package event

import "errors"

// Tombstone is a DEL that the agent has not heard of.
type Tombstone struct {
	Key    Key    `json:"key"`
	PodUID string `json:"podUID,omitempty"`
}

// WriteTombstone leaves one in the agent's state directory.
func WriteTombstone(stateDir string, t Tombstone) error { return errors.New("event: not built yet") }

// Tombstones returns those in the state directory; damaged ones are removed.
func Tombstones(stateDir string) ([]Tombstone, error) { return nil, errors.New("event: not built yet") }

// RemoveTombstone removes one after the agent has applied it. It may be gone.
func RemoveTombstone(stateDir string, key Key) error { return errors.New("event: not built yet") }
