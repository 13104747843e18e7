// qmpclient.go - Vitro's control socket, its path the argument, by a QMP client that others wrote for QEMU.
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/digitalocean/go-qemu/qmp"
)

func check(err error) {
	if err != nil {
		fmt.Println("failed:", err)
		os.Exit(1)
	}
}

func main() {
	m, err := qmp.NewSocketMonitor("unix", os.Args[1], 30*time.Second)
	check(err)
	check(m.Connect())
	events, err := m.Events(context.Background())
	check(err)
	seen := make(chan string, 16)
	go func() {
		for e := range events {
			seen <- e.Event
		}
	}()
	for _, command := range []string{"query-status", "query-name", "query-version", "stop", "query-status", "cont"} {
		answer, err := m.Run([]byte(fmt.Sprintf(`{"execute": "%s"}`, command)))
		check(err)
		fmt.Printf("%s %s\n", command, answer)
	}
	_, err = m.Run([]byte(`{"execute": "no-such-command"}`))
	fmt.Printf("mistake %v\n", err)
	fmt.Printf("events %s %s\n", <-seen, <-seen)
	check(m.Disconnect())
}
