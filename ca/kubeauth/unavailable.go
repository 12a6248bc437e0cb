package kubeauth

import (
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// unavailable is an error that says nothing about the caller: it could not be found out who that is, or what it may
// have. What is sent of it is only that the caller should come again.
type unavailable struct{ err error }

func (u *unavailable) Error() string { return u.err.Error() }
func (u *unavailable) Unwrap() error { return u.err }

// GRPCStatus makes it the answer of a gRPC server.
func (u *unavailable) GRPCStatus() *status.Status {
	return status.New(codes.Unavailable, "callers cannot be authenticated now, try again")
}
