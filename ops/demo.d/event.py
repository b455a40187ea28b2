"""What a CI does when a build is ready: posts a signed CDEvents `artifact.published`, CloudEvents structured mode.

Usage: event.py SERVER PROJECT SECRET-FILE VERSION URL DIGEST SIZE; prints the answer's JSON. Exits 1 unless it is a 2xx.
The signature is that of Standard Webhooks: HMAC-SHA256 over `id.timestamp.body`.
"""
import base64
import datetime
import hashlib
import hmac
import json
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid

server, project, secret_file, version, url, digest, size = sys.argv[1:]
with open(secret_file, encoding="ascii") as f:
    key = base64.b64decode(f.read().strip().removeprefix("whsec_"))

event_id = str(uuid.uuid4())
kind = "dev.cdevents.artifact.published.0.2.0"
now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")
body = json.dumps({
    "specversion": "1.0", "id": event_id, "source": "/ci/demo", "type": kind, "time": now,
    "datacontenttype": "application/json",
    "data": {
        "context": {"version": "0.4.1", "id": event_id, "source": "/ci/demo", "type": kind, "timestamp": now},
        "subject": {
            "id": f"pkg:generic/{project}@{urllib.parse.quote(version, safe='')}",
            "source": "/ci/demo", "type": "artifact", "content": {},
        },
        "customData": {
            "version": version, "url": url, "digest": digest, "size": int(size), "committer": "ann", "ref": "main",
        },
    },
}).encode()
timestamp = str(int(time.time()))
signature = hmac.new(key, f"{event_id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
request = urllib.request.Request(
    f"{server}/hooks/cdevents/{project}", data=body, method="POST",
    headers={
        "Content-Type": "application/cloudevents+json", "webhook-id": event_id, "webhook-timestamp": timestamp,
        "webhook-signature": "v1," + base64.b64encode(signature).decode(),
    },
)
try:
    with urllib.request.urlopen(request, timeout=30) as answer:
        print(answer.read().decode())
except urllib.error.HTTPError as e:
    sys.exit(f"the hook answered {e.code}: {e.read().decode(errors='replace')}")
