"""A real S3 server on loopback, and a proxy before it that can be told to misbehave."""

from __future__ import annotations

import json
import random
import socket
import struct
import subprocess
import sysconfig
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

KEY, SECRET = "test-key", "test-secret"
BUCKET = "bucket"


def _free_ports(count: int) -> list[int]:
    """Ports that nobody has, nor the ones 10000 above, which the server takes for itself."""
    found: list[int] = []
    while len(found) < count:
        port = random.SystemRandom().randrange(20000, 45000)
        sockets = [socket.socket(), socket.socket()]
        with suppress(OSError):
            for offset, listener in zip((0, 10000), sockets, strict=True):
                listener.bind(("127.0.0.1", port + offset))
            found.append(port)
        for listener in sockets:
            listener.close()
    return found


@contextmanager
def serve_s3(folder: Path) -> Iterator[int]:
    """SeaweedFS with one bucket; yields its port. Gone when the block ends."""
    s3, master, volume, filer = _free_ports(4)
    identity = {
        "name": "test",
        "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
        "actions": ["Admin", "Read", "Write", "List"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    (folder / "data").mkdir()
    command = [
        *(str(Path(sysconfig.get_path("scripts")) / "weed"), "-logtostderr"),  # else its logs stay in /tmp
        *("server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder / 'data'}", "-volume.max=50"),
        *("-s3", f"-s3.port={s3}", f"-s3.config={folder / 's3.json'}", "-s3.port.iceberg=0"),
        *(f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}"),
    ]
    with (folder / "log.txt").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    try:
        _make_bucket(filer, server, folder / "log.txt")
        yield s3
    finally:
        server.kill()  # asked politely, it takes ten seconds
        server.wait()
        for port in (s3, master, volume, filer):  # and then removes these itself
            for number in (port, port + 10000):
                for left in Path("/tmp").glob(f"seaweedfs-*-{number}.sock"):
                    left.unlink(missing_ok=True)


def _make_bucket(filer: int, server: subprocess.Popen[bytes], log: Path) -> None:
    """A folder of the server's file tree is a bucket. Waits until the server answers."""
    request = urllib.request.Request(f"http://127.0.0.1:{filer}/buckets/{BUCKET}/", method="POST")
    deadline = time.monotonic() + 60
    while True:
        assert server.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
        try:
            urllib.request.urlopen(request, timeout=5).close()
        except OSError:  # it is just starting
            time.sleep(0.2)
        else:
            return


def environment(port: int) -> dict[str, str]:
    """What a client of the server, or of a proxy before it, finds in its environment."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
        "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "false",
    }


class Proxy:
    """Passes requests on to `port`, and does to each what `faults` says next: see `FAULTS`.

    Attributes:
        port: to talk to.
        faults: called with the method and the number of the request, gives a fault's name or None.
        counts: how often each fault was done, and how many requests came, by method.
        delay_s: before every answer.
    """

    FAULTS = ("500", "503", "reset", "reset-body", "reset-after", "slow")

    def __init__(self, port: int, delay_s: float = 0.0) -> None:
        self._upstream, self.delay_s = port, delay_s
        self.faults: Callable[[str, int], str | None] = lambda method, number: None
        self.counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """One request a connection: clients are told to close it, so that faults count requests."""
        with closing(client), suppress(OSError):
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            request = _read_message(client)
            if not request:
                return
            method = request.partition(b" ")[0].decode()
            with self._lock:
                number = self.counts[method]
                fault = self.faults(method, number)
                self.counts[method] += 1
                if fault:
                    self.counts[fault] += 1
            time.sleep(self.delay_s + (0.1 if fault == "slow" else 0))
            if fault == "reset":
                _reset(client)
                return
            if fault in ("500", "503"):
                body = b"<Error><Code>InternalError</Code><Message>injected</Message></Error>"
                head = f"HTTP/1.1 {fault} Injected\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
                client.sendall(head.encode() + body)
                return
            head, _, body = request.partition(b"\r\n\r\n")
            with closing(socket.create_connection(("127.0.0.1", self._upstream))) as server:
                server.sendall(head + b"\r\nConnection: close\r\n\r\n" + body)
                answer = b"".join(iter(lambda: server.recv(1 << 20), b""))
            if fault == "reset-after":  # done, and nobody is told
                _reset(client)
                return
            if fault == "reset-body":
                client.sendall(answer[: answer.index(b"\r\n\r\n") + 4 + 100])
                time.sleep(0.05)
                _reset(client)
                return
            client.sendall(answer)


def _read_message(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(1 << 16)
        if not piece:
            return b""
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = [line.partition(b":")[2] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    pieces = [body]
    left = int(lengths[0]) - len(body) if lengths else 0
    while left > 0:
        piece = connection.recv(1 << 20)
        if not piece:
            return b""
        pieces.append(piece)
        left -= len(piece)
    return head + b"\r\n\r\n" + b"".join(pieces)


def _reset(connection: socket.socket) -> None:
    """Close so that the peer sees a reset, not an end."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
