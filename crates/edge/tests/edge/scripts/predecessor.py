"""An edge that dies in the middle of handing over: `DIR`. It listens, says where, and gives everything to the first who asks."""
import fcntl, json, os, socket, struct, sys

folder = sys.argv[1]
listener = socket.create_server(("127.0.0.1", 0), reuse_port=True)
listener.setblocking(False)
lock = open(folder + "/lock", "w")
fcntl.flock(lock, fcntl.LOCK_EX)
control = socket.socket(socket.AF_UNIX)
control.bind(folder + "/control.sock")
control.listen()
port = listener.getsockname()[1]
print(port, flush=True)
other, _ = control.accept()


def hear():
    (length,) = struct.unpack(">I", other.recv(4, socket.MSG_WAITALL))
    return json.loads(other.recv(length, socket.MSG_WAITALL))


assert hear()["do"] == "take_over"
places = [{"purpose": "plain", "address": f"127.0.0.1:{port}"}]
offer = {"process": "before", "generation": 0, "digest": None, "places": places, "of a newer edge": 1}
body = json.dumps({"is": "offer", "offer": offer}).encode()
other.sendall(struct.pack(">I", len(body)) + body)
socket.send_fds(other, [b"\0"], [lock.fileno(), control.fileno(), listener.fileno()])
assert hear()["do"] == "ready"
os._exit(0)
