"""Stops a program and all it starts at system calls of a kind, and says what becomes of each: it goes on, it fails, the process dies.

The kernel asks (seccomp's user notification), so one counter runs over all threads and processes; strace counts for each thread by
itself and never reaches the second call of one thread where another thread has made two before. Nothing is stopped between two such calls.

As a program: catch.py CALL,CALL... -- COMMAND...: installs the filter, waits for a line on its input, becomes COMMAND.
"""
import ctypes
import errno
import fcntl
import os
import pathlib
import select
import signal
import struct
import subprocess
import sys
import threading
import time

NUMBERS = {
    "x86_64": {"fsync": 74, "fdatasync": 75, "rename": 82, "renameat": 264, "renameat2": 316, "pwrite64": 18, "write": 1, "writev": 20,
               "ftruncate": 77, "fallocate": 285, "unlink": 87, "unlinkat": 263, "mkdir": 83, "mkdirat": 258, "link": 86, "linkat": 265,
               "symlink": 88, "symlinkat": 266, "sendto": 44, "sendmsg": 46},
    "aarch64": {"fsync": 82, "fdatasync": 83, "renameat": 38, "renameat2": 276, "pwrite64": 68, "write": 64, "writev": 66,
                "ftruncate": 46, "fallocate": 47, "unlinkat": 35, "mkdirat": 34, "linkat": 37, "symlinkat": 36, "sendto": 206,
                "sendmsg": 211},
}.get(os.uname().machine, {})
SECCOMP, PIDFD_OPEN, PIDFD_GETFD = {"x86_64": 317, "aarch64": 277}.get(os.uname().machine, -1), 434, 438
RECV, SEND = 0xC0502100, 0xC0182101
GO_ON = 1
LIBC = ctypes.CDLL(None, use_errno=True)
# Calls whose first argument is no file descriptor.
BY_PATH = {"rename", "renameat", "renameat2", "unlink", "unlinkat", "mkdir", "mkdirat", "link", "linkat", "symlink", "symlinkat"}


def install(calls):
    """The filter, for this process and all that come from it; returns the descriptor of the listener."""
    numbers = [NUMBERS[c] for c in calls if c in NUMBERS]
    rules = [(0x20, 0, 0, 0)]
    rules += [(0x15, len(numbers) - i, 0, n) for i, n in enumerate(numbers)]
    rules += [(6, 0, 0, 0x7FFF0000), (6, 0, 0, 0x7FC00000)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *r) for r in rules))

    class Program(ctypes.Structure):
        _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_void_p)]

    # Needed where we are not root; root keeps what setuid programs of steps may want.
    if os.geteuid() != 0:
        LIBC.prctl(38, 1, 0, 0, 0)
    listener = LIBC.syscall(SECCOMP, 1, 8, ctypes.byref(Program(len(rules), ctypes.addressof(code))))
    if listener < 0:
        raise OSError(ctypes.get_errno(), "this kernel has no seccomp notification")
    return listener


class Call:
    """One call that waits: which, of whom, on what."""

    def __init__(self, thread, name, first):
        self.thread, self.name, self.first = thread, name, first

    def process(self):
        try:
            for line in pathlib.Path(f"/proc/{self.thread}/status").read_text().splitlines():
                if line.startswith("Tgid:"):
                    return int(line.split()[1])
        except OSError:
            pass
        return None

    def what(self):
        """The file or socket it is about; `-` for calls that name a path."""
        if self.name in BY_PATH:
            return "-"
        try:
            return os.readlink(f"/proc/{self.thread}/fd/{self.first}")
        except OSError:
            return "?"


class Caught:
    """A program under the filter. `decide(call)` answers None (go on), an errno (the call fails) or `kill` / `after`."""

    def __init__(self, calls, command, decide, out):
        self.decide, self.names = decide, {n: c for c, n in NUMBERS.items()}
        self.child = subprocess.Popen([sys.executable, __file__, ",".join(calls), "--", *command], stdin=subprocess.PIPE, stdout=out,
                                      stderr=out, start_new_session=True)
        self.pid = self.child.pid
        self.listener = self.fetch()
        self.child.stdin.write(b"\n")
        self.child.stdin.close()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()

    def fetch(self):
        until = time.monotonic() + 30
        folder = pathlib.Path(f"/proc/{self.pid}/fd")
        while time.monotonic() < until and self.child.poll() is None:
            try:
                for entry in folder.iterdir():
                    if "seccomp notify" in os.readlink(entry):
                        pidfd = os.pidfd_open(self.pid)
                        fd = LIBC.syscall(PIDFD_GETFD, pidfd, int(entry.name), 0)
                        os.close(pidfd)
                        if fd < 0:
                            raise SystemExit(f"cannot fetch the listener: {os.strerror(ctypes.get_errno())}")
                        return fd
            except FileNotFoundError:
                pass
            time.sleep(0.002)
        raise SystemExit("the filter was not installed: this kernel lets nobody watch system calls")

    def watch(self):
        poll = select.poll()
        poll.register(self.listener, select.POLLIN)
        while True:
            events = poll.poll(1000)
            if events and not events[0][1] & select.POLLIN:
                break
            if not events:
                continue
            frame = bytearray(80)
            try:
                fcntl.ioctl(self.listener, RECV, frame)
            except OSError as e:
                # Who asked has died meanwhile.
                if e.errno in (errno.ENOENT, errno.EINTR):
                    continue
                break
            id_, thread, _, number, _, _, first = struct.unpack_from("QIIiIQQ", frame)
            call = Call(thread, self.names.get(number, str(number)), first)
            verdict = self.decide(self, call)
            process = call.process() if verdict in ("kill", "after") else None
            if verdict == "kill":
                self.end(process)
                continue
            error, flags = (0, GO_ON) if verdict in (None, "after") else (-verdict, 0)
            try:
                fcntl.ioctl(self.listener, SEND, bytearray(struct.pack("QqiI", id_, 0, error, flags)))
            except OSError as e:
                if e.errno not in (errno.ENOENT, errno.EINTR):
                    break
            if verdict == "after":
                self.wait_through(call)
                self.end(process)
        os.close(self.listener)

    @staticmethod
    def wait_through(call):
        """Until the call is over: the thread is somewhere else, or computes."""
        until = time.monotonic() + 0.2
        number = str(NUMBERS[call.name])
        while time.monotonic() < until:
            try:
                if pathlib.Path(f"/proc/{call.thread}/syscall").read_text().split()[0] not in (number, "running"):
                    return
            except OSError:
                return

    @staticmethod
    def end(process):
        if process:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def poll(self):
        return self.child.poll()

    def kill(self):
        self.child.kill()
        self.child.wait(30)


if __name__ == "__main__":
    install(sys.argv[1].split(","))
    # The listener stays open until the program is another one; by then whoever started us has its own.
    if not os.read(0, 1):
        sys.exit(0)
    os.execv(sys.argv[3], sys.argv[3:])
