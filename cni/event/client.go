package event

import (
	"context"
	"errors"
	"os"
)

// Client is the plugin's end. The zero value but for Path is ready.
type Client struct {
	Path string // of the agent's socket
}

// Add holds the conversation of one ADD. If the agent wants the pod redirected
// it calls program, which says who programmed it, ByPlugin or ByAgent, or fails.
// netns stays the caller's. After an error the caller undoes what program did.
func (c *Client) Add(ctx context.Context, add Add, netns *os.File, program func(Redirect) (how string, err error)) (Answer, error) {
	return Answer{}, errors.New("event: not built yet")
}

// Del ends an attachment.
func (c *Client) Del(ctx context.Context, key Key, podUID string) error {
	return errors.New("event: not built yet")
}

// Check asks what an attachment must look like.
func (c *Client) Check(ctx context.Context, key Key) (Answer, error) {
	return Answer{}, errors.New("event: not built yet")
}

// GC names the network's valid attachments; the others are ended.
func (c *Client) GC(ctx context.Context, network string, valid []Key) error {
	return errors.New("event: not built yet")
}

// Status asks whether the agent could decide about a pod.
func (c *Client) Status(ctx context.Context) error { return errors.New("event: not built yet") }
