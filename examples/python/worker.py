"""A worker: `AMQP_URL=amqp://… python worker.py [QUEUE]`, until Ctrl-C or SIGTERM.

From the queue `python` it takes python.upper, python.flaky and python.count. With the argument `demo` it takes the
kinds of the demo worker in Rust, and shares its queue: all workers of a queue know all its kinds.
"""

import logging, os, sys, time

from hopline import Fatal, Retry
from hopline_worker import Handler, Worker


def upper(job):
    if not isinstance(job.args.get("text"), str):
        raise Fatal("bad_args", "text is missing")
    return job.args["text"].upper()


def flaky(job):
    """Fails as often as its args say."""
    if job.attempt <= job.args["failures"]:
        raise Retry("flaky", f"attempt {job.attempt} fails on purpose")
    return {"attempts": job.attempt}


def count(job):
    """Takes its time, says how far it is, and ends when it is told to."""
    seconds = job.args["seconds"]
    for second in range(seconds):
        if job.stopped():
            raise Retry("stopped", f"stopped after {second} s")
        job.progress(100 * second // seconds, f"{second} s")
        time.sleep(1)
    return {"counted": seconds}


def sleep(job):
    until = time.monotonic() + job.args["ms"] / 1000
    while time.monotonic() < until:
        if job.stopped():
            raise Retry("stopped", "told to stop")
        time.sleep(0.05)
    return {"slept_ms": job.args["ms"], "attempt": job.attempt}


def fail(job):
    message = job.args.get("message") or "failing on purpose"
    raise Fatal("demo_fatal", message) if job.args.get("fatal") else Retry("demo_failed", message)


def panic(_job):
    raise AssertionError("failing on purpose")


QUICK = {"initial": 0.2, "longest": 5}
KINDS = {
    "python": {"python.upper": Handler(upper), "python.flaky": Handler(flaky), "python.count": Handler(count)},
    "demo": {"demo.echo": Handler(lambda job: job.args), "demo.sleep": Handler(sleep),
             "demo.flaky": Handler(flaky, **QUICK), "demo.fail": Handler(fail, max_attempts=3, **QUICK),
             "demo.panic": Handler(panic, max_attempts=3, **QUICK), "demo.abort": Handler(lambda _job: os.abort())},
}

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("pika").setLevel(logging.ERROR)
    job_queue = sys.argv[1] if len(sys.argv) > 1 else "python"
    sys.exit(Worker(os.environ["AMQP_URL"], job_queue, KINDS[job_queue]).run())
