-- The record's file. Version: SCHEMA_VERSION in file.rs. Times are ms since the epoch; a position is offset << 16 | index.

CREATE TABLE meta (
    one        INTEGER PRIMARY KEY CHECK (one = 1),
    base       INTEGER NOT NULL,   -- added to the stream's offsets
    offset     INTEGER,            -- of the last batch applied; none: read from the beginning
    message_id TEXT,               -- of its message
    tail       INTEGER NOT NULL,   -- the last position applied
    first      INTEGER NOT NULL,   -- from here on no event is missing
    clock      INTEGER NOT NULL,   -- the latest time of a batch or an event
    gap        INTEGER NOT NULL    -- the clock behind the last gap in the log; 0: there was none
);
INSERT INTO meta (one, base, tail, first, clock, gap) VALUES (1, 0, 0, 0, 0, 0);

-- A queue and a kind ('': none): what is counted and listed together.
CREATE TABLE classes (
    id    INTEGER PRIMARY KEY,
    queue TEXT NOT NULL,
    kind  TEXT NOT NULL,
    UNIQUE (queue, kind)
);

CREATE TABLE jobs (
    position    INTEGER PRIMARY KEY,   -- of the first event heard of it: its place in lists
    id          BLOB NOT NULL UNIQUE,
    class       INTEGER NOT NULL,
    state       INTEGER NOT NULL,      -- by JobStatus::ALL's order; 8: not shown
    at          INTEGER NOT NULL,      -- scheduled, retrying: due; queued, running: since; ended: when
    heard       INTEGER NOT NULL,      -- the log's clock where it was heard of last
    ended       INTEGER,               -- when it ended, or was heard of last, if it may be deleted
    failed      INTEGER,               -- 1: it has an error
    fingerprint INTEGER,               -- if it is dead
    died        INTEGER,               -- when it died, if it can be replayed
    created     INTEGER NOT NULL,
    body        TEXT NOT NULL          -- fold::Row
);
-- Each entry ends with the position, so these give lists in order:
CREATE INDEX jobs_class ON jobs (class, state);
CREATE INDEX jobs_alike ON jobs (fingerprint) WHERE fingerprint IS NOT NULL;
CREATE INDEX jobs_failed ON jobs (failed) WHERE failed IS NOT NULL;
-- And these answer what comes due and waits longest (and has what tells who was not heard of), what may be deleted,
-- what died together, and of which dead ones nothing was heard for long:
CREATE INDEX jobs_live ON jobs (class, state, at, heard) WHERE state < 4;
CREATE INDEX jobs_ended ON jobs (ended) WHERE ended IS NOT NULL;
CREATE INDEX jobs_group ON jobs (class, fingerprint, died) WHERE died IS NOT NULL;
CREATE INDEX jobs_dead ON jobs (heard) WHERE died IS NOT NULL;

CREATE TABLE counts (
    class INTEGER NOT NULL,
    state INTEGER NOT NULL,
    n     INTEGER NOT NULL,
    PRIMARY KEY (class, state)
) WITHOUT ROWID;

-- Dead jobs that can be replayed.
CREATE TABLE dead_groups (
    class       INTEGER NOT NULL,
    fingerprint INTEGER NOT NULL,
    n           INTEGER NOT NULL,
    PRIMARY KEY (class, fingerprint)
) WITHOUT ROWID;

-- The earliest and latest submission in each stretch of the list, see blocks.rs.
CREATE TABLE blocks (
    start INTEGER PRIMARY KEY,   -- position of its first job
    n     INTEGER NOT NULL,
    low   INTEGER NOT NULL,
    high  INTEGER NOT NULL
);

CREATE TABLE tags (
    tag      TEXT NOT NULL,
    position INTEGER NOT NULL,   -- of the job
    PRIMARY KEY (tag, position)
) WITHOUT ROWID;

CREATE TABLE args (
    job  INTEGER PRIMARY KEY,    -- its position
    body TEXT NOT NULL
);

CREATE TABLE outputs (
    job  INTEGER PRIMARY KEY,
    body TEXT NOT NULL
);

CREATE TABLE events (
    position INTEGER PRIMARY KEY,
    job      INTEGER NOT NULL,   -- its position
    class    INTEGER NOT NULL,
    what     INTEGER NOT NULL,   -- by EventType::ALL's order
    run      INTEGER NOT NULL,
    step     INTEGER NOT NULL,
    extra    TEXT NOT NULL,      -- what else tells it from the others of its job
    time     INTEGER NOT NULL,
    body     TEXT NOT NULL       -- coding::Body
);
CREATE UNIQUE INDEX events_job ON events (job, what, run, step, extra);

-- Trigrams of the errors, in lower case. It finds candidates: the rows are compared with what is looked for.
CREATE VIRTUAL TABLE search USING fts5 (
    text, tokenize = 'trigram', content = '', contentless_delete = 1, detail = none
);
