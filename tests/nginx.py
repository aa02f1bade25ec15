"""A real web server on loopback: nginx, as Debian packages it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CONFIG = """
daemon off; worker_processes 1; pid {own}/pid; error_log {own}/error.log;
events {{ worker_connections 256; }}
http {{
  access_log {own}/access.log;
  client_body_temp_path {own}/body; proxy_temp_path {own}/proxy; fastcgi_temp_path {own}/fastcgi;
  uwsgi_temp_path {own}/uwsgi; scgi_temp_path {own}/scgi;
  server {{ listen 127.0.0.1:{port}; root {root}; }}
  server {{ listen 127.0.0.1:{whole}; root {root}; max_ranges 0; }}
}}
"""
"""Two servers of one folder: one answers ranges with 206, the other with whole files, 200."""


def nginx() -> str | None:
    """The server's program, None where there is none."""
    return shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def serve(root: Path, own: Path) -> Iterator[tuple[int, int]]:
    """Serve `root`, with the server's own files in the folder `own`; yields two ports, see `CONFIG`."""
    program = nginx()
    assert program
    port, whole = free_port(), free_port()
    user = "user root; " if os.getuid() == 0 else ""  # else its workers may not look into a folder of ours
    (own / "nginx.conf").write_text(user + CONFIG.format(own=own, port=port, whole=whole, root=root))
    server = subprocess.Popen([program, "-c", own / "nginx.conf", "-p", own], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while True:
            assert server.poll() is None and time.monotonic() < deadline, "nginx does not start"
            try:
                socket.create_connection(("127.0.0.1", whole)).close()
            except OSError:
                time.sleep(0.05)
            else:
                break
        yield port, whole
    finally:
        server.terminate()
        server.wait()
