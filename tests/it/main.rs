//! Tests against a real RabbitMQ, one binary. `make test` starts a private broker for them and names it in
//! `HOPLINE_TEST_AMQP_URL` and `HOPLINE_TEST_MANAGEMENT_URL`; without these they fail, they do not skip.
//!
//! Each test has its own prefix and its own queue names. The delay ladder (28 queues) is shared by all, which
//! `amqp.ladder_prefix` is for. Nothing here kills a process: that is `process*.rs` and `faults*.rs`.

mod dead;
mod foreign;
mod hostile;
mod http;
mod http_refusals;
mod ladder;
mod layering;
mod publisher;
mod python;
mod recovery;
mod routing;
mod support;
mod worker;
