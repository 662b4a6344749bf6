//! Integration tests: all of Hopline against a real RabbitMQ. `make test` brings one, or HOPLINE_TEST_AMQP_URL and
//! HOPLINE_TEST_MANAGEMENT_URL name it.

mod support {
    pub(crate) mod broker;
    pub(crate) mod process;
}

mod docs;
mod faults_alarm;
mod faults_network;
mod faults_restart;
mod process_http;
mod process_ledger;
mod process_start;
mod process_suspects;
mod process_worker;
mod readme;
