"""How a worker tells what became of a job: events, copies, dead letters, callbacks, replies (docs/wire.md).

Each step is confirmed by the broker before the next one, and the ack comes last: a crash repeats work at worst.
"""

import json, queue, threading, uuid
from concurrent.futures import Future
from datetime import datetime

import pika
from pika.exceptions import UnroutableError

from hopline import CALLBACK, HEADERS_MAX, INLINE_MAX, KIND, OUTPUT_MAX, clip, declare, derive, now_ms, rfc3339, route

FINAL = {"succeeded", "dead", "cancelled", "expired"}


class Publisher(threading.Thread):
    """Publishes on a connection of its own: an alarm of the broker blocks one that has published, with its acks."""

    def __init__(self, url):
        super().__init__(daemon=True)
        self.url, self.work, self.ended = url, queue.Queue(), None

    def do(self, act):
        """Has `act(confirmed channel, unconfirmed channel)` carried out; the future has its result."""
        future = Future()
        self.work.put((act, future))
        if self.ended:
            self._fail()
        return future

    def run(self):
        try:
            connection = pika.BlockingConnection(pika.URLParameters(self.url))
            sure, loose = connection.channel(), connection.channel()
            sure.confirm_delivery()
            while True:
                connection.process_data_events(0)  # heartbeats
                try:
                    act, future = self.work.get(timeout=1)
                except queue.Empty:
                    continue
                try:
                    future.set_result(act(sure, loose))
                except UnroutableError as error:
                    future.set_exception(error)
                except Exception as error:
                    future.set_exception(error)
                    raise
        except Exception as error:
            self.ended = error
            self._fail()

    def _fail(self):
        while True:
            try:
                self.work.get_nowait()[1].set_exception(ConnectionError(f"cannot publish any more: {self.ended!r}"))
            except queue.Empty:
                return


class Settling:
    """A part of Worker."""

    def _succeeded(self, job, output, ran):
        inline = {"output": output if len(output) <= INLINE_MAX else None}
        event = self.tell(job, "succeeded", outcome="succeeded", **ran, raw=inline | self._args(job))
        self._callback(job)
        self._reply(job, "succeeded", output if len(output) <= OUTPUT_MAX else None, event)

    def _cancelled(self, job, ran):
        why = {name: job.order[name] for name in ("by", "reason") if job.order[name]}
        event = self.tell(job, "cancelled", **ran, **why, raw=self._args(job))
        self._callback(job)
        self._reply(job, "cancelled", {"code": "cancelled", "message": why.get("reason", "cancelled")}, event)

    def _bury(self, job, reason, code, message, **ran):
        error = {"code": clip(code, 100), "message": clip(message, 4096)}
        event = self.tell(job, "dead", reason=reason, error=error, **ran, raw=self._args(job))
        self._dead_letter(job, reason, error, job.attempt if ran else 0)
        self._callback(job)
        self._reply(job, "dead", error, event)

    def _dead_letter(self, job, reason, error, attempts, worker=None, **more):
        headers = job.copy(reason=reason, error_code=error["code"], error=error["message"], attempts=attempts,
                           worker=clip(worker or self.name, 200), died_at=now_ms(), **more)
        if reason == "oversize" and len(str(job.headers)) > HEADERS_MAX:
            headers = {name: value for name, value in headers.items() if name not in job.headers}
            headers["hopline-headers-dropped"] = True
        kind = job.kind if job.kind in self.handlers else "unknown"
        self._publish((f"{self.prefix}.dead", f"{self.queue}.{kind}"), job, headers)

    def _again(self, job, event, delay_ms, *, attempt=None, patience=None, **data):
        """The copy first, then the event that says that it exists."""
        at = now_ms() + int(delay_ms)
        kind = job.kind if job.kind and KIND.fullmatch(job.kind) else "unknown"
        self._publish(route(self.queue, kind, delay_ms, self.prefix), job, job.copy(
            attempt=attempt or job.attempt, step=job.step + 1, due_at=at,
            patience=job.patience if patience is None else patience))
        self.tell(job, event, run_at=rfc3339(at), **data)

    def _publish(self, where, job, headers):
        """A copy of a job: returns after the confirm. What must not be carried over is not in here."""
        if self.lost:
            raise ConnectionAbortedError("the broker has taken this delivery back")
        was = job.properties
        properties = pika.BasicProperties(
            type=was.type, message_id=job.id, content_type="application/json", delivery_mode=2, reply_to=was.reply_to,
            correlation_id=was.correlation_id, app_id=was.app_id, headers=headers)
        self.publisher.do(lambda sure, _: sure.basic_publish(*where, job.body, properties, mandatory=True)).result()

    def _args(self, job):
        """Nobody has told the args of a job that no process of Hopline's submitted: its end does, as they came."""
        if (job.properties.app_id or "").startswith("hopline-"):
            return {}
        return {"args": job.body if len(job.body) <= INLINE_MAX and not job.unfit else None}

    def tell(self, job, name, *, wait=True, raw=(), **data):
        """An event into the log; `wait`: until it is confirmed. `raw`: args and output in JSON, None if too long."""
        if self.lost and name not in ("succeeded", "retrying", "scheduled"):
            raise ConnectionAbortedError("the broker has taken this delivery back")  # whoever has it now decides
        raw = dict(raw)
        common = {"queue": self.queue, "run": job.run, "attempt": job.attempt, "step": job.step, "worker": self.name}
        if job.kind and KIND.fullmatch(job.kind):
            common["kind"] = job.kind
        if job.max_attempts or job.kind in self.handlers:
            common["max_attempts"] = job.limit
        for at in ("created_at", "expires_at"):
            if getattr(job, at):
                common[at] = rfc3339(getattr(job, at))
        if job.tags:
            common["tags"] = job.tags
        tail = {"started": f":{self.name}", "progress": f":{self.name}:{data.get('progress', {}).get('n')}"}
        tail = tail.get(name, "")
        data |= {f"{member}_omitted": True for member, text in raw.items() if text is None}
        event = {"specversion": "1.0", "id": f"{job.id}:{job.run}:{job.step}:{name}{tail}", "source": self.name,
                 "type": f"hopline.job.{name}", "subject": job.id, "time": rfc3339(now_ms()), "data": common | data}
        text = json.dumps(event)
        for member, value in raw.items():
            if value is not None:  # byte for byte: no number loses its digits
                text = f'{text[:-2]}, "{member}": {value.decode()}}}}}'
        batch = [(f"job.{name}.{self.queue}.{common.get('kind', 'unknown')}", event, text, raw)]
        if name in FINAL:
            job.callback = self._callback_of(job, event)
            batch += job.callback[2:]
        future = self.publisher.do(self._write(batch))
        if wait:
            future.result()
        return event

    def _write(self, batch):
        def properties():
            return pika.BasicProperties(type="hopline.events", message_id=str(uuid.uuid4()), delivery_mode=2,
                                        content_type="application/cloudevents-batch+json")

        def act(sure, loose):
            body = "[" + ",".join(text for _, _, text, _ in batch) + "]"
            sure.basic_publish(f"{self.prefix}.record", "", body, properties(), mandatory=True)
            for key, event, _, raw in batch:  # for subscribers, who may not see args and output: nobody waits for it
                data = event["data"] | {f"{name}_omitted": True for name in raw}
                loose.basic_publish(f"{self.prefix}.events", key, json.dumps([event | {"data": data}]), properties())
        return act

    def _callback_of(self, job, event):
        """The job that tells a URL of this end, and its `submitted` event; nothing where the job names no URL."""
        url = job.raw.get("hopline-callback-url")
        if not isinstance(url, str) or not url:
            return (None, None)
        job_queue, kind, run, status = "hopline-callbacks", "hopline.callback", job.run, event["type"].split(".")[-1]
        hidden = ("worker", "by", "args_omitted", "output_omitted")
        told = event | {"source": "hopline", "data": {n: v for n, v in event["data"].items() if n not in hidden}}
        job_id, now, tags = derive(CALLBACK, job.id, str(run), status), now_ms(), f"callback:{job.id}"
        headers = {"hopline-version": 1, "hopline-created-at": now, "hopline-tags": tags}
        headers |= {name: job.raw[name] for name in ("traceparent", "tracestate") if name in job.raw}
        body = json.dumps({"url": url, "event": told})
        data = {"kind": kind, "queue": job_queue, "run": 1, "attempt": 1, "step": 0, "created_at": rfc3339(now),
                "tags": [tags], "args_omitted": True}
        submitted = {"specversion": "1.0", "id": f"{job_id}:1:0:submitted", "source": self.name, "subject": job_id,
                     "type": "hopline.job.submitted", "time": rfc3339(now), "data": data}
        properties = pika.BasicProperties(type=kind, message_id=job_id, content_type="application/json",
                                          delivery_mode=2, app_id="hopline-callback", headers=headers)
        return properties, body, (f"job.submitted.{job_queue}.{kind}", submitted, json.dumps(submitted), {})

    def _callback(self, job, unsure=False):
        """After the event of the end (and a dead job's copy) is confirmed, before the ack."""
        properties, body = job.callback[:2]
        if properties is None:
            return
        if unsure:
            properties.headers["hopline-unsure"] = True
        exchange, key = route("hopline-callbacks", "hopline.callback", 0, self.prefix)

        def act(sure, _):
            try:
                sure.basic_publish(exchange, key, body, properties, mandatory=True)
            except UnroutableError:  # nobody has ever taken one: declared like any work queue
                declare(sure, self.prefix, "hopline-callbacks")
                sure.basic_publish(exchange, key, body, properties, mandatory=True)
        self.publisher.do(act).result()

    def _reply(self, job, status, body, event):
        """Not awaited, and only where a caller may wait: the default exchange reaches every queue."""
        to, data = job.properties.reply_to or "", event["data"]
        if to.startswith(f"{self.prefix}.replies."):
            exchange = f"{self.prefix}.replies"
        elif to.startswith("amq.rabbitmq.reply-to") and self.direct_replies:
            exchange = ""
        else:
            return
        headers = {"hopline-status": status, "hopline-job-id": job.id, "hopline-run": job.run,
                   "hopline-attempt": data["attempt"], "hopline-worker": data["worker"]}
        for name in ("started_at", "finished_at"):
            if name in data:
                at = datetime.fromisoformat(data[name])
                headers[f"hopline-{name.replace('_', '-')}"] = int(at.timestamp() * 1000)
        if status == "dead":
            headers["hopline-reason"] = data["reason"]
        if body is None:
            headers["hopline-output-omitted"] = True
        body = json.dumps(body).encode() if not isinstance(body, bytes) else body
        properties = pika.BasicProperties(type="hopline.reply", message_id=job.id, content_type="application/json",
                                          correlation_id=job.properties.correlation_id, headers=headers)
        self.publisher.do(lambda _, loose: loose.basic_publish(exchange, to, body, properties))
