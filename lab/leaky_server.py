"""A server with the classic bug: it never closes. Runs on its own, without tcptrace.

Prints ``listening`` when it can be connected to; ends when its standard input does.
"""

import selectors
import socket
import sys

leaked = []
listener = socket.create_server((sys.argv[1], int(sys.argv[2])), family=socket.AF_INET)
selector = selectors.DefaultSelector()
selector.register(listener, selectors.EVENT_READ)
selector.register(sys.stdin, selectors.EVENT_READ)
print("listening", flush=True)
while True:
    for key, _ in selector.select():
        source = key.fileobj
        if source is sys.stdin:
            sys.exit()
        if source is listener:
            connection, _peer = listener.accept()
            selector.register(connection, selectors.EVENT_READ)
        elif isinstance(source, socket.socket) and not source.recv(4096):
            selector.unregister(source)  # end of file: here source.close() is missing
            leaked.append(source)
