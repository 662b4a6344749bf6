"""A transactional outbox in SQLite: an order and its job are written in one transaction, and a relay submits the job.

    python outbox.py order ITEM     writes an order
    python outbox.py relay          submits what is in the outbox, again and again (--once: until it is empty)

OUTBOX_DB names the file, HOPLINE_URL the front. docs/recipes.md explains it. With PostgreSQL the relay would read
with FOR UPDATE SKIP LOCKED; the rest is the same.
"""

import argparse, json, os, sqlite3, time, uuid

from submit_http import submit


def connect():
    db = sqlite3.connect(os.environ.get("OUTBOX_DB", "shop.db"), timeout=10)
    db.executescript("""
        PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
        CREATE TABLE IF NOT EXISTS orders (id INTEGER PRIMARY KEY, item TEXT NOT NULL, job_id TEXT NOT NULL);
        CREATE TABLE IF NOT EXISTS outbox (id INTEGER PRIMARY KEY, job_id TEXT NOT NULL, kind TEXT NOT NULL, args TEXT NOT NULL);
    """)
    return db


def order(db, item, fail=False):
    job_id = str(uuid.uuid4())  # the job's name is chosen here, once
    with db:  # both or none
        db.execute("INSERT INTO orders (item, job_id) VALUES (?, ?)", (item, job_id))
        db.execute("INSERT INTO outbox (job_id, kind, args) VALUES (?, ?, ?)",
                   (job_id, "demo.echo", json.dumps({"item": item})))
        if fail:
            raise RuntimeError("the card was refused")
    return job_id


def relay(db, once, crash_after=None):
    sent = 0
    while True:
        rows = db.execute("SELECT id, job_id, kind, args FROM outbox ORDER BY id LIMIT 100").fetchall()
        for row, job_id, kind, args in rows:
            submit(kind, json.loads(args), job_id=job_id, tags=["outbox"])  # PUT: sent twice, it is one job
            sent += 1
            if sent == crash_after:
                os._exit(9)  # the worst moment: submitted, and not noted
            with db:
                db.execute("DELETE FROM outbox WHERE id = ?", (row,))
        if not rows:
            if once:
                return
            time.sleep(0.5)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("act", choices=["order", "relay"])
    parser.add_argument("item", nargs="?", default="")
    parser.add_argument("--fail", action="store_true", help="refuse the order within its transaction")
    parser.add_argument("--once", action="store_true")
    parser.add_argument("--crash-after", type=int, help="crash after so many submits, before the last is noted")
    options = parser.parse_args()
    if options.act == "order":
        print(order(connect(), options.item, options.fail))
    else:
        relay(connect(), options.once, options.crash_after)
