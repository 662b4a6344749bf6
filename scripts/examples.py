"""The examples in Python and Node.js against a real `hopline serve` and the demo worker in Rust. Run by `scripts/examples`.

Each check waits for what must happen, and asks the HTTP interface what became of the jobs.
"""

import base64, json, os, pathlib, shutil, signal, socket, sqlite3, subprocess, sys, tempfile, threading, time, uuid
import urllib.error, urllib.parse, urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer

HOPLINE, DEMO, PYTHON, NODE = sys.argv[1:5]
ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "examples/python"))
import pika  # noqa: E402
from hopline import Client, derive, FOREIGN  # noqa: E402

PATIENCE = 90
AMQP = urllib.parse.urlsplit(os.environ["HOPLINE_TEST_AMQP_URL"])
MANAGEMENT = urllib.parse.urlsplit(os.environ["HOPLINE_TEST_MANAGEMENT_URL"])
VHOST = f"examples-{uuid.uuid4().hex[:8]}"
URL = f"amqp://{AMQP.netloc}/{VHOST}"
FOLDER = pathlib.Path(tempfile.mkdtemp(prefix="hopline-examples-"))
LANGUAGES = {"python": ([PYTHON, ROOT / "examples/python"], "py"), "node": (["node", pathlib.Path(NODE)], "js")}
processes = []


def management(method, path, body=None):
    request = urllib.request.Request(f"http://{MANAGEMENT.hostname}:{MANAGEMENT.port}/api/{path}", method=method,
                                     data=json.dumps(body or {}).encode(), headers={"content-type": "application/json"})
    login = f"{MANAGEMENT.username}:{urllib.parse.unquote(MANAGEMENT.password)}"
    request.add_header("authorization", "Basic " + base64.b64encode(login.encode()).decode())
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read()


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Receiver(BaseHTTPRequestHandler):
    """Who is called back."""
    told = []

    def do_POST(self):
        Receiver.told.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


receiver = HTTPServer(("127.0.0.1", 0), Receiver)
threading.Thread(target=receiver.serve_forever, daemon=True).start()
HTTP = f"127.0.0.1:{free_port()}"
ENV = {name: value for name, value in os.environ.items() if not name.startswith("HOPLINE_")} | {
    "HOPLINE_AMQP_URL": URL, "AMQP_URL": URL, "HOPLINE_URL": f"http://{HTTP}", "HOPLINE_HTTP_LISTEN": HTTP,
    "HOPLINE_RECORD_PATH": str(FOLDER / "record"), "RUST_MIN_STACK": "67108864", "HOPLINE_CALLBACKS_ALLOW": "127.0.0.1",
    "HOPLINE_CALLBACKS_SECRET": "whsec_" + base64.b64encode(os.urandom(32)).decode()}


class Process:
    def __init__(self, name, *command, **env):
        self.log = FOLDER / f"{name}-{len(processes)}.log"
        with self.log.open("wb") as output:
            self.child = subprocess.Popen([str(word) for word in command], env=ENV | env, cwd=FOLDER, stdout=output,
                                          stderr=output)
        processes.append(self)

    def end(self, number=signal.SIGTERM):
        self.child.send_signal(number)
        return self.child.wait(60)

    def said(self, text):
        return text in self.log.read_text(errors="replace")


def api(method, path, body=None, ok=(200, 202)):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://{HTTP}{path}", data, {"content-type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=70) as answer:
            text = answer.read()
    except urllib.error.HTTPError as error:
        text = error.read()
        assert error.code in ok, f"{method} {path}: {error.code} {text.decode()}"
    return json.loads(text) if text else None


def eventually(what, ask):
    deadline = time.monotonic() + PATIENCE
    while True:
        found = ask()
        if found:
            return found
        assert time.monotonic() < deadline, f"did not happen: {what}"
        time.sleep(0.1)


def submit(kind, args, **members):
    return api("POST", "/v1/jobs", {"kind": kind, "args": args} | members)["id"]


def ended(job_id, status="succeeded", run=1):
    """The record of a job when it has ended."""
    def ask():
        job = api("GET", f"/v1/jobs/{job_id}?wait=10s", ok=(404,))
        return job if job.get("finished_at") and job["run"] >= run else None
    job = eventually(f"the end of {job_id}", ask)
    assert job["status"] == status, job
    return job


def example(language, program, *args):
    (run, folder), ending = LANGUAGES[language][0], LANGUAGES[language][1]
    words = [str(run), str(folder / f"{program}.{ending}"), *args]
    done = subprocess.run(words, env=ENV, cwd=FOLDER, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout.strip(), done.stderr.strip()


def worker(language, queue, **env):
    (run, folder), ending = LANGUAGES[language][0], LANGUAGES[language][1]
    started = Process(f"{language}-{queue}", run, folder / f"worker.{ending}", queue, **env)
    eventually(f"{language} takes from {queue}", lambda: any(
        one["pid"] == started.child.pid for one in api("GET", "/v1/workers")["items"]))
    return started


def running(job_id):
    eventually(f"{job_id} runs", lambda: api("GET", f"/v1/jobs/{job_id}", ok=(404,)).get("status") == "running")


def pid_of(name):
    """The process id in a worker's name: host, process id, six characters."""
    return int(name.rsplit("-", 2)[1])


def check(text):
    print(f"ok    {text}", flush=True)


def producers():
    for language in LANGUAGES:
        code, job_id, complaint = example(language, "producer", "demo", "demo.echo", '{"from": "%s"}' % language)
        assert code == 0, complaint
        job = ended(job_id)
        assert job["output"] == job["args"] == {"from": language} and pid_of(job["worker"]) == demo.child.pid, job
        code, job_id, complaint = example(language, "producer", "demo", "demo.echo", "{}", "0.3")
        assert code == 0, complaint
        ended(job_id)
        code, _, complaint = example(language, "producer", "no-such-queue", "demo.echo", "{}")
        assert code != 0 and complaint, "a queue that does not exist is refused"
        http = "submit_http" if language == "python" else "submit-http"
        code, job_id, complaint = example(language, http, "demo.echo", '{"over": "http"}')
        assert code == 0, complaint
        ended(job_id)
        code, output, complaint = example(language, "call", "demo", "demo.echo", '{"n": 1}')
        assert (code, json.loads(output)) == (0, {"n": 1}), complaint
        code, _, complaint = example(language, "call", "demo", "demo.fail", '{"fatal": true, "message": "no"}')
        assert code != 0 and "dead: [demo_fatal] no" in complaint, complaint
        check(f"{language}: what it submits and calls over AMQP, and over HTTP, runs in the Rust worker")


def calls(language, other):
    output = api("POST", f"/v1/rpc/{language}.upper?wait=30s", {"text": "käse"})
    assert output == "KÄSE", output
    problem = api("POST", f"/v1/rpc/{language}.upper?wait=30s", {}, ok=(422,))
    assert problem["code"] == "job_fatal" and problem["error"]["code"] == "bad_args", problem
    code, output, complaint = example(other, "call", language, f"{language}.upper", '{"text": "abc"}')
    assert (code, output) == (0, '"ABC"'), complaint
    check(f"{language}: calls over HTTP and from {other} are answered")


def failures(language):
    policy = {"retry": {"initial": "200ms", "max": "1s", "jitter": 0}, "max_attempts": 3}
    job = ended(submit(f"{language}.flaky", {"failures": 2}, **policy))
    assert [one["outcome"] for one in job["attempts"]] == ["failed", "failed", "succeeded"], job
    job_id = submit(f"{language}.flaky", {"failures": 3}, **policy)
    job = ended(job_id, "dead")
    assert job["error"]["reason"] == "exhausted" and job["error"]["code"] == "flaky" and len(job["attempts"]) == 3, job
    eventually("it is among the dead", lambda: any(
        one["id"] == job_id for one in api("GET", f"/v1/queues/{language}/dead")["items"]))
    api("POST", f"/v1/jobs/{job_id}/replay", {})
    job = ended(job_id, "dead", run=2)
    assert job["run"] == 2 and [one["run"] for one in job["attempts"]] == [1, 1, 1, 2, 2, 2], job
    job = ended(submit(f"{language}.upper", {}), "dead")
    assert job["error"]["reason"] == "fatal" and len(job["attempts"]) == 1, job
    job = ended(submit(f"{language}.count", {"seconds": 30}, timeout="1s", **policy | {"max_attempts": 1}), "dead")
    assert job["error"]["code"] == "timeout" and job["attempts"][0]["outcome"] == "timed_out", job
    check(f"{language}: retries go over the ladder, what fails for good is dead with its reason, and is replayed")


def orders(language):
    job_id = submit(f"{language}.count", {"seconds": 60})
    running(job_id)
    api("DELETE", f"/v1/jobs/{job_id}?reason=enough&by=test")
    job = ended(job_id, "cancelled")
    assert job["attempts"][0]["outcome"] == "cancelled" and job["error"]["reason"] == "enough", job
    job_id = submit(f"{language}.upper", {"text": "x"}, delay="1500ms")
    api("DELETE", f"/v1/jobs/{job_id}")
    assert not ended(job_id, "cancelled")["attempts"]
    api("POST", f"/v1/queues/{language}/pause", {})
    eventually("the worker has stopped taking", lambda: any(
        queue["queue"] == language and queue["paused"] for one in api("GET", "/v1/workers")["items"] for queue in one["queues"]))
    job_id = submit(f"{language}.upper", {"text": "x"})
    late = submit(f"{language}.upper", {"text": "x"}, expires_in="500ms")
    assert api("GET", f"/v1/jobs/{job_id}?wait=1s")["status"] == "queued"
    api("POST", f"/v1/queues/{language}/resume", {})
    ended(job_id)
    assert not ended(late, "expired")["attempts"]
    check(f"{language}: what is cancelled or late ends or does not run, and a paused queue waits")


def oddities(language):
    client = Client(URL)
    kind = f"{language}.upper"
    # Ids of strangers, and none.
    client.submit(language, kind, {"text": "x"}, job_id="order-17")
    ended(derive(FOREIGN, language, "order-17"))
    before = api("GET", f"/v1/jobs?kind={kind}&limit=100")["items"]
    client.channel.basic_publish("hopline.jobs", f"{language}.normal.{kind}", '{"text":"no id"}',
                                 pika.BasicProperties(type=kind), mandatory=True)
    eventually("it is adopted and runs", lambda: len(api("GET", f"/v1/jobs?kind={kind}&limit=100")["items"]) > len(before))
    # What cannot be run. The last of its patience, so that nothing waits for a minute.
    late = {"hopline-patience": 5}
    for reason, (kind_, headers) in {"unknown_kind": ("no.such.kind", late),
                                     "unsupported_version": (kind, late | {"hopline-version": 2}),
                                     "undecodable": (kind, {"hopline-run": "soon"})}.items():
        job_id = client.submit(language, kind_, {"text": "x"}, headers=headers)
        job = ended(job_id, "dead")
        assert job["error"]["reason"] == reason and not job["attempts"], job
    # A kind that nobody knows yet is waited for, and can be cancelled meanwhile.
    waits = client.submit(language, "no.such.kind", {})
    eventually("it is waited for", lambda: api("GET", f"/v1/jobs/{waits}", ok=(404,)).get("run_at"))
    api("DELETE", f"/v1/jobs/{waits}")
    ended(waits, "cancelled")
    # A number keeps its digits in the record.
    job_id = str(uuid.uuid4())
    client.channel.basic_publish("hopline.jobs", f"{language}.normal.{kind}", '{"text":"a","n":1.000000000000000000001}',
                                 pika.BasicProperties(type=kind, message_id=job_id), mandatory=True)
    ended(job_id)
    with urllib.request.urlopen(f"http://{HTTP}/v1/jobs/{job_id}") as answer:
        assert b"1.000000000000000000001" in answer.read()
    client.close()
    check(f"{language}: ids are derived or given, numbers keep their digits, what cannot be run is dead with its reason")


def callbacks(language):
    url = f"http://127.0.0.1:{receiver.server_port}/{language}"
    job_id = submit(f"{language}.upper", {"text": "x"}, callback_url=url)
    told = eventually("somebody is called back", lambda: [one for one in Receiver.told if one["subject"] == job_id])
    assert told[0]["type"] == "hopline.job.succeeded" and "output" not in told[0]["data"], told
    check(f"{language}: a callback is made")


def crashes(language, process):
    job_id = submit(f"{language}.count", {"seconds": 4})
    running(job_id)
    process.end(signal.SIGKILL)
    process = worker(language, language)
    job = ended(job_id)
    assert job["attempt"] == 1 and pid_of(job["worker"]) == process.child.pid, job
    check(f"{language}: a job whose worker was killed is run by the next one, and no attempt is spent")
    job_id = submit(f"{language}.count", {"seconds": 4})
    running(job_id)
    assert process.end() == 0, process.log.read_text()
    job = api("GET", f"/v1/jobs/{job_id}?wait=5s")
    assert job["status"] == "succeeded" and pid_of(job["worker"]) == process.child.pid, job
    check(f"{language}: a worker that is told to stop ends what it runs")
    # A second copy of it, marked as what it may be, for a worker that does not know the first.
    client = Client(URL)
    client.submit(language, f"{language}.count", {"seconds": 4}, job_id=job_id, unsure=True)
    client.close()
    process = worker(language, language)
    eventually("the repeat is recognised", lambda: process.said(f"job {job_id} has ended already: succeeded"))
    assert process.end() == 0 and api("GET", f"/v1/jobs/{job_id}")["attempts"] == job["attempts"]
    check(f"{language}: a repeat of what has ended is looked up, and not run")


def shared():
    """One queue, three languages."""
    workers = {"rust": demo.child.pid} | {name: worker(name, "demo").child.pid for name in LANGUAGES}
    names = {pid: name for name, pid in workers.items()}
    items = [{"kind": "demo.sleep", "args": {"ms": 300}} for _ in range(150)]
    items += [{"kind": "demo.fail", "args": {"message": f"number {n}"}} for n in range(30)]
    answer = api("POST", "/v1/jobs/batch", items)
    assert answer["accepted"] == len(items), answer
    jobs = [ended(one["id"], "dead" if item["kind"] == "demo.fail" else "succeeded")
            for one, item in zip(answer["items"], items)]
    ran = {name: 0 for name in workers}
    for job in jobs:
        assert len(job["attempts"]) == (3 if job["kind"] == "demo.fail" else 1), job
        if job["kind"] == "demo.fail":
            assert job["error"]["reason"] == "exhausted" and job["error"]["message"] == job["args"]["message"], job
        for attempt in job["attempts"]:
            ran[names[pid_of(attempt["worker"])]] += 1
    assert all(ran.values()) and sum(ran.values()) == 150 + 90, ran
    mixed = sum(len({names[pid_of(one["worker"])] for one in job["attempts"]}) > 1 for job in jobs)
    assert mixed, "attempts of one job are made in several languages"
    eventually("the dead letters are there", lambda: sum(
        one["kind"] == "demo.fail" for one in api("GET", "/v1/queues/demo/dead?limit=100")["items"]) >= 30)
    check(f"one queue, three languages: attempts {ran}, {mixed} jobs with attempts in more than one; 30 dead, 150 done")


def outbox():
    """docs/recipes.md: the business row and the job in one transaction; the relay is killed in between."""
    database = FOLDER / "shop.db"
    run = [PYTHON, str(ROOT / "examples/python/outbox.py")]
    env = ENV | {"OUTBOX_DB": str(database)}
    for n in range(20):
        subprocess.run([*run, "order", f"item-{n}"], env=env, check=True, timeout=60, stdout=subprocess.DEVNULL)
    assert subprocess.run([*run, "order", "item-bad", "--fail"], env=env, timeout=60, stderr=subprocess.DEVNULL).returncode != 0
    relay = subprocess.Popen([*run, "relay", "--crash-after", "5"], env=env)
    assert relay.wait(60) == 9, "it crashed after a submit and before it was noted"
    subprocess.run([*run, "relay", "--once"], env=env, check=True, timeout=60)
    with sqlite3.connect(database) as db:
        orders = [row[0] for row in db.execute("SELECT job_id FROM orders")]
        assert db.execute("SELECT count(*) FROM outbox").fetchone() == (0,)
    assert len(orders) == 20, "the order that failed left nothing"
    for job_id in orders:
        assert len(ended(job_id)["attempts"]) == 1
    jobs = [one for one in api("GET", "/v1/jobs?tag=outbox&limit=100")["items"]]
    assert len(jobs) == 20, f"{len(jobs)} jobs for 20 orders"
    check("outbox: 20 orders, a relay that crashed between submit and note, 20 jobs")


try:
    management("PUT", f"vhosts/{VHOST}")
    management("PUT", f"permissions/{VHOST}/{AMQP.username}", {"configure": ".*", "write": ".*", "read": ".*"})
    front = Process("serve", HOPLINE, "serve")

    def ready():
        try:
            return api("GET", "/readyz", ok=(503,))["ready"]
        except OSError:
            return False
    eventually("the front is ready", ready)
    demo = Process("demo", DEMO)
    eventually("the demo worker is there", lambda: any(
        one["kind"] == "demo.echo" for one in api("GET", "/v1/kinds")["items"]))
    producers()
    for language, other in (("python", "node"), ("node", "python")):
        process = worker(language, language)
        calls(language, other)
        failures(language)
        orders(language)
        oddities(language)
        callbacks(language)
        crashes(language, process)
    shared()
    outbox()
    print("examples: all is well")
except BaseException:
    for process in processes:
        print(f"--- {process.log.name}\n" + "\n".join(process.log.read_text(errors="replace").splitlines()[-15:]), file=sys.stderr)
    raise
finally:
    for process in reversed(processes):
        if process.child.poll() is None:
            process.child.terminate()
    for process in processes:
        try:
            process.child.wait(40)
        except subprocess.TimeoutExpired:
            process.child.kill()
    management("DELETE", f"vhosts/{VHOST}")
    shutil.rmtree(FOLDER)
