//! `hopline topology` against real brokers: what it says, what it makes, and what it leaves alone.

use std::{collections::BTreeSet, fs, os::unix::fs::PermissionsExt};

use lapin::{
    ExchangeKind,
    options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    process_worker::item,
    support::{
        operator::{Place, Ran, place},
        process::{Process, Stage, eventually},
    },
};

/// The states of all items but those that are the same, by name.
fn states(ran: &Ran) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let items = ran.json()["items"].as_array().cloned().unwrap_or_default();
    items
        .iter()
        .filter(|item| item["state"] != "same")
        .map(|item| (text(&item["name"]), text(&item["state"])))
        .collect()
}

fn item_of(ran: &Ran, name: &str) -> Value {
    let items = ran.json()["items"].as_array().cloned().unwrap_or_default();
    let found = items.into_iter().find(|item| item["name"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {}", ran.out))
}

/// Names of all exchanges and queues of the test.
async fn objects(place: &Place) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for kind in ["exchanges", "queues"] {
        let list = place.manage(Method::GET, &format!("{kind}/{{vhost}}?columns=name"), None).await;
        let ours = list.as_array().into_iter().flatten().filter_map(|one| one["name"].as_str());
        names
            .extend(ours.filter(|name| name.starts_with(&place.prefix)).map(|name| format!("{kind} {name}")));
    }
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_changes_nothing_and_what_is_applied_is_what_processes_declare() {
    place(async |place| {
        let plan = place.run(&["topology", "plan", "--json"], &[]).await.exits(7).json();
        let to_make = plan["to_make"].as_u64().expect("a number");
        assert!(to_make > 120 && plan["same"] == 0 && plan["by_hand"] == 0, "{plan}");
        assert_eq!(objects(place).await, BTreeSet::new(), "a plan makes nothing");

        let applied = place.run(&["topology", "apply", "--json"], &[]).await.exits(0).json();
        assert_eq!((applied["made"].as_u64(), &applied["to_make"]), (Some(to_make), &json!(0)));
        let plan = place.run(&["topology", "plan"], &[]).await.exits(0);
        assert_eq!(plan.out, format!("{to_make} objects as wanted.\n"));
        place.run(&["topology", "plan", "--all"], &[]).await.exits(0).shows("exchange  same   ");
        let again = place.run(&["topology", "apply", "--json"], &[]).await.exits(0).json();
        assert_eq!((&again["made"], &again["same"]), (&json!(0), &json!(to_make)));

        // Whoever declares the same, or less, adds nothing but what is a process's own.
        let before = objects(place).await;
        let stage = place.stage();
        let front = stage.serve().await;
        let after = objects(place).await;
        let more: Vec<_> = after.difference(&before).collect();
        let own = ["replies.", "heartbeats."].map(|kind| format!("queues {}", place.named(kind)));
        assert!(more.iter().all(|name| own.iter().any(|own| name.starts_with(own))), "{more:?}");
        place.run(&["topology", "plan"], &[]).await.exits(0);
        drop(front);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_differs_is_told_and_left_alone() {
    place(async |place| {
        let connection = place.broker.connect().await;
        let channel = connection.create_channel().await.expect("a channel");
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        arguments.insert("x-delivery-limit".into(), AMQPValue::LongInt(5));
        let work = place.named("q.media");
        channel.queue_declare(work.as_str().into(), durable, arguments).await.expect("declared");
        let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let record = place.named("record");
        let declared = channel.exchange_declare(
            record.as_str().into(),
            ExchangeKind::Topic,
            options,
            FieldTable::default(),
        );
        declared.await.expect("declared");
        place
            .manage(
                Method::PUT,
                &format!("policies/{{vhost}}/{}", place.named("log").replace('.', "-")),
                Some(json!({"pattern": "^x$", "apply-to": "queues", "definition": {"max-age": "30D"}})),
            )
            .await;

        let applied = place.run(&["topology", "apply", "--json"], &[]).await.exits(8);
        let queue = item_of(&applied, &work);
        assert_eq!(queue["state"], "different");
        assert!(
            queue["detail"].as_str().expect("words").contains("x-delivery-limit is 5, not 1000"),
            "{queue}"
        );
        assert!(queue["to_do"].as_str().expect("words").contains("stop submitting to media"), "{queue}");
        let exchange = item_of(&applied, &record);
        assert_eq!(
            (&exchange["state"], &exchange["detail"]),
            (&json!("different"), &json!("type is topic, not fanout"))
        );
        assert_eq!(item_of(&applied, &place.named("log").replace('.', "-"))["state"], "kept");
        // What hangs on these was not touched either; all else was made.
        for (name, state) in states(&applied) {
            let expected = match name.as_str() {
                name if name == work || name == record => "different",
                name if name.contains(&format!("{work} by")) || name.starts_with(&format!("{record} ->")) => {
                    "failed"
                }
                name if name.ends_with("-log") && !name.contains("control") => "kept",
                _ => "made",
            };
            assert_eq!(state, expected, "{name}");
        }
        let queue = place.manage(Method::GET, &format!("queues/{{vhost}}/{work}"), None).await;
        assert_eq!(queue["arguments"]["x-delivery-limit"], 5);
        place.run(&["topology", "plan"], &[]).await.exits(8).shows("x-delivery-limit is 5, not 1000");

        // The advice is carried out.
        place.manage(Method::DELETE, &format!("queues/{{vhost}}/{work}"), None).await;
        place.manage(Method::DELETE, &format!("exchanges/{{vhost}}/{record}"), None).await;
        place.run(&["topology", "apply"], &[]).await.exits(0);
        place.run(&["topology", "plan"], &[]).await.exits(0).shows("kept");
        connection.close(200, "done".into()).await.expect("closed");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_binding_is_made_again_and_foreign_ones_are_shown() {
    place(async |place| {
        place.run(&["topology", "apply"], &[]).await.exits(0);
        let connection = place.broker.connect().await;
        let channel = connection.create_channel().await.expect("a channel");
        let (work, jobs) = (place.named("q.media"), place.named("jobs"));
        let gone = channel.queue_unbind(
            work.as_str().into(),
            jobs.as_str().into(),
            "media.normal.#".into(),
            FieldTable::default(),
        );
        gone.await.expect("unbound");
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        channel.queue_declare("spy".into(), durable, FieldTable::default()).await.expect("declared");
        let bound = channel.queue_bind(
            "spy".into(),
            jobs.as_str().into(),
            "#".into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        );
        bound.await.expect("bound");

        let plan = place.run(&["topology", "plan", "--json"], &[]).await.exits(7);
        let lost = format!("{jobs} -> {work} by media.normal.#");
        let foreign = format!("{jobs} -> spy by #");
        let expected =
            BTreeSet::from([(lost.clone(), "missing".into()), (foreign.clone(), "foreign".into())]);
        assert_eq!(states(&plan).into_iter().collect::<BTreeSet<_>>(), expected);
        let applied = place.run(&["topology", "apply", "--json"], &[]).await.exits(0);
        assert_eq!(item_of(&applied, &lost)["state"], "made");
        let left = place.run(&["topology", "plan", "--json"], &[]).await.exits(0);
        assert_eq!(states(&left), [(foreign, "foreign".to_owned())], "nothing is deleted");
        connection.close(200, "done".into()).await.expect("closed");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_management_api_names_are_looked_at() {
    place(async |place| {
        let plan = place.run_by_amqp(&["topology", "plan", "--json"]).await.exits(7);
        assert_eq!(plan.json()["management"], false);
        assert_eq!(item_of(&plan, &place.named("jobs"))["state"], "missing");
        assert_eq!(objects(place).await, BTreeSet::new(), "a plan makes nothing");
        // Policies are still missing.
        let applied = place.run_by_amqp(&["topology", "apply"]).await.exits(7);
        assert!(applied.err.contains("The management API was not asked"), "{applied:?}");
        let plan = place.run_by_amqp(&["topology", "plan", "--json"]).await.exits(0);
        assert_eq!(item_of(&plan, &place.named("jobs"))["state"], "exists");
        // Policies are the management API's alone.
        let rest = place.run(&["topology", "plan", "--json"], &[]).await.exits(7);
        assert_eq!(states(&rest).len(), 3, "{rest:?}");

        // RabbitMQ itself says what differs when it is asked to declare.
        let work = place.named("q.media");
        place.manage(Method::DELETE, &format!("queues/{{vhost}}/{work}"), None).await;
        let other = json!({"durable": true, "arguments": {"x-queue-type": "quorum", "x-delivery-limit": 5}});
        place.manage(Method::PUT, &format!("queues/{{vhost}}/{work}"), Some(other)).await;
        let applied = place.run_by_amqp(&["topology", "apply", "--json"]).await.exits(8);
        let queue = item_of(&applied, &work);
        assert_eq!(queue["state"], "different", "{queue}");
        assert!(queue["detail"].as_str().expect("words").contains("inequivalent arg"), "{queue}");
    })
    .await;
}

/// An address of the broker, from the file that `apply --users` wrote.
fn address(place: &Place, role: &str) -> String {
    let file = place.dir.join("logins").join(format!("{}-{role}.url", place.prefix));
    let mode = fs::metadata(&file).expect("the file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "for nobody else");
    fs::read_to_string(file).expect("readable").trim().to_owned()
}

/// Submits, retries, dies, is replayed and called, with logins that may do just what they must.
async fn jobs_run_with_their_own_logins(place: &Place, declares: &'static str) {
    let declare = ("HOPLINE_AMQP_DECLARE", declares);
    let words = ["topology", "apply", "--users", "--credentials", "logins", "--json"];
    let applied = place.run(&words, &[declare]).await.exits(0);
    assert_eq!(applied.json()["logins"].as_array().map(Vec::len), Some(3));
    let addresses = ["http", "worker", "reader"].map(|role| address(place, role));
    for address in &addresses {
        let password = address.split([':', '@']).nth(2).expect("a password");
        assert!(password.len() == 32 && !applied.out.contains(password) && !applied.err.contains(password));
    }
    // Again: nothing changes, and no password is lost.
    place.run(&words, &[declare]).await.exits(0);
    place.run(&["topology", "plan", "--users"], &[declare]).await.exits(0).shows("configure");
    assert_eq!(["http", "worker", "reader"].map(|role| address(place, role)), addresses);

    a_reader_looks_and_takes_nothing(place, &addresses[2]).await;

    let stage = place.stage();
    let front = stage.serve_with(&[declare, ("HOPLINE_AMQP_URL", &addresses[0])]).await;
    front.until_ready().await;
    let _worker = stage.ledger_worker(&[declare, ("HOPLINE_AMQP_URL", &addresses[1])]);
    let called = front.post("/v1/jobs?wait=60s", &item(&stage, &json!({}))).await;
    assert_eq!((called.status, &called.body["status"]), (200, &json!("succeeded")), "{called:?}");
    let retried = front.post("/v1/jobs?wait=60s", &item(&stage, &json!({"ends": ["fail", "well"]}))).await;
    assert_eq!(
        (&retried.body["status"], &retried.body["attempt"]),
        (&json!("succeeded"), &json!(2)),
        "{retried:?}"
    );
    let mut once = item(&stage, &json!({"ends": ["fail", "well"]}));
    once["max_attempts"] = json!(1);
    let dead = front.post("/v1/jobs?wait=60s", &once).await;
    assert_eq!(dead.body["status"], "dead", "{dead:?}");
    // An act of the front goes over the dead-letter queue.
    let replayed =
        front.post(&format!("/v1/queues/{}/dead/replay", stage.queue), &json!({"all": true})).await;
    assert!(replayed.status == 202, "{replayed:?}");
    eventually("the replayed job ends", async || {
        let job = front.get(&format!("/v1/jobs/{}", dead.id())).await.body;
        (job["run"] == 2 && job["status"] == "succeeded").then_some(())
    })
    .await;
    eventually("the worker is heard", async || {
        let workers = front.get("/v1/workers").await.body;
        (workers["items"].as_array().is_some_and(|all| !all.is_empty())).then_some(())
    })
    .await;
    let path = "HOPLINE_AMQP_URL";
    for (role, address) in [("http", &addresses[0]), ("worker", &addresses[1])] {
        let told =
            place.run_by_login(&["doctor", "--json", "--role", role], &[declare, (path, address)]).await;
        let findings = told.json()["findings"].as_array().cloned().unwrap_or_default();
        let rights = findings.iter().find(|one| one["check"] == "permissions").expect("a check");
        assert_eq!(rights["level"], "ok", "{rights}");
    }
}

/// Who reads a queue by AMQP's rights may purge it.
async fn a_reader_looks_and_takes_nothing(place: &Place, address: &str) {
    let login = address.strip_prefix("amqp://").and_then(|rest| rest.split_once('@')).expect("a login").0;
    let (user, password) = login.split_once(':').expect("a password");
    let host = place.broker.management.rsplit_once('@').expect("a login").1;
    let queue = format!("http://{host}/api/queues/{}/{}", place.vhost, place.named("q.media"));
    let http = reqwest::Client::builder().no_proxy().build().expect("a client");
    let ask = async |method: Method, path: &str, body: Option<Value>| {
        let request = http.request(method, format!("{queue}{path}")).basic_auth(user, Some(password));
        let request = match body {
            Some(body) => request.json(&body),
            None => request,
        };
        request.send().await.expect("an answer").status().as_u16()
    };
    assert_eq!(ask(Method::GET, "", None).await, 200);
    assert_eq!(ask(Method::GET, "/bindings", None).await, 200);
    let purged = ask(Method::DELETE, "/contents", None).await;
    assert!(matches!(purged, 401 | 403), "{purged}");
    let get = json!({"count": 1, "ackmode": "ack_requeue_true", "encoding": "auto"});
    let taken = ask(Method::POST, "/get", Some(get)).await;
    assert!(!(200..300).contains(&taken), "{taken}");
}

#[tokio::test(flavor = "multi_thread")]
async fn services_that_declare_run_jobs_with_their_own_logins() {
    place(async |place| jobs_run_with_their_own_logins(place, "true").await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn services_that_declare_nothing_run_jobs_with_little() {
    place(async |place| {
        jobs_run_with_their_own_logins(place, "false").await;
        // Such a login really may not do more.
        let stage = place.stage();
        let worker = address(place, "worker");
        let told = place
            .run_by_login(&["doctor", "--json", "--role", "worker"], &[("HOPLINE_AMQP_URL", &worker)])
            .await;
        told.exits(8).shows("refused");
        let mut declaring = stage.ledger_worker(&[("HOPLINE_AMQP_URL", &worker)]);
        until_said(&declaring, "ACCESS_REFUSED").await;
        declaring.kill9();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_declares_nothing_says_when_nothing_is_there() {
    place(async |place| {
        let stage: Stage = place.stage();
        let mut worker = stage.ledger_worker(&[("HOPLINE_AMQP_DECLARE", "false")]);
        until_said(&worker, "hopline topology apply").await;
        assert_eq!(objects(place).await, BTreeSet::new());
        // It waits, and goes on when somebody has made it.
        place.run(&["topology", "apply"], &[]).await.exits(0);
        worker.until_logged("caught up with the control log", "kinds=").await;
        worker.stop().await;
    })
    .await;
}

async fn until_said(process: &Process, text: &str) {
    eventually(&format!("{text} in the log"), async || process.log().contains(text).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn logins_need_a_place_for_their_passwords() {
    place(async |place| {
        let applied = place.run(&["topology", "apply", "--users", "--json"], &[]).await.exits(8);
        let user = format!("{}-http", place.prefix);
        assert!(item_of(&applied, &user)["detail"].as_str().expect("words").contains("--credentials"));
        let (status, _) = place.rabbit.ask(Method::GET, &format!("users/{user}"), None).await;
        assert_eq!(status, 404);
        place.run_by_amqp(&["topology", "apply", "--users", "--credentials", "x"]).await.exits(2);
    })
    .await;
}
