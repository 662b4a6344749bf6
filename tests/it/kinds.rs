//! Kinds that describe themselves: what workers announce, and what the front makes of it.

use std::time::Duration;

use hopline::{
    Context, Job, JobResult, Kind, Options, Schemas, Worker,
    schemars::{self, JsonSchema},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::support::{
    eventually,
    front::Front,
    stage::{Stage, Working, stage},
};

/// The first version of a kind.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Resize {
    /// In pixels.
    #[schemars(range(min = 1))]
    width: u32,
}

impl Job for Resize {
    const KIND: &'static str = "test.resize";
    const ALIASES: &'static [&'static str] = &["test.shrink"];
    type Output = String;

    fn schemas() -> Schemas {
        Schemas::of::<Self>()
    }
}

/// The second, which no args of the first fit.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ResizeTo {
    size: [u32; 2],
}

impl Job for ResizeTo {
    const KIND: &'static str = Resize::KIND;
    type Output = String;

    fn schemas() -> Schemas {
        Schemas::of::<Self>()
    }
}

/// One that says nothing of its args.
#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct Anything(Value);

impl Job for Anything {
    const KIND: &'static str = Resize::KIND;
    type Output = Value;
}

async fn resize(job: Resize, _cx: Context) -> JobResult<String> {
    Ok(format!("{} wide", job.width))
}

async fn resize_to(job: ResizeTo, _cx: Context) -> JobResult<String> {
    Ok(format!("{:?}", job.size))
}

async fn anything(job: Anything, _cx: Context) -> JobResult<Value> {
    Ok(job.0)
}

fn options(stage: &Stage) -> Options {
    Options::new().queue(stage.queue.to_string()).timeout(Duration::from_secs(60)).max_attempts(1)
}

fn first(stage: &Stage) -> Working {
    stage.work(Worker::new(stage.config.clone()).register_with(resize, options(stage).private()))
}

fn second(stage: &Stage) -> Working {
    stage.work(
        Worker::new(stage.config.clone())
            .register_with(resize_to, options(stage).deprecated("use test.crop")),
    )
}

/// Waits until so many schemas are told of the kind: all of them.
async fn wait_schemas(front: &Front, count: usize) -> Value {
    eventually(&format!("{count} schemas"), async || {
        let kinds = front.get("/v1/kinds").await.json();
        let found = kinds["items"].as_array()?.iter().find(|kind| kind["kind"] == Resize::KIND)?.clone();
        (found["schemas"].as_array().map_or(0, Vec::len) == count).then_some(found)
    })
    .await
}

/// What is wrong with a submit of these args; nothing: it was accepted.
async fn wrong(front: &Front, args: &Value) -> Vec<(String, String)> {
    let answer = front.post("/v1/jobs", json!({ "kind": Resize::KIND, "args": args }).to_string()).await;
    if answer.status == 202 {
        return Vec::new();
    }
    let problem = answer.problem(422, "invalid_request");
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let errors = problem["errors"].as_array().expect("errors").iter();
    errors.map(|error| (text(&error["pointer"]), text(&error["detail"]))).collect()
}

#[tokio::test]
async fn args_are_checked_by_what_the_worker_says() {
    stage(async |stage| {
        let front = stage.front().await;
        let (wide, narrow) = (json!({ "width": 5 }), json!({ "width": 0 }));
        // A kind that nobody has announced.
        let unknown = json!({ "kind": Resize::KIND, "queue": stage.queue, "args": narrow }).to_string();
        front.submit(unknown).await;
        let worker = first(stage);
        let kind = wait_schemas(&front, 1).await;
        assert_eq!(
            (&kind["private"], &kind["timeout"], &kind["max_attempts"]),
            (&json!(true), &json!(60.0), &json!(1))
        );
        assert_eq!(kind["schemas"][0]["args"]["properties"]["width"]["description"], "In pixels.");
        assert_eq!(kind["schemas"][0]["output"]["type"], "string");
        let at = |at: &str, detail: &str| vec![(at.to_owned(), detail.to_owned())];
        assert_eq!(wrong(&front, &narrow).await, at("/args/width", "is less than the minimum of 1"));
        assert_eq!(wrong(&front, &json!({})).await, at("/args/width", "is missing"));
        // What workers of another queue take, these do not know.
        let elsewhere = json!({ "kind": Resize::KIND, "queue": "elsewhere", "args": narrow }).to_string();
        let answer = front.post("/v1/jobs", elsewhere).await;
        assert!(answer.status == 202 || answer.json()["code"] != "invalid_request", "{answer:?}");
        assert_eq!(front.call(Resize::KIND, &wide.to_string()).await, "\"5 wide\"");
        let called =
            front.post("/v1/rpc/test.shrink", narrow.to_string()).await.problem(422, "invalid_request");
        assert_eq!(called["errors"][0]["pointer"], "/width", "by its earlier name, too");
        let batch = json!([
            { "kind": Resize::KIND, "args": wide },
            { "kind": Resize::KIND, "args": narrow, "idempotency_key": "k" },
        ]);
        let answer = front.post("/v1/jobs/batch", batch.to_string()).await;
        assert_eq!((answer.status, &answer.json()["accepted"]), (202, &json!(1)), "{answer:?}");
        assert_eq!(answer.json()["items"][1]["error"]["errors"][0]["pointer"], "/args/width");

        // A repeat is answered as the first request was, whatever the schema says now.
        let repeated = json!({ "kind": Resize::KIND, "args": wide, "delay": "1h" }).to_string();
        let keyed = || front.request("/v1/jobs", repeated.clone()).header("idempotency-key", "again");
        front.send(keyed()).await.accepted();
        let next = second(stage);
        wait_schemas(&front, 2).await;
        worker.stop().await;
        wait_schemas(&front, 1).await;
        let mut told = wrong(&front, &wide).await;
        told.sort();
        let missing = at("/args/size", "is missing").into_iter();
        assert_eq!(told, missing.chain(at("/args/width", "is unknown; known are size")).collect::<Vec<_>>());
        assert_eq!(front.send(keyed()).await.status, 200);
        next.stop().await;
        // Nobody is there: what was said last.
        let kind = eventually("its farewell is read", async || {
            let kind = wait_schemas(&front, 1).await;
            (kind["workers"] == json!([])).then_some(kind)
        })
        .await;
        assert_eq!(kind["deprecated"], "use test.crop");
        assert!(!wrong(&front, &wide).await.is_empty());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_args_of_a_replay_are_checked_where_its_kind_is_known() {
    stage(async |stage| {
        let front = stage.front().await;
        let _acting = stage.act(&front, &stage.config);
        // Before its kind is announced anything is taken.
        let job = json!({ "kind": Resize::KIND, "queue": stage.queue, "args": { "width": "wide" } });
        let id = front.submit(job.to_string()).await;
        let _worker = first(stage);
        wait_schemas(&front, 1).await;
        assert_eq!(front.settled(&id).await["status"], "dead");
        let groups = front.get(&format!("/v1/queues/{}/dead/groups", stage.queue)).await.json();
        let fingerprint = &groups["items"][0]["fingerprint"];
        let (one, many) =
            (format!("/v1/jobs/{id}/replay"), format!("/v1/queues/{}/dead/replay", stage.queue));
        let order = |more: Value, width: u32| {
            let mut order = json!({ "set": { "args": { "width": width } } });
            order.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
            order.to_string()
        };
        for (path, more) in [
            (one.as_str(), json!({})),
            (&many, json!({ "kind": Resize::KIND })),
            (&many, json!({ "fingerprint": fingerprint, "dry_run": true })),
            ("/v1/jobs/replay", json!({ "filter": { "kind": Resize::KIND } })),
            ("/v1/jobs/replay", json!({ "filter": { "fingerprint": fingerprint } })),
        ] {
            let problem = front.post(path, order(more, 0)).await.problem(422, "invalid_request");
            let told = json!([{ "pointer": "/set/args/width", "detail": "is less than the minimum of 1" }]);
            assert_eq!(problem["errors"], told, "{path}");
        }
        // Jobs that are named by id may be of any kind.
        let named = front.post("/v1/jobs/replay", order(json!({ "ids": [id], "dry_run": true }), 0)).await;
        assert_eq!((named.status, named.json()), (200, json!({ "matched": 1 })));
        let job = front.get(&format!("/v1/jobs/{id}")).await.json();
        assert_eq!((&job["status"], &job["run"]), (&json!("dead"), &json!(1)), "nothing was ordered");
        let done = front.acted(front.post(&one, order(json!({}), 5)).await).await;
        assert_eq!(done["done"], 1, "{done}");
        assert_eq!(front.settled(&id).await["run"], 2);
    })
    .await;
}

#[tokio::test]
async fn while_two_versions_run_what_either_takes_is_accepted() {
    stage(async |stage| {
        let front = stage.front().await;
        let old = first(stage);
        wait_schemas(&front, 1).await;
        let new = second(stage);
        let kind = wait_schemas(&front, 2).await;
        assert!(kind["schemas"][0]["args"]["properties"]["size"].is_object(), "the newest first: {kind}");
        for good in [json!({ "width": 5 }), json!({ "size": [1, 2] })] {
            assert_eq!(wrong(&front, &good).await, [], "{good}");
        }
        assert_eq!(wrong(&front, &json!({ "size": 1 })).await.len(), 1);
        // A front that starts now finds both.
        let late = stage.front().await;
        assert_eq!(wrong(&late, &json!({ "width": 5 })).await, []);
        assert!(!wrong(&late, &json!({})).await.is_empty());
        // The deploy is rolled back.
        new.stop().await;
        let kind = wait_schemas(&front, 1).await;
        assert!(kind["schemas"][0]["args"]["properties"]["width"].is_object(), "{kind}");
        assert!(!wrong(&front, &json!({ "size": [1, 2] })).await.is_empty());
        // One that takes anything joins.
        let loose = stage.work(Worker::new(stage.config.clone()).register_with(anything, options(stage)));
        wait_schemas(&front, 2).await;
        assert_eq!(wrong(&front, &json!([])).await, []);
        old.stop().await;
        loose.stop().await;
    })
    .await;
}

#[tokio::test]
async fn what_a_foreign_worker_announces_is_taken_as_far_as_it_can_be_read() {
    stage(async |stage| {
        let front = stage.front().await;
        let entry = |kind: &str, more: Value| {
            let mut entry = json!({ "kind": kind, "queue": stage.queue });
            entry.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
            entry
        };
        let kinds = [
            entry(
                "good.kind",
                json!({ "args_schema": { "type": "string" }, "timeout_ms": 1500, "later": 1 }),
            ),
            entry("no.schema", json!({ "args_schema": { "type": "nonsense" } })),
            entry("no.object", json!({ "args_schema": 7, "max_attempts": "x", "retry": [] })),
            entry("too.long", json!({ "args_schema": { "description": "x".repeat(70_000) } })),
            entry("end.less", json!({ "args_schema": { "$ref": "#" } })),
        ];
        stage
            .write_control("hopline.kinds", "kinds.w", &json!({ "worker": "w", "kinds": kinds }).to_string())
            .await;
        let good = Kind::parse("good.kind").expect("a kind");
        eventually("the kinds are known", async || (!front.client.schemas(&good).is_empty()).then_some(()))
            .await;
        for kind in &kinds {
            let name = kind["kind"].as_str().expect("a name");
            let answer = front.post("/v1/jobs", json!({ "kind": name, "args": 7 }).to_string()).await;
            assert_eq!(answer.status, if name == "good.kind" { 422 } else { 202 }, "{name}: {answer:?}");
        }
        let told = front.get("/v1/kinds").await.json();
        let told = told["items"].as_array().expect("items");
        assert_eq!(told.len(), kinds.len());
        let good = told.iter().find(|kind| kind["kind"] == "good.kind").expect("it");
        assert_eq!((&good["timeout"], &good["schemas"][0]["announced_by"]), (&json!(1.5), &json!(["w"])));
    })
    .await;
}
