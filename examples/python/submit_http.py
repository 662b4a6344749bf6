"""Submits a job over HTTP, with nothing installed: `python submit_http.py KIND ARGS`. HOPLINE_URL names the front.

The id is made here, so the request can be repeated until there is an answer: there will be one job.
"""

import json, os, sys, time, urllib.error, urllib.request, uuid


def submit(kind, args, job_id=None, tries=5, **members):
    job_id = job_id or str(uuid.uuid4())
    base = os.environ.get("HOPLINE_URL", "http://127.0.0.1:8080")
    headers = {"Content-Type": "application/json"}
    if "HOPLINE_API_KEY" in os.environ:
        headers["Authorization"] = "Bearer " + os.environ["HOPLINE_API_KEY"]
    body = json.dumps({"kind": kind, "args": args} | members).encode()
    for attempt in range(tries):
        try:
            request = urllib.request.Request(f"{base}/v1/jobs/{job_id}", body, headers, method="PUT")
            with urllib.request.urlopen(request, timeout=10) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            problem = json.load(error)
            if error.code < 500 and problem["code"] not in ("in_flight", "rate_limited") or attempt == tries - 1:
                raise RuntimeError(f"{problem['code']}: {problem.get('detail', '')}") from None
        except OSError:
            if attempt == tries - 1:
                raise
        time.sleep(2 ** attempt / 10)


if __name__ == "__main__":
    print(submit(sys.argv[1], json.loads(sys.argv[2]))["id"])
