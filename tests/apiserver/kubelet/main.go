// Command kubelet is the part of a node's agent that the API server speaks to: it forwards ports of pods,
// runs commands in them and shows their logs, with the protocols of Kubernetes itself. It starts nothing:
// the pods are those of a lab, which does the work, or programs of a test.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

const (
	// A connection on which nothing moves ends after this.
	idle = 4 * time.Hour
	// A client may take this long for the streams of one request.
	creation = 30 * time.Second
)

// reaches says where pods are that are not a lab's own: NAMESPACE/NAME=PLACE.
type reaches map[string]string

func (r reaches) String() string { return "" }

func (r reaches) Set(text string) error {
	pod, place, found := strings.Cut(text, "=")
	if !found || !strings.Contains(pod, "/") {
		return fmt.Errorf("%q is not NAMESPACE/POD=PLACE", text)
	}
	r[pod] = place
	return nil
}

func main() {
	log.SetFlags(0)
	listen := flag.String("listen", "127.0.0.1:0", "address; port 0 is a free one, and is printed")
	certificate := flag.String("certificate", "", "PEM file of its certificate")
	key := flag.String("key", "", "PEM file of its key")
	authority := flag.String("client-authority", "", "PEM file of who signs its clients' certificates")
	socket := flag.String("lab", "", "control socket of the lab whose pods these are")
	places := reaches{}
	flag.Var(places, "reach", "NAMESPACE/POD=PLACE: a pod that is not a lab's own; outer, node:NAME, or IP:PORT for whatever port is asked for")
	flag.Parse()
	if err := serve(*listen, *certificate, *key, *authority, node{lab{*socket}, places}); err != nil {
		log.Fatalf("kubelet: %v", err)
	}
}

func serve(address, certificate, key, authority string, node node) error {
	roots := x509.NewCertPool()
	pem, err := os.ReadFile(authority)
	if err != nil {
		return err
	}
	if !roots.AppendCertsFromPEM(pem) {
		return fmt.Errorf("%s has no certificate", authority)
	}
	own, err := tls.LoadX509KeyPair(certificate, key)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	fmt.Printf("listening on %s\n", listener.Addr())
	server := http.Server{Handler: node.routes(), ReadHeaderTimeout: creation}
	// Its streams take over the connection, which HTTP/2 does not have.
	return server.Serve(tls.NewListener(listener, &tls.Config{
		Certificates: []tls.Certificate{own},
		ClientAuth:   tls.RequireAndVerifyClientCert,
		ClientCAs:    roots,
		MinVersion:   tls.VersionTLS13,
		NextProtos:   []string{"http/1.1"},
	}))
}

// node answers for the pods of one node.
type node struct {
	lab    lab
	places reaches
}

func (n node) routes() http.Handler {
	routes := http.NewServeMux()
	routes.HandleFunc("/portForward/{namespace}/{pod}", n.forward)
	routes.HandleFunc("/exec/{namespace}/{pod}/{container}", n.exec)
	routes.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", n.logs)
	return routes
}

func name(r *http.Request) string { return r.PathValue("namespace") + "/" + r.PathValue("pod") }

func (n node) forward(w http.ResponseWriter, r *http.Request) {
	options, err := portforward.NewV4Options(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	portforward.ServePortForward(w, r, n, name(r), "", options, idle, creation, portforward.SupportedProtocols)
}

func (n node) exec(w http.ResponseWriter, r *http.Request) {
	options, err := remotecommand.NewOptions(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if options.TTY {
		http.Error(w, "a lab's pods have no terminals", http.StatusNotImplemented)
		return
	}
	command := r.URL.Query()["command"]
	remotecommand.ServeExec(w, r, n, name(r), "", r.PathValue("container"), command, options,
		idle, creation, remotecommand.SupportedStreamingProtocols)
}
