"""A gRPC client of grpcio that does what its input says, a command a line, and answers each with a line.

    unary TEXT      one call: its answer, a field of its head and one of its trailer
    fail            a call that fails: code, text and trailer
    unknown         a call of a method that is not there: its code
    count N         a stream from the server: how many came, and the last one
    total N SIZE    a stream to the server of N messages: what it counted
    open            opens a stream both ways, which stays open
    say TEXT        on that stream: what comes back
    close           ends it
"""
import queue
import sys

import grpc

options = [("grpc.enable_retries", 0)]
if len(sys.argv) > 2:
    with open(sys.argv[2], "rb") as file:
        credentials = grpc.ssl_channel_credentials(file.read())
    options.append(("grpc.ssl_target_name_override", sys.argv[3]))
    channel = grpc.secure_channel(sys.argv[1], credentials, options)
else:
    channel = grpc.insecure_channel(sys.argv[1], options)


def say(*words):
    print(*words, flush=True)


for line in sys.stdin:
    command, *words = line.split()
    try:
        if command == "unary":
            answer, call = channel.unary_unary("/test.Echo/Unary").with_call(words[0].encode(), timeout=20)
            trailer = dict(call.trailing_metadata())
            assert trailer["bytes-bin"] == b"\x00\xff", trailer
            say(answer.decode(), dict(call.initial_metadata())["x-seen-proto"], trailer["x-trailer"])
        elif command in ("fail", "unknown"):
            channel.unary_unary(f"/test.Echo/{command.title()}")(b"", timeout=20)
            say("it did not fail")
        elif command == "count":
            answers = list(channel.unary_stream("/test.Echo/Count")(words[0].encode(), timeout=20))
            say(len(answers), answers[-1].decode())
        elif command == "total":
            messages = (b"x" * int(words[1]) for _ in range(int(words[0])))
            say(channel.stream_unary("/test.Echo/Total")(messages, timeout=20).decode())
        elif command == "open":
            orders = queue.Queue()
            answers = channel.stream_stream("/test.Echo/Chat")(iter(orders.get, None), timeout=60)
            say("opened")
        elif command == "say":
            orders.put(words[0].encode())
            say(next(answers).decode())
        elif command == "close":
            orders.put(None)
            say("closed", len(list(answers)), answers.code().name)
    except grpc.RpcError as error:
        say(error.code().name, error.details(), dict(error.trailing_metadata() or ()).get("x-trailer", "-"))
