"""A guestbook that remembers nothing: threaded HTTP/1.1 with keep-alive, standard library only."""
import os
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

RELEASE = open(os.path.join(os.path.dirname(__file__), "version.txt")).read().strip()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def answer(self, text):
        body = (text + "\n").encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.answer("ok" if self.path == "/healthz" else f"guestbook {RELEASE}")

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.answer(f"{RELEASE} length={len(body)} checksum={zlib.adler32(body)}")

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True


if __name__ == "__main__":
    port = int(os.environ.get("PORT", "8000"))
    print(f"guestbook {RELEASE} listens on {port}")
    Server(("0.0.0.0", port), Handler).serve_forever()
