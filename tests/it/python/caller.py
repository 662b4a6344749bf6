"""Calls a job and waits for its reply, with nothing but pika and docs/wire.md: direct reply-to.

Usage: caller.py AMQP_URL PREFIX QUEUE KIND ARGS...
Each ARGS is JSON. Prints one line of JSON for each call: {"status", "reason", "job", "attempt", "output"}.
"""

import json
import sys
import uuid

import pika

DIRECT = "amq.rabbitmq.reply-to"


def call(channel: object, prefix: str, queue: str, kind: str, args: str) -> dict:
    correlation = str(uuid.uuid4())
    channel.basic_publish(
        exchange=f"{prefix}.jobs",
        routing_key=f"{queue}.normal.{kind}",
        body=args,
        properties=pika.BasicProperties(
            type=kind,
            content_type="application/json",
            message_id=str(uuid.uuid4()),
            reply_to=DIRECT,
            correlation_id=correlation,
            headers={"hopline-max-attempts": 2},
        ),
        mandatory=True,
    )
    for _, properties, body in channel.consume(DIRECT, auto_ack=True, inactivity_timeout=40):
        if properties is None:
            raise SystemExit("no reply within 40 s")
        if properties.correlation_id == correlation:
            headers = properties.headers
            return {
                "status": headers["hopline-status"],
                "reason": headers.get("hopline-reason"),
                "job": headers["hopline-job-id"],
                "attempt": headers["hopline-attempt"],
                "output": json.loads(body),
            }
    raise SystemExit("the consumer was cancelled")


def main(url: str, prefix: str, queue: str, kind: str, calls: list) -> None:
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    channel.confirm_delivery()
    # Direct reply-to: the consumer comes before the request, on the same channel.
    next(channel.consume(DIRECT, auto_ack=True, inactivity_timeout=0.01))
    for args in calls:
        print(json.dumps(call(channel, prefix, queue, kind, args)))
    connection.close()


if __name__ == "__main__":
    main(*sys.argv[1:5], sys.argv[5:])
