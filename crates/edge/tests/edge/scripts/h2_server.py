"""An HTTP/2 server without TLS on python-h2 that is closing, in one of several ways. Prints its port, and a line for each request
that it processed: `METHOD PATH LENGTH`.

    plain            answers everything
    refuse N         refuses the first N streams (REFUSED_STREAM)
    goaway           says GOAWAY before the second stream of each connection, which it does not begin
    drop             takes a whole request and then ends its connection with GOAWAY, which names that stream as begun
    limit N          allows N streams at a time, and answers once its input has a line
"""
import socket
import sys
import threading

import h2.config
import h2.connection
import h2.events
import h2.settings

mode = sys.argv[1]
number = int(sys.argv[2]) if len(sys.argv) > 2 else 0
listener = socket.create_server(("127.0.0.1", 0), backlog=512)
print(listener.getsockname()[1], flush=True)
lock, refused, gate = threading.Lock(), 0, threading.Event()


def serve(stream):
    global refused
    connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
    if mode == "limit":
        limits = {h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: number}
        connection.local_settings = h2.settings.Settings(client=False, initial_values=limits)
    connection.initiate_connection()
    stream.sendall(connection.data_to_send())
    heads, lengths, n_begun, last, left = {}, {}, 0, 0, set()
    while data := stream.recv(65536):
        for event in connection.receive_data(data):
            which = getattr(event, "stream_id", None)
            if isinstance(event, h2.events.RequestReceived):
                with lock:
                    refuse = mode == "refuse" and refused < number
                    refused += refuse
                n_begun += not refuse
                if refuse:
                    connection.reset_stream(which, 7)
                    left.add(which)
                elif mode == "goaway" and n_begun > 1:
                    if n_begun == 2:
                        # By hand: python-h2 would take no more frames after it.
                        body = last.to_bytes(4, "big") + bytes(4)
                        stream.sendall(len(body).to_bytes(3, "big") + bytes([7, 0, 0, 0, 0, 0]) + body)
                    left.add(which)
                else:
                    heads[which], lengths[which], last = dict(event.headers), 0, which
            elif isinstance(event, h2.events.DataReceived) and which not in left:
                lengths[which] += len(event.data)
                connection.acknowledge_received_data(event.flow_controlled_length, which)
            elif isinstance(event, h2.events.StreamEnded) and which not in left:
                head = heads[which]
                print(head[":method"], head[":path"], lengths[which], flush=True)
                if mode == "drop":
                    connection.close_connection(last_stream_id=which)
                    stream.sendall(connection.data_to_send())
                    stream.shutdown(socket.SHUT_RDWR)
                    return
                if mode == "limit":
                    gate.wait()
                body = f"{head[':authority']} {lengths[which]}".encode()
                connection.send_headers(which, [(":status", "200"), ("content-type", "text/plain")])
                connection.send_data(which, body)
                connection.send_headers(which, [("x-trailer", "last")], end_stream=True)
        stream.sendall(connection.data_to_send())


def accept():
    while True:
        stream, _ = listener.accept()
        threading.Thread(target=serve, args=(stream,), daemon=True).start()


threading.Thread(target=accept, daemon=True).start()
for _ in sys.stdin:
    gate.set()
