//! Which kind is run by which handler.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;
use futures_util::{FutureExt, future::BoxFuture};
use thiserror::Error;
use tokio::sync::Semaphore;

use super::context::{Attempt, Context};
use crate::{
    amqp::control::Announced,
    job::{Job, JobError, JobResult, Kind, NameError, Options, QueueName, Schemas, options::DEFAULT_TIMEOUT},
    retry::RetryPolicy,
};

/// A handler that cannot be registered.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// Two handlers for one kind (or alias).
    #[error("kind {0} is registered twice")]
    Duplicate(Kind),
    /// A kind, alias or queue name that breaks its rule.
    #[error(transparent)]
    Name(#[from] NameError),
    /// No handler at all.
    #[error("no handler is registered: this worker would have nothing to do")]
    Empty,
}

/// A handler without its types: args in, output out, as JSON.
type Run = Arc<dyn Fn(Bytes, Arc<Attempt>) -> BoxFuture<'static, JobResult<Bytes>> + Send + Sync>;

/// The code of args that do not fit their type. The error's text quotes them.
pub(super) const BAD_ARGS: &str = "bad_args";

/// One kind's handler.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) kind: Kind,
    pub(crate) queue: QueueName,
    pub(crate) options: Options,
    pub(crate) schemas: Schemas,
    /// Attempts of this kind at the same time; `None`: no limit of its own.
    pub(crate) turns: Option<Arc<Semaphore>>,
    pub(crate) run: Run,
}

/// All handlers of a worker.
#[derive(Default)]
pub struct Registry {
    entries: BTreeMap<Kind, Arc<Entry>>,
    errors: Vec<RegistryError>,
}

impl Registry {
    pub(crate) fn add<J, S, F, R>(&mut self, handler: F, state: S, options: Options)
    where
        J: Job,
        S: Send + Sync + 'static,
        F: Fn(J, Context<S>) -> R + Send + Sync + 'static,
        R: Future<Output = JobResult<J::Output>> + Send + 'static,
    {
        let queue = options.queue.clone().unwrap_or_else(|| J::QUEUE.to_owned());
        let (kind, queue) = match (Kind::parse(J::KIND), QueueName::parse(queue)) {
            (Ok(kind), Ok(queue)) => (kind, queue),
            (kind, queue) => {
                self.errors.extend(kind.err().into_iter().chain(queue.err()).map(RegistryError::from));
                return;
            }
        };
        let turns =
            options.concurrency.map(|limit| Arc::new(Semaphore::new(limit.min(Semaphore::MAX_PERMITS))));
        let schemas = J::schemas();
        let entry = Arc::new(Entry {
            kind: kind.clone(),
            queue,
            options,
            schemas,
            turns,
            run: erase(handler, state),
        });
        let aliases = J::ALIASES.iter().map(|alias| Kind::parse(*alias));
        for name in std::iter::once(Ok(kind)).chain(aliases) {
            match name {
                Ok(name) if self.entries.contains_key(&name) => {
                    self.errors.push(RegistryError::Duplicate(name));
                }
                Ok(name) => drop(self.entries.insert(name, Arc::clone(&entry))),
                Err(error) => self.errors.push(error.into()),
            }
        }
    }

    /// This registry, if nothing was wrong.
    pub(crate) fn checked(mut self) -> Result<Self, Vec<RegistryError>> {
        if self.entries.is_empty() && self.errors.is_empty() {
            self.errors.push(RegistryError::Empty);
        }
        if self.errors.is_empty() { Ok(self) } else { Err(self.errors) }
    }

    pub(crate) fn get(&self, kind: &Kind) -> Option<&Arc<Entry>> {
        self.entries.get(kind)
    }

    /// The queues that the handlers' jobs come from.
    pub(crate) fn queues(&self) -> Vec<QueueName> {
        let queues: BTreeSet<&QueueName> = self.entries.values().map(|entry| &entry.queue).collect();
        queues.into_iter().cloned().collect()
    }

    /// Each handler, once.
    pub(crate) fn handlers(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|(name, entry)| **name == entry.kind).map(|(_, entry)| &**entry)
    }

    pub(crate) fn options(&self) -> impl Iterator<Item = (&Kind, &Options)> {
        self.handlers().map(|entry| (&entry.kind, &entry.options))
    }

    /// Every kind and alias, with what is said of it.
    pub(crate) fn announcement(&self) -> Vec<Announced> {
        self.entries.iter().map(|(name, entry)| entry.announced(name)).collect()
    }

    /// Which schemas cannot be announced, and why.
    pub(crate) fn unsaid(&self) -> impl Iterator<Item = (&Kind, &str)> {
        let own = self.entries.iter().filter(|(name, entry)| **name == entry.kind);
        own.flat_map(|(kind, entry)| entry.schemas.left_out.iter().map(move |why| (kind, why.as_str())))
    }
}

impl Entry {
    /// What is said of this kind under one of its names: what differs from the defaults of the wire contract.
    fn announced(&self, name: &Kind) -> Announced {
        let Options { timeout, retry, private, deprecated, .. } = &self.options;
        let plain = RetryPolicy::default();
        let pauses = RetryPolicy { max_attempts: plain.max_attempts, ..*retry };
        Announced {
            private: *private,
            alias_of: Some(self.kind.clone()).filter(|kind| kind != name),
            deprecated: deprecated.clone(),
            timeout_ms: u64::try_from(timeout.as_millis()).ok().filter(|_| *timeout != DEFAULT_TIMEOUT),
            max_attempts: Some(retry.max_attempts).filter(|attempts| *attempts != plain.max_attempts),
            retry: Some(pauses.into()).filter(|_| pauses != plain),
            ..Announced::new(name.clone(), self.queue.clone()).with_schemas(self.schemas.clone())
        }
    }
}

fn erase<J, S, F, R>(handler: F, state: S) -> Run
where
    J: Job,
    S: Send + Sync + 'static,
    F: Fn(J, Context<S>) -> R + Send + Sync + 'static,
    R: Future<Output = JobResult<J::Output>> + Send + 'static,
{
    let (handler, state) = (Arc::new(handler), Arc::new(state));
    Arc::new(move |args, attempt| {
        let (handler, state) = (Arc::clone(&handler), Arc::clone(&state));
        async move {
            // Args that do not fit the type will not fit at the next attempt either.
            let job: J = serde_json::from_slice(&args).map_err(|error| JobError::fatal(BAD_ARGS, error))?;
            let output = handler(job, Context::new(attempt, state)).await?;
            let output = serde_json::to_vec(&output).map_err(|error| JobError::fatal("bad_output", error))?;
            Ok(Bytes::from(output))
        }
        .boxed()
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde::{Deserialize, Serialize};

    use super::*;

    macro_rules! job {
        ($name:ident, $kind:literal, $aliases:expr, $queue:literal) => {
            #[derive(Serialize, Deserialize)]
            struct $name;
            impl Job for $name {
                const KIND: &'static str = $kind;
                const ALIASES: &'static [&'static str] = $aliases;
                const QUEUE: &'static str = $queue;
                type Output = ();

                fn schemas() -> Schemas {
                    // Most say nothing.
                    if $kind == "one" {
                        Schemas::none().args_of("{}").output_of("true")
                    } else {
                        Schemas::none()
                    }
                }
            }
        };
    }
    job!(One, "one", &["uno"], "default");
    job!(Uno, "uno", &[], "default");
    job!(Wrong, "Wrong!", &[], "no queue");
    job!(Elsewhere, "else", &[], "media");

    async fn nothing<J>(_: J, _: Context) -> JobResult<()> {
        Ok(())
    }

    fn errors(registry: Registry) -> Vec<RegistryError> {
        registry.checked().err().unwrap_or_default()
    }

    #[test]
    fn a_duplicate_kind_is_refused_also_as_alias() {
        let mut registry = Registry::default();
        registry.add(nothing::<One>, (), Options::default());
        registry.add(nothing::<One>, (), Options::default());
        registry.add(nothing::<Uno>, (), Options::default());
        let kinds = ["one", "uno", "uno"].map(|kind| RegistryError::Duplicate(Kind::parse(kind).unwrap()));
        assert_eq!(errors(registry), kinds);
    }

    #[test]
    fn wrong_names_and_emptiness_are_refused() {
        let mut registry = Registry::default();
        registry.add(nothing::<Wrong>, (), Options::default());
        assert!(matches!(errors(registry)[..], [RegistryError::Name(_), RegistryError::Name(_)]));
        assert_eq!(errors(Registry::default()), [RegistryError::Empty]);
    }

    #[test]
    fn what_a_registration_sets_is_announced() {
        let mut registry = Registry::default();
        let options = Options::new().timeout(Duration::from_secs(60)).max_attempts(3).deprecated("use two");
        registry.add(nothing::<One>, (), options);
        registry.add(nothing::<Elsewhere>, (), Options::default());
        let kinds = registry.announcement();
        let [plain, one, uno] = &kinds[..] else { panic!("{kinds:?}") };
        assert_eq!(*plain, Announced::new(Kind::parse("else").unwrap(), QueueName::parse("media").unwrap()));
        assert_eq!((one.timeout_ms, one.max_attempts, one.retry), (Some(60_000), Some(3), None));
        assert_eq!((one.deprecated.as_deref(), &one.alias_of), (Some("use two"), &None));
        assert!(
            one.args_schema.is_some() && one.output_schema.is_some() && registry.unsaid().next().is_none()
        );
        assert_eq!(
            *uno,
            Announced { kind: uno.kind.clone(), alias_of: Some(one.kind.clone()), ..one.clone() }
        );
    }

    #[test]
    fn queues_come_from_types_and_options() {
        let mut registry = Registry::default();
        registry.add(nothing::<One>, (), Options::new().queue("slow"));
        registry.add(nothing::<Elsewhere>, (), Options::default());
        let registry = registry.checked().unwrap_or_default();
        assert_eq!(registry.queues().iter().map(QueueName::as_str).collect::<Vec<_>>(), ["media", "slow"]);
        assert_eq!(registry.announcement().len(), 3, "the alias too");
        assert_eq!(registry.options().count(), 2);
    }
}
