"""One round of one peer: the work that `hopline bench` measures, done by another library for jobs on the same broker.

    peers.py PEER --jobs N --calls N     (the broker is named by HOPLINE_AMQP_URL)
    peers.py --list

Prints a line of JSON for each number, then one that says under which guarantees:

    {"peer": "celery", "name": "submit", "unit": "/s", "value": 720.0}
    {"peer": "celery", "says": "…"}

Queue, exchange and folder are its own, and are removed in the end.
"""

import argparse
import contextlib
import importlib
import json
import os
import secrets
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PEERS = ["celery", "fastapi", "dramatiq", "taskiq", "apalis"]
# Bytes of a job's args, as with Hopline: {"filler":"xxx…"}.
FILLER = "x" * (256 - len('{"filler":""}'))
# Longest time for anything.
PATIENCE = 600


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("peer", nargs="?", choices=PEERS)
    parser.add_argument("--jobs", type=int, default=5000)
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--list", action="store_true")
    asked = parser.parse_args()
    if asked.list:
        print("\n".join(PEERS))
        return
    if not asked.peer:
        parser.error("which peer?")
    # So that what was begun is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder = tempfile.mkdtemp(prefix="bench-peer-")
    os.environ["BENCH_PEER_FOLDER"] = folder
    os.environ["BENCH_PEER_NAME"] = f"bench-{asked.peer}-{secrets.token_hex(4)}"
    os.environ["BENCH_PEER_URL"] = with_vhost(os.environ["HOPLINE_AMQP_URL"])
    sys.path.insert(0, str(Path(__file__).parent))
    peer = importlib.import_module(f"{asked.peer}_peer")
    try:
        peer.declare()
        measure(peer, asked.jobs, asked.calls)
    finally:
        remove(peer)
        shutil.rmtree(folder)


def with_vhost(url):
    """Without a path these libraries each mean another virtual host."""
    scheme, rest = url.split("://", 1)
    return url if "/" in rest else f"{scheme}://{rest}/%2f"


def measure(peer, jobs, calls):
    import ran

    took = timed(lambda: peer.submit(jobs, FILLER))
    tell(peer, "submit", "/s", jobs / took)
    with worker(peer):
        until(jobs)
    count, first, last = ran.all_of()
    tell(peer, "drain", "/s", count / seconds(first, last))

    with worker(peer):
        # It is there once it has run something.
        peer.submit(50, FILLER)
        until(jobs + 50)
        began = time.monotonic_ns()
        peer.submit(jobs, FILLER)
        until(2 * jobs + 50)
        _, _, last = ran.all_of()
        tell(peer, "end-to-end", "/s", jobs / seconds(began, last))
        if peer.call:
            times = [1000 * timed(lambda: peer.call(FILLER)) for _ in range(calls + 20)][20:]
            tell(peer, "call.p50", "ms", statistics.median(times))
    print(json.dumps({"peer": peer.PEER, "says": peer.SAYS}), flush=True)


def tell(peer, name, unit, value):
    print(json.dumps({"peer": peer.PEER, "name": name, "unit": unit, "value": value}), flush=True)


def timed(work):
    began = time.monotonic()
    work()
    return time.monotonic() - began


def seconds(began, ended):
    return (ended - began) / 1e9


@contextlib.contextmanager
def worker(peer):
    """The peer's own worker, as its own command starts it."""
    program, *arguments = peer.WORKER
    # Beside Python, unless it names a program elsewhere by an absolute path.
    program = Path(sys.executable).parent / program
    log = Path(os.environ["BENCH_PEER_FOLDER"]) / "worker.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [program, *arguments], cwd=Path(__file__).parent, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        yield process
    except BaseException:
        sys.stderr.write(log.read_text(errors="replace")[-2000:])
        raise
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def until(count):
    """Waits until so many jobs were run in all."""
    import ran

    deadline = time.monotonic() + PATIENCE
    while ran.all_of()[0] < count:
        if time.monotonic() > deadline:
            raise SystemExit(f"{ran.all_of()[0]} of {count} jobs were run in {PATIENCE} s")
        time.sleep(0.02)


def remove(peer):
    """Deletes what was declared."""
    import pika

    with contextlib.closing(pika.BlockingConnection(pika.URLParameters(os.environ["BENCH_PEER_URL"]))) as connection:
        channel = connection.channel()
        for queue in peer.QUEUES:
            channel.queue_delete(queue)
        for exchange in peer.EXCHANGES:
            channel.exchange_delete(exchange)


if __name__ == "__main__":
    main()
