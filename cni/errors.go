package cni

import (
	"context"
	"encoding/json"
	"errors"
	"io"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/warren-mesh/warren/cni/event"
)

// codeUnavailable is STATUS' answer when no ADD could succeed. types has no
// name for it.
const codeUnavailable = 50

// failure makes a CNI error: what went wrong, and what to do about it.
func failure(code uint, err error, advice string) *types.Error {
	return types.NewError(code, err.Error(), advice)
}

// agentFailure says in CNI's terms why the agent did not serve a request.
func agentFailure(err error) *types.Error {
	var refusal *event.Error
	switch {
	case errors.As(err, &refusal) && refusal.Retryable:
		return types.NewError(types.ErrTryAgainLater, refusal.Msg, refusal.Details)
	case errors.As(err, &refusal):
		return types.NewError(types.ErrInternal, refusal.Msg, refusal.Details)
	case errors.Is(err, event.ErrAway):
		return failure(types.ErrTryAgainLater, err, "see to it that Warren's node agent runs on this node; the runtime will try again")
	case errors.Is(err, event.ErrLost), errors.Is(err, context.DeadlineExceeded):
		return failure(types.ErrTryAgainLater, err, "what the plugin did is undone; the runtime will try again")
	}
	// What was to be sent was refused by our own end: names that nobody may have.
	return failure(types.ErrInvalidEnvironmentVariables, err, "the runtime called the plugin with values that are not valid")
}

// printError prints an error as the specification wants it: with the version,
// which types.Error lacks.
func printError(w io.Writer, version string, e *types.Error) error {
	out := struct {
		CNIVersion string `json:"cniVersion,omitempty"`
		*types.Error
	}{version, e}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "    ")
	return enc.Encode(out)
}
