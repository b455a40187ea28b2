"""A chat stand-in: keeps every signed message it gets, one JSON line each. Usage: receiver.py PORT-FILE SECRET-FILE OUTPUT

Checks the Standard Webhooks signature over the raw body, as a real receiver must, and answers 401 when it is wrong.
"""
import base64
import hashlib
import hmac
import http.server
import json
import os
import sys

port_file, secret_file, output = sys.argv[1:]
with open(secret_file, encoding="ascii") as f:
    key = base64.b64decode(f.read().strip().removeprefix("whsec_"))


class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        signed = f"{self.headers.get('webhook-id')}.{self.headers.get('webhook-timestamp')}.".encode() + body
        wanted = "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
        given = (self.headers.get("webhook-signature") or "").split()
        good = any(hmac.compare_digest(wanted, g) for g in given)
        if good:
            with open(output, "a", encoding="utf-8") as f:
                f.write(json.dumps({"id": self.headers.get("webhook-id"), "body": json.loads(body)}) + "\n")
        self.send_response(204 if good else 401)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
with open(port_file + ".new", "w", encoding="ascii") as f:
    f.write(str(server.server_port))
os.replace(port_file + ".new", port_file)
server.serve_forever()
