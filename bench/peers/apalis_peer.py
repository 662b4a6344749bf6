"""apalis, for Rust (the program is in `apalis/`): a durable quorum queue, acknowledged after the work. It asks for no
publisher confirms. It has no answers by RabbitMQ, so nothing is called."""

import os
import subprocess

NAME = os.environ["BENCH_PEER_NAME"]
# Built by `run`.
PROGRAM = os.environ["BENCH_PEER_APALIS"]

PEER = "apalis"
SAYS = (
    "Apalis 1.0.0, apalis-amqp 1.0.0: quorum queue, no confirms (each push opens a channel and declares the queue), "
    "acks after work, 1 process of 100 tasks; no replies by RabbitMQ, no record"
)
WORKER = [PROGRAM, "worker"]
QUEUES = [NAME]
EXCHANGES = []
call = None


def declare():
    """Nothing: it has each push declare the queue."""


def submit(count, filler):
    """Publishes as a program does: one after the other, none confirmed."""
    subprocess.run([PROGRAM, "submit", str(count), filler], check=True)
