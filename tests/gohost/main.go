// Gohost is a plugin's host on the real go-plugin library, told what to do by lines of JSON on stdin.
//
// It launches, pings, calls and kills a plugin as Nomad's client does: the same handshake, the same connection, no message types of
// its own. Those come as a FileDescriptorSet in the file that is its only argument, and messages travel as proto3 JSON.
// Every answer is a line on stdout with the id of its request; go-plugin's own log, with the plugin's lines in it, is stderr.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
)

const recoverable = "hashicorp.nomad.plugins.shared.structs.RecoverableError"

var handshake = plugin.HandshakeConfig{
	ProtocolVersion:  2,
	MagicCookieKey:   "NOMAD_PLUGIN_MAGIC_COOKIE",
	MagicCookieValue: "e4327c2e01eabfd75a8a67adb114fb34a757d57eee7728d857a8cec6e91a7255",
}

// request is one line of stdin. To names an earlier request whose stream is meant.
type request struct {
	ID      int             `json:"id"`
	Do      string          `json:"do"`
	Argv    []string        `json:"argv"`
	Address string          `json:"address"`
	Pid     int             `json:"pid"`
	Method  string          `json:"method"`
	Message json.RawMessage `json:"message"`
	To      int             `json:"to"`
}

// answer is one line of stdout: a value or a failure ends the request, an item does not.
type answer struct {
	ID    int             `json:"id"`
	Value json.RawMessage `json:"value,omitempty"`
	Item  json.RawMessage `json:"item,omitempty"`
	Error *failure        `json:"error,omitempty"`
}

type failure struct {
	Code        string `json:"code"`
	Text        string `json:"text"`
	Recoverable *bool  `json:"recoverable"` // of the first status detail, if that is Nomad's
}

// bare hands the connection out as it is.
type bare struct{ plugin.NetRPCUnsupportedPlugin }

func (bare) GRPCServer(*plugin.GRPCBroker, *grpc.Server) error { return nil }

func (bare) GRPCClient(_ context.Context, _ *plugin.GRPCBroker, conn *grpc.ClientConn) (any, error) {
	return conn, nil
}

type stream struct {
	grpc.ClientStream
	cancel context.CancelFunc
	method protoreflect.MethodDescriptor
}

type host struct {
	files    *protoregistry.Files
	client   *plugin.Client
	protocol plugin.ClientProtocol
	conn     *grpc.ClientConn

	mu      sync.Mutex
	out     *json.Encoder
	streams map[int]stream
}

func main() {
	files, err := load(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	h := &host{files: files, out: json.NewEncoder(os.Stdout), streams: map[int]stream{}}
	lines := bufio.NewReader(os.Stdin)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			break
		}
		var r request
		if err := json.Unmarshal(line, &r); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		h.handle(r)
	}
	if h.client != nil {
		h.client.Kill()
	}
}

func load(path string) (*protoregistry.Files, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	set := &descriptorpb.FileDescriptorSet{}
	if err := proto.Unmarshal(raw, set); err != nil {
		return nil, err
	}
	return protodesc.NewFiles(set)
}

// handle answers at once where the order of requests matters, and in the background where a call may take long.
func (h *host) handle(r request) {
	switch r.Do {
	case "launch", "reattach":
		h.reply(r.ID, func() (any, error) { return h.connect(r) })
	case "ping":
		h.reply(r.ID, func() (any, error) { return true, h.protocol.Ping() })
	case "kill":
		h.reply(r.ID, func() (any, error) { h.client.Kill(); return h.client.Exited(), nil })
	case "exited":
		h.reply(r.ID, func() (any, error) { return h.client.Exited(), nil })
	case "call":
		go h.reply(r.ID, func() (any, error) { return h.call(r) })
	case "open":
		if err := h.open(r); err != nil {
			h.fail(r.ID, err)
		}
	case "send":
		h.reply(r.ID, func() (any, error) { return true, h.send(r) })
	case "cancel":
		h.reply(r.ID, func() (any, error) { h.stream(r.To).cancel(); return true, nil })
	default:
		h.fail(r.ID, fmt.Errorf("no such request: %q", r.Do))
	}
}

// connect leaves out what Nomad's client leaves out: no TLS, no checksum, no multiplexing.
func (h *host) connect(r request) (any, error) {
	config := &plugin.ClientConfig{
		HandshakeConfig:  handshake,
		Plugins:          plugin.PluginSet{"driver": bare{}},
		AllowedProtocols: []plugin.Protocol{plugin.ProtocolGRPC},
		Logger:           hclog.New(&hclog.LoggerOptions{Level: hclog.Trace, JSONFormat: true, Output: os.Stderr}),
	}
	if r.Do == "launch" {
		config.Cmd = exec.Command(r.Argv[0], r.Argv[1:]...)
	} else {
		config.Reattach = &plugin.ReattachConfig{
			Protocol: plugin.ProtocolGRPC, Pid: r.Pid, Addr: &net.UnixAddr{Name: r.Address, Net: "unix"},
		}
	}
	h.client = plugin.NewClient(config)
	protocol, err := h.client.Client()
	if err != nil {
		return nil, err
	}
	h.protocol = protocol
	conn, err := protocol.Dispense("driver")
	if err != nil {
		return nil, err
	}
	h.conn = conn.(*grpc.ClientConn)
	at := h.client.ReattachConfig()
	return map[string]any{"address": at.Addr.String(), "pid": at.Pid, "version": h.client.NegotiatedVersion()}, nil
}

func (h *host) method(path string) (protoreflect.MethodDescriptor, error) {
	name := protoreflect.FullName(strings.ReplaceAll(strings.TrimPrefix(path, "/"), "/", "."))
	found, err := h.files.FindDescriptorByName(name)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return found.(protoreflect.MethodDescriptor), nil
}

func (h *host) call(r request) (any, error) {
	method, err := h.method(r.Method)
	if err != nil {
		return nil, err
	}
	in, out := dynamicpb.NewMessage(method.Input()), dynamicpb.NewMessage(method.Output())
	if err := protojson.Unmarshal(r.Message, in); err != nil {
		return nil, err
	}
	if err := h.conn.Invoke(context.Background(), r.Method, in, out); err != nil {
		return nil, err
	}
	return raw(out)
}

// open starts a stream, sends the first message, and passes on what comes.
func (h *host) open(r request) error {
	method, err := h.method(r.Method)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	desc := &grpc.StreamDesc{ServerStreams: true, ClientStreams: method.IsStreamingClient()}
	opened, err := h.conn.NewStream(ctx, desc, r.Method)
	if err != nil {
		cancel()
		return err
	}
	h.mu.Lock()
	h.streams[r.ID] = stream{opened, cancel, method}
	h.mu.Unlock()
	if err := h.send(request{To: r.ID, Message: r.Message}); err != nil {
		return err
	}
	go h.receive(r.ID)
	return nil
}

func (h *host) stream(id int) stream {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.streams[id]
}

func (h *host) send(r request) error {
	s := h.stream(r.To)
	in := dynamicpb.NewMessage(s.method.Input())
	if err := protojson.Unmarshal(r.Message, in); err != nil {
		return err
	}
	if err := s.SendMsg(in); err != nil {
		return err
	}
	if s.method.IsStreamingClient() {
		return nil
	}
	return s.CloseSend()
}

func (h *host) receive(id int) {
	s := h.stream(id)
	defer s.cancel()
	for {
		out := dynamicpb.NewMessage(s.method.Output())
		err := s.RecvMsg(out)
		if err == io.EOF {
			h.write(answer{ID: id, Value: json.RawMessage("null")})
			return
		}
		if err != nil {
			h.fail(id, err)
			return
		}
		item, err := raw(out)
		if err != nil {
			h.fail(id, err)
			return
		}
		h.write(answer{ID: id, Item: item})
	}
}

func raw(message proto.Message) (json.RawMessage, error) {
	return protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}.Marshal(message)
}

func (h *host) reply(id int, do func() (any, error)) {
	value, err := do()
	if err != nil {
		h.fail(id, err)
		return
	}
	encoded, err := json.Marshal(value)
	if err != nil {
		h.fail(id, err)
		return
	}
	h.write(answer{ID: id, Value: encoded})
}

func (h *host) fail(id int, err error) {
	s := status.Convert(err)
	found := &failure{Code: s.Code().String(), Text: s.Message()}
	if details := s.Proto().GetDetails(); len(details) > 0 && strings.HasSuffix(details[0].TypeUrl, "/"+recoverable) {
		kind, err := h.files.FindDescriptorByName(recoverable)
		if err == nil {
			detail := dynamicpb.NewMessage(kind.(protoreflect.MessageDescriptor))
			if proto.Unmarshal(details[0].Value, detail) == nil {
				is := detail.Get(detail.Descriptor().Fields().ByName("recoverable")).Bool()
				found.Recoverable = &is
			}
		}
	}
	h.write(answer{ID: id, Error: found})
}

func (h *host) write(a answer) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.out.Encode(a); err != nil {
		os.Exit(1)
	}
}
