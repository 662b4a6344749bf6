"""Hopline for Python, over AMQP alone: messages, a producer and a caller (docs/wire.md). Needs Python 3.11 and pika.

`Client` submits jobs and calls them; `Job` reads a job message. The worker is hopline_worker.py.
"""

import json, random, re, threading, time, uuid
from datetime import datetime, timezone

import pika

ARGS_MAX, HEADERS_MAX, INLINE_MAX, OUTPUT_MAX, DEPTH_MAX = 1 << 20, 64 << 10, 64 << 10, 1 << 20, 64
KIND = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")
DEATH = {"hopline-reason", "hopline-error-code", "hopline-error", "hopline-attempts", "hopline-worker",
         "hopline-died-at", "hopline-queue", "hopline-headers-dropped"}
FOREIGN = uuid.UUID("6d1f31b7-59a5-4c1e-8f0e-2f6a90c577d3")
CALLBACK = uuid.UUID("0b1f5c5e-3f0a-4d57-9a35-6a8e71d4c2b6")


class Fatal(Exception):
    """Raised by a handler: trying again is pointless. The job is dead at once."""

    def __init__(self, code, message=""):
        super().__init__(message)
        self.code = code


class Retry(Exception):
    """Raised by a handler: an attempt failed; the next one after `after` seconds, or the usual pause."""

    def __init__(self, code, message="", after=None):
        super().__init__(message)
        self.code, self.after = code, after


class Snooze(Exception):
    """Raised by a handler: nothing failed, run this attempt again after `after` seconds."""

    def __init__(self, after):
        super().__init__(f"snoozed for {after} s")
        self.after = after


def route(job_queue, kind, delay_ms=0, prefix="hopline"):
    """Exchange and routing key of a job that is to run after `delay_ms`; at most 310 days (the delay ladder)."""
    address, ticks = f"{job_queue}.normal.{kind}", -(-int(delay_ms) // 100)
    if ticks <= 0:
        return f"{prefix}.direct", f"{job_queue}.normal"
    if ticks >= 1 << 28:
        raise ValueError("longer than the ladder")
    return f"{prefix}.delay.{ticks.bit_length() - 1:02}", ".".join(f"{ticks:028b}") + "." + address


def derive(namespace, *parts):
    bits = bytearray(uuid.uuid5(namespace, "\0".join(parts)).bytes)
    bits[6] = bits[6] & 0x0F | 0x80  # version 8
    return str(uuid.UUID(bytes=bytes(bits)))


def now_ms():
    return int(time.time() * 1000)


def rfc3339(ms):
    at = datetime.fromtimestamp(ms / 1000, timezone.utc)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def no_json(text):
    raise ValueError(f"{text} is no JSON")


def clip(text, limit):
    return str(text).encode()[:limit].decode(errors="ignore")


def declare(channel, prefix, job_queue):
    """A work queue, its dead-letter queue and their bindings: exactly as Hopline declares them."""
    work, dead = f"{prefix}.q.{job_queue}", f"{prefix}.q.{job_queue}.dead"
    channel.queue_declare(dead, durable=True, arguments={"x-queue-type": "quorum", "x-delivery-limit": 2147483647})
    channel.queue_bind(dead, f"{prefix}.dead", f"{job_queue}.#")
    channel.queue_declare(work, durable=True, arguments={
        "x-queue-type": "quorum", "x-delivery-limit": 1000, "x-overflow": "reject-publish",
        "x-dead-letter-exchange": f"{prefix}.strays", "x-dead-letter-routing-key": job_queue,
        "x-dead-letter-strategy": "at-least-once"})
    channel.queue_bind(work, f"{prefix}.direct", f"{job_queue}.normal")
    channel.queue_bind(work, f"{prefix}.jobs", f"{job_queue}.normal.#")
    channel.queue_bind(work, f"{prefix}.delay.ready", "*." * 28 + f"{job_queue}.normal.#")


class Client:
    """Submits and calls jobs. One connection, one thread."""

    def __init__(self, url, prefix="hopline"):
        self.prefix, self.replies = prefix, {}
        self.connection = pika.BlockingConnection(pika.URLParameters(url))
        self.channel = self.connection.channel()
        self.channel.confirm_delivery()  # basic_publish returns after the confirm
        self.reply_to = None

    def submit(self, job_queue, kind, args, *, job_id=None, delay=0.0, unsure=False, headers=None, **properties):
        """Returns the job's id when the broker has the job on disk. UnroutableError: there is no such queue.

        Any other error leaves open whether it was stored: repeat it with the same `job_id` and `unsure=True`.
        """
        job_id, now = job_id or str(uuid.uuid4()), now_ms()
        more = {"hopline-version": 1, "hopline-created-at": now} | (headers or {})
        if delay:  # the ladder takes it although the queue may not exist
            self.connection.channel().queue_declare(f"{self.prefix}.q.{job_queue}", passive=True)
            more["hopline-due-at"] = now + int(delay * 1000)
        if unsure:
            more["hopline-unsure"] = True
        exchange, key = route(job_queue, kind, delay * 1000, self.prefix)
        self.channel.basic_publish(exchange, key, json.dumps(args), pika.BasicProperties(
            type=kind, message_id=job_id, content_type="application/json", delivery_mode=2, app_id="python-example",
            headers=more, **properties), mandatory=True)
        return job_id

    def call(self, job_queue, kind, args, wait=10.0, max_attempts=1):
        """Runs a job and returns its output; RuntimeError if it ended otherwise, TimeoutError after `wait` seconds."""
        if self.reply_to is None:  # a queue of our own at `hopline.replies`: every worker may answer there
            self.reply_to = f"{self.prefix}.replies.python-{uuid.uuid4()}"
            self.channel.queue_declare(self.reply_to, exclusive=True, auto_delete=True)
            self.channel.queue_bind(self.reply_to, f"{self.prefix}.replies", self.reply_to)
            self.channel.basic_consume(self.reply_to, self._on_reply, auto_ack=True)
        job_id, deadline = str(uuid.uuid4()), time.monotonic() + wait
        self.submit(job_queue, kind, args, job_id=job_id, reply_to=self.reply_to, correlation_id=job_id, headers={
            "hopline-max-attempts": max_attempts,
            "hopline-expires-at": now_ms() + int(wait * 1000)})  # nobody waits later: let no attempt start then
        while job_id not in self.replies:
            if time.monotonic() >= deadline:
                raise TimeoutError(job_id)
            self.connection.process_data_events(time_limit=max(0, deadline - time.monotonic()))
        headers, body = self.replies.pop(job_id)
        if headers["hopline-status"] != "succeeded":
            failure = json.loads(body)
            raise RuntimeError(f"{headers['hopline-status']}: [{failure['code']}] {failure['message']}")
        return json.loads(body)

    def _on_reply(self, _channel, _method, properties, body):
        self.replies.clear()  # one call at a time: others are late
        self.replies[properties.correlation_id] = (properties.headers, body)

    def close(self):
        self.connection.close()


class Unfit(Exception):
    """A message that cannot be run: (reason, what is wrong)."""


class Job:
    """A job message, as far as it can be read, and what its handler may ask."""

    def __init__(self, worker, properties, body):
        self.worker, self.properties, self.body, self.raw = worker, properties, body, dict(properties.headers or {})
        self.headers = {name: value for name, value in self.raw.items()  # what is carried along
                        if not name.startswith("x-") and name not in ("CC", "BCC", "hopline-due-at")}
        text = properties.message_id
        try:
            self.id = text and str(uuid.UUID(text))
        except ValueError:
            self.id = derive(FOREIGN, worker.queue, text)
        self.kind, self.args, self.unfit = properties.type, None, None
        self.run, self.attempt, self.step, self.patience, self.expires_at, self.created_at = 1, 1, 0, 0, None, None
        self.max_attempts, self.tags, self.started_at, self.order = None, [], None, None
        self.timed_out, self._stop, self._said, self._untold = False, threading.Event(), (0, 0.0), None
        self.callback, self.unsure, self.how = (None, None), False, worker.handlers.get(self.kind)
        dead = "hopline-reason" in self.raw  # somebody moved it here from the dead-letter queue: its next run
        for name, first in (("run", 1), ("attempt", 1), ("step", 0), ("patience", 0)):
            try:
                setattr(self, name, self._number(name, first, first))
            except Unfit:
                pass  # where it stands is said of a message that cannot be read, too: at the beginning
        if dead:
            self.headers = {n: v for n, v in self.headers.items() if n not in DEATH | {"hopline-expires-at"}}
            self.run, self.attempt, self.step, self.patience = self.run + 1, 1, 0, 0
        try:
            self._read(dead)
        except Unfit as unfit:
            self.unfit = unfit.args

    def _number(self, name, default=None, low=0, high=1 << 62, whole=True):
        value = self.raw.get(f"hopline-{name}")
        if value is None:
            return default
        try:
            if isinstance(value, datetime):
                value = value.replace(tzinfo=timezone.utc).timestamp() * 1000
            number = float(value)
            number = int(value) if whole and number == int(number) else number
            if not low <= number <= high or whole and number != int(number):
                raise ValueError
        except (TypeError, ValueError, OverflowError):
            raise Unfit("undecodable", f"hopline-{name} is {value!r}") from None
        return number

    def _read(self, dead):
        """Everything, in the order in which it must be readable."""
        if len(self.body) > ARGS_MAX:
            raise Unfit("oversize", f"{len(self.body)} bytes of args")
        if sum(len(str(name)) + len(str(value)) for name, value in self.raw.items()) > HEADERS_MAX:
            raise Unfit("oversize", "too many headers")
        version = self._number("version", 1)
        if version > 1:
            raise Unfit("unsupported_version", f"version {version} of the wire contract")
        if not KIND.fullmatch(self.kind or "") or len(self.kind) > 100:
            raise Unfit("undecodable", f"type is {self.kind!r}")
        for name, first in (("run", 1), ("attempt", 1), ("step", 0), ("patience", 0)):
            self._number(name, first, first)
        self.max_attempts = self._number("max-attempts", None, 1, 1000)
        self.timeout_ms = self._number("timeout-ms", 0) or (self.how.timeout * 1000 if self.how else 0)
        self.created_at = self._number("created-at")
        self.expires_at = None if dead else self._number("expires-at")
        self.retry = [self._number("retry-initial-ms"), self._number("retry-factor", None, 1, 100, whole=False),
                      self._number("retry-max-ms"), self._number("retry-jitter", None, 0, 1, whole=False)]
        self.unsure = str(self.raw.get("hopline-unsure", False)).lower() in ("true", "1")
        self.tags = [tag for tag in str(self.raw.get("hopline-tags") or "").split(",") if tag]
        try:
            text = self.body.decode()
            self.args = json.loads(text, parse_constant=no_json)
        except (ValueError, RecursionError) as error:
            raise Unfit("undecodable", f"the body is no JSON: {error}") from None
        plain, depth, deepest = re.sub(r'"[^"\\]*(?:\\.[^"\\]*)*"', "", text), 0, 0
        for bracket in re.findall(r"[][{}]", plain):
            depth += 1 if bracket in "[{" else -1
            deepest = max(deepest, depth)
        if deepest > DEPTH_MAX:
            raise Unfit("undecodable", f"the body is {deepest} levels deep")

    def copy(self, **changes):
        """The headers of this job published once more."""
        names = {"version": 1, "run": self.run, "attempt": self.attempt, "step": self.step, "patience": self.patience}
        if self.unfit:  # as it came: somebody else may understand it
            names = {}
        return self.headers | {f"hopline-{name.replace('_', '-')}": value for name, value in (names | changes).items()}

    def pause_ms(self, after):
        if after is not None:
            return after * 1000
        usual = self.how.initial * 1000, self.how.factor, self.how.longest * 1000, self.how.jitter
        initial, factor, longest, jitter = (own if own is not None else of for own, of in zip(self.retry, usual))
        pause = min(longest, initial * factor ** min(self.attempt - 1, 200))
        return pause * random.uniform(1 - jitter, 1 + jitter)

    @property
    def limit(self):
        return self.max_attempts or self.how.max_attempts

    def time_is_up(self):
        self.timed_out = True
        self._stop.set()

    def stopped(self):
        """True when the handler should end: its time is over, or the job is to be cancelled."""
        return self._stop.is_set()

    def progress(self, percent, message=""):
        """Tells how far the handler is: at most once a second, and the last of all."""
        n, at = self._said
        self._untold = {"percent": int(percent), "message": clip(message, 1024), "n": n + 1}
        if time.monotonic() - at >= 1:
            self.tell_progress()

    def tell_progress(self):
        if self._untold:
            self._said, said, self._untold = (self._untold["n"], time.monotonic()), self._untold, None
            self.worker.tell(self, "progress", wait=False, progress=said)
