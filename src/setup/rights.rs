//! What each kind of process must be allowed on the broker: RabbitMQ's three patterns, and what to try. Pure.
//!
//! Where processes declare (`amqp.declare`), that takes configure, write and read on everything of the prefix: who binds
//! a queue must be allowed to write to it, and who names a dead-letter exchange, to write there. Where they do not, it is
//! little. RabbitMQ looks at exact names, so patterns have both ends.

use serde::Serialize;

use crate::{
    amqp::{
        Names,
        probe::Act,
        topology::{Object, Plan},
    },
    job::QueueName,
};

/// A kind of process, or of person.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    /// `hopline serve`.
    Http,
    /// A worker.
    Worker,
    /// Somebody who looks: the management UI, `hopline doctor`.
    Reader,
}

impl Role {
    pub(crate) const ALL: [Self; 3] = [Self::Http, Self::Worker, Self::Reader];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Worker => "worker",
            Self::Reader => "reader",
        }
    }
}

/// A login: RabbitMQ's three patterns for one virtual host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Login {
    pub(crate) name: String,
    pub(crate) role: Role,
    pub(crate) tags: &'static str,
    pub(crate) configure: String,
    pub(crate) write: String,
    pub(crate) read: String,
}

/// Nothing at all.
const NOTHING: &str = "^$";
/// Exchanges that every process publishes to.
const PUBLISHED: [&str; 7] = ["direct", "jobs", "dead", "control", "record", "events", "replies"];

/// The logins of a prefix.
pub(crate) fn logins(names: &Names, declares: bool) -> Vec<Login> {
    Role::ALL.map(|role| login(names, role, declares)).into()
}

fn login(names: &Names, role: Role, declares: bool) -> Login {
    let prefixes = names.prefixes();
    let prefix = prefixes[0];
    let all = match prefixes[..] {
        [one] => format!("^{one}\\."),
        _ => format!("^({})\\.", prefixes.join("|")),
    };
    let (configure, write, read) = match role {
        // The tag alone shows queues and rates. To read is to take messages, and to purge.
        Role::Reader => [NOTHING; 3].map(str::to_owned).into(),
        _ if declares => (all.clone(), all.clone(), all),
        Role::Http => (
            own(prefix, &["replies\\..+", "heartbeats\\..+", "pass\\..+"]),
            publishing(&prefixes, &["replies\\..+", "heartbeats\\..+"]),
            own(
                prefix,
                &[
                    "q\\..+",
                    "log",
                    "control\\.log",
                    "lookup",
                    "strays",
                    "replies(\\..+)?",
                    "events",
                    "heartbeats\\..+",
                    "pass\\..+",
                ],
            ),
        ),
        Role::Worker => (
            own(prefix, &["replies\\..+"]),
            publishing(&prefixes, &["replies\\..+"]),
            // A work queue's name has no dot, its dead-letter queue's has one.
            own(prefix, &["q\\.[^.]+", "control\\.log", "replies(\\..+)?"]),
        ),
    };
    let tags = if role == Role::Reader { "monitoring" } else { "" };
    Login { name: format!("{prefix}-{}", role.name()), role, tags, configure, write, read }
}

fn own(prefix: &str, parts: &[&str]) -> String {
    format!("^{prefix}\\.({})$", parts.join("|"))
}

/// What every process publishes to, `more`, and the ladder.
fn publishing(prefixes: &[&str], more: &[&str]) -> String {
    let mut parts: Vec<&str> = PUBLISHED.iter().chain(more).copied().collect();
    match prefixes {
        [prefix, ladder] => {
            format!("{}|^{ladder}\\.delay\\.[0-9]+$", own(prefix, &parts))
        }
        _ => {
            parts.push("delay\\.[0-9]+");
            own(prefixes[0], &parts)
        }
    }
}

/// What a process of this role must be allowed, each as something that can be tried. `tag` makes names of one's own.
pub(crate) fn needed(names: &Names, queues: &[QueueName], role: Role, declares: bool, tag: &str) -> Vec<Act> {
    let reply = names.reply_queue(tag, 1);
    let mut acts = Vec::new();
    if role == Role::Reader {
        return acts;
    }
    acts.push(Act::Configure(reply.clone()));
    acts.push(Act::Bind { own: reply.clone(), exchange: names.replies() });
    let published = [
        names.direct(),
        names.jobs(),
        names.dead(),
        names.control(),
        names.record(),
        names.events(),
        names.replies(),
        names.delay(0),
    ];
    acts.extend(published.map(|exchange| Act::Write { own: reply.clone(), exchange }));
    let mut read = vec![names.control_log()];
    read.extend(queues.iter().map(|queue| names.queue(queue)));
    if role == Role::Http {
        let heard = names.heartbeat_queue(tag, 1);
        acts.push(Act::Bind { own: heard, exchange: names.events() });
        acts.push(Act::Configure(format!("{}-{tag}", names.pass_lock(&names.acts()))));
        read.extend([names.log(), names.lookup(), names.strays()]);
        read.extend(queues.iter().map(|queue| names.dead_queue(queue)));
    }
    acts.extend(read.into_iter().map(Act::Read));
    if declares {
        let plan = Plan { names: names.clone(), queues: queues.to_vec(), declares };
        let other = |object| match object {
            Object::Exchange { .. } | Object::Queue { .. } => Act::Declare(object),
            // A binding takes writing to the one end and reading from the other, which declaring them does not.
            Object::Bound { .. } | Object::Passes { .. } => {
                Act::BindAs { binding: object, other: reply.clone() }
            }
        };
        acts.extend(plan.objects().into_iter().map(other));
    }
    acts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_that_declare_nothing_need_little() {
        let narrow = logins(&Names::new("hopline", ""), false);
        let [http, worker, reader] = &narrow[..] else { panic!("{narrow:?}") };
        assert_eq!(worker.configure, "^hopline\\.(replies\\..+)$");
        assert_eq!(
            worker.write,
            "^hopline\\.(direct|jobs|dead|control|record|events|replies|replies\\..+|delay\\.[0-9]+)$"
        );
        assert_eq!(worker.read, "^hopline\\.(q\\.[^.]+|control\\.log|replies(\\..+)?)$");
        assert!(http.read.contains("log|") && http.read.contains("strays"), "{http:?}");
        assert_eq!([&reader.configure, &reader.write, &reader.read], ["^$"; 3], "to read is to purge, too");
        assert_eq!(reader.tags, "monitoring");
        let shared = logins(&Names::new("a", "b"), false);
        assert!(shared[1].write.ends_with(")$|^b\\.delay\\.[0-9]+$"), "{}", shared[1].write);
    }

    #[test]
    fn services_that_declare_have_what_the_shipped_definitions_give_them() {
        let definitions: serde_json::Value =
            serde_json::from_str(include_str!("../../config/definitions.json")).unwrap();
        for login in logins(&Names::new("hopline", ""), true) {
            if login.role == Role::Reader {
                continue;
            }
            let shipped = definitions["permissions"].as_array().unwrap();
            let shipped = shipped.iter().find(|one| one["user"] == login.name.as_str()).unwrap();
            for (right, ours) in
                [("configure", &login.configure), ("write", &login.write), ("read", &login.read)]
            {
                assert_eq!(shipped[right], ours.as_str(), "{} {right}", login.name);
            }
        }
        assert_eq!(logins(&Names::new("a", "b"), true)[0].read, "^(a|b)\\.");
    }
}
