"""Runs a job and prints its output: `AMQP_URL=amqp://… python call.py QUEUE KIND ARGS`."""

import json, os, sys

from hopline import Client

if __name__ == "__main__":
    client = Client(os.environ["AMQP_URL"])
    try:
        print(json.dumps(client.call(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))))
    except (RuntimeError, TimeoutError) as error:
        sys.exit(f"call.py: {error}")
    finally:
        client.close()
