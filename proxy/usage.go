package proxy

// Usage is what `proxy help` prints.
const Usage = `usage: proxy [proxy [ztunnel] | version | help]

proxy (the default) serves the mesh pods of this node until SIGTERM, then drains.
It is configured by environment variables, by the names that ztunnel has; one
that is empty has the empty value.

node           NODE_NAME NETWORK CLUSTER_ID CLUSTER_DOMAIN TRUST_DOMAIN POD_NAME
               POD_NAMESPACE SERVICE_ACCOUNT INSTANCE_IP ISTIO_META_* ISTIO_METAJSON_*
control plane  XDS_ADDRESS (empty: none) XDS_ROOT_CA ALT_XDS_HOSTNAME XDS_HEADER_*
               LOCAL_XDS_PATH (a file, read once) or LOCAL_XDS (its text) PROXY_CONFIG AUTH_TOKEN XDS_ON_DEMAND
               (true: ask for workloads when they are needed; not with DNS capture)
certificates   CA_ADDRESS CA_ROOT_CA ALT_CA_HOSTNAME CA_HEADER_* SECRET_TTL
               FAKE_CA (true: no security at all)
               SVID_SOURCE: istio (the CA above, the default), broker (SPIFFE_BROKER_SOCKET and
               SPIFFE_ENDPOINT_SOCKET; SPIFFE_ID, SPIRE_AGENT_ID), delegated
               (SPIRE_ADMIN_SOCKET; SPIRE_ATTEST pid or selectors, HOST_PROC),
               workload-api (SPIFFE_ENDPOINT_SOCKET), file (SVID_DIR); sockets are root's, or of
               SPIFFE_SOCKET_UID
               CRL_PATH (revocation lists in PEM or DER, looked at every 2 s)
pods           INPOD_UDS INPOD_PORT_REUSE PACKET_MARK ENABLE_ORIG_SRC IPV6_ENABLED
               KEEPALIVE_ENABLED KEEPALIVE_TIME KEEPALIVE_INTERVAL KEEPALIVE_RETRIES
               USER_TIMEOUT_ENABLED UNSTABLE_ENABLE_SOCKS5
one pod        PROXY_MODE=dedicated PROXY_WORKLOAD_INFO=namespace/name/serviceaccount: the
               proxy serves that pod, in its own network namespace, and needs no agent
names          ISTIO_META_DNS_CAPTURE (false: do not answer DNS) CLUSTER_DOMAIN
               PREFERED_SERVICE_NAMESPACE
TLS            TLS12_ENABLED (1.2 beside 1.3) COMPLIANCE_POLICY (pqc: X25519MLKEM768 alone;
               fips-140-3: Go's module, in a program that was built with it)
tunnels        HTTP2_STREAM_WINDOW_SIZE HTTP2_CONNECTION_WINDOW_SIZE HTTP2_FRAME_SIZE
               POOL_MAX_STREAMS_PER_CONNECTION POOL_UNUSED_RELEASE_TIMEOUT
               CONNECT_RETRIES (3: how many more endpoints of a Service are tried; 0: none)
               ENABLE_RESPONSE_BAGGAGE TLS_RECORDS (own, or stock: those of crypto/tls)
               LOCALHOST_APP_TUNNEL (true: waypoints that take PROXY protocol, on loopback)
process        CONNECTION_TERMINATION_DEADLINE TERMINATION_GRACE_PERIOD_SECONDS
               ZTUNNEL_WORKER_THREADS SAME_NODE (splice, or mtls: TLS between two pods of
               this node as well) and, unless that says how many threads, in this order:
               PROXY_CONFIG's concurrency, GOMAXPROCS, ZTUNNEL_RESOURCE_CPU_LIMIT (and
               _REQUEST), the cgroup's limit, a quarter of the CPUs (ZTUNNEL_CPU_LIMIT:
               so many are there). GOMEMLIMIT (nine tenths of the cgroup's limit)
logs           RUST_LOG (info, or info,access=debug) LOG_FORMAT (plain or json)
               AUTHZ_POLICY_INFO_LOGGING
metrics        METRICS_PEER_SERIES (2000: series whose labels peers say of themselves; a tenth
               of them for the peers of one pod; 0: none, they count by identity alone)

of no effect   ISTIO_META_DNS_PROXY_ADDR: the rules in pods name the port

ports          in each pod 15001 outbound, 15006 plaintext inbound, 15008 HBONE, and on
               its loopback 15053 DNS, 15080 SOCKS 5 (when asked for);
               15000 administration (loopback), 15020 metrics, 15021 readiness
               (READINESS_ADDR: an address, with a port or without; all, unless set)
`
