"""A worker for Hopline in Python: takes jobs from one queue, also beside workers in Rust (docs/wire.md).

The main thread has the connection that jobs come on; each job has a thread of its own; one thread publishes. A lost
connection ends the process with exit code 1, and whoever started it starts it again. README.md says what is not done.
"""

import json, logging, os, queue, signal, socket, threading, time, uuid
from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime
from typing import Callable

import pika

from hopline import Fatal, Job, Retry, Snooze, clip, declare, now_ms, rfc3339, route
from hopline_settle import Publisher, Settling

log = logging.getLogger("hopline")


@dataclass
class Handler:
    """A function of a Job, and how its kind is run where a job does not say (times in seconds)."""
    function: Callable
    max_attempts: int = 20
    timeout: float = 600
    initial: float = 1
    factor: float = 2
    longest: float = 43200
    jitter: float = 0.2

    def announced(self, kind, job_queue):
        retry = {"initial_ms": int(self.initial * 1000), "factor": self.factor, "max_ms": int(self.longest * 1000),
                 "jitter": self.jitter}
        return {"kind": kind, "queue": job_queue, "timeout_ms": int(self.timeout * 1000),
                "max_attempts": self.max_attempts, "retry": retry}


class Worker(Settling):
    """Runs `handlers` (kind: Handler) for the jobs of `job_queue`, `concurrency` at a time."""

    def __init__(self, url, job_queue, handlers, *, prefix="hopline", concurrency=4, grace=25.0, patience=5,
                 lookup_patience=60.0, direct_replies=False):
        self.url, self.queue, self.handlers, self.prefix = url, job_queue, handlers, prefix
        self.concurrency, self.grace = concurrency, grace
        self.patience, self.lookup_patience, self.direct_replies = patience, lookup_patience, direct_replies
        self.name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self.since, self.publisher = now_ms(), Publisher(url)
        self.stopping, self.failed, self.lost = False, None, False
        self.running, self.known = {}, OrderedDict()  # delivery tag: Job; (id, run, step): Event
        self.lock = threading.Lock()
        self.orders, self.blind_until, self.fronts = OrderedDict(), 0, False
        self.paused, self.pause_key, self.mark, self.caught_up, self.tag = False, None, None, False, None
        self.questions, self.silent = {}, False
        self.reply_to = f"{prefix}.replies.{self.name}.1"

    # The main thread: what comes.

    def run(self):
        """Until SIGTERM or SIGINT, or until a connection is lost. Returns the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: setattr(self, "stopping", True))
        self.publisher.start()
        self.connection = pika.BlockingConnection(pika.URLParameters(self.url))
        self.channel = self.connection.channel()
        declare(self.channel, self.prefix, self.queue)
        self.channel.basic_qos(prefetch_count=self.concurrency)  # nothing waits here for its turn
        self.channel.add_on_cancel_callback(lambda _: self._fail("the queue is gone"))
        side = self.connection.channel()
        side.queue_declare(self.reply_to, exclusive=True, auto_delete=True)
        side.queue_bind(self.reply_to, f"{self.prefix}.replies", self.reply_to)
        side.basic_consume(self.reply_to, self._on_answer, auto_ack=True)
        self._announce()
        orders = self.connection.channel()
        orders.basic_qos(prefetch_count=500)
        orders.basic_consume(f"{self.prefix}.control.log", self._on_control, arguments={"x-stream-offset": "first"})
        beat = probe = time.monotonic()
        announced = beat
        try:
            while not self.stopping and not self.failed:
                self.connection.process_data_events(time_limit=0.2)
                now = time.monotonic()
                if not (self.channel.is_open and orders.is_open and side.is_open):
                    self._fail("the broker has closed a channel")
                    self.lost = True
                if self.publisher.ended:
                    self._fail(repr(self.publisher.ended))
                self._take_or_leave()
                if now >= beat:
                    beat = now + 5
                    self._heartbeat()
                if now >= announced + 3600:
                    announced = now
                    self._announce()
                if self.silent and now >= probe:
                    probe = now + 5
                    self._ask([], "probe")
            return self._drain()
        except pika.exceptions.AMQPError as error:
            self._fail(repr(error))
            self.lost = True
            return self._drain()

    def _drain(self):
        """Takes nothing more, and lets what runs end within the grace. The broker gives the rest to others."""
        deadline, closed = time.monotonic() + self.grace, False
        while True:
            try:
                if self.tag and not closed:
                    self.channel.basic_cancel(self.tag)  # what came in the meantime is given back with the connection
                    self.tag = None
                if not closed:
                    self.connection.process_data_events(time_limit=0.1)  # acks, heartbeats
            except pika.exceptions.AMQPError:
                closed = self.lost = True
            if not self.running or self.publisher.ended or time.monotonic() >= deadline:
                break
            time.sleep(0.1 if closed else 0)
        left = len(self.running)
        self._heartbeat(ended=True)
        try:
            self.publisher.do(lambda sure, loose: None).result(timeout=5)
            if not closed:
                self.connection.process_data_events(time_limit=0)
                self.connection.close()
        except Exception as error:
            log.info("at the end: %r", error)
        log.info("stopped, %d jobs left to others%s", left, f": {self.failed}" if self.failed else "")
        return 1 if self.failed else 0

    def _fail(self, why):
        self.failed = self.failed or why

    def _take_or_leave(self):
        if self.caught_up and not self.paused and self.tag is None:
            self.tag = self.channel.basic_consume(f"{self.prefix}.q.{self.queue}", self._on_job)
        elif self.paused and self.tag is not None:
            self.channel.basic_cancel(self.tag)
            self.tag = None

    def _on_job(self, channel, method, properties, body):
        if self.stopping or self.failed or self.paused:
            return channel.basic_nack(method.delivery_tag, requeue=True)  # handed back
        job = self.running[method.delivery_tag] = Job(self, properties, body)
        threading.Thread(target=self._work, args=(job, method), daemon=True).start()

    def _on_control(self, channel, method, properties, body):
        """Pauses, orders to cancel, and our own announcement: then all that was ordered before is known."""
        channel.basic_ack(method.delivery_tag, multiple=True)
        if not self.caught_up and not self.blind_until and (properties.headers or {}).get("x-stream-offset", 0) > 0:
            self.blind_until = (properties.timestamp or time.time()) * 1000 + 60_000  # older orders may be gone
        self.caught_up = self.caught_up or properties.message_id == self.mark
        try:
            record = json.loads(body)
            if properties.type == "hopline.front":
                self.fronts = True
            elif properties.type == "hopline.pause" and record["queue"] == self.queue:
                key = (datetime.fromisoformat(record["at"]), bool(record["paused"]), record.get("by") or "")
                if self.pause_key is None or key > self.pause_key:
                    self.pause_key, self.paused = key, key[1]
            elif properties.type == "hopline.cancel":
                for order in record["orders"]:
                    self._order(record, order)
        except (ValueError, KeyError, TypeError) as error:
            log.warning("a record of the control log is passed over: %r", error)

    def _order(self, record, order):
        key, at = (order["id"], order["run"]), datetime.fromisoformat(order["at"])
        order = {"at": at} | {name: order.get(name) or record.get(name) for name in ("by", "reason")}
        if key not in self.orders or at < self.orders[key]["at"]:
            self.orders[key] = order
        if len(self.orders) > 500_000:
            _, oldest = self.orders.popitem(last=False)
            self.blind_until = max(self.blind_until, oldest["at"].timestamp() * 1000 + 60_000)
        for job in list(self.running.values()):
            if (job.id, job.run) == key:
                job.order = order
                job._stop.set()

    def _on_answer(self, _channel, _method, properties, body):
        self.silent = False
        waiting = self.questions.get(properties.correlation_id)
        if waiting:
            waiting.put(json.loads(body).get("jobs", []))

    # A job's own thread: from the delivery to its end.

    def _work(self, job, method):
        try:
            key = (job.id, job.run, job.step)
            with self.lock:
                twin = job.id and self.known.get(key)
                if not twin:
                    mine = self.known[key] = threading.Event()
                    while len(self.known) > 20_000:
                        self.known.popitem(last=False)
            if twin:
                twin.wait()  # it runs here, or has run: this delivery is acknowledged with it
            else:
                self._decide(job, method)
                mine.set()
            ack = lambda: self.channel.is_open and self.channel.basic_ack(method.delivery_tag)
            self.connection.add_callback_threadsafe(lambda: (ack(), self.running.pop(method.delivery_tag, None)))
        except Exception as error:  # not acknowledged: the broker gives it to another worker
            log.exception("job %s is left to others", job.id)
            self._fail(f"job {job.id}: {error!r}")
            self.running.pop(method.delivery_tag, None)

    def _decide(self, job, method):
        """What is to be done with a delivery."""
        adopted, job.id = not job.id, job.id or str(uuid.uuid4())
        if job.unfit:
            return self._not_known(job, *job.unfit, patience=job.unfit[0] == "unsupported_version")
        if adopted:  # it comes back as a job with an id: each delivery would make another one
            return self._publish(route(self.queue, job.kind, 0, self.prefix), job, job.copy())
        direct = method.exchange in (f"{self.prefix}.direct", f"{self.prefix}.jobs")
        doubtful = method.redelivered or not direct or job.unsure or (job.created_at or 0) <= self.blind_until
        if doubtful and self._has_ended(job):
            return
        job.order = job.order or self.orders.get((job.id, job.run))
        if job.order:
            return self._cancelled(job, {})
        if not job.how:
            text = f"no worker of queue {self.queue} knows {job.kind}"
            return self._not_known(job, "unknown_kind", text, patience=True)
        if job.expires_at and job.expires_at <= now_ms():
            event = self.tell(job, "expired", raw=self._args(job))
            self._callback(job)
            return self._reply(job, "expired", {"code": "expired", "message": "expired before an attempt"}, event)
        self._attempt(job)

    def _not_known(self, job, reason, text, patience):
        """Dead, or again later: a deploy may be under way."""
        if not patience or job.patience >= self.patience:
            return self._bury(job, reason, reason, text)
        self._again(job, "scheduled", 2000 * 2 ** job.patience, patience=job.patience + 1)

    def _attempt(self, job):
        job.started_at = now_ms()
        started = {"started_at": rfc3339(job.started_at)}
        timers = [threading.Timer(0.25, lambda: self.tell(job, "started", wait=False, **started)),
                  threading.Timer(job.timeout_ms / 1000, job.time_is_up)]
        for timer in timers:
            timer.daemon = True
            timer.start()
        fatal, after, output = False, None, None
        try:
            output = self.handlers[job.kind].function(job)
            output = json.dumps(output, allow_nan=False).encode()
            error = None
        except Snooze as snooze:
            error, after = "snooze", snooze.after
        except Fatal as failure:
            error, fatal = (failure.code, str(failure)), True
        except Retry as failure:
            error, after = (failure.code, str(failure)), failure.after
        except Exception as failure:
            error = ("error", repr(failure))
        for timer in timers:
            timer.cancel()
        job.tell_progress()
        ran = {"started_at": rfc3339(job.started_at), "finished_at": rfc3339(now_ms())}
        if error is None:
            return self._succeeded(job, output, ran)
        if job.order:
            return self._cancelled(job, ran | {"outcome": "cancelled"})
        if error == "snooze":
            return self._again(job, "scheduled", after * 1000, **ran, outcome="snoozed")
        if job.timed_out:
            error, fatal = ("timeout", f"stopped after {job.timeout_ms / 1000:g} s"), False
        ran["outcome"] = "timed_out" if job.timed_out else "fatal" if fatal else "failed"
        if fatal or job.attempt >= job.limit:
            return self._bury(job, "fatal" if fatal else "exhausted", *error, **ran)
        self._again(job, "retrying", job.pause_ms(after), attempt=job.attempt + 1, patience=0,
                    error={"code": clip(error[0], 100), "message": clip(error[1], 4096)}, **ran)

    # Lookups: has this run ended already?

    def _has_ended(self, job):
        """Asks the HTTP processes about a job that may be a repeat; settles it if its run has ended or gone on."""
        known = self._look_up(job)
        final = known.get("final")
        if known.get("latest_run", 0) > job.run:
            return True  # left over
        if final and final.get("reason") != "lost":
            log.info("job %s has ended already: %s", job.id, final["status"])
            self._end_again(job, final)
            return True
        if known.get("step", 0) > job.step:
            return True
        if known.get("cancel"):
            job.order = {"by": known["cancel"].get("by"), "reason": known["cancel"].get("reason")}
        return False

    def _look_up(self, job):
        deadline, answered = time.monotonic() + self.lookup_patience, False
        key = {"id": job.id, "run": job.run, "step": job.step}
        while self.fronts and not self.silent and time.monotonic() < deadline and not self.stopping:
            answers = self._ask([key], str(uuid.uuid4()), 3.0)
            answered = answered or answers is not None
            for known in answers or ():
                if known["id"] == job.id:
                    return known
        if self.fronts and not answered and time.monotonic() >= deadline:
            self.silent = True  # others are not held, until somebody answers again
        if self.stopping and not answered:
            raise ConnectionAbortedError("stopped while it was asked about")  # left to others
        return {}

    def _ask(self, jobs, correlation, wait=0.0):
        answers = self.questions.setdefault(correlation, queue.Queue())
        properties = pika.BasicProperties(type="hopline.lookup", reply_to=self.reply_to, correlation_id=correlation,
                                          message_id=str(uuid.uuid4()), content_type="application/json")
        self.publisher.do(lambda _, loose: loose.basic_publish(
            f"{self.prefix}.replies", f"{self.prefix}.lookup", json.dumps({"jobs": jobs}), properties))
        try:
            return answers.get(timeout=wait) if wait else None
        except queue.Empty:
            return None
        finally:
            self.questions.pop(correlation, None)

    def _end_again(self, job, final):
        """Does once more what may be missing after the event of an end: dead letter, callback, reply."""
        data = {"kind": job.kind, "queue": self.queue, "run": job.run, "attempt": max(1, final.get("attempt", 1)),
                "step": job.step, "worker": final.get("worker") or self.name}
        data |= {name: final[name] for name in ("started_at", "finished_at", "reason", "error") if name in final}
        status = final["status"]
        error = final.get("error") or {"code": status, "message": final.get("reason") or ""}
        event = {"specversion": "1.0", "id": f"{job.id}:{job.run}:{job.step}:{status}", "source": self.name,
                 "type": f"hopline.job.{status}", "subject": job.id, "data": data,
                 "time": final.get("finished_at") or rfc3339(now_ms())}
        job.callback = self._callback_of(job, event)
        if status == "dead":
            self._dead_letter(job, final.get("reason") or "exhausted", error, data["attempt"], data["worker"],
                              unsure=True)
        self._callback(job, unsure=True)
        self._reply(job, status, error if status != "succeeded" else
                    json.dumps(final["output"]).encode() if "output" in final else None, event)

    # What a worker says of itself.

    def _announce(self):
        self.mark = str(uuid.uuid4())  # when this comes back, everything before it has been read
        kinds = [handler.announced(kind, self.queue) for kind, handler in self.handlers.items()]
        body = {"worker": self.name, "kinds": kinds}
        properties = pika.BasicProperties(type="hopline.kinds", message_id=self.mark, content_type="application/json",
                                          delivery_mode=2, timestamp=int(time.time()))
        self.publisher.do(lambda sure, _: sure.basic_publish(
            f"{self.prefix}.control", f"kinds.{self.name}", json.dumps(body), properties))

    def _heartbeat(self, ended=False):
        if self.publisher.work.qsize() > 100:
            return  # an alarm of the broker: nobody can publish
        jobs = list(self.running.values())
        body = {"worker": self.name, "version": "python-example", "host": socket.gethostname(), "pid": os.getpid(),
                "since": rfc3339(self.since), "jobs": [job.id for job in jobs if job.id][:100],
                "queues": [{"queue": self.queue, "concurrency": self.concurrency, "prefetch": self.concurrency,
                            "running": len(jobs), "waiting": 0, "paused": self.paused}],
                "kinds": [{"kind": kind, "queue": self.queue} for kind in self.handlers]}
        if ended:
            body["ended"] = True
        properties = pika.BasicProperties(type="hopline.worker.heartbeat", content_type="application/json")
        self.publisher.do(lambda _, loose: loose.basic_publish(
            f"{self.prefix}.events", f"worker.heartbeat.{self.name}", json.dumps(body), properties))
