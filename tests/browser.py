"""A headless browser that a test tells what to do, over the DevTools protocol."""

import base64
import contextlib
import json
import os
import shlex
import shutil
import socket
import struct
import subprocess
import urllib.request

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def browser_command():
    """
    Words that start a browser of the Chromium family; None where there is none. DDETR_BROWSER may
    have them, with flags, for one that is not on the path.
    """
    if given := os.environ.get("DDETR_BROWSER"):
        return shlex.split(given)
    return next(([path] for path in map(shutil.which, NAMES) if path), None)


class Page:
    """A tab of the browser."""

    def __init__(self, address):
        host, path = address.removeprefix("ws://").split("/", 1)
        name, port = host.split(":")
        self.socket = socket.create_connection((name, int(port)), timeout=60)
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(
            f"GET /{path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        self.stream = self.socket.makefile("rb")
        assert b"101" in self.stream.readline()
        while self.stream.readline().strip():
            pass
        self.number = 0
        self.errors = []

    def call(self, method, **params):
        """The result of one command; what the page reports meanwhile goes to `errors`."""
        self.number += 1
        self._send({"id": self.number, "method": method, "params": params})
        while True:
            message = self._receive()
            if message.get("method") == "Runtime.exceptionThrown":
                self.errors.append(message["params"])
            if message.get("id") == self.number:
                assert "error" not in message, message
                return message["result"]

    def value_of(self, expression):
        """Of JavaScript; promises are waited for."""
        found = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def move_mouse(self, x, y):
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def _send(self, message):
        payload, mask = json.dumps(message).encode(), os.urandom(4)
        size = struct.pack(">BBH", 0x81, 0xFE, len(payload))  # text of up to 64 kB, masked
        masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
        self.socket.sendall(size + mask + masked)

    def _receive(self):
        """The next message; it may come in several frames."""
        content, final = b"", False
        while not final:
            first, size = self.stream.read(2)
            final, size = bool(first & 0x80), size & 0x7F
            if size > 125:
                size = int.from_bytes(self.stream.read(2 if size == 126 else 8), "big")
            content += self.stream.read(size)
        return json.loads(content)


@contextlib.contextmanager
def open_page(path, folder):
    """
    Args:
        path: of the file to show.
        folder: for the browser's own files.
    """
    command = [*browser_command(), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    command += ["--remote-debugging-port=0", f"--user-data-dir={folder}", "--window-size=1200,1000"]
    process = subprocess.Popen(
        [*command, "about:blank"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    try:
        line = ""
        while "DevTools listening on" not in line:
            line = process.stderr.readline()
            assert line, f"{command[0]} has ended"
        port = line.split("127.0.0.1:")[1].split("/")[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=60) as answer:
            tabs = json.load(answer)
        page = Page(next(t["webSocketDebuggerUrl"] for t in tabs if t["type"] == "page"))
        page.call("Runtime.enable")
        page.call("Page.enable")
        page.call("Page.navigate", url=path.resolve().as_uri())
        page.value_of(
            "new Promise(done => document.readyState === 'complete' ? done() : "
            "addEventListener('load', done))"
        )
        yield page
        page.socket.close()
    finally:
        process.kill()
        process.wait()
