#!/usr/bin/env python3
"""Writes used.ld: which functions a node runs, so that the linker can put them next to each other.

    node/native/used.py BINARY > node/native/used.ld

BINARY is a static release with its symbols (CARGO_PROFILE_RELEASE_STRIP=none chaos/compose/build.sh). Three nodes are made of
it on this machine; one of them is started with a breakpoint on every function, which counts once and is taken away. It starts,
meets the others, serves and sends requests, small and large, is scraped and told a policy, and idles. What it ran is written as
patterns of section names, without the hashes that change with every build: a function that is not in the list, or no longer
there, costs some memory and nothing else.

Needs Linux on x86-64, Python 3 and binutils; no rights beyond those of the user. Takes two minutes.
"""

import ctypes
import http.server
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

# ptrace(2) and struct user_regs_struct of x86-64.
TRACEME, CONT, GETREGS, SETREGS, SETOPTIONS = 0, 7, 12, 13, 0x4200
TRACE_CLONE, EXIT_KILL = 0x8, 0x100000
RIP = 16
WAIT_ALL = 0x40000000
BREAKPOINT = b"\xcc"

# A name of which this share of the code ran is listed whole, and its parts are not.
WHOLE_FROM = 0.8

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.restype = ctypes.c_long
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def functions(binary):
    """Address, size and name of every function."""
    listed = subprocess.run(["readelf", "-sW", binary], capture_output=True, text=True, check=True)
    found = {}
    for line in listed.stdout.splitlines():
        parts = line.split()
        if len(parts) >= 8 and parts[3] == "FUNC" and parts[6] != "UND" and int(parts[2], 0) > 0:
            found.setdefault(int(parts[1], 16), (int(parts[2], 0), parts[7]))
    return found


class Trace:
    """A process with a breakpoint on every function; `hit` are the addresses of those that ran."""

    def __init__(self, addresses, argv, log):
        self.hit = set()
        self.pid = os.fork()
        if self.pid == 0:
            os.dup2(os.open(log, os.O_CREAT | os.O_WRONLY), 2)
            libc.ptrace(TRACEME, 0, None, None)
            os.execv(argv[0], argv)
        os.waitpid(self.pid, 0)
        libc.ptrace(SETOPTIONS, self.pid, None, ctypes.c_void_p(TRACE_CLONE | EXIT_KILL))
        with open(f"/proc/{self.pid}/maps") as maps:
            self.base = next(int(line.split("-")[0], 16) for line in maps if os.path.basename(argv[0]) in line)
        self.memory = open(f"/proc/{self.pid}/mem", "r+b", buffering=0)
        self.original = {}
        for address in addresses:
            self.memory.seek(self.base + address)
            self.original[address] = self.memory.read(1)
            self.poke(address, BREAKPOINT)

    def poke(self, address, byte):
        self.memory.seek(self.base + address)
        self.memory.write(byte)

    def run(self, is_over):
        """Follows the process until `is_over`, which is looked at twice a second."""
        signal.signal(signal.SIGALRM, lambda *_: None)
        signal.siginterrupt(signal.SIGALRM, True)
        signal.setitimer(signal.ITIMER_REAL, 0.5, 0.5)
        libc.ptrace(CONT, self.pid, None, None)
        registers = (ctypes.c_ulonglong * 27)()
        while not is_over():
            try:
                thread, status = os.waitpid(-1, WAIT_ALL)
            except InterruptedError:
                continue
            if not os.WIFSTOPPED(status):
                if thread == self.pid:
                    raise RuntimeError("the traced node has ended")
                continue
            deliver = self.stopped(thread, status, registers)
            libc.ptrace(CONT, thread, None, ctypes.c_void_p(deliver))
        signal.setitimer(signal.ITIMER_REAL, 0)
        os.kill(self.pid, signal.SIGKILL)

    def stopped(self, thread, status, registers):
        """The signal to deliver to a thread that has stopped."""
        stop = os.WSTOPSIG(status)
        if status >> 16 or stop == signal.SIGSTOP:
            return 0
        if stop != signal.SIGTRAP:
            return stop
        libc.ptrace(GETREGS, thread, None, ctypes.byref(registers))
        address = registers[RIP] - 1 - self.base
        if address in self.original:
            if address not in self.hit:
                self.hit.add(address)
                self.poke(address, self.original[address])
            registers[RIP] -= 1
            libc.ptrace(SETREGS, thread, None, ctypes.byref(registers))
        return 0


class Answer(http.server.BaseHTTPRequestHandler):
    """An application: as many bytes as the path says."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = b"x" * int(self.path[1:])
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def log_message(self, *_):
        pass


def ports(count):
    """Free TCP ports of 127.0.0.1."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    found = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return found


POLICY = """apiVersion: marram.dev/v1
kind: BackendTrafficPolicy
metadata:
  name: s1
targetRef: { kind: Service, name: s1 }
spec:
  loadBalancer: { halfDistance: 12ms }
"""

SECONDS = 75


class Node:
    """A node with a service of its own, `sN`, and a listener for the service of the next one."""

    def __init__(self, binary, folder, number, first):
        self.binary, self.dir, self.number = binary, os.path.join(folder, f"n{number}"), number
        app = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        threading.Thread(target=app.serve_forever, daemon=True).start()
        mesh, self.admin, self.proxy, self.listener = ports(4)
        if first is None:
            self.verb("init", "--dir", self.dir, "--mesh", "used", "--name", f"n{number}")
        else:
            token = re.search(r"marram1\S+", self.verb("token", "create", "--dir", first.dir)).group()
            self.verb("join", token, "--dir", self.dir, "--name", f"n{number}")
        path = os.path.join(self.dir, "node.toml")
        with open(path) as file:
            text = file.read()
        bind = f'[mesh]\nbind = "127.0.0.1:{mesh}"\nadvertise = "127.0.0.1:{mesh}"\n'
        text = text.replace("[mesh]\n", bind) if "[mesh]\n" in text else text + bind
        text += f"""
[admin]
bind = "127.0.0.1:{self.admin}"
[proxy]
bind = "127.0.0.1:{self.proxy}"
[dns]
enabled = false
[[listener]]
service = "s{(number + 1) % 3}"
address = "127.0.0.1:{self.listener}"
[[service]]
name = "s{number}"
port = {app.server_address[1]}
"""
        with open(path, "w") as file:
            file.write(text)

    def verb(self, *words, given=None):
        return subprocess.run([self.binary, *words], check=True, capture_output=True, text=True, input=given).stdout

    def start(self):
        return subprocess.Popen([self.binary, "agent", "--dir", self.dir], stderr=subprocess.DEVNULL)

    def ask(self, service, size, body=None):
        """Whether the answer has as many bytes as were asked for."""
        headers = {"Host": f"{service}.mesh"}
        request = urllib.request.Request(f"http://127.0.0.1:{self.proxy}/{size}", data=body, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return len(answer.read()) == size
        except OSError:
            return False

    def ask_raw(self):
        try:
            with socket.create_connection(("127.0.0.1", self.listener), 5) as raw:
                raw.settimeout(5)
                raw.sendall(b"GET /10 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                raw.recv(1000)
        except OSError:
            pass

    def look(self):
        for path in ("/metrics", "/v1/status", "/v1/nodes", "/v1/services"):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.admin}{path}", timeout=5).read()
            except OSError:
                pass


class Work(threading.Thread):
    """What is asked of and through `node`, which is traced, for a while; `answered` is how often that went well."""

    def __init__(self, node, other):
        super().__init__(daemon=True)
        self.node, self.other, self.answered = node, other, 0

    def run(self):
        until = time.monotonic() + SECONDS
        has_policy = False
        while time.monotonic() < until:
            for size in (10, 1000, 200_000):
                self.answered += self.node.ask("s2", size) + self.other.ask(f"s{self.node.number}", size)
                self.answered += self.node.ask("s2", size, b"y" * size)
            self.node.ask_raw()
            self.other.ask_raw()
            self.node.look()
            if self.answered and not has_policy:
                self.node.verb("policy", "apply", "--dir", self.node.dir, "-f", "-", given=POLICY)
                has_policy = True
            time.sleep(1)


def patterns(found, hit):
    """Section names of what ran: Rust's by the parts of their paths, without the hash; the others as they are."""
    def empty():
        return {"bytes": 0, "hit": 0, "kids": {}}

    root, others = empty(), set()
    for address, (size, name) in found.items():
        if not name.startswith("_ZN"):
            if address in hit:
                # The version of a C library in a name says nothing about the next one.
                others.add(re.sub(r"^aws_lc_\d+_\d+_\d+_", "aws_lc_*_", name))
            continue
        at, path = 3, []
        while at < len(name) and name[at].isdigit():
            digits = re.match(r"\d+", name[at:]).group()
            end = at + len(digits) + int(digits)
            path.append(name[at:end])
            at = end
        if path and re.fullmatch(r"17h[0-9a-f]{16}", path[-1]):
            path.pop()
        here = root
        for part in path:
            here = here["kids"].setdefault(part, empty())
            here["bytes"] += size
            here["hit"] += size if address in hit else 0
    rust = []

    def walk(here, path):
        kids = here["kids"].items()
        if path and here["hit"] and (not kids or here["hit"] >= WHOLE_FROM * here["bytes"]):
            rust.append(f"_ZN{path}*")
            return
        if path and here["hit"] > sum(kid["hit"] for _, kid in kids):
            rust.append(f"_ZN{path}17h*")
        for part, kid in kids:
            walk(kid, path + part)

    walk(root, "")
    return sorted(rust) + sorted(others)


def main():
    binary = os.path.abspath(sys.argv[1])
    found = functions(binary)
    with tempfile.TemporaryDirectory() as folder:
        others = []
        try:
            first = Node(binary, folder, 0, None)
            others.append(first.start())
            time.sleep(2)
            # It was let in and has seeds, as most have.
            traced = Node(binary, folder, 1, first)
            others.append(Node(binary, folder, 2, first).start())
            work = Work(traced, first)
            trace = Trace(found, [binary, "agent", "--dir", traced.dir], os.path.join(folder, "log"))
            work.start()
            trace.run(lambda: not work.is_alive())
        finally:
            for other in others:
                other.kill()
                other.wait()
    print(f"{len(trace.hit)} of {len(found)} functions ran; {work.answered} requests answered", file=sys.stderr)
    if work.answered < 100:
        sys.exit("too few requests were answered for this to be what a node does")
    print("/* Written by used.py: what a node runs, next to each other. docs/design/0019-used-code.md */")
    # What the profile knows to be hot lies before what only runs.
    print("SECTIONS\n{\n  .text.hot :\n  {\n    *(.text.hot .text.hot.*)\n  }\n  .text.used :\n  {")
    for pattern in patterns(found, trace.hit):
        print(f"    *(.text.{pattern})")
    print("  }\n}\nINSERT BEFORE .text;")


if __name__ == "__main__":
    main()
