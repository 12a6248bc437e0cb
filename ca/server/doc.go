// Package server is the Istio CA service, istio.v1.auth.IstioCertificateService/CreateCertificate, over an authority.
//
// Kind: adapter. Used by xds/controlplane, which supplies the gRPC server with its TLS, and says who may have which
// identity. It also keeps the authority's files (StateDir) and knows nodes by token (Tokens).
//
// A request passes in this order, and each step answers as istiod does, so that Istio's clients take the same path:
//
//	who calls                  Unauthenticated "request authenticate failure"
//	how often                  ResourceExhausted, with the time to wait (google.rpc.RetryInfo)
//	size of what was sent      InvalidArgument
//	may the caller have it     Unauthenticated "request impersonation authentication failure"
//	request and lifetime       InvalidArgument "CSR signing error (…)"
//	signing                    Internal
//
// Nothing of a request is read before the first two.
//
// Where it cannot be found out who calls, or what the caller may have, the answer is Unavailable.
//
// Why somebody was refused is in the log and not in the answer: it would tell a stolen token what exists on a node.
//
// # How often a caller may ask
//
// Every caller, which is a node's proxy or a pod, has a bucket of Burst requests that fills at Rate a second. A request
// that finds it empty is answered by ResourceExhausted with one detail, google.rpc.RetryInfo, whose retry_delay is the time
// from now after which the bucket has room for it, at least a millisecond. The request took nothing out of the bucket. A
// client waits for that long, whatever its own back-off says, and asks then; one that has several requests refused at the
// same time asks with one of them first. What other callers do has no part in it.
//
// # What is logged
//
// Every signature leaves one line: "certificate signed" with caller, node, pod, pod.uid, src.addr, id, serial, issuer (the
// SHA-256 of its certificate) and expires. A refusal leaves "certificate refused" with who asked, what for, the answer's
// code and the reason (of those who are nobody it is not known what for): for each caller, and for all who are nobody, a hundred at once and ten a second; the line after says
// how many were left out (suppressed). The control plane has these lines, and those of its own serving certificates, in the
// log at every --log-level.
package server
