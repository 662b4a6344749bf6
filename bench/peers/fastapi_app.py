"""What teams put before Celery to take jobs over HTTP: a FastAPI application whose one call enqueues a task."""

import fastapi
import pydantic

import celery_peer

app = fastapi.FastAPI()


class Job(pydantic.BaseModel):
    filler: str


# No coroutine: Celery's publish blocks, so it belongs on FastAPI's threads.
@app.post("/jobs", status_code=202)
def submit(job: Job):
    return {"id": celery_peer.noop.delay(job.filler).id}
