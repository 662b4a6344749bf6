//! An operator at the command line of the commands that ask the broker itself, with a virtual host of the test's own.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use hopline::JobId;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    process::Command,
    time::timeout,
};

use super::{
    broker::Broker,
    eventually,
    process::{PATIENCE, Stage, folder, hopline},
    rabbit::Rabbit,
};

/// How a command ended, and what it said.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    /// Checks the exit code.
    pub(crate) fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{}\n{}", self.out, self.err);
        self
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub(crate) fn shows(&self, text: &str) -> &Self {
        assert!(self.out.contains(text), "no {text:?} in {}", self.out);
        self
    }
}

/// A virtual host of one test, with the default prefix's topology or none.
pub(crate) struct Place {
    pub(crate) rabbit: Rabbit,
    /// Of the virtual host.
    pub(crate) broker: Broker,
    pub(crate) vhost: String,
    pub(crate) prefix: String,
    pub(crate) dir: PathBuf,
}

/// Plays a test at a place of its own, and takes it away however it ends.
pub(crate) async fn place(test: impl AsyncFnOnce(&Place)) {
    use futures_util::FutureExt;
    let place = Place::new().await;
    let played = std::panic::AssertUnwindSafe(test(&place)).catch_unwind().await;
    place.clear().await;
    if let Err(panic) = played {
        std::panic::resume_unwind(panic);
    }
}

impl Place {
    async fn new() -> Self {
        let rabbit = Rabbit::new();
        let name = format!("hlt{}", &JobId::new().to_string()[24..]);
        rabbit.done(Method::PUT, &format!("vhosts/{name}"), Some(json!({}))).await;
        let all = json!({"configure": ".*", "write": ".*", "read": ".*"});
        let user = rabbit.user();
        rabbit.done(Method::PUT, &format!("permissions/{name}/{user}"), Some(all)).await;
        let base = rabbit.url.trim_end_matches("/%2f").trim_end_matches("/%2F").trim_end_matches('/');
        let broker = Broker { amqp: format!("{base}/{name}"), management: rabbit.management().to_owned() };
        Self { broker, vhost: name.clone(), prefix: name.clone(), dir: folder(&name), rabbit }
    }

    async fn clear(self) {
        self.rabbit.ask(Method::DELETE, &format!("vhosts/{}", self.vhost), None).await;
        for role in ["http", "worker", "reader", "other"] {
            self.rabbit.ask(Method::DELETE, &format!("users/{}-{role}", self.prefix), None).await;
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }

    /// The name of one of our objects.
    pub(crate) fn named(&self, name: &str) -> String {
        format!("{}.{name}", self.prefix)
    }

    /// Processes of the test's own at this place; they leave its folder alone.
    pub(crate) fn stage(&self) -> Stage {
        let dir = self.dir.join("processes");
        std::fs::create_dir_all(&dir).expect("a folder");
        Stage::at(self.broker.clone(), self.prefix.clone(), "media".to_owned(), dir)
    }

    /// Runs `hopline` with the broker's addresses in its environment, and more.
    pub(crate) async fn run(&self, words: &[&str], variables: &[(&str, &str)]) -> Ran {
        let mut command = self.command(&hopline());
        command.env("HOPLINE_MANAGEMENT_URL", &self.broker.management).args(words);
        command.envs(variables.iter().copied());
        ran(command).await
    }

    /// As [`Place::run`], without the management API.
    pub(crate) async fn run_by_amqp(&self, words: &[&str]) -> Ran {
        let mut command = self.command(&hopline());
        command.args(words);
        ran(command).await
    }

    /// As [`Place::run_by_amqp`], with variables.
    pub(crate) async fn run_by_login(&self, words: &[&str], variables: &[(&str, &str)]) -> Ran {
        let mut command = self.command(&hopline());
        command.args(words).envs(variables.iter().copied());
        ran(command).await
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        for (name, _) in
            std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("HOPLINE_"))
        {
            command.env_remove(name);
        }
        command
            .current_dir(&self.dir)
            .env("HOPLINE_AMQP_URL", &self.broker.amqp)
            .env("HOPLINE_AMQP_PREFIX", &self.prefix)
            .env("HOPLINE_AMQP_QUEUES", "media");
        command
    }

    /// Asks the management API; `{vhost}` is this one.
    pub(crate) async fn manage(&self, method: Method, path: &str, body: Option<Value>) -> Value {
        self.rabbit.done(method, &path.replace("{vhost}", &self.vhost), body).await
    }

    /// Sets a policy on one queue, and waits until it holds.
    pub(crate) async fn policy(&self, name: &str, queue: &str, definition: Value) {
        let pattern = format!("^{}$", self.named(queue).replace('.', "\\."));
        let rule =
            json!({"pattern": pattern, "apply-to": "queues", "priority": 99, "definition": definition});
        self.manage(Method::PUT, &format!("policies/{{vhost}}/{name}"), Some(rule)).await;
        let path = format!("queues/{{vhost}}/{}", self.named(queue));
        eventually("the policy holds", async || {
            (self.manage(Method::GET, &path, None).await["policy"] == name).then_some(())
        })
        .await;
    }

    /// Makes a user of this test with these rights here; the broker's address for it.
    pub(crate) async fn user(&self, rights: [&str; 3], tags: &str) -> String {
        let name = format!("{}-other", self.prefix);
        let user = json!({"password": "secret", "tags": tags});
        self.manage(Method::PUT, &format!("users/{name}"), Some(user)).await;
        let [configure, write, read] = rights;
        let rights = json!({"configure": configure, "write": write, "read": read});
        self.manage(Method::PUT, &format!("permissions/{{vhost}}/{name}"), Some(rights)).await;
        self.address(&name, "secret")
    }

    /// The broker's address with another login.
    pub(crate) fn address(&self, user: &str, password: &str) -> String {
        let host = self.broker.amqp.rsplit_once('@').expect("a login").1;
        format!("amqp://{user}:{password}@{host}")
    }
}

async fn ran(mut command: Command) -> Ran {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let output = timeout(PATIENCE, command.output()).await.expect("it ends").expect("a process");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    Ran { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

/// A management API that tells of another broker than there is: what it says at a path is changed on the way.
/// Returns its address, with the login.
pub(crate) async fn lying(
    broker: &Broker,
    date: Option<&'static str>,
    change: impl Fn(&str, &mut Value) + Send + Sync + 'static,
) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let (scheme, rest) = broker.management.split_once("://").expect("an address");
    let (login, host) = rest.rsplit_once('@').expect("a login");
    let (target, lie) = (format!("{scheme}://{login}@{host}"), format!("http://{login}@{address}"));
    tokio::spawn(async move {
        let http = reqwest::Client::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            let mut bytes = [0; 1024];
            while !head.windows(4).any(|end| end == b"\r\n\r\n") {
                match stream.read(&mut bytes).await {
                    Ok(count) if count > 0 => head.extend_from_slice(&bytes[..count]),
                    _ => break,
                }
            }
            let head = String::from_utf8_lossy(&head).into_owned();
            let Some(path) = head.split_whitespace().nth(1) else { continue };
            let answer = http.get(format!("{target}{path}")).send().await.expect("the broker's own answer");
            let now = answer.headers()["date"].to_str().expect("text").to_owned();
            let status = answer.status().as_u16();
            let mut body: Value = answer.json().await.unwrap_or_default();
            change(path, &mut body);
            let (body, date) = (body.to_string(), date.map_or(now, str::to_owned));
            let answer = format!(
                "HTTP/1.1 {status} Answer\r\ndate: {date}\r\ncontent-type: application/json\r\n\
                 content-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            );
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    lie
}
