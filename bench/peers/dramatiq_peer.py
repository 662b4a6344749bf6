"""Dramatiq: a durable classic queue (it declares no others), publisher confirms, acknowledged after the work. It answers by
Redis or Memcached only, so nothing is called."""

import importlib.metadata
import os

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker

import ran

NAME = os.environ["BENCH_PEER_NAME"]
# Of each worker process, which inherits it; by itself it would take 16 ahead.
os.environ["dramatiq_queue_prefetch"] = "250"
broker = RabbitmqBroker(url=os.environ["BENCH_PEER_URL"], confirm_delivery=True)
dramatiq.set_broker(broker)


@dramatiq.actor(queue_name=NAME)
def noop(filler):
    ran.one()


PEER = "dramatiq"
VERSION = importlib.metadata.version("dramatiq")
SAYS = f"Dramatiq {VERSION}: classic queue (no quorum queues), confirms, acks after work, 2 processes of 8 threads; no replies by RabbitMQ, no record"
WORKER = ["dramatiq", "dramatiq_peer", "--processes", "2", "--threads", "8"]
QUEUES = [NAME, f"{NAME}.DQ", f"{NAME}.XQ"]
EXCHANGES = []
call = None


def declare():
    """The queue, before anything is published."""
    broker.declare_queue(NAME, ensure=True)


def submit(count, filler):
    """Publishes as a program does: one after the other, each confirmed."""
    for _ in range(count):
        noop.send(filler)
