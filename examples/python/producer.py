"""Submits a job over AMQP and prints its id: `AMQP_URL=amqp://… python producer.py QUEUE KIND ARGS [DELAY]`."""

import json, os, sys

from hopline import Client

if __name__ == "__main__":
    queue, kind, args, delay = (sys.argv[1:] + ["0"])[:4]
    client = Client(os.environ["AMQP_URL"])
    print(client.submit(queue, kind, json.loads(args), delay=float(delay)))
    client.close()
