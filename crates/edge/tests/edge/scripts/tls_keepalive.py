"""Asks over one TLS connection until its input ends. Prints how often, and a hash of the certificate that it was shown."""
import hashlib
import http.client
import select
import ssl
import sys

host, port = sys.argv[1].rsplit(":", 1)
context = ssl.create_default_context()
context.check_hostname = False
context.verify_mode = ssl.CERT_NONE


class Connection(http.client.HTTPSConnection):
    """Names another host than the one that it connects to."""

    def connect(self):
        http.client.HTTPConnection.connect(self)
        self.sock = context.wrap_socket(self.sock, server_hostname=sys.argv[2])


connection = Connection(host, int(port), timeout=20)
connection.connect()
stream, count = connection.sock, 0
while count < 20 or not select.select([sys.stdin], [], [], 0)[0]:
    connection.request("GET", "/", headers={"Host": sys.argv[2]})
    answer = connection.getresponse()
    assert answer.status == 200 and answer.read() == b"a", answer.status
    assert connection.sock is stream, "the connection was closed"
    count += 1
print(count, hashlib.sha256(stream.getpeercert(binary_form=True)).hexdigest())
