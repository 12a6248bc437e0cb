#!/bin/sh
# Installs the system packages that Warren's tests and demo use, where this can
# be done, and names them where it cannot.
set -u
missing=
need() { command -v "$1" >/dev/null 2>&1 || missing="$missing $2"; }
PATH="$PATH:/usr/sbin:/sbin"
need ip iproute2
need iptables iptables
need iptables-restore iptables
need ip6tables-restore iptables
need nft nftables
need unshare util-linux
need openssl openssl
missing=$(printf '%s\n' $missing | sort -u | tr '\n' ' ')
[ -z "${missing% }" ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
	echo "installing:$(printf ' %s' $missing)"
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null && exit 0
fi
echo "missing packages:$(printf ' %s' $missing)" >&2
echo "install them with your package manager (Debian, Ubuntu: apt-get install$(printf ' %s' $missing)) and try again" >&2
exit 1
