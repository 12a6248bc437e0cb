// Package images builds Warren's container images without a container runtime:
// static programs from scratch, and for the node agent Debian's iptables and
// ipset with the libraries that they need. The same input gives the same bytes.
package images
