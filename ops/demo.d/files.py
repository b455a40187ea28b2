"""Serves a directory on a port the system chooses. Usage: files.py DIRECTORY PORT-FILE"""
import functools
import http.server
import os
import sys

directory, port_file = sys.argv[1:]


class Files(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Files, directory=directory))
with open(port_file + ".new", "w", encoding="ascii") as f:
    f.write(str(server.server_port))
os.replace(port_file + ".new", port_file)
server.serve_forever()
