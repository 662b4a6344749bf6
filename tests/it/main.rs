//! Integration tests: the whole of Hopline against a real RabbitMQ.
fn main() {}
