"""TaskIQ: a durable quorum queue, publisher confirms (aio-pika's default), acknowledged after the work. Its broker for RabbitMQ
has no answers of its own, so nothing is called."""

import asyncio
import importlib.metadata
import os

from taskiq_aio_pika import AioPikaBroker
from taskiq_aio_pika.exchange import Exchange
from taskiq_aio_pika.queue import Queue

import ran

NAME = os.environ["BENCH_PEER_NAME"]
# Publishes that await their confirm at the same time.
TOGETHER = 64

broker = AioPikaBroker(
    os.environ["BENCH_PEER_URL"],
    qos=250,
    exchange=Exchange(name=NAME),
    task_queues=[Queue(name=NAME)],
    dead_letter_queue=Queue(name=f"{NAME}.dead"),
)


@broker.task(task_name="noop")
async def noop(filler):
    ran.one()


PEER = "taskiq"
VERSION = importlib.metadata.version("taskiq")
SAYS = f"TaskIQ {VERSION}: quorum queue, confirms, acks after work, 2 processes of 100 tasks; no replies by RabbitMQ, no record"
WORKER = ["taskiq", "worker", "taskiq_peer:broker", "--workers", "2", "--ack-type", "when_executed", "--log-level", "WARNING"]
QUEUES = [NAME, f"{NAME}.dead"]
EXCHANGES = [NAME]
call = None


def declare():
    """The queue, before anything is published."""
    asyncio.run(_declare())


async def _declare():
    await broker.startup()
    await broker.shutdown()


def submit(count, filler):
    """Publishes as a program does, so many at the same time."""
    asyncio.run(_submit(count, filler))


async def _submit(count, filler):
    await broker.startup()
    left = iter(range(count))

    async def lane():
        for _ in left:
            await noop.kiq(filler)

    await asyncio.gather(*(lane() for _ in range(TOGETHER)))
    await broker.shutdown()
