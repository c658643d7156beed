"""What the benches beside nginx share: its configuration, and processes that are pinned to a processor."""

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

PROXY_CPU, OTHER_CPU = "1", "0"
"""Where the measured proxy runs, and everything else."""
STOP_SECONDS = 20.0

_NGINX = """
daemon off;
user root;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  tcp_nodelay on;
  {http}
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  upstream engine {{
    server 127.0.0.1:{engine_port};
    keepalive 512;
    {upstream}
  }}
  server {{
    listen 127.0.0.1:{port};
    {server}
    location / {{
      proxy_pass http://engine;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
    }}
  }}
}}
"""


def nginx_command(
    folder: Path, port: int, engine_port: int, *, http: str = "", upstream: str = "", server: str = ""
) -> list[str]:
    """Configure nginx as a proxy before the engine, with more directives for some blocks; returns how to start it."""
    blocks = {"http": http, "upstream": upstream, "server": server}
    file = folder / "nginx.conf"
    file.write_text(_NGINX.format(folder=folder, port=port, engine_port=engine_port, **blocks))
    return [shutil.which("nginx") or "/usr/sbin/nginx", "-p", str(folder), "-c", str(file)]


def own_cpu_microseconds(pid: int) -> float:
    """CPU time of all threads of a process so far, without its children's."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1000


def pinned(cpu: str, command: Sequence[str]) -> list[str]:
    """The command on one processor."""
    return ["taskset", "-c", cpu, *command]


@contextmanager
def running(
    command: Sequence[str], cpu: str, stdout: int | IO[bytes], stderr: int | IO[bytes] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program on one processor, and stop it at the end of the block."""
    process = subprocess.Popen(pinned(cpu, command), stdout=stdout, stderr=stderr)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
