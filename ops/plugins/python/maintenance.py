#!/usr/bin/python3
"""Opens or closes a maintenance page: a file whose presence a web server answers with.

inputs:  path (of the file), action (open or close), text (what the page says)
outputs: open (is the page up now)
"""

import json
import os
import sys
import tempfile

# For people, line by line in the step's log. Nothing but the answer goes to standard output.
def log(text):
    print(text, file=sys.stderr, flush=True)


def answer(status, **more):
    json.dump({"status": status, **more}, sys.stdout)
    sys.exit(0)


def is_done(path, action, text):
    if action == "close":
        return not os.path.exists(path)
    try:
        with open(path, encoding="utf-8") as page:
            return page.read() == text
    except FileNotFoundError:
        return False


def main():
    request = json.load(sys.stdin)
    inputs = request["inputs"]
    path, action = inputs["path"], inputs["action"]
    text = inputs.get("text", "Back in a moment.\n")
    outputs = {"open": action == "open"}

    if request["verb"] == "check":
        if is_done(path, action, text):
            answer("succeeded", outputs=outputs, message="it is so already")
        answer("failed", message="not done yet")

    if request["verb"] != "execute":
        answer("failed", message=f"this plugin does not know the verb {request['verb']}")

    try:
        if action == "close":
            if os.path.exists(path):
                os.unlink(path)
        else:
            # Nobody may see half a page.
            with tempfile.NamedTemporaryFile(
                "w", encoding="utf-8", dir=os.path.dirname(path) or ".", delete=False
            ) as page:
                page.write(text)
            os.chmod(page.name, 0o644)
            os.replace(page.name, path)
    except OSError as error:
        answer("failed", message=f"{path}: {error.strerror}")
    log(f"{action}: {path}")
    answer("succeeded", outputs=outputs)


main()
