"""An HTTP/2 client on python-h2 that does what its input says, a command a line, and answers each with a line.

    start PATH [FIELD=VALUE]   opens a stream and ends its request: `stream N`
    finish N                   waits for the end of a stream: `STATUS RELEASE BODY`, or `reset CODE`
    cancel N                   resets a stream: `cancelled`
    window N                   lets the server send N more bytes on each stream and the connection: `opened`
    goodbye                    waits for the end of the connection: `goaway CODE LAST`, or `closed`
"""
import socket
import ssl
import sys

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings

# python-h2 takes every GOAWAY for the end of the connection; after a graceful one streams go on (RFC 9113, section 6.8).
machine, state = h2.connection.H2ConnectionStateMachine, h2.connection.ConnectionState
machine._transitions[(state.CLIENT_OPEN, h2.connection.ConnectionInputs.RECV_GOAWAY)] = (None, state.CLIENT_OPEN)

address, name = sys.argv[1], sys.argv[2]
window = int(sys.argv[3]) if len(sys.argv) > 3 else 65535
host, port = address.rsplit(":", 1)
stream = socket.create_connection((host, int(port)), 20)
scheme = "http"
if name != "-":
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    stream = context.wrap_socket(stream, server_hostname=name)
    assert stream.selected_alpn_protocol() == "h2"
    scheme = "https"
connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
connection.local_settings = h2.settings.Settings(
    client=True, initial_values={h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window}
)
connection.initiate_connection()
stream.sendall(connection.data_to_send())

answers, resets, goaway, ended = {}, {}, None, False


def pump():
    global goaway, ended
    try:
        data = stream.recv(65536)
    except ConnectionResetError:
        data = b""
    if not data:
        ended = True
        return
    for event in connection.receive_data(data):
        number = getattr(event, "stream_id", None)
        if isinstance(event, h2.events.ResponseReceived):
            answers[number] = [dict(event.headers), b"", False]
        elif isinstance(event, h2.events.DataReceived):
            answers[number][1] += event.data
            if window == 65535 and event.flow_controlled_length:
                connection.acknowledge_received_data(event.flow_controlled_length, number)
        elif isinstance(event, h2.events.StreamEnded):
            answers[number][2] = True
        elif isinstance(event, h2.events.StreamReset):
            resets[number] = int(event.error_code)
        elif isinstance(event, h2.events.ConnectionTerminated):
            goaway = (int(event.error_code), event.last_stream_id)
    try:
        stream.sendall(connection.data_to_send())
    except (BrokenPipeError, ConnectionResetError):
        ended = True


def say(*words):
    print(*words, flush=True)


for line in sys.stdin:
    command, *words = line.split()
    if command == "start":
        number = connection.get_next_available_stream_id()
        fields = [(":method", "GET"), (":scheme", scheme), (":authority", "a.test" if name == "-" else name)]
        fields += [(":path", words[0])] + [tuple(word.split("=", 1)) for word in words[1:]]
        connection.send_headers(number, fields, end_stream=True)
        stream.sendall(connection.data_to_send())
        say("stream", number)
    elif command == "finish":
        number = int(words[0])
        while not ended and number not in resets and not (number in answers and answers[number][2]):
            pump()
        if number in answers and answers[number][2]:
            fields, body, _ = answers[number]
            say(fields[":status"], fields.get("x-kiln-release", "-"), body.decode()[:100] or "-")
        else:
            say("reset", resets.get(number, "connection"))
    elif command == "cancel":
        connection.reset_stream(int(words[0]), 8)
        stream.sendall(connection.data_to_send())
        say("cancelled")
    elif command == "window":
        connection.increment_flow_control_window(int(words[0]))
        for number, answer in answers.items():
            if not answer[2]:
                connection.increment_flow_control_window(int(words[0]), number)
        stream.sendall(connection.data_to_send())
        say("opened")
    elif command == "goodbye":
        while goaway is None and not ended:
            pump()
        first = goaway
        while not ended:
            pump()
        say("closed" if first is None else f"goaway {first[0]} {first[1]}")
