"""Switches to another protocol over TLS and has a message echoed."""
import socket
import ssl
import sys

host, port = sys.argv[1].rsplit(":", 1)
context = ssl.create_default_context()
context.check_hostname = False
context.verify_mode = ssl.CERT_NONE
with socket.create_connection((host, int(port)), 10) as raw:
    with context.wrap_socket(raw, server_hostname=sys.argv[2]) as stream:
        head = f"GET /chat HTTP/1.1\r\nHost: {sys.argv[2]}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        stream.sendall(head.encode())
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += stream.recv(4096)
        status = answer.split(b" ")[1].decode()
        stream.sendall(b"hello over tls")
        echo = b""
        while len(echo) < 14:
            echo += stream.recv(4096)
        assert echo == b"hello over tls", echo
        print(status, "echoed")
