// Package mtls builds every TLS configuration of Warren and decides whose certificate a peer holds.
//
// Kind: pure. It opens no socket and no file; the clock is read only to judge certificates during a handshake.
// Used by ca/svid (which makes an Identity from each answer of a certificate source), by proxy (HBONE on both sides),
// by the clients of the control plane and by the control plane's own listener.
//
// Four configurations exist, and no other package contains a tls.Config literal:
//
//   - Client and Server carry HBONE: both ends present an X.509-SVID, TLS 1.3 only, ALPN h2, no SNI, no resumption;
//   - ToServer is a client that only authenticates the server by its DNS name or address (xDS and CA clients);
//   - ServerAuth is the listener that such a client talks to.
//
// # Where a peer is judged
//
// crypto/tls's own verification is switched off (InsecureSkipVerify) because it compares host names, which an SVID does
// not have. The replacement runs in VerifyConnection, which crypto/tls calls for every connection;
// VerifyPeerCertificate, the more obvious hook, is not called when a session is resumed. Resumption is switched off
// too, so that a certificate is judged on each connection by the roots and the clock of that moment.
//
// # Cipher suites and curves
//
// Go does not let TLS 1.3 suites be configured: AES-GCM comes first whenever the CPU has AES instructions and the peer
// prefers it, ChaCha20-Poly1305 stays possible otherwise. X25519MLKEM768 is the first key exchange offered, so that
// traffic recorded today stays closed to a later quantum computer.
package mtls
