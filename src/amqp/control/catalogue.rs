//! The kinds that workers have announced, and what each worker says of them. Pure.
//!
//! Where a kind's jobs go: the newest announcement in the log holds. Its schemas are another matter: while a deploy is
//! under way, workers of two versions announce two of them, and what one of them takes must not be refused. So what
//! each worker said is kept beside what the others said, as long as the worker may be there ([`Catalogue::versions`]).
//!
//! A worker announces its kinds every hour, so what was written more than [`STALE`] ago is of a worker that is gone. Of
//! one that lives, or may, who asks knows more: heartbeats. What the newest announcement says is kept in any case: it
//! is all there is to know while no worker runs.
//!
//! Bounded: [`KINDS_MAX`] kinds, [`WORKERS_MAX`] workers of each, [`SCHEMAS_BYTES`] of schemas, each text kept once.
//! What is over counts as not said, and then any args are taken.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jiff::Timestamp;
use tokio::time::Instant;

use super::announced::{Announced, Pauses};
use crate::job::{Kind, QueueName, Schema, Schemas};

/// Most kinds remembered; more than that are not routed by announcement.
const KINDS_MAX: usize = 100_000;
/// Most workers of a kind whose schemas are told apart.
const WORKERS_MAX: usize = 1_000;
/// Most bytes of schemas remembered.
const SCHEMAS_BYTES: usize = 16 << 20;
/// An announcement that was written so long ago, in seconds, is not of a worker that lives: it would have been repeated.
const STALE: i64 = 2 * 3600;
/// What was written so long ago, in seconds, is forgotten: a worker says its schemas once a day, and its later words
/// count on them.
const FORGOTTEN: i64 = 26 * 3600;

/// What is known of a kind, by its newest announcement.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Route {
    pub(crate) queue: QueueName,
    pub(crate) private: bool,
    /// The worker that said so.
    pub(crate) worker: Arc<str>,
    /// When, where the record says.
    pub(crate) at: Option<Timestamp>,
    pub(crate) alias_of: Option<Kind>,
    pub(crate) deprecated: Option<String>,
    pub(crate) timeout_ms: Option<u64>,
    pub(crate) max_attempts: Option<u32>,
    pub(crate) retry: Option<Pauses>,
}

/// The schemas of a kind, and who announced these.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Version {
    pub(crate) schemas: Schemas,
    pub(crate) workers: Vec<Arc<str>>,
}

/// A kind, and what each worker says of it.
#[derive(Debug, Clone)]
struct Known {
    route: Route,
    said: BTreeMap<Arc<str>, Said>,
    /// Until when there were more workers than are told apart.
    crowded_until: i64,
}

/// What one worker says of a kind.
#[derive(Debug, Clone)]
struct Said {
    /// In which order workers came.
    place: u64,
    /// When it was written last, in seconds since 1970.
    at: i64,
    /// When that was read here.
    heard: Instant,
    schemas: Schemas,
}

/// All announced kinds.
#[derive(Debug, Default)]
pub(super) struct Catalogue {
    kinds: BTreeMap<Kind, Known>,
    /// Whether schemas are of interest here: in an HTTP process.
    pub(super) with_schemas: bool,
    texts: BTreeSet<Schema>,
    bytes: usize,
    places: u64,
}

impl Catalogue {
    /// Takes an announcement in, written `at`; how many schemas had no room.
    pub(super) fn learn(
        &mut self,
        worker: &str,
        kinds: Vec<Announced>,
        at: Option<Timestamp>,
        now: (Timestamp, Instant),
    ) -> usize {
        let (worker, mut left_out): (Arc<str>, _) = (worker.into(), 0);
        let second = now.0.as_second();
        let written = at.map_or(second, |at| at.as_second().min(second));
        for mut announced in kinds {
            if self.kinds.len() >= KINDS_MAX && !self.kinds.contains_key(&announced.kind) {
                continue;
            }
            let schemas = self.keep(announced.take_schemas(), &mut left_out);
            self.places += 1;
            let said = Said { place: self.places, at: written, heard: now.1, schemas };
            let Announced {
                kind, queue, private, alias_of, deprecated, timeout_ms, max_attempts, retry, ..
            } = announced;
            let worker = Arc::clone(&worker);
            let route =
                Route { queue, private, worker, at, alias_of, deprecated, timeout_ms, max_attempts, retry };
            if let Some(known) = self.kinds.get_mut(&kind) {
                known.hear(route, said, second, self.with_schemas);
            } else {
                let said = self.with_schemas.then(|| (Arc::clone(&route.worker), said));
                let said = said.into_iter().collect();
                self.kinds.insert(kind, Known { route, said, crowded_until: i64::MIN });
            }
        }
        left_out
    }

    pub(super) fn route(&self, kind: &Kind) -> Option<&Route> {
        self.kinds.get(kind).map(|known| &known.route)
    }

    pub(super) fn routes(&self) -> impl Iterator<Item = (&Kind, &Route)> {
        self.kinds.iter().map(|(kind, known)| (kind, &known.route))
    }

    pub(super) fn len(&self) -> usize {
        self.kinds.len()
    }

    /// What workers say of a kind that may be there, those that came last first: none if the kind is not known, or not
    /// all that they say. `gone` says whether a worker is known to be gone, whose word was read then. If all are, what
    /// was announced last.
    pub(super) fn versions(
        &self,
        kind: &Kind,
        now: Timestamp,
        gone: impl Fn(&str, Instant) -> bool,
    ) -> Vec<Version> {
        let Some(known) = self.kinds.get(kind) else { return Vec::new() };
        let mut versions: Vec<Version> = Vec::new();
        for (worker, said) in known.there(now, gone) {
            match versions.iter_mut().find(|version| version.schemas == said.schemas) {
                Some(version) => version.workers.push(Arc::clone(worker)),
                None => versions
                    .push(Version { schemas: said.schemas.clone(), workers: vec![Arc::clone(worker)] }),
            }
        }
        versions
    }

    /// What args of a kind must fit one of, by the workers that may be there, in a job for `queue`. None: anything is
    /// taken, as one of them says nothing, or in another queue, of whose workers nothing is known here.
    #[cfg(feature = "server")]
    pub(super) fn args(
        &self,
        kind: &Kind,
        queue: &QueueName,
        now: Timestamp,
        gone: impl Fn(&str, Instant) -> bool,
    ) -> Option<Vec<Schema>> {
        let known = self.kinds.get(kind).filter(|known| known.route.queue == *queue)?;
        let mut schemas: Vec<Schema> = Vec::new();
        for (_, said) in known.there(now, gone) {
            let schema = said.schemas.args.as_ref()?;
            // Each text is kept once.
            if !schemas.iter().any(|other| other.is_same(schema)) {
                schemas.push(schema.clone());
            }
        }
        (!schemas.is_empty()).then_some(schemas)
    }

    /// The schemas, in the memory of those that are known already.
    fn keep(&mut self, schemas: Schemas, left_out: &mut usize) -> Schemas {
        let mut kept = Schemas::none();
        if self.with_schemas {
            let mut keep = |schema: Option<Schema>| {
                let schema = schema?;
                let kept = self.keep_one(schema);
                *left_out += usize::from(kept.is_none());
                kept
            };
            (kept.args, kept.output) = (keep(schemas.args), keep(schemas.output));
        }
        kept
    }

    fn keep_one(&mut self, schema: Schema) -> Option<Schema> {
        if let Some(known) = self.texts.get(&schema) {
            return Some(known.clone());
        }
        let len = schema.as_str().len();
        if self.bytes + len > SCHEMAS_BYTES {
            self.texts.retain(Schema::is_shared);
            self.bytes = self.texts.iter().map(|schema| schema.as_str().len()).sum();
            if self.bytes + len > SCHEMAS_BYTES {
                return None;
            }
        }
        self.bytes += len;
        self.texts.insert(schema.clone());
        Some(schema)
    }
}

impl Known {
    /// The workers that may be there, those that came last first; none if there are too many.
    fn there(&self, now: Timestamp, gone: impl Fn(&str, Instant) -> bool) -> Vec<(&Arc<str>, &Said)> {
        let fresh = now.as_second().saturating_sub(STALE);
        if self.crowded_until >= fresh {
            return Vec::new();
        }
        let may_be_there =
            |(worker, said): &(&Arc<str>, &Said)| said.at >= fresh && !gone(worker, said.heard);
        let mut there: Vec<_> = self.said.iter().filter(may_be_there).collect();
        if there.is_empty() {
            there.extend(self.said.get_key_value(&self.route.worker));
        }
        there.sort_by_key(|(_, said)| std::cmp::Reverse(said.place));
        there
    }

    fn hear(&mut self, route: Route, mut said: Said, now: i64, with_schemas: bool) {
        let worker = Arc::clone(&route.worker);
        self.route = route;
        if !with_schemas {
            return;
        }
        if let Some(before) = self.said.get_mut(&worker) {
            // Its later words leave the schemas out.
            if said.schemas == Schemas::none() {
                said.schemas = before.schemas.clone();
            }
            *before = Said { place: before.place, ..said };
            return;
        }
        self.said.insert(Arc::clone(&worker), said);
        self.said.retain(|other, said| said.at >= now.saturating_sub(FORGOTTEN) || *other == worker);
        if self.said.len() > WORKERS_MAX {
            let oldest =
                self.said.iter().filter(|(other, _)| **other != worker).min_by_key(|(_, said)| said.at);
            if let Some((oldest, at)) = oldest.map(|(other, said)| (Arc::clone(other), said.at)) {
                self.said.remove(&oldest);
                self.crowded_until = self.crowded_until.max(at);
            }
        }
    }
}

#[cfg(test)]
#[path = "catalogue_tests.rs"]
mod tests;
