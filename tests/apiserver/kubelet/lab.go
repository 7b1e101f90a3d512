package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// packet is the longest answer of a lab, in bytes (crates/lab/src/control.rs).
const packet = 160 * 1024

// lab is the control socket of a lab: one question a connection (crates/lab/src/protocol.rs).
type lab struct{ socket string }

type answer struct {
	Answer  string `json:"answer"`
	Code    int    `json:"code"`
	Path    string `json:"path"`
	Message string `json:"message"`
}

// ask sends a question with files beside it and waits for the answer, which may bring one.
func (l lab) ask(ctx context.Context, question map[string]any, files ...*os.File) (answer, *os.File, error) {
	var answer answer
	if l.socket == "" {
		return answer, nil, errors.New("nobody runs this pod")
	}
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: l.socket, Net: "unixpacket"})
	if err != nil {
		return answer, nil, err
	}
	defer conn.Close()
	// A lab takes it as an order to stop when whoever asked goes away.
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	text, err := json.Marshal(question)
	if err != nil {
		return answer, nil, err
	}
	var rights []byte
	if len(files) > 0 {
		var fds []int
		for _, file := range files {
			fds = append(fds, int(file.Fd()))
		}
		rights = syscall.UnixRights(fds...)
	}
	_, _, err = conn.WriteMsgUnix(text, rights, nil)
	for _, file := range files {
		file.Close()
	}
	if err != nil {
		return answer, nil, err
	}
	buffer, control := make([]byte, packet), make([]byte, syscall.CmsgSpace(4))
	length, brought, _, _, err := conn.ReadMsgUnix(buffer, control)
	if err != nil {
		return answer, nil, err
	}
	file, err := descriptor(control[:brought])
	if err != nil {
		return answer, nil, err
	}
	if err := json.Unmarshal(buffer[:length], &answer); err != nil {
		return answer, file, err
	}
	if answer.Answer == "refused" {
		return answer, file, errors.New(answer.Message)
	}
	return answer, file, nil
}

func descriptor(control []byte) (*os.File, error) {
	messages, err := syscall.ParseSocketControlMessage(control)
	if err != nil || len(messages) == 0 {
		return nil, err
	}
	fds, err := syscall.ParseUnixRights(&messages[0])
	if err != nil || len(fds) == 0 {
		return nil, err
	}
	syscall.CloseOnExec(fds[0])
	return os.NewFile(uintptr(fds[0]), "connection"), nil
}

// dial connects from a place of the lab.
func (l lab) dial(place any, to string, limit time.Duration) (*net.TCPConn, error) {
	question := map[string]any{"request": "dial", "target": place, "to": to, "timeout_ms": limit.Milliseconds()}
	_, file, err := l.ask(context.Background(), question)
	if err != nil {
		return nil, err
	}
	if file == nil {
		return nil, errors.New("the lab gave no connection")
	}
	defer file.Close()
	conn, err := net.FileConn(file)
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}

// log is the path of a log.
func (l lab) log(target string) (string, error) {
	answer, _, err := l.ask(context.Background(), map[string]any{"request": "log-path", "target": target})
	return answer.Path, err
}

// exec runs a command in a place of the lab; returns its exit code.
func (l lab) exec(ctx context.Context, place any, command []string, in io.Reader, out, err io.Writer) (int, error) {
	var theirs []*os.File
	var copies sync.WaitGroup
	if in == nil {
		null, failed := os.Open(os.DevNull)
		if failed != nil {
			return 0, failed
		}
		theirs = append(theirs, null)
	} else {
		read, write, failed := os.Pipe()
		if failed != nil {
			return 0, failed
		}
		theirs = append(theirs, read)
		go func() {
			// A command need not read all that it is sent.
			_, _ = io.Copy(write, in)
			write.Close()
		}()
	}
	for _, to := range []io.Writer{out, err} {
		if to == nil {
			to = io.Discard
		}
		read, write, failed := os.Pipe()
		if failed != nil {
			return 0, failed
		}
		theirs = append(theirs, write)
		copies.Go(func() {
			// A client that goes away takes no more of it.
			_, _ = io.Copy(to, read)
			read.Close()
		})
	}
	question := map[string]any{"request": "exec", "target": place, "argv": command, "env": [][2]string{}}
	answer, _, failed := l.ask(ctx, question, theirs...)
	copies.Wait()
	if failed != nil {
		return 0, fmt.Errorf("running %q: %w", command, failed)
	}
	return answer.Code, nil
}
