package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/utils/exec"
)

const (
	// A program that listens answers at once.
	dialing = 10 * time.Second
	// Between two looks at a log that is followed.
	look = 200 * time.Millisecond
)

// place is where a pod is, in the words of the lab's control socket.
func (n node) place(pod string) any {
	at, stands := n.places[pod]
	host, isNode := strings.CutPrefix(at, "node:")
	switch {
	case !stands:
		return map[string]string{"pod": pod}
	case isNode:
		return map[string]string{"node": host}
	default:
		return at
	}
}

// dial connects to a port of a pod's own loopback.
func (n node) dial(pod string, port int32) (*net.TCPConn, error) {
	if at := n.places[pod]; strings.Contains(at, ":") && !strings.HasPrefix(at, "node:") {
		conn, err := net.DialTimeout("tcp", at, dialing)
		if err != nil {
			return nil, err
		}
		return conn.(*net.TCPConn), nil
	}
	var last error
	for _, ip := range []string{"127.0.0.1", "::1"} {
		conn, err := n.lab.dial(n.place(pod), net.JoinHostPort(ip, strconv.Itoa(int(port))), dialing)
		if err == nil {
			return conn, nil
		}
		if last == nil {
			last = err
		}
	}
	return nil, last
}

// PortForward copies between a stream of the client and a port of a pod, until both ways have ended.
func (n node) PortForward(ctx context.Context, pod, _ string, port int32, stream io.ReadWriteCloser) error {
	defer stream.Close()
	conn, err := n.dial(pod, port)
	if err != nil {
		return fmt.Errorf("pod %s port %d: %w", pod, port, err)
	}
	defer conn.Close()
	go func() {
		// How the client ends is its own business; the pod sees an end.
		_, _ = io.Copy(conn, stream)
		_ = conn.CloseWrite()
	}()
	_, err = io.Copy(stream, conn)
	return err
}

// ExecInContainer runs a command in a pod.
func (n node) ExecInContainer(ctx context.Context, pod, _, _ string, command []string, in io.Reader, out, err io.WriteCloser, _ bool, _ <-chan remotecommand.TerminalSize, _ time.Duration) error {
	code, failed := n.lab.exec(ctx, n.place(pod), command, in, out, err)
	if failed != nil {
		return failed
	}
	if code != 0 {
		return exec.CodeExitError{Err: fmt.Errorf("exit code %d", code), Code: code}
	}
	return nil
}

// logs shows the log of a pod; of what a client may ask for, `follow` and `tailLines`.
func (n node) logs(w http.ResponseWriter, r *http.Request) {
	target := name(r)
	if _, stands := n.places[target]; stands {
		// A process of the lab has the name of the pod that stands for it.
		target = r.PathValue("pod")
	}
	path, err := n.lab.log(target)
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	file, err := os.Open(path)
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	defer file.Close()
	if lines, err := strconv.Atoi(r.FormValue("tailLines")); err == nil {
		if err := tail(file, lines); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
	}
	follow, _ := strconv.ParseBool(r.FormValue("follow"))
	for {
		if _, err := io.Copy(w, file); err != nil || !follow {
			return
		}
		if flusher, can := w.(http.Flusher); can {
			flusher.Flush()
		}
		select {
		case <-r.Context().Done():
			return
		case <-time.After(look):
		}
	}
}

// tail moves to the beginning of the last lines.
func tail(file *os.File, lines int) error {
	text, err := io.ReadAll(file)
	if err != nil {
		return err
	}
	at := len(text)
	for seen := 0; at > 0; at-- {
		if text[at-1] == '\n' && at < len(text) {
			if seen++; seen == lines {
				break
			}
		}
	}
	if lines == 0 {
		at = len(text)
	}
	_, err = file.Seek(int64(at), io.SeekStart)
	return err
}
