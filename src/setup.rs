//! What the broker is to have, and making it: exchanges, queues and bindings as [`crate::amqp::topology`] describes them,
//! policies, and on request the logins of the processes.
//!
//! Makes what is missing. Never deletes, and never touches what is there and differs: what to do then is said.
//!
//! | module | owns |
//! |---|---|
//! | [`found`] | what a broker has, as its management API tells it |
//! | [`compare`] | what is missing, the same, different, foreign. Pure |
//! | [`policies`] | the policies that we make. Pure |
//! | [`rights`] | what each kind of process must be allowed. Pure |
//! | [`users`] | logins: looking and making |

pub(crate) mod compare;
pub(crate) mod found;
pub(crate) mod policies;
pub(crate) mod rights;
pub(crate) mod users;

use std::collections::BTreeSet;

use serde::Serialize;

use self::{compare::Wanted, found::Found};
use crate::{
    amqp::{
        Names,
        probe::{Probe, Refusal},
        topology::{Object, Plan},
    },
    config::Config,
    job::QueueName,
    management::{Management, ManagementError},
};

/// How something on the broker stands to what we want.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    /// Just so.
    Same,
    /// It is there; whether it is the same cannot be told.
    Exists,
    /// It cannot be told.
    Unknown,
    /// Not ours, and bound to ours.
    Foreign,
    /// It is there, somebody has made something else of it, and may.
    Kept,
    /// Not there.
    Missing,
    /// It was missing, and has been made.
    Made,
    /// There, and other than we need it: it cannot be changed.
    Different,
    /// It could not be made.
    Failed,
}

/// One object, and what is to be said of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Item {
    pub(crate) object: &'static str,
    pub(crate) name: String,
    pub(crate) state: State,
    /// What is seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) detail: Option<String>,
    /// What a person has to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) to_do: Option<String>,
}

impl Item {
    pub(crate) fn new(object: &'static str, name: impl Into<String>, state: State) -> Self {
        Self { object, name: name.into(), state, detail: None, to_do: None }
    }

    pub(crate) fn because(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    pub(crate) fn advise(mut self, to_do: impl Into<String>) -> Self {
        self.to_do = Some(to_do.into());
        self
    }
}

/// What is wanted, by a configuration and what the broker shows of work queues.
pub(crate) struct Setup {
    pub(crate) names: Names,
    objects: Vec<Object>,
}

impl Setup {
    /// What the configuration, and `more` queues, ask for; and the company of each work queue that is `found`.
    pub(crate) fn new(config: &Config, more: &[QueueName], found: Option<&Found>) -> Self {
        let names = Names::new(&config.amqp.prefix, &config.amqp.ladder_prefix);
        let mut queues: BTreeSet<QueueName> = config.amqp.queues.iter().chain(more).cloned().collect();
        queues.extend([names.acts(), names.callbacks()]);
        queues.extend(found.into_iter().flat_map(|found| found.work_queues(&names)));
        let plan = Plan { names: names.clone(), queues: queues.into_iter().collect(), declares: true };
        Self { names, objects: plan.objects() }
    }

    /// Compares all of it with what the broker has.
    pub(crate) fn compare(&self, found: &Found) -> Vec<Item> {
        let wanted = Wanted { names: &self.names, objects: &self.objects };
        let mut items = compare::objects(&wanted, found);
        items.extend(policies::compare(&policies::wanted(&self.names), &found.policies));
        items.extend(compare::foreign(&wanted, found));
        items
    }

    /// What AMQP alone can tell: what is there by name.
    pub(crate) async fn look(&self, probe: &Probe) -> Vec<Item> {
        let mut items = Vec::new();
        for object in &self.objects {
            let (kind, name) = compare::called(object);
            let item = match object {
                Object::Bound { .. } | Object::Passes { .. } => Item::new(kind, name, State::Unknown),
                _ => match probe.look(object).await {
                    Ok(()) => Item::new(kind, name, State::Exists),
                    Err(Refusal::Missing) => Item::new(kind, name, State::Missing),
                    Err(refusal) => Item::new(kind, name, State::Unknown).because(refusal.to_string()),
                },
            };
            items.push(item);
        }
        for policy in policies::wanted(&self.names) {
            items.push(Item::new("policy", policy.name, State::Unknown));
        }
        items
    }

    /// Makes what `items`, which are those of a comparison of this, call missing or cannot tell.
    pub(crate) async fn apply(&self, probe: &Probe, management: Option<&Management>, items: &mut [Item]) {
        // What is there and different is left alone, its bindings too.
        let mut differing: BTreeSet<String> = BTreeSet::new();
        for object in &self.objects {
            let (kind, name) = compare::called(object);
            let Some(item) = items.iter_mut().find(|item| item.object == kind && item.name == name) else {
                continue;
            };
            if item.state == State::Different {
                differing.insert(name.clone());
            }
            if !matches!(item.state, State::Missing | State::Exists | State::Unknown) {
                continue;
            }
            let ends = compare::ends(object);
            if let Some(end) = ends.iter().find(|end| differing.contains(**end)) {
                *item = Item::new(kind, name, State::Failed)
                    .because(format!("not made: {end} differs"))
                    .advise(format!("mend {end} first, then apply once more"));
                continue;
            }
            let known = item.state == State::Missing;
            *item = match probe.declare(object).await {
                Ok(()) if known => Item::new(kind, name, State::Made),
                // Made, or there just so: AMQP does not say which.
                Ok(()) => Item::new(kind, name, State::Same),
                Err(Refusal::Differs(words)) => {
                    differing.insert(name.clone());
                    let item = Item::new(kind, name, State::Different).because(words);
                    item.advise(compare::mend(object, &self.names))
                }
                Err(refusal) => Item::new(kind, name, State::Failed).because(refusal.to_string()),
            };
        }
        let Some(management) = management else { return };
        for policy in policies::wanted(&self.names) {
            let missing = |item: &&mut Item| item.object == "policy" && item.name == policy.name;
            let Some(item) = items.iter_mut().find(missing).filter(|item| item.state == State::Missing)
            else {
                continue;
            };
            match policies::make(management, &policy).await {
                Ok(()) => item.state = State::Made,
                Err(error) => {
                    item.state = State::Failed;
                    item.detail = Some(error.to_string());
                }
            }
        }
    }
}

/// Reads all of the broker that has to do with this prefix.
pub(crate) async fn survey(config: &Config, management: &Management) -> Result<Found, ManagementError> {
    Found::read(management, &Names::new(&config.amqp.prefix, &config.amqp.ladder_prefix)).await
}
