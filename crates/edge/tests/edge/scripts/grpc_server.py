"""A gRPC server of grpcio. Prints its port. Answers carry its name, `sys.argv[1]`; it ends with its input."""
import sys
import threading
from concurrent import futures

import grpc

name = sys.argv[1].encode()
gate = threading.Event()


def unary(request, context):
    seen = dict(context.invocation_metadata())
    context.send_initial_metadata((("x-seen-proto", seen.get("x-forwarded-proto", "-")),))
    context.set_trailing_metadata((("x-trailer", "of " + name.decode()), ("bytes-bin", b"\x00\xff")))
    return name + b":" + request


def fail(request, context):
    context.set_trailing_metadata((("x-trailer", "behind a failure"),))
    context.abort(grpc.StatusCode.NOT_FOUND, "no such thing")


def count(request, context):
    for number in range(int(request)):
        yield name + b":%d" % number


def chat(requests, context):
    for request in requests:
        yield name + b":" + request


def total(requests, context):
    return b"%d" % sum(len(request) for request in requests)


class Handler(grpc.GenericRpcHandler):
    def service(self, details):
        return {
            "/test.Echo/Unary": grpc.unary_unary_rpc_method_handler(unary),
            "/test.Echo/Fail": grpc.unary_unary_rpc_method_handler(fail),
            "/test.Echo/Count": grpc.unary_stream_rpc_method_handler(count),
            "/test.Echo/Chat": grpc.stream_stream_rpc_method_handler(chat),
            "/test.Echo/Total": grpc.stream_unary_rpc_method_handler(total),
        }.get(details.method)


server = grpc.server(futures.ThreadPoolExecutor(max_workers=32))
server.add_generic_rpc_handlers((Handler(),))
print(server.add_insecure_port("127.0.0.1:0"), flush=True)
server.start()
sys.stdin.read()
server.stop(None).wait()
