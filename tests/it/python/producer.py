"""Submits jobs with nothing but pika and docs/wire.md: routing key, type, JSON.

Usage: producer.py AMQP_URL PREFIX QUEUE KIND COUNT
Prints one line of JSON: {"published": COUNT, "unroutable": true} (the second: an unknown queue was refused).
"""

import json
import sys
import uuid

import pika


def main(url: str, prefix: str, queue: str, kind: str, count: int) -> None:
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    channel.confirm_delivery()

    def publish(queue: str, args: object, **properties: object) -> None:
        channel.basic_publish(
            exchange=f"{prefix}.jobs",
            routing_key=f"{queue}.normal.{kind}",
            body=json.dumps(args),
            properties=pika.BasicProperties(type=kind, **properties),
            mandatory=True,
        )

    # As little as can be, and all that is usual.
    publish(queue, {"n": 0})
    for n in range(1, count):
        publish(
            queue,
            {"n": n, "text": "käse ✓"},
            content_type="application/json",
            delivery_mode=2,
            message_id=str(uuid.uuid4()),
            headers={"hopline-version": 1, "hopline-max-attempts": 4, "hopline-tags": "python,test"},
        )
    try:
        publish(f"{queue}-nowhere", {})
        unroutable = False
    except pika.exceptions.UnroutableError:
        unroutable = True
    connection.close()
    print(json.dumps({"published": count, "unroutable": unroutable}))


if __name__ == "__main__":
    main(*sys.argv[1:5], int(sys.argv[5]))
