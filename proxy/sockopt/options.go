package sockopt

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Option sets one kernel option on a socket. Options are applied after the
// socket is made and before it is bound or connected.
type Option func(fd int) error

// apply sets options in order and stops at the first that fails.
func apply(fd int, options ...Option) error {
	for _, o := range options {
		if err := o(fd); err != nil {
			return err
		}
	}
	return nil
}

func setInt(fd, level, name, value int, what string) error {
	err := unix.SetsockoptInt(fd, level, name, value)
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("setsockopt %s: %w (CAP_NET_ADMIN is missing)", what, err)
	}
	return os.NewSyscallError("setsockopt "+what, err)
}

// Mark is SO_MARK: the rules in the pod leave a socket with the proxy's mark
// alone.
func Mark(mark uint32) Option {
	return func(fd int) error { return setInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(mark), "SO_MARK") }
}

// ReuseAddr is SO_REUSEADDR: bind although old connections of the port linger.
func ReuseAddr() Option {
	return func(fd int) error { return setInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1, "SO_REUSEADDR") }
}

// ReusePort is SO_REUSEPORT: a new proxy process listens on a port while the
// old one still drains its connections.
func ReusePort() Option {
	return func(fd int) error { return setInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1, "SO_REUSEPORT") }
}

// Transparent is IP_TRANSPARENT: bind to addresses that are not the
// namespace's. The kernel keeps one bit for both families, and takes this
// option on IPv6 sockets too.
func Transparent() Option {
	return func(fd int) error { return setInt(fd, unix.SOL_IP, unix.IP_TRANSPARENT, 1, "IP_TRANSPARENT") }
}

// Opaque takes Transparent back.
func Opaque() Option {
	return func(fd int) error { return setInt(fd, unix.SOL_IP, unix.IP_TRANSPARENT, 0, "IP_TRANSPARENT") }
}

// BindAddressNoPort is IP_BIND_ADDRESS_NO_PORT: choose the source port when
// connecting and not when binding. One client address then has 28,000 ports for
// each destination, instead of for all together, and bind need not look for one.
func BindAddressNoPort() Option {
	return func(fd int) error {
		return setInt(fd, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1, "IP_BIND_ADDRESS_NO_PORT")
	}
}

// DualStack clears IPV6_V6ONLY: an IPv6 wildcard listener takes IPv4 as well.
func DualStack() Option {
	return func(fd int) error { return setInt(fd, unix.SOL_IPV6, unix.IPV6_V6ONLY, 0, "IPV6_V6ONLY") }
}

// NoDelay is TCP_NODELAY: a proxy sends what it got when it got it.
func NoDelay() Option {
	return func(fd int) error { return setInt(fd, unix.SOL_TCP, unix.TCP_NODELAY, 1, "TCP_NODELAY") }
}

// KeepAlive is SO_KEEPALIVE with its three times; zero turns it off. Accepted
// connections inherit it from their listener.
func KeepAlive(k Keepalive) Option {
	return func(fd int) error {
		if k == (Keepalive{}) {
			return setInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 0, "SO_KEEPALIVE")
		}
		return errors.Join(
			setInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1, "SO_KEEPALIVE"),
			setInt(fd, unix.SOL_TCP, unix.TCP_KEEPIDLE, seconds(k.Idle), "TCP_KEEPIDLE"),
			setInt(fd, unix.SOL_TCP, unix.TCP_KEEPINTVL, seconds(k.Interval), "TCP_KEEPINTVL"),
			setInt(fd, unix.SOL_TCP, unix.TCP_KEEPCNT, k.Count, "TCP_KEEPCNT"),
		)
	}
}

// UserTimeout is TCP_USER_TIMEOUT: how long sent data may stay unacknowledged.
func UserTimeout(d time.Duration) Option {
	return func(fd int) error {
		return setInt(fd, unix.SOL_TCP, unix.TCP_USER_TIMEOUT, int(d.Milliseconds()), "TCP_USER_TIMEOUT")
	}
}

// Source binds to an address, any port, which need not be the namespace's own.
// Its errors are ErrSource.
//
// Apart from the client's own connections: with those redirected in this very
// namespace they are in its conntrack, from ports that the kernel never saw bound
// here, and ours must not meet one. The port is then chosen by bind, for which
// the kernel prefers ports of one parity, and for connect those of the other.
// That is the dearer way: an address has half the ports, for all destinations
// together and until TIME_WAIT ends.
func Source(src netip.Addr, apart bool) Option {
	return func(fd int) error {
		var to unix.Sockaddr = &unix.SockaddrInet6{Addr: src.As16()}
		if src.Is4() {
			to = &unix.SockaddrInet4{Addr: src.As4()}
		}
		err := Transparent()(fd)
		if err == nil && !apart {
			err = BindAddressNoPort()(fd)
		}
		if err == nil {
			err = os.NewSyscallError("bind", unix.Bind(fd, to))
		}
		if err != nil {
			return fmt.Errorf("%w %s: %w", ErrSource, src, err)
		}
		return nil
	}
}

// seconds rounds up to the kernel's unit: 0 would be refused.
func seconds(d time.Duration) int { return int((d + time.Second - 1) / time.Second) }
