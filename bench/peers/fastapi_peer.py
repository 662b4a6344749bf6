"""FastAPI before Celery: jobs come over HTTP, 64 kept connections, each posts as soon as it is answered."""

import asyncio
import atexit
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import fastapi

import celery_peer
from celery_peer import EXCHANGES, QUEUES, WORKER  # noqa: F401, as every peer has them

CONNECTIONS = 64
PROCESSES = 2
PEER = "fastapi"
SAYS = f"FastAPI {fastapi.__version__}, uvicorn with {PROCESSES} processes, before the same Celery; {CONNECTIONS} connections"
call = None

_port = None


def declare():
    """The queue, and the server before it."""
    global _port
    celery_peer.declare()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        _port = free.getsockname()[1]
    log = Path(os.environ["BENCH_PEER_FOLDER"]) / "server.log"
    uvicorn = [
        sys.executable, "-m", "uvicorn", "fastapi_app:app", "--port", str(_port), "--workers", str(PROCESSES),
        "--log-level", "warning",
    ]
    with log.open("ab") as output:
        server = subprocess.Popen(
            uvicorn, cwd=Path(__file__).parent, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    atexit.register(_end, server)
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", _port), 1).close()
            return
        except OSError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the server does not listen: {log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)


def _end(server):
    server.terminate()
    try:
        server.wait(10)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def submit(count, filler):
    """Posts so many jobs."""
    asyncio.run(_submit(count, filler))


async def _submit(count, filler):
    body = b'{"filler":"' + filler.encode() + b'"}'
    head = f"POST /jobs HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    request, left = head.encode() + body, iter(range(count))
    await asyncio.gather(*(_lane(request, left) for _ in range(min(CONNECTIONS, count))))


async def _lane(request, left):
    """One connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", _port)
    for _ in left:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 202 "):
            raise SystemExit(f"refused: {head!r}")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(int(length.split(b":")[1]))
    writer.close()
