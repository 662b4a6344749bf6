//! `hopline doctor`: each check is made to fail. Most of them on the broker itself; what one node cannot be brought to
//! is told by a management API that lies.

use std::fs;

use reqwest::Method;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::support::{
    broker::Broker,
    eventually,
    operator::{Place, Ran, lying, place},
    process::{free_port, new_folder},
};

/// What a check found: its gravest finding.
fn finding(ran: &Ran, check: &str) -> (String, String) {
    let report = ran.json();
    let all = report["findings"].as_array().expect("findings").iter().filter(|one| one["check"] == check);
    let rank = |one: &&Value| ["ok", "skip", "warn", "fail"].iter().position(|level| one["level"] == *level);
    let gravest = all.max_by_key(rank).unwrap_or_else(|| panic!("no {check} in {}", ran.out));
    let words = format!(
        "{} {}",
        gravest["found"].as_str().unwrap_or_default(),
        gravest["mend"].as_str().unwrap_or_default()
    );
    (gravest["level"].as_str().expect("a level").to_owned(), words)
}

/// Fails unless the check found this, in words that contain `text`.
fn tells(ran: &Ran, check: &str, level: &str, text: &str) {
    let (found, words) = finding(ran, check);
    assert!(found == level && words.contains(text), "{check} is {found}, not {level} with {text:?}: {words}");
}

async fn examine(place: &Place, variables: &[(&str, &str)]) -> Ran {
    place.run(&["doctor", "--json"], variables).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_well_is_said_to_be() {
    place(async |place| {
        tells(&examine(place, &[]).await, "topology", "warn", "are missing");
        tells(
            &examine(place, &[("HOPLINE_AMQP_DECLARE", "false")]).await,
            "topology",
            "fail",
            "topology apply",
        );
        place.run(&["topology", "apply"], &[]).await.exits(0);
        let told = examine(place, &[]).await;
        for check in [
            "configuration",
            "record",
            "spool",
            "broker",
            "version",
            "permissions",
            "management",
            "topology",
            "policies",
            "retention",
            "queues",
            "feature_flags",
            "alarms",
            "clock",
        ] {
            tells(&told, check, "ok", "");
        }
        // What the shared broker's own settings are worth.
        assert!(matches!(told.code, Some(0 | 7)), "{told:?}");
        place.run(&["doctor"], &[]).await.shows("ok    broker").shows("let");
        // Without management it says what it could not look at.
        let told = place.run_by_amqp(&["doctor", "--json"]).await;
        tells(&told, "topology", "ok", "only the management API tells");
        tells(&told, "policies", "skip", "only the management API tells");
        assert!(!told.out.contains(":guest@"), "no password");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn why_the_broker_is_not_reached_is_told_apart() {
    place(async |place| {
        let url = "HOPLINE_AMQP_URL";
        let told =
            async |address: &str| place.run_by_login(&["doctor", "--json"], &[(url, address)]).await.exits(8);
        tells(&told("amqp://u:secret-word@no-such-host.invalid").await, "broker", "fail", "is not known");
        let port = free_port();
        let nobody = told(&format!("amqp://u:secret-word@127.0.0.1:{port}")).await;
        tells(&nobody, "broker", "fail", "nobody answers at");
        assert!(!nobody.out.contains("secret-word"), "{nobody:?}");
        tells(&nobody, "permissions", "skip", "no connection");

        let user = place.address("guest", "wrong-word");
        let wrong = told(&user).await;
        tells(&wrong, "broker", "fail", "does not know this user and password");
        assert!(!wrong.out.contains("wrong-word"), "{wrong:?}");
        let host = place.broker.amqp.rsplit_once('/').expect("a virtual host").0;
        tells(&told(&format!("{host}/nowhere")).await, "broker", "fail", "virtual host `nowhere`");
        let secure = place.broker.amqp.replace("amqp://", "amqps://");
        tells(&told(&secure).await, "broker", "fail", "does not speak TLS");
        let management = place.broker.management.rsplit_once(':').expect("a port").1;
        let (other, _) = place.broker.amqp.rsplit_once(':').expect("a port");
        tells(&told(&format!("{other}:{management}")).await, "broker", "fail", "does not speak AMQP");
        tells(&told("amqp://host:port").await, "broker", "fail", "no AMQP address");
    })
    .await;
}

/// Answers each connection with these bytes, and closes it.
async fn answering(bytes: Vec<u8>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut hello = [0; 8];
            if stream.read_exact(&mut hello).await.is_ok() {
                let _ = stream.write_all(&bytes).await;
            }
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread")]
async fn other_servers_and_old_brokers_are_known() {
    place(async |place| {
        let told = async |port: u16| {
            let address = format!("amqp://u:p@127.0.0.1:{port}");
            place.run_by_login(&["doctor", "--json"], &[("HOPLINE_AMQP_URL", &address)]).await.exits(8)
        };
        // What a TLS server says to AMQP: an alert.
        let port = answering(vec![0x15, 0x03, 0x03, 0, 2, 2, 0x46]).await;
        tells(&told(port).await, "broker", "fail", "amqps://");
        let mut start = vec![0, 10, 0, 10, 0, 9];
        for (name, value) in [("product", "RabbitMQ"), ("version", "3.9.13")] {
            start.push(u8::try_from(name.len()).expect("short"));
            start.extend_from_slice(name.as_bytes());
            start.push(b'S');
            start.extend_from_slice(&u32::try_from(value.len()).expect("short").to_be_bytes());
            start.extend_from_slice(value.as_bytes());
        }
        let mut frame = vec![1, 0, 0];
        frame.extend_from_slice(&u32::try_from(start.len()).expect("short").to_be_bytes());
        frame.extend_from_slice(&start);
        frame.push(0xce);
        let port = answering(frame).await;
        tells(&told(port).await, "version", "fail", "3.9.13 is too old");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_rights_are_named() {
    place(async |place| {
        place.run(&["topology", "apply"], &[]).await.exits(0);
        let all = format!("^{}\\.", place.prefix);
        let not = |name: &str| format!("^{}\\.(?!{name}$)", place.prefix);
        let (jobs, log) = (not("jobs"), not("log"));
        for (rights, text) in [
            ([all.as_str(), all.as_str(), all.as_str()], ""),
            (["^$", &all, &all], "configure"),
            ([&all, &jobs, &all], "write to"),
            ([&all, &all, &log], "read"),
        ] {
            let address = place.user(rights, "").await;
            let declares = [("HOPLINE_AMQP_URL", address.as_str()), ("HOPLINE_AMQP_DECLARE", "false")];
            // RabbitMQ keeps what a user may for some seconds, on each channel only: a new connection knows.
            let told = place.run_by_login(&["doctor", "--json"], &declares).await;
            if text.is_empty() {
                tells(&told, "permissions", "ok", "acts tried");
            } else {
                tells(&told, "permissions", "fail", text);
                assert_eq!(told.code, Some(8));
            }
        }
        // Nothing was taken, nothing was published, nothing stayed.
        let queues = place.manage(Method::GET, "queues/{vhost}?columns=name", None).await;
        assert!(!queues.to_string().contains("doctor-"), "{queues}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_arguments_are_told() {
    place(async |place| {
        let queue = json!({"durable": true, "arguments": {"x-queue-type": "quorum", "x-delivery-limit": 5}});
        let path = format!("queues/{{vhost}}/{}", place.named("q.media"));
        place.manage(Method::PUT, &path, Some(queue)).await;
        let told = examine(place, &[]).await.exits(8);
        tells(&told, "topology", "fail", "x-delivery-limit is 5, not 1000");
        // And a shorter consumer timeout of a queue.
        place.manage(Method::DELETE, &path, None).await;
        place.run(&["topology", "apply"], &[]).await.exits(0);
        place.manage(Method::DELETE, &path, None).await;
        let queue = json!({"durable": true, "arguments": {
            "x-queue-type": "quorum", "x-delivery-limit": 1000, "x-overflow": "reject-publish",
            "x-dead-letter-exchange": place.named("strays"), "x-dead-letter-routing-key": "media",
            "x-dead-letter-strategy": "at-least-once", "x-consumer-timeout": 60_000}});
        place.manage(Method::PUT, &path, Some(queue)).await;
        tells(&examine(place, &[]).await, "consumer_timeout", "fail", "60000 ms");
        // A binding that can hold up every submit.
        let own = json!({"durable": true});
        place.manage(Method::PUT, "queues/{vhost}/spy", Some(own)).await;
        let bind = format!("bindings/{{vhost}}/e/{}/q/spy", place.named("record"));
        place.manage(Method::POST, &bind, Some(json!({"routing_key": ""}))).await;
        tells(&examine(place, &[]).await, "topology", "warn", "-> spy");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_that_harm_are_told() {
    place(async |place| {
        place.run(&["topology", "apply"], &[]).await.exits(0);
        place.policy("limit", "q.media", json!({"max-length": 10})).await;
        let told = examine(place, &[]).await.exits(8);
        tells(&told, "policies", "fail", "policy limit sets max-length 10 on");
        place.policy("limit", "q.media", json!({"expires": 86_400_000})).await;
        eventually("the new definition holds", async || {
            let told = examine(place, &[]).await;
            finding(&told, "policies").1.contains("expires").then_some(())
        })
        .await;
        place.policy("limit", "q.media", json!({"delivery-limit": 5})).await;
        eventually("the new definition holds", async || {
            let told = examine(place, &[]).await;
            let (level, words) = finding(&told, "policies");
            (level == "warn" && words.contains("delivery-limit 5")).then_some(())
        })
        .await;
        place.policy("short", "control.log", json!({"max-age": "1D"})).await;
        let told = examine(place, &[]).await.exits(8);
        tells(&told, "retention", "fail", "control.log is kept for 1.0 d");
        place.policy("short", "control.log", json!({"max-age": "45D"})).await;
        eventually("the new definition holds", async || {
            let told = examine(place, &[("HOPLINE_LIMITS_MAX_DELAY", "50d")]).await;
            (finding(&told, "retention").0 == "warn").then_some(())
        })
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_management_api_and_its_login_are_told_apart() {
    place(async |place| {
        let told = async |url: &str| place.run_by_amqp(&["doctor", "--json", "--management", url]).await;
        let host = place.broker.management.rsplit_once('@').expect("a login").1.to_owned();
        let wrong = told(&format!("http://guest:wrong-word@{host}")).await.exits(8);
        tells(&wrong, "management", "fail", "does not know this login");
        assert!(!wrong.out.contains("wrong-word") && !wrong.err.contains("wrong-word"), "{wrong:?}");
        let port = free_port();
        tells(
            &told(&format!("http://127.0.0.1:{port}")).await.exits(8),
            "management",
            "fail",
            "nobody answers",
        );
        tells(&told("https://127.0.0.1").await.exits(8), "management", "fail", "https");
        let all = [".*"; 3];
        place.user(all, "").await;
        let untagged = format!("http://{}-other:secret@{host}", place.prefix);
        tells(&told(&untagged).await.exits(8), "management", "fail", "set_user_tags");
        // Who may look and not everywhere is told what for.
        place.user(all, "management").await;
        let told = told(&untagged).await;
        tells(&told, "alarms", "skip", "needs the tag monitoring");
        // RabbitMQ 4 tells everybody of these.
        let (found, words) = finding(&told, "feature_flags");
        assert!(found == "ok" || found == "skip" && words.contains("needs the tag administrator"), "{words}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn configuration_and_folders_are_looked_at() {
    place(async |place| {
        let bad = examine(place, &[("HOPLINE_AMQP_HEARTBEAT", "0"), ("HOPLINE_WORKER_PREFETCH", "1")])
            .await
            .exits(8);
        tells(&bad, "configuration", "fail", "amqp.heartbeat must be 1 to 60");
        tells(&bad, "configuration", "fail", "prefetch (1) must be at least concurrency");
        tells(
            &examine(place, &[("HOPLINE_RECORD_RETENTION", "1m")]).await,
            "configuration",
            "warn",
            "record.retention",
        );
        fs::write(place.dir.join("file"), "").expect("written");
        let files = [("HOPLINE_RECORD_PATH", "file/record"), ("HOPLINE_SPOOL_PATH", "file")];
        let told = examine(place, &files).await.exits(8);
        tells(&told, "record", "fail", "cannot be a folder");
        tells(&told, "spool", "fail", "cannot be a folder");
        let large = [("HOPLINE_SPOOL_PATH", "spool"), ("HOPLINE_SPOOL_MAX_BYTES", "1099511627776")];
        let told = examine(place, &large).await;
        assert!(["warn", "ok"].contains(&finding(&told, "spool").0.as_str()), "a terabyte may be free");
        let many = [("HOPLINE_HTTP_MAX_CONNECTIONS", "1000000")];
        assert!(["warn", "ok"].contains(&finding(&examine(place, &many).await, "descriptors").0.as_str()));
        fs::write(place.dir.join("hopline.toml"), "[routes]\n\"a.b\" = \"nowhere\"\n").expect("written");
        tells(&examine(place, &[]).await, "routes", "warn", "a.b to nowhere");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_broker_says_of_itself_is_judged() {
    place(async |place| {
        place.run(&["topology", "apply"], &[]).await.exits(0);
        let media = place.named("q.media");
        let lie = lying(&place.broker, Some("Sun, 06 Nov 1994 08:49:37 GMT"), move |path, body| {
            if path.starts_with("/api/nodes") {
                let node = &mut body[0];
                node["disk_free_alarm"] = json!(true);
                node["mem_used"] = json!(95);
                node["mem_limit"] = json!(100);
                node["disk_free_limit"] = json!(50_000_000);
                node["fd_used"] = json!(1000);
                node["fd_total"] = json!(1024);
            } else if path.starts_with("/api/feature-flags") {
                *body = json!([{"name": "stream_queue", "state": "disabled", "stability": "stable"}]);
            } else if path.starts_with("/api/queues") {
                let queues = body["items"].as_array_mut().expect("queues");
                if let Some(queue) = queues.iter_mut().find(|queue| queue["name"] == media.as_str()) {
                    queue["leader"] = json!("");
                }
            }
        })
        .await;
        let told = place.run_by_amqp(&["doctor", "--json", "--management", &lie]).await.exits(8);
        tells(&told, "clock", "warn", "ahead of the broker");
        tells(&told, "alarms", "fail", "disk alarm");
        tells(&told, "memory", "warn", "95 %");
        tells(&told, "disk", "warn", "disk_free_limit");
        tells(&told, "broker_descriptors", "warn", "1000 of 1024");
        tells(&told, "feature_flags", "fail", "enable_feature_flag stream_queue");
        tells(&told, "queues", "fail", "has no leader");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alarm_is_told() {
    let dir = new_folder();
    let (mut node, broker) = Broker::private(&dir).await;
    node.ctl(&["set_vm_memory_high_watermark", "0.00001"]).await.expect("an alarm");
    let mut command = tokio::process::Command::new(crate::support::process::hopline());
    command
        .args(["doctor", "--json"])
        .current_dir(&dir)
        .env("HOPLINE_AMQP_URL", &broker.amqp)
        .env("HOPLINE_MANAGEMENT_URL", &broker.management);
    // Statistics are some seconds old.
    eventually("the alarm is told", async || {
        let output = command.output().await.expect("a process");
        let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let all = report["findings"].as_array().expect("findings");
        let alarms = all.iter().find(|one| one["check"] == "alarms").expect("a check");
        let told = alarms["level"] == "fail" && alarms["found"].to_string().contains("memory alarm");
        (told && output.status.code() == Some(8)).then_some(())
    })
    .await;
    node.stop().await;
    let _ = fs::remove_dir_all(&dir);
}

/// A binding takes more than the two things that it joins.
#[tokio::test(flavor = "multi_thread")]
async fn who_may_declare_and_not_bind_is_told() {
    place(async |place| {
        place.run(&["topology", "apply"], &[]).await.exits(0);
        let all = format!("^{}\\.", place.prefix);
        let read = format!(
            "^{}\\.(q\\..+|log|control\\.log|lookup|strays|replies(\\..+)?|events|heartbeats\\..+|pass\\..+|delay\\..+)$",
            place.prefix
        );
        let before = bindings(place).await;
        for (read, level) in [(read.as_str(), "fail"), (all.as_str(), "ok")] {
            let login = place.user([&all, &all, read], "").await;
            let told = place.run_by_login(&["doctor", "--json"], &[("HOPLINE_AMQP_URL", &login)]).await;
            tells(&told, "permissions", level, if level == "fail" { "bind " } else { "is allowed" });
        }
        assert_eq!(bindings(place).await, before, "what is tried changes nothing");
        let told = place.run(&["doctor", "--json", "--role", "reader"], &[]).await;
        tells(&told, "permissions", "skip", "needs no right");
    })
    .await;
}

async fn bindings(place: &Place) -> usize {
    let all = place.manage(Method::GET, "bindings/{vhost}", None).await;
    all.as_array().expect("a list").len()
}
