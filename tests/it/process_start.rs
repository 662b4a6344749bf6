//! Processes that refuse to start, and say why in words that help.

use std::process::Output;

use crate::support::process::{Stage, hopline};

fn serve(stage: &Stage, variables: &[(&str, &str)]) -> Output {
    let mut command = stage.command(&hopline());
    command.arg("serve").envs(variables.iter().copied());
    command.output().expect("hopline starts")
}

fn assert_refused(output: &Output, parts: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code().is_some_and(|code| code != 0), "{:?}: {said}", output.status);
    for part in parts {
        assert!(said.contains(part), "`{part}` is not in: {said}");
    }
}

#[test]
fn the_front_listens_beyond_loopback_only_when_told() {
    let stage = Stage::new();
    for address in ["0.0.0.0:0", "[::]:0"] {
        let refused = serve(&stage, &[("HOPLINE_HTTP_LISTEN", address)]);
        assert_refused(&refused, &[address, "http.allow_unauthenticated", "127.0.0.1"]);
    }
}

#[test]
fn all_that_is_wrong_with_a_configuration_is_said_at_once() {
    let stage = Stage::new();
    std::fs::write(
        stage.dir.join("hopline.toml"),
        "[amqp]\nheartbeat = 0\n[worker]\nconcurrency = 30\nprefetch = 10\n[http]\nmax_wait = \"2h\"\n",
    )
    .expect("a file");
    let refused = serve(&stage, &[("HOPLINE_AMQP_PREFIX", "No Prefix")]);
    assert_refused(&refused, &["amqp.heartbeat", "amqp.prefix", "prefetch (10)", "http.max_wait"]);
}

#[test]
fn an_unknown_key_is_named() {
    let stage = Stage::new();
    assert_refused(
        &serve(&stage, &[("HOPLINE_HTTP_LISEN", "127.0.0.1:0")]),
        &["HOPLINE_HTTP_LISEN", "HOPLINE_HTTP_LISTEN"],
    );
    std::fs::write(stage.dir.join("hopline.toml"), "[worker]\nconcurency = 3\n").expect("a file");
    assert_refused(&serve(&stage, &[]), &["concurency", "concurrency"]);
}

#[test]
fn a_port_that_is_taken_is_named() {
    let stage = Stage::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    assert_refused(&serve(&stage, &[("HOPLINE_HTTP_LISTEN", &address)]), &[&address, "in use"]);
}
