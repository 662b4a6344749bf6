"""Celery: a durable quorum queue, publisher confirms, acknowledged after the work, answers by `rpc://`."""

import os

import celery
from kombu import Exchange, Queue

import ran

NAME = os.environ["BENCH_PEER_NAME"]
exchange = Exchange(NAME, type="direct", durable=True)
app = celery.Celery(NAME, broker=os.environ["BENCH_PEER_URL"], backend="rpc://")
app.conf.update(
    task_default_queue=NAME,
    task_queues=[Queue(NAME, exchange, routing_key=NAME, queue_arguments={"x-queue-type": "quorum"})],
    task_default_exchange=NAME,
    task_default_routing_key=NAME,
    broker_transport_options={"confirm_publish": True},
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=250,
    worker_detect_quorum_queues=True,
    broker_connection_retry_on_startup=True,
    control_exchange=f"{NAME}.control",
    event_exchange=f"{NAME}.events",
)


@app.task(name="noop", ignore_result=True)
def noop(filler):
    ran.one()


@app.task(name="echo")
def echo(filler):
    ran.one()
    return filler


PEER = "celery"
SAYS = f"Celery {celery.__version__}: quorum queue, confirms, acks late, 2 processes; no record"
WORKER = [
    "celery", "-A", "celery_peer", "worker", "--pool", "prefork", "--concurrency", "2", "--loglevel", "WARNING",
    "--without-gossip", "--without-mingle", "--without-heartbeat",
]
QUEUES = [NAME, f"celery@%h.{NAME}.control.pidbox"]
EXCHANGES = [NAME, f"{NAME}.control.pidbox", f"reply.{NAME}.control.pidbox", f"{NAME}.events"]


def declare():
    """The queue, before anything is published."""
    with app.connection_for_write() as connection:
        app.amqp.queues[NAME](connection.default_channel).declare()


def submit(count, filler):
    """Publishes as a program does: one after the other, each confirmed."""
    for _ in range(count):
        noop.delay(filler)


def call(filler):
    """Calls and waits."""
    answer = echo.delay(filler)
    assert answer.get(timeout=30) == filler
