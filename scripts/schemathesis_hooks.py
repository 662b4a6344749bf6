"""What schemathesis does not know of itself: how a batch is sent as lines of JSON."""

import json

import schemathesis


@schemathesis.serializer("application/x-ndjson")
def ndjson(ctx, value):
    if not isinstance(value, list):
        # An object is a whole batch of one, which the schema does not say: an array on one line is none.
        return json.dumps([value]).encode()
    return b"".join(json.dumps(item).encode() + b"\n" for item in value)
