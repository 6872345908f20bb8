"""Prints the serial number of the certificate that `sys.argv[1]` shows for the name `sys.argv[2]`."""
import hashlib
import socket
import ssl
import sys

host, port = sys.argv[1].rsplit(":", 1)
context = ssl.create_default_context()
context.check_hostname = False
context.verify_mode = ssl.CERT_NONE
with socket.create_connection((host, int(port)), 10) as raw:
    with context.wrap_socket(raw, server_hostname=sys.argv[2]) as stream:
        print(hashlib.sha256(stream.getpeercert(binary_form=True)).hexdigest())
