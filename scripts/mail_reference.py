"""Mail through a real Hopline to aiosmtpd, an SMTP server that is not ours. Run by `scripts/mail-reference`.

STARTTLS is demanded, and a login; what arrives is read by Python's own parser.
"""

import base64, email, email.policy, json, os, pathlib, shutil, socket, ssl, subprocess, sys, tempfile, time
import urllib.error, urllib.request, uuid

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult

HOPLINE, WORKER = sys.argv[1:3]
PATIENCE = 90
FOLDER = pathlib.Path(tempfile.mkdtemp(prefix="hopline-mail-"))
PREFIX = f"mail-{uuid.uuid4().hex[:8]}"
processes = []


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Handler:
    """Takes mail, but none for `nobody`, and for `busy` not yet."""
    taken = []

    async def handle_RCPT(self, server, session, envelope, address, options):
        if address.startswith("nobody@"):
            return "550 5.1.1 no such mailbox"
        if address.startswith("busy@"):
            return "451 4.3.0 come back later"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        assert session.ssl and session.authenticated
        Handler.taken.append((envelope.mail_from, list(envelope.rcpt_tos), envelope.content))
        return "250 2.0.0 taken"


def login(server, session, envelope, mechanism, data):
    return AuthResult(success=(data.login, data.password) == (b"app", b"secret"))


def start(name, *command, **env):
    log = (FOLDER / f"{name}.log").open("wb")
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HOPLINE_")}
    common = {"HOPLINE_AMQP_URL": os.environ["HOPLINE_TEST_AMQP_URL"], "HOPLINE_AMQP_PREFIX": PREFIX,
              "RUST_MIN_STACK": "67108864"}
    processes.append(subprocess.Popen(command, env=clean | common | env, cwd=FOLDER, stdout=log, stderr=log))


def api(method, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://{HTTP}{path}", data, {"content-type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=70) as answer:
        return json.load(answer)


def eventually(what, ask):
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            found = ask()
        except (OSError, urllib.error.URLError):
            found = None
        if found:
            return found
        assert time.monotonic() < deadline, f"did not happen: {what}"
        time.sleep(0.1)


def send(**args):
    """The job's record once it has ended, or failed for the first time."""
    job = api("POST", "/v1/jobs", {"kind": "email.send", "args": args})["id"]
    def ask():
        found = api("GET", f"/v1/jobs/{job}")
        return found if found.get("finished_at") or found.get("error") else None
    return eventually(f"the end of {job}", ask)


try:
    certificate, key = FOLDER / "cert.pem", FOLDER / "key.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
                    "-addext", "subjectAltName=DNS:localhost", "-addext", "basicConstraints=critical,CA:FALSE",
                    "-keyout", key, "-out", certificate], check=True, capture_output=True)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    port = free_port()
    Controller(Handler(), hostname="127.0.0.1", port=port, tls_context=tls, require_starttls=True, auth_required=True,
               authenticator=login).start()
    (FOLDER / "mail.toml").write_text(
        f'senders = ["example.org"]\nfrom = "App <noreply@example.org>"\nprivate = false\n[smtp]\nhost = "localhost"\n'
        f'port = {port}\nca = "{certificate}"\nuser = "app"\n')
    HTTP = f"127.0.0.1:{free_port()}"
    start("http", HOPLINE, "serve", HOPLINE_HTTP_LISTEN=HTTP, HOPLINE_RECORD_PATH=str(FOLDER / "record"))
    start("mail", WORKER, MAIL_CONFIG=str(FOLDER / "mail.toml"), MAIL_SMTP_PASSWORD="secret")
    eventually("a worker", lambda: any(one["kind"] == "email.send" for one in api("GET", "/v1/kinds")["items"]))

    picture = os.urandom(50_000)
    job = send(to=["Ada Löwe <ada@example.net>", "bob@example.net"], bcc="eve@example.net", subject="Grüße aus Köln " * 8,
               text="Hallo\n.\n..Ende", html="<p>Hällo</p>", reply_to="help@example.org",
               attachments=[{"name": "übersicht.png", "content_type": "image/png", "base64": base64.b64encode(picture).decode()}])
    assert job["status"] == "succeeded", job
    (sender, recipients, content), = Handler.taken
    assert (sender, recipients) == ("noreply@example.org", ["ada@example.net", "bob@example.net", "eve@example.net"])
    message = email.message_from_bytes(content, policy=email.policy.default)
    assert not message.defects and message["bcc"] is None, message.defects
    assert message["subject"].strip() == ("Grüße aus Köln " * 8).strip(), message["subject"]
    assert message["message-id"] == f"<{job['id']}@example.org>", message["message-id"]
    assert [str(one) for one in message["to"].addresses] == ["Ada Löwe <ada@example.net>", "bob@example.net"]
    assert message.get_body(("plain",)).get_content().splitlines() == ["Hallo", ".", "..Ende"]
    assert message.get_body(("html",)).get_content().strip() == "<p>Hällo</p>"
    file, = message.iter_attachments()
    assert (file.get_filename(), file.get_content()) == ("übersicht.png", picture)
    print("ok    a mail arrives by STARTTLS and login, and Python's parser reads all of it")

    job = send(to="nobody@example.net", subject="x", text="y")
    assert job["status"] == "dead" and "5.1.1 no such mailbox" in json.dumps(job), job
    job = send(to="busy@example.net", subject="x", text="y")
    assert job["status"] not in ("dead", "succeeded") and "4.3.0 come back later" in json.dumps(job), job
    job = send(to="ada@example.net", subject="x\r\nBcc: evil@example.com", text="y")
    assert job["status"] == "dead" and "control character" in json.dumps(job), job
    assert len(Handler.taken) == 1
    print("ok    550 is dead, 451 is tried again, a line break in a subject is refused")
finally:
    for process in reversed(processes):
        process.terminate()
        process.wait(60)
    if sys.exc_info()[0]:
        for log in FOLDER.glob("*.log"):
            print(f"--- {log.name}\n{log.read_text()[-3000:]}", file=sys.stderr)
    shutil.rmtree(FOLDER, ignore_errors=True)
