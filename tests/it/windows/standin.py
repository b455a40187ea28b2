#!/usr/bin/env python3
"""Plays a Windows host behind a real sshd: what `bootstrap.ps1` and `host.ps1` do there, done by Python, with `sh` in
PowerShell's place. It proves the control plane's side of the conversation; it proves nothing about PowerShell.

As sshd's ForceCommand: standin.py BOOTSTRAP FAULTS (the command that was asked for is in SSH_ORIGINAL_COMMAND). As a runner:
standin.py run STATE ROOT TASK. FAULTS is a directory: a file `lose-runner` there makes every start come to nothing."""
import base64, datetime, fcntl, hashlib, json, os, select, shutil, subprocess, sys, time, urllib.error, urllib.request

SILENCE = 20


def text(b64):
    return base64.b64decode(b64, validate=True).decode()


def b64(data):
    return base64.b64encode(data if isinstance(data, bytes) else data.encode()).decode()


def now():
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def read(path, start=0, most=262144):
    try:
        with open(path, "rb") as f:
            f.seek(start)
            return f.read(most)
    except FileNotFoundError:
        return b""


def whole(path, data):
    with open(path + ".new", "wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
    os.rename(path + ".new", path)


def append(path, at, data):
    with open(path, "ab") as f:
        if os.fstat(f.fileno()).st_size < at:
            raise ValueError(f"{path} is shorter than {at}")
        f.truncate(at)
        f.write(data)
        f.flush()
        os.fsync(f.fileno())


def lock(path, seconds=0.0):
    f = open(path, "ab")
    until = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return f
        except BlockingIOError:
            if time.monotonic() >= until:
                f.close()
                return None
            time.sleep(0.05)


class Lines:
    """Standard input, line by line, with a limit on silence."""

    def __init__(self):
        self.buffer = b""

    def next(self, limit):
        while b"\n" not in self.buffer:
            if not select.select([0], [], [], limit)[0]:
                return None
            piece = os.read(0, 65536)
            if not piece:
                return None
            self.buffer += piece
        line, self.buffer = self.buffer.split(b"\n", 1)
        return line.decode()


def say(line):
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def bootstrap(expected, faults):
    words = os.environ["SSH_ORIGINAL_COMMAND"].split(" ")
    assert words[0] == "powershell.exe" and words[-2] == "-EncodedCommand", words[:-1]
    assert base64.b64decode(words[-1]).decode("utf-16-le") == open(expected).read(), "another bootstrap"
    # What a profile of the account says must not harm.
    say("Welcome to WEB-7")
    lines = Lines()
    state, root, digest = lines.next(60).split(" ")
    state, root = text(state), text(root)
    os.makedirs(os.path.join(state, "bin"), mode=0o700, exist_ok=True)
    script = os.path.join(state, "bin", f"host-{digest}.ps1")
    if hashlib.sha256(read(script, 0, 1 << 20)).hexdigest() == digest:
        say("WLPS1 have")
    else:
        say("WLPS1 need")
        data = base64.b64decode(lines.next(60), validate=True)
        if hashlib.sha256(data).hexdigest() != digest:
            say("WLPS1 damaged")
            sys.exit(65)
        whole(script, data)
    serve(state, root, lines, faults)


def serve(state, root, lines, faults):
    os.makedirs(os.path.join(root, "releases"), exist_ok=True)
    held = lock(os.path.join(state, "session.lock"), 30)
    if held is None:
        say("WLPS1 busy")
        return
    say("WLPS1 ready")
    while (line := lines.next(SILENCE)) is not None:
        ask = json.loads(line)
        try:
            said = {"ok": True, **answer(state, root, ask, faults)}
        except (OSError, ValueError, KeyError) as e:
            said = {"ok": False, "error": b64(repr(e))}
        say(json.dumps(said))


def current(root):
    try:
        return os.path.basename(os.readlink(os.path.join(root, "current")))
    except OSError:
        return ""


def answer(state, root, ask, faults):
    do = ask["do"]
    dir_of = lambda t: os.path.join(state, "tasks", t)
    path = dir_of(ask["task"]) if "task" in ask else ""
    if do == "hello":
        tasks = os.path.join(state, "tasks")
        names = sorted(os.listdir(tasks)) if os.path.isdir(tasks) else []
        boot = open("/proc/sys/kernel/random/boot_id").read().strip()
        facts = {"boot": boot, "os": "stand-in", "arch": "AMD64", "hostname": "WEB-7", "cores": 1, "memory": 1, "shell": "0"}
        return {"identity": b64(read(state + "/identity.json")), "tasks": " ".join(names), "facts": facts, "current": current(root)}
    if do == "journal":
        return {"data": b64(read(state + "/journal", ask["from"], 524288))}
    if do == "append":
        for task in ask["prepare"].split():
            os.makedirs(dir_of(task), exist_ok=True)
        append(state + "/journal", ask["at"], base64.b64decode(ask["data"], validate=True))
        return {}
    if do == "identity":
        whole(state + "/identity.json", base64.b64decode(ask["data"], validate=True))
        return {}
    if do == "start":
        os.makedirs(path, exist_ok=True)
        whole(path + "/spec.json", base64.b64decode(ask["spec"], validate=True))
        if os.path.exists(faults + "/lose-runner"):
            return {}
        # Outside the session, as WMI starts it.
        nothing = subprocess.DEVNULL
        me = [sys.executable, os.path.abspath(__file__), "run", state, root, ask["task"]]
        subprocess.Popen(me, stdin=nothing, stdout=nothing, stderr=nothing, start_new_session=True, cwd="/")
        until = time.monotonic() + 15
        while time.monotonic() < until and not any(os.path.exists(path + n) for n in ("/exec.mark", "/exit.json")):
            time.sleep(0.02)
        return {}
    if do == "look":
        said = {"there": os.path.isdir(path), "alive": False, "begun": False, "exit": "", "steps": "", "log": "", "error": ""}
        if not said["there"]:
            return said
        held = lock(path + "/lock")
        if held is None:
            said["alive"] = True
        else:
            said["begun"] = os.path.exists(path + "/exec.mark")
            said["exit"] = b64(read(path + "/exit.json"))
            if not said["begun"] and not said["exit"]:
                whole(path + "/void", b"v")
            said["error"] = b64(read(path + "/runner.err"))
            held.close()
        return {**said, "steps": b64(read(path + "/steps", ask["steps"])), "log": b64(read(path + "/log", ask["log"]))}
    if do == "stop":
        if os.path.isdir(path):
            whole(path + "/abort", b"a")
        return {}
    if do == "forget":
        shutil.rmtree(path, ignore_errors=True)
        return {}
    if do == "ping":
        return {"current": current(root)}
    raise ValueError(f"unknown request {do}")


class Runner:
    def __init__(self, state, root, task):
        self.root, self.path = root, os.path.join(state, "tasks", task)
        self.held = lock(self.path + "/lock", 10)
        self.seen = 0
        if self.held and not any(os.path.exists(self.path + n) for n in ("/void", "/exec.mark", "/exit.json")):
            self.run()

    def log(self, step, stream, data):
        self.seen += len(data)
        line = json.dumps({"step": step, "stream": stream, "at": now(), "data": b64(data)})
        with open(self.path + "/log", "a") as f:
            f.write(line + "\n")

    def aborted(self):
        return os.path.exists(self.path + "/abort")

    def end(self, outcome):
        whole(self.path + "/exit.json", json.dumps({"outcome": outcome, "log_bytes": self.seen, "log_dropped": 0}).encode())

    def run(self):
        if self.aborted():
            return self.end("fenced")
        spec = json.loads(read(self.path + "/spec.json", 0, 1 << 24))
        whole(self.path + "/exec.mark", b"m")
        failed = cancelled = left = False
        for index, step in enumerate(spec["steps"]):
            if index < spec["start_at"]:
                continue
            if (failed or self.aborted()) and not step["always"]:
                left = True
                continue
            begun = now()
            outcome, code, message = self.script(index, step) if step["kind"] == "script" else self.check(step)
            failed |= outcome != "succeeded"
            cancelled |= outcome == "cancelled"
            line = {"index": index, "outcome": outcome, "code": code, "from": begun, "to": now(), "message": b64(message)}
            data = (json.dumps(line) + "\n").encode()
            append(self.path + "/steps", len(read(self.path + "/steps")), data)
        self.end("cancelled" if cancelled else "failed" if failed else "cancelled" if left else "succeeded")

    def script(self, index, step):
        assert text(step["interpreter"]) == "powershell.exe"
        file = f"{self.path}/step-{index}.ps1"
        whole(file, text(step["script"]).encode())
        env = {**os.environ, **{text(e["k"]): text(e["v"]) for e in step["env"]}}
        p = subprocess.Popen(["sh", file], cwd=self.root, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT, start_new_session=True)
        until, stopped, last = time.monotonic() + step["timeout_s"], None, ""
        while True:
            if select.select([p.stdout], [], [], 0.1)[0]:
                piece = os.read(p.stdout.fileno(), 16384)
                if not piece:
                    break
                last = piece.decode(errors="replace").strip().splitlines()[-1:] or [""]
                last = last[0]
                self.log(index, "out", piece)
            if not stopped and time.monotonic() > until:
                stopped = "timed_out"
            elif not stopped and not step["always"] and self.aborted():
                stopped = "cancelled"
            if stopped:
                os.killpg(p.pid, 9)
        code = p.wait()
        if stopped:
            return stopped, None, "stopped"
        return ("succeeded", 0, "") if code == 0 else ("failed", code, f"exited with code {code}: {last}")

    def check(self, step):
        try:
            with urllib.request.urlopen(text(step["url"]), timeout=5) as r:
                body = r.read().decode(errors="replace")
            fits = r.status == step["status"] and text(step["expect"]) in body
            return ("succeeded", None, "") if fits else ("failed", None, f"answered {r.status}")
        except urllib.error.URLError as e:
            return "failed", None, f"cannot be asked: {e}"


if sys.argv[1] == "run":
    Runner(*sys.argv[2:5])
else:
    bootstrap(sys.argv[1], sys.argv[2])
