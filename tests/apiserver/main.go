// Command kube-tools is the API server, its store and its client in one file, for tests on one machine.
package main

import (
	"fmt"
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	"k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: kube-tools etcd|apiserver|kubectl ...")
		os.Exit(2)
	}
	tool := os.Args[1]
	os.Args = append(os.Args[:1], os.Args[2:]...)
	switch tool {
	case "etcd":
		etcdmain.Main(os.Args)
	case "apiserver":
		os.Exit(cli.Run(app.NewAPIServerCommand()))
	case "kubectl":
		os.Exit(cli.Run(cmd.NewDefaultKubectlCommand()))
	default:
		fmt.Fprintf(os.Stderr, "kube-tools: no tool %q\n", tool)
		os.Exit(2)
	}
}
