//! Tests against a real RabbitMQ, one binary. `make test` starts a private broker for them and names it in
//! `HOPLINE_TEST_AMQP_URL` and `HOPLINE_TEST_MANAGEMENT_URL`; without these they fail, they do not skip.
//!
//! Each test has its own prefix and its own queue names. The delay ladder (28 queues) is shared by most, which
//! `amqp.ladder_prefix` is for. `process*.rs` and `faults*.rs` start, stop and kill real processes; the others run
//! fronts and workers in this one.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by unwrapping, also in its helpers"
)]

mod amqps;
mod backpressure;
mod callbacks;
mod cli;
mod control;
mod dashboard;
mod dead;
mod dead_letters;
mod dead_pass;
mod docs;
mod doctor;
mod faults_alarm;
mod faults_network;
mod faults_restart;
mod foreign;
mod hostile;
mod http;
mod http_access;
mod http_keys;
mod http_record;
mod http_refusals;
mod http_tls;
mod kinds;
mod ladder;
mod layering;
mod long_jobs;
mod metrics;
mod openapi;
mod process_access;
mod process_bench;
mod process_cancel;
mod process_http;
mod process_ledger;
mod process_record;
mod process_start;
mod process_suspects;
mod process_traces;
mod process_worker;
mod process_workers;
mod publisher;
mod python;
mod readme;
mod reconciler;
mod record;
mod recovery;
mod routing;
mod spool;
mod sse;
mod support;
mod topology;
mod up;
mod worker;
mod worker_cancel;
mod worker_events;
mod worker_lookup;
