//! Who made a request, for what depends on what it says: queues, names, scopes of idempotency keys.
//!
//! A key that is for some queues sees no other's jobs: they are not there for it. What it names itself and may not use
//! is refused.

use std::{collections::BTreeSet, future::Future, sync::Arc};

use axum::http::Extensions;
use serde::Deserialize;

use crate::{
    access::{Entry, KeyId, Keyring},
    client::Submission,
    http::{
        App,
        problem::{Code, Problem},
    },
    job::QueueName,
    record::{
        latest::Told,
        model::{Filter, JobRecord},
    },
};

/// Who made a request.
#[derive(Debug, Clone)]
pub(in crate::http) enum Caller {
    /// There are no keys: everybody may do everything.
    Anyone,
    /// Who has shown nothing. It may use no queue and sees no job.
    Nobody,
    /// Who has this key.
    Key(Arc<Entry>, Keyring),
}

static NONE: BTreeSet<QueueName> = BTreeSet::new();

impl Caller {
    /// The one that the gate has put there; without a gate, nobody.
    pub(in crate::http) fn of(extensions: &Extensions) -> Self {
        extensions.get::<Self>().cloned().unwrap_or(Self::Nobody)
    }

    /// The queues it may use; none: all.
    pub(in crate::http) fn queues(&self) -> Option<&BTreeSet<QueueName>> {
        match self {
            Self::Anyone => None,
            Self::Nobody => Some(&NONE),
            Self::Key(entry, _) => entry.queues.as_ref(),
        }
    }

    /// What keeps its idempotency keys apart from those of others.
    pub(in crate::http) fn scope(&self) -> Option<KeyId> {
        match self {
            Self::Key(entry, _) => Some(entry.id),
            Self::Anyone | Self::Nobody => None,
        }
    }

    /// The name of its key.
    pub(in crate::http) fn name(&self) -> Option<&str> {
        match self {
            Self::Key(entry, _) => Some(&entry.name),
            Self::Anyone | Self::Nobody => None,
        }
    }

    /// Who asks, for the record: the name of the key, and in parentheses who its holder says to be, which nobody has
    /// checked.
    pub(in crate::http) fn by(&self, said: Option<String>) -> Option<String> {
        match (self.name(), said) {
            (Some(name), Some(said)) => Some(format!("{name} ({said})")),
            (Some(name), None) => Some(name.to_owned()),
            (None, said) => said,
        }
    }

    /// Whether it may use a queue.
    pub(in crate::http) fn uses(&self, queue: &QueueName) -> bool {
        self.queues().is_none_or(|queues| queues.contains(queue))
    }

    /// Checks that it may use a queue that it names.
    ///
    /// # Errors
    /// The problem, when it may not.
    pub(in crate::http) fn may_use(&self, queue: &QueueName) -> Result<(), Problem> {
        if self.uses(queue) {
            return Ok(());
        }
        let name = self.name().unwrap_or_default();
        Err(Problem::new(Code::QueueForbidden, format!("the key {name} is not for queue {queue:?}")))
    }

    /// Checks that it may submit a job, and chooses the queue of one that names none. A job for a key with queues of its
    /// own stays where it was checked to be: later the kind may belong to another queue.
    ///
    /// # Errors
    /// The problem, when it may not, or it is not known yet where the job goes: a guess would be what the answer says.
    /// The spool takes such a job, and sees to it later.
    pub(in crate::http) fn check(&self, app: &App, job: &mut Submission) -> Result<(), Problem> {
        let bound = self.queues().is_some();
        if job.routed {
            if app.client.knows_kinds() {
                job.envelope.queue = app.client.queue_of(&job.envelope.kind);
            } else if bound || !app.can_spool() {
                app.route(job)?;
            }
        }
        if bound {
            self.may_use(&job.envelope.queue)?;
            job.routed = false;
        }
        Ok(())
    }

    /// Whether it sees a job: one of its queues, or an act that is about its queues alone.
    pub(in crate::http) fn sees(&self, app: &App, job: &JobRecord) -> bool {
        self.uses(&job.summary.queue) || job.summary.queue == app.acts && self.sees_act(job)
    }

    fn sees_act(&self, act: &JobRecord) -> bool {
        let args = act.args.as_ref().and_then(|args| serde_json::from_str::<About>(args.get()).ok());
        args.and_then(|args| args.queue.or(args.filter.queue)).is_some_and(|queue| self.uses(&queue))
    }

    /// Whether it sees an event: of whatever queue, or of one of its own.
    pub(in crate::http) fn sees_event(&self, event: &Told) -> bool {
        self.queues().is_none() || event.queue.as_ref().is_some_and(|queue| self.uses(queue))
    }

    /// The job, if there is one that it sees.
    ///
    /// # Errors
    /// The problem: for this caller there is no such job.
    pub(in crate::http) fn visible(&self, app: &App, job: Option<JobRecord>) -> Result<JobRecord, Problem> {
        job.filter(|job| self.sees(app, job)).ok_or_else(Problem::no_job)
    }

    /// Checks the queue that a filter names. Where it names none and the key is for one alone, it is that one.
    ///
    /// # Errors
    /// The problem, when it may not use it.
    pub(in crate::http) fn narrow(&self, queue: &mut Option<QueueName>) -> Result<(), Problem> {
        match (&queue, self.queues()) {
            (Some(queue), _) => self.may_use(queue)?,
            (None, Some(queues)) if queues.len() == 1 => *queue = queues.first().cloned(),
            (None, _) => {}
        }
        Ok(())
    }

    /// As [`Caller::narrow`], for a list, in which nothing tells of jobs in other queues.
    ///
    /// # Errors
    /// The problem, when it may not use the queue that is named.
    pub(in crate::http) fn narrow_list(&self, filter: &mut Filter) -> Result<(), Problem> {
        self.narrow(&mut filter.queue)?;
        filter.queues = self.queues().cloned();
        Ok(())
    }

    /// As [`Caller::narrow`], for what is done to all that fits: it must name the queue, or have only one.
    ///
    /// # Errors
    /// The problem, when it is not clear that it concerns no other queue.
    pub(in crate::http) fn narrow_act(&self, queue: &mut Option<QueueName>) -> Result<(), Problem> {
        self.narrow(queue)?;
        if queue.is_none() && self.queues().is_some() {
            let detail = "the key is for several queues: say which one is meant (filter.queue; with ids, all of one queue)";
            return Err(Problem::new(Code::QueueForbidden, detail));
        }
        Ok(())
    }

    /// Counts a request for more than one.
    pub(in crate::http) fn charge_more(&self, requests: usize) {
        if let Self::Key(entry, keyring) = self {
            keyring.charge_more(entry, requests);
        }
    }

    /// Completes when its key is no longer what it was; none: that does not happen.
    pub(super) fn until_changed(&self) -> Option<impl Future<Output = ()> + Send + 'static> {
        let Self::Key(entry, keyring) = self else { return None };
        let (entry, keyring) = (Arc::clone(entry), keyring.clone());
        Some(async move { keyring.until_changed(&entry).await })
    }
}

/// What the args of an act say of its queue.
#[derive(Deserialize)]
struct About {
    queue: Option<QueueName>,
    #[serde(default)]
    filter: Filter,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        access::{Scope, file_tests::Place, made},
        http::problem::Code,
    };

    fn queue(name: &str) -> QueueName {
        QueueName::parse(name).unwrap()
    }

    fn caller(queues: Option<&[&str]>) -> (Caller, Place) {
        let place = Place::new();
        let (entry, _) = made("ci", &[Scope::Read], queues);
        place.write(&[&entry]);
        (Caller::Key(Arc::new(entry), Keyring::open(place.file()).unwrap()), place)
    }

    #[test]
    fn a_key_uses_its_queues_and_no_other() {
        let (all, _place) = caller(None);
        let (one, _place) = caller(Some(&["a"]));
        let (two, _place) = caller(Some(&["a", "b"]));
        let (none, _place) = caller(Some(&[]));
        for (caller, expected) in [
            (&all, [true, true]),
            (&one, [true, false]),
            (&two, [true, true]),
            (&none, [false, false]),
            (&Caller::Anyone, [true, true]),
            (&Caller::Nobody, [false, false]),
        ] {
            assert_eq!(["a", "b"].map(|name| caller.uses(&queue(name))), expected, "{caller:?}");
            assert_eq!(["a", "b"].map(|name| caller.may_use(&queue(name)).is_ok()), expected, "{caller:?}");
        }
    }

    #[test]
    fn a_filter_is_narrowed_to_the_keys_queues() {
        let (all, _place) = caller(None);
        let (one, _place) = caller(Some(&["a"]));
        let (two, _place) = caller(Some(&["a", "b"]));
        let forbidden = Err(Code::QueueForbidden);
        let given = |name: &str| Ok(Some(queue(name)));
        for (caller, asked, list, act) in [
            (&all, None, Ok(None), Ok(None)),
            (&all, Some("x"), given("x"), given("x")),
            (&one, None, given("a"), given("a")),
            (&one, Some("a"), given("a"), given("a")),
            (&one, Some("b"), forbidden.clone(), forbidden.clone()),
            (&two, None, Ok(None), forbidden.clone()),
            (&two, Some("b"), given("b"), given("b")),
            (&two, Some("c"), forbidden.clone(), forbidden.clone()),
            (&Caller::Anyone, None, Ok(None), Ok(None)),
            (&Caller::Nobody, None, Ok(None), forbidden),
        ] {
            let (mut listed, mut acted) = (asked.map(queue), asked.map(queue));
            let narrowed = caller.narrow(&mut listed).map_err(|problem| problem.code);
            assert_eq!(narrowed.map(|()| listed.clone()), list, "{asked:?} {caller:?}");
            let mut filter = Filter { queue: asked.map(queue), ..Filter::default() };
            if caller.narrow_list(&mut filter).is_ok() {
                assert_eq!((&filter.queue, filter.queues.as_ref()), (&listed, caller.queues()));
            }
            let narrowed = caller.narrow_act(&mut acted).map_err(|problem| problem.code);
            assert_eq!(narrowed.map(|()| acted), act, "{asked:?} {caller:?}");
        }
    }

    #[test]
    fn a_key_has_its_name_in_the_record() {
        let (key, _place) = caller(None);
        let said = || Some("eve".to_owned());
        for (caller, said, by) in [
            (&key, None, Some("ci")),
            (&key, said(), Some("ci (eve)")),
            (&Caller::Anyone, said(), Some("eve")),
            (&Caller::Anyone, None, None),
        ] {
            assert_eq!(caller.by(said).as_deref(), by);
        }
        assert!(key.scope().is_some() && Caller::Anyone.scope().is_none());
    }
}
