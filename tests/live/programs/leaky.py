"""A server whose functions and lines are known to test_live_python.py. Ends with its input."""

import os
import socket
import sys

kept = []


def read_all(connection):
    while connection.recv(100):  # HERE: read
        pass


def handle(connection):
    read_all(connection)  # HERE: handle
    kept.append(connection)


def take(listener):
    connection, _peer = listener.accept()  # HERE: accept
    return connection


def serve(listener):
    connection = take(listener)  # HERE: take
    list(map(handle, [connection]))  # HERE: serve
    print("read", flush=True)
    sys.stdin.readline()
    connection.close()  # HERE: close
    print("closed", flush=True)


listener = socket.create_server((sys.argv[1], 0), family=int(sys.argv[2]))
print(listener.getsockname()[1], flush=True)
for _ in range(2):
    if len(sys.argv) > 3 and os.fork():
        os.wait()
    else:
        serve(listener)
        if len(sys.argv) > 3:
            sys.stdin.readline()  # its functions can be read as long as it lives
            os._exit(0)
