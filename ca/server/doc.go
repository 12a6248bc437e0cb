// Package server is the Istio CA service, istio.v1.auth.IstioCertificateService/CreateCertificate, over an authority.
//
// Kind: adapter. Used by xds/controlplane, which supplies the gRPC server with its TLS, and says who may have which
// identity. It also keeps the authority's files (StateDir) and knows nodes by token (Tokens).
//
// A request passes in this order, and each step answers as istiod does, so that Istio's clients take the same path:
//
//	size of what was sent      InvalidArgument
//	who calls                  Unauthenticated "request authenticate failure"
//	how often                  ResourceExhausted, with the time to wait (google.rpc.RetryInfo)
//	may the caller have it     Unauthenticated "request impersonation authentication failure"
//	request and lifetime       InvalidArgument "CSR signing error (…)"
//	signing                    Internal
//
// Where it cannot be found out who calls, or what the caller may have, the answer is Unavailable.
//
// Why somebody was refused is in the log and not in the answer: it would tell a stolen token what exists on a node.
// Every signature leaves one line in the log.
package server
