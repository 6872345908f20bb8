"""One request by HTTP/2 without TLS to `sys.argv[1]` for the host `sys.argv[2]`. Prints status and body."""
import socket
import sys

import h2.config
import h2.connection
import h2.events

host, port = sys.argv[1].rsplit(":", 1)
stream = socket.create_connection((host, int(port)), 20)
connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
connection.initiate_connection()
head = [(":method", "GET"), (":scheme", "http"), (":authority", sys.argv[2]), (":path", "/")]
connection.send_headers(1, head, end_stream=True)
stream.sendall(connection.data_to_send())
status, body, ended = "-", b"", False
while not ended:
    for event in connection.receive_data(stream.recv(65536)):
        if isinstance(event, h2.events.ResponseReceived):
            status = dict(event.headers)[":status"]
        elif isinstance(event, h2.events.DataReceived):
            body += event.data
        elif isinstance(event, h2.events.StreamEnded):
            ended = True
    stream.sendall(connection.data_to_send())
print(status, body.decode())
