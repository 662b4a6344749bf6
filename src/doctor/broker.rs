//! Reaching the broker by AMQP, and what the login may do there.

use super::Finding;
use crate::{
    amqp::{
        Names,
        probe::{self, Act, ConnectError, Probe, Refusal},
    },
    config::Config,
    job::JobId,
    setup::rights::{self, Role},
};

/// Connects; says why not, and what answers.
pub(super) async fn reach(config: &Config, findings: &mut Vec<Finding>) -> Option<Probe> {
    let shown = config.amqp.url.to_string();
    let version = match probe::greet(&config.amqp).await {
        Ok(version) => version,
        Err(error) => {
            findings.push(unreached(&error));
            findings.push(Finding::skip("version", "nobody could be asked"));
            return None;
        }
    };
    let probe = match Probe::connect(&config.amqp, "hopline doctor").await {
        Ok(probe) => {
            findings.push(Finding::ok("broker", format!("{shown} lets us in")));
            Some(probe)
        }
        Err(error) => {
            findings.push(unreached(&error));
            None
        }
    };
    findings.push(match version {
        None => Finding::skip("version", "over TLS the broker does not say it; see `management`"),
        Some(version) => match version.check() {
            Ok(()) => Finding::ok("version", format!("{} {}", version.product, version.version)),
            Err(why) => Finding::fail("version", why, "upgrade the broker: docs/upgrading.md"),
        },
    });
    probe
}

fn unreached(error: &ConnectError) -> Finding {
    let mend = match error {
        ConnectError::Address(_) => "set amqp.url (HOPLINE_AMQP_URL): amqp://USER:PASSWORD@HOST:PORT/VHOST",
        ConnectError::Name { .. } => "check the host in amqp.url, and the name service",
        ConnectError::Unreachable { .. } => {
            "start the broker, or check host, port and firewall; its log says where it listens"
        }
        ConnectError::Protocol { .. } => {
            "check scheme and port of amqp.url: usually 5672 is amqp, 5671 is amqps"
        }
        ConnectError::Tls { .. } => {
            "check that its certificate is for this host name and signed by an authority that this machine trusts or amqp.ca \
             names; if it asks for a certificate, amqp.client_cert and amqp.client_key"
        }
        ConnectError::Login { .. } => {
            "check user and password in amqp.url (what is special in them is percent-encoded). `guest` may log in from the \
             broker's machine only"
        }
        ConnectError::VirtualHost { .. } => {
            "check the path of amqp.url; rabbitmqctl list_vhosts, rabbitmqctl set_permissions -p VHOST USER …"
        }
        ConnectError::Other { .. } => "see the broker's log",
    };
    Finding::fail("broker", error.to_string(), mend)
}

/// Tries each right that a process of this role needs.
pub(super) async fn permissions(config: &Config, names: &Names, role: Role, probe: &Probe) -> Finding {
    if role == Role::Reader {
        return Finding::skip("permissions", "a reader needs no right by AMQP");
    }
    let tag = format!("doctor-{}", &JobId::new().to_string()[24..]);
    let mut queues = config.amqp.queues.clone();
    if role == Role::Http {
        queues.push(names.acts());
        queues.extend((!config.callbacks.secret.is_empty()).then(|| names.callbacks()));
    }
    let acts = rights::needed(names, &queues, role, config.amqp.declare, &tag);
    let (mut refused, mut absent, mut odd) = (Vec::new(), 0_usize, Vec::new());
    for act in &acts {
        match probe.may(act).await {
            // What is there and differs, the topology's check tells.
            Ok(()) | Err(Refusal::Differs(_)) => {}
            Err(Refusal::Missing) => absent += 1,
            Err(Refusal::Forbidden(words)) => refused.push(format!("{}: {words}", asked(act))),
            Err(Refusal::Other(words)) => odd.push(format!("{}: {words}", asked(act))),
        }
    }
    let role_name = if role == Role::Http { "n HTTP front" } else { " worker" };
    if let Some(first) = refused.first() {
        let found =
            format!("{} of {} rights of a{role_name} are refused, as {first}", refused.len(), acts.len());
        let mend = "hopline topology plan --users shows the patterns; rabbitmqctl set_permissions gives them";
        return Finding::fail("permissions", found, mend);
    }
    if let Some(first) = odd.first() {
        return Finding::warn(
            "permissions",
            format!("could not be tried, as {first}"),
            "see the broker's log",
        );
    }
    let rest = if absent > 0 {
        format!("; {absent} could not be tried, as nothing is there yet")
    } else {
        String::new()
    };
    Finding::ok(
        "permissions",
        format!("what a{role_name} needs is allowed ({} acts tried){rest}", acts.len() - absent),
    )
}

fn asked(act: &Act) -> String {
    match act {
        Act::Configure(name) => format!("configure {name}"),
        Act::Declare(object) => format!("declare {}", crate::setup::compare::called(object).1),
        Act::Write { exchange, .. } => format!("write to {exchange}"),
        Act::Read(queue) => format!("read {queue}"),
        Act::Bind { exchange, .. } => format!("bind to {exchange}"),
        Act::BindAs { binding, .. } => format!("bind {}", crate::setup::compare::called(binding).1),
    }
}
