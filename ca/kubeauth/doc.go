// Package kubeauth says who calls by a Kubernetes service account token, and what a node's proxy may have certificates
// for.
//
// Kind: adapter. Used by xds/controlplane, for the CA and for xDS. It does not import ca/server: Caller has the same
// fields as the CA's, so that one converts into the other.
//
// Authenticator has the API server look at a token (TokenReview) for the audience istio-ca. Answers are kept for some
// seconds, so that a node that starts and asks for the certificates of all its pods costs one review. An API server
// that does not answer is Unavailable to the caller, who comes again; only a token that was refused is Unauthenticated.
//
// Authorizer lets a trusted proxy have the certificate of a pod on its own node. The node is that of the pod which the
// token is bound to, as the API server knows it, and never one that the caller names:
//
//	trust domain             that of the mesh
//	service account          one of the trusted ones
//	its pod                  known, of the token's UID and account, not finished, on the node that the token names
//	the identity asked for   that of a pod on the same node that has not finished, or the caller's own
//
// What is missing because news of a pod is still on its way is waited for, briefly. A reason to refuse is an error for
// the log and is not sent.
package kubeauth
