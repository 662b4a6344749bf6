//! Integration tests: all of Hopline against a real RabbitMQ, one binary. `make test` brings one, or
//! `HOPLINE_TEST_AMQP_URL` and `HOPLINE_TEST_MANAGEMENT_URL` (with login) name it; without these they fail, they do not
//! skip.
//!
//! `process_*` and `faults_*` have processes, nodes and networks of their own. All others run in this process, each on
//! a prefix and with queue names of its own; the delay ladder (28 queues) is shared, which `amqp.ladder_prefix` is for.

mod support;

mod dead;
mod docs;
mod faults_alarm;
mod faults_network;
mod faults_restart;
mod foreign;
mod hostile;
mod http;
mod http_refusals;
mod ladder;
mod layering;
mod process_http;
mod process_ledger;
mod process_start;
mod process_suspects;
mod process_worker;
mod publisher;
mod python;
mod readme;
mod recovery;
mod routing;
mod worker;
