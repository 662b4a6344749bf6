"""Asks the reference library of Standard Webhooks about a request that came: one JSON object on standard input."""

import json
import sys

from standardwebhooks import Webhook, WebhookVerificationError

asked = json.load(sys.stdin)
headers, body = asked["headers"], asked["body"]


def refused(secret, headers, body):
    try:
        Webhook(secret).verify(body, headers)
    except WebhookVerificationError:
        return True
    return False


for secret in asked["secrets"]:
    assert Webhook(secret).verify(body, headers)["specversion"] == "1.0"
    assert Webhook(secret).verify(body.encode(), headers) == json.loads(body)
    assert refused(secret, headers, body + " "), "another body"
    assert refused(secret, {**headers, "webhook-id": "another"}, body), "another id"
    older = {**headers, "webhook-timestamp": str(int(headers["webhook-timestamp"]) - 1)}
    assert refused(secret, older, body), "another time"
assert refused(asked["wrong"], headers, body), "another secret"
print("verified")
