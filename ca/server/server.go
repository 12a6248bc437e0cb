package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	pb "istio.io/api/security/v1alpha1"

	"github.com/warren-mesh/warren/ca/authority"
)

// impersonated is the metadata key under which a node's proxy names the identity that it wants.
const impersonated = "ImpersonatedIdentity"

const maxID = 2048

// The answers of istiod to callers that it refuses.
const (
	msgUnauthenticated = "request authenticate failure"
	msgImpersonation   = "request impersonation authentication failure"
)

// msgUnavailable is the answer to callers of whom nothing could be found out.
const msgUnavailable = "callers cannot be authenticated now, try again"

// Caller is who presented credentials. ca/kubeauth has a type with the same fields, which converts into this one.
type Caller struct {
	Node     string      // the node that it runs on; empty when that is not known
	Identity spiffeid.ID // its own identity; zero for a caller that is only a node
	Pod      string      // namespace/name of the pod that its credentials are bound to; empty for none
	PodUID   string
}

func (c Caller) String() string {
	switch {
	case c.Pod != "":
		return c.Identity.String() + " of pod " + c.Pod
	case c.Node != "":
		return "node " + c.Node
	}
	return c.Identity.String()
}

// Authenticator says who calls, from the gRPC metadata and peer in ctx. Its error is logged, not sent. One with the
// gRPC status Unavailable says that it could not be found out, and is answered so: the caller comes again.
type Authenticator interface {
	Authenticate(ctx context.Context) (Caller, error)
}

// Authorizer says whether caller may have a certificate for id, whose trust domain has been compared already. Its
// error is like an Authenticator's.
type Authorizer interface {
	Allowed(caller Caller, id spiffeid.ID) error
}

// Observer is told about every answer; for metrics. It must not block.
type Observer interface {
	Answered(code codes.Code, took time.Duration)
}

// Signer is an *authority.Authority, or something that has one at each time.
type Signer interface {
	Sign(csr []byte, id spiffeid.ID, ttl time.Duration, now time.Time) (authority.Leaf, error)
}

// Config is what a Server needs. The first four are required.
type Config struct {
	Authority     Signer
	TrustDomain   spiffeid.TrustDomain // of all identities that may be asked for
	Authenticator Authenticator
	Authorizer    Authorizer
	Log           *slog.Logger  // default: discards
	Observer      Observer      // default: none
	Rate          float64       // signatures a second for one caller; default DefaultRate
	Burst         int           // default DefaultBurst: a node that starts asks for all its pods at once
	ReadTimeout   time.Duration // for a request to come, once it is known who calls; default DefaultReadTimeout
}

// Server implements CreateCertificate. Safe for concurrent use.
type Server struct {
	pb.UnimplementedIstioCertificateServiceServer
	cfg     Config
	limits  *limits
	reading *reading
}

// New checks cfg and fills its blanks.
func New(cfg Config) (*Server, error) {
	var errs []error
	if cfg.Authority == nil {
		errs = append(errs, errors.New("ca/server: no authority"))
	}
	if cfg.TrustDomain.IsZero() {
		errs = append(errs, errors.New("ca/server: no trust domain"))
	}
	if cfg.Authenticator == nil {
		errs = append(errs, errors.New("ca/server: no authenticator"))
	}
	if cfg.Authorizer == nil {
		errs = append(errs, errors.New("ca/server: no authorizer"))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Rate <= 0 {
		cfg.Rate = DefaultRate
	}
	if cfg.Burst <= 0 {
		cfg.Burst = DefaultBurst
	}
	if cfg.ReadTimeout <= 0 {
		cfg.ReadTimeout = DefaultReadTimeout
	}
	return &Server{cfg: cfg, limits: newLimits(cfg.Rate, cfg.Burst), reading: newReading()}, nil
}

// Register adds the service to g. Do so on listeners with TLS only: tokens and requests are not otherwise protected.
//
// On the wire a call with one message each way is a stream of one message each way. As a stream its handler runs before the
// message is read: of those who are nobody, nothing is kept but what a stream's window lets in; of others, few messages
// for a short time. g has to be made with Bound.
func (s *Server) Register(g grpc.ServiceRegistrar) {
	const method = "CreateCertificate"
	g.RegisterService(&grpc.ServiceDesc{
		ServiceName: pb.IstioCertificateService_ServiceDesc.ServiceName,
		HandlerType: (*pb.IstioCertificateServiceServer)(nil),
		Streams:     []grpc.StreamDesc{{StreamName: method, Handler: serve}},
		Metadata:    pb.IstioCertificateService_ServiceDesc.Metadata,
	}, s)
}

func serve(srv any, stream grpc.ServerStream) error {
	s, ok := srv.(*Server)
	if !ok {
		return status.Errorf(codes.Internal, "a server of type %T", srv)
	}
	resp, err := s.answer(stream.Context(), func() (*pb.IstioCertificateRequest, error) {
		req := &pb.IstioCertificateRequest{}
		return req, stream.RecvMsg(req)
	})
	if err != nil {
		return err
	}
	return stream.SendMsg(resp)
}

// refusal is an answer and the reason that stays here.
type refusal struct {
	answer *status.Status
	why    error
}

func refuse(c codes.Code, msg string, why error) *refusal {
	return &refusal{answer: status.New(c, msg), why: why}
}

// refuseCaller refuses somebody, unless the reason says nothing about the caller.
func refuseCaller(msg string, why error) *refusal {
	if st, ok := status.FromError(why); ok && st.Code() == codes.Unavailable {
		return refuse(codes.Unavailable, msgUnavailable, why)
	}
	return refuse(codes.Unauthenticated, msg, why)
}

// CreateCertificate implements the Istio CA service, for a request that was read.
func (s *Server) CreateCertificate(ctx context.Context, req *pb.IstioCertificateRequest) (*pb.IstioCertificateResponse, error) {
	return s.answer(ctx, func() (*pb.IstioCertificateRequest, error) { return req, nil })
}

// answer answers a request, which read reads.
func (s *Server) answer(ctx context.Context, read func() (*pb.IstioCertificateRequest, error)) (*pb.IstioCertificateResponse, error) {
	start := time.Now()
	var req *pb.IstioCertificateRequest
	var id string
	var leaf authority.Leaf
	caller, no := s.admit(ctx)
	if no == nil {
		var err error
		if req, no, err = s.receive(ctx, caller, read); err != nil {
			return nil, err
		}
	}
	if no == nil {
		id, leaf, no = s.create(caller, req, time.Now())
	}
	code := codes.OK
	if no != nil {
		code = no.answer.Code()
	}
	if s.cfg.Observer != nil {
		s.cfg.Observer.Answered(code, time.Since(start))
	}
	attrs := []any{"caller", caller.String(), "node", caller.Node, "pod", caller.Pod, "pod.uid", caller.PodUID, "src.addr", remote(ctx)}
	if no != nil {
		if yes, suppressed := s.limits.tell(caller, time.Now()); yes {
			s.cfg.Log.Warn("certificate refused", append(attrs, "id", asked(req, id), "code", code.String(), "err", no.why, "suppressed", suppressed)...)
		}
		return nil, no.answer.Err()
	}
	s.cfg.Log.Info("certificate signed", append(attrs, "id", id, "serial", leaf.Serial, "issuer", leaf.Issuer, "expires", leaf.NotAfter.UTC().Format(time.RFC3339))...)
	return &pb.IstioCertificateResponse{CertChain: leaf.Chain}, nil
}

// maxAsked bounds what the log says of a name that nobody was found to be entitled to.
const maxAsked = 256

// asked is what a refused request was for: the identity, as far as one was found, or the text that should be one.
func asked(req *pb.IstioCertificateRequest, id string) string {
	if id != "" {
		return id
	}
	text := req.GetMetadata().GetFields()[impersonated].GetStringValue()
	return text[:min(len(text), maxAsked)]
}

// admit finds out who calls, and whether it may now, before anything of the request is read.
func (s *Server) admit(ctx context.Context) (Caller, *refusal) {
	caller, err := s.cfg.Authenticator.Authenticate(ctx)
	if err != nil {
		return Caller{}, refuseCaller(msgUnauthenticated, err)
	}
	if wait := s.limits.take(caller, time.Now()); wait > 0 {
		return caller, &refusal{answer: exhausted(wait), why: fmt.Errorf("more than %g requests a second", s.cfg.Rate)}
	}
	return caller, nil
}

// create is the request's way through all other checks. The string returned is for the log and bounded.
func (s *Server) create(caller Caller, req *pb.IstioCertificateRequest, now time.Time) (string, authority.Leaf, *refusal) {
	var leaf authority.Leaf
	if n := len(req.GetCsr()); n > authority.MaxCSR {
		return "", leaf, refuse(codes.InvalidArgument, csrText("request too large"), fmt.Errorf("request of %d bytes", n))
	}
	id, err := s.wanted(caller, req)
	if err != nil {
		return "", leaf, refuseCaller(msgImpersonation, err)
	}
	leaf, err = s.cfg.Authority.Sign([]byte(req.GetCsr()), id, lifetime(req.GetValidityDuration()), now)
	if err != nil {
		return id.String(), leaf, signRefusal(err)
	}
	return id.String(), leaf, nil
}

// wanted is the identity asked for, once the caller is found to be entitled to it.
func (s *Server) wanted(caller Caller, req *pb.IstioCertificateRequest) (spiffeid.ID, error) {
	field, asks := req.GetMetadata().GetFields()[impersonated]
	if !asks {
		if caller.Identity.IsZero() {
			return spiffeid.ID{}, errors.New("no identity was asked for, and a node has none of its own")
		}
		return caller.Identity, s.checkDomain(caller.Identity)
	}
	text := field.GetStringValue()
	if len(text) > maxID {
		return spiffeid.ID{}, fmt.Errorf("identity of %d bytes", len(text))
	}
	id, err := spiffeid.FromString(text)
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("asked for %q: %w", text, err)
	}
	// istiod copies any trust domain into the certificate.
	if err := s.checkDomain(id); err != nil {
		return spiffeid.ID{}, err
	}
	if err := s.cfg.Authorizer.Allowed(caller, id); err != nil {
		return spiffeid.ID{}, fmt.Errorf("asked for %s: %w", id, err)
	}
	return id, nil
}

func (s *Server) checkDomain(id spiffeid.ID) error {
	if id.TrustDomain() != s.cfg.TrustDomain {
		return fmt.Errorf("asked for %s, the trust domain is %s", id, s.cfg.TrustDomain.Name())
	}
	return nil
}

// signRefusal tells the caller what is wrong with its own request, and nothing about us.
func signRefusal(err error) *refusal {
	var csr *authority.CSRError
	var ttl *authority.TTLError
	if errors.As(err, &csr) || errors.As(err, &ttl) {
		return refuse(codes.InvalidArgument, csrText(err.Error()), err)
	}
	return refuse(codes.Internal, csrText("the authority cannot sign"), err)
}

func csrText(cause string) string { return "CSR signing error (" + cause + ")" }

// lifetime turns seconds into a duration without wrapping around; zero and less mean the default.
func lifetime(seconds int64) time.Duration {
	if seconds > math.MaxInt64/int64(time.Second) {
		return math.MaxInt64
	}
	return time.Duration(max(seconds, 0)) * time.Second
}

func remote(ctx context.Context) string {
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		return p.Addr.String()
	}
	return "unknown"
}
