package bench

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"github.com/warren-mesh/warren/ca/mtls"
)

// A connection begins with one of these bytes.
const (
	opSink = 'S' // read until EOF, then answer with the count in 8 bytes
	opEcho = 'E' // then a size in 4 bytes: echo messages of that size
)

const bulkBuffer = 256 << 10

// Serve is the traffic's server until ctx ends: plain, or TLS with the
// certificate and key of certFile.
func Serve(ctx context.Context, addr, certFile string) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var config *tls.Config
	if certFile != "" {
		cert, err := tls.LoadX509KeyPair(certFile, certFile)
		if err != nil {
			return err
		}
		config = mtls.ServerAuth(func() (*tls.Certificate, error) { return &cert, nil })
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		if config != nil {
			c = tls.Server(c, config)
		}
		wg.Go(func() {
			stop := context.AfterFunc(ctx, func() { c.Close() })
			defer stop()
			defer c.Close()
			_ = answer(c) // the client end sees and reports what goes wrong
		})
	}
}

func answer(c net.Conn) error {
	var head [5]byte
	if _, err := io.ReadFull(c, head[:1]); err != nil {
		return err
	}
	switch head[0] {
	case opSink:
		n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}, make([]byte, bulkBuffer))
		if err != nil {
			return err
		}
		_, err = c.Write(binary.BigEndian.AppendUint64(nil, uint64(n)))
		return err
	case opEcho:
		if _, err := io.ReadFull(c, head[1:]); err != nil {
			return err
		}
		size := binary.BigEndian.Uint32(head[1:])
		if size > bulkBuffer {
			return fmt.Errorf("echo of %d bytes", size)
		}
		buf := make([]byte, size)
		for {
			if _, err := io.ReadFull(c, buf); err != nil {
				return err
			}
			if _, err := c.Write(buf); err != nil {
				return err
			}
		}
	}
	return fmt.Errorf("unknown operation %q", head[0])
}
