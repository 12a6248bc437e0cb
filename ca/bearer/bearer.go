package bearer

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc/metadata"
)

// Token returns what is in the one authorization header of a call, if that is of max bytes
// at most: whoever calls can send what they like.
func Token(ctx context.Context, max int) (string, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	values := md.Get("authorization")
	if len(values) != 1 {
		return "", fmt.Errorf("%d authorization headers, one is needed", len(values))
	}
	scheme, token, ok := strings.Cut(values[0], " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") {
		return "", errors.New("the authorization header holds no bearer token")
	}
	token = strings.TrimSpace(token)
	if token == "" || len(token) > max {
		return "", fmt.Errorf("bearer token of %d bytes", len(token))
	}
	return token, nil
}
