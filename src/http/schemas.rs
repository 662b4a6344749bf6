//! Checks args by the schemas that workers announced, before a job is submitted.
//!
//! A schema comes from the broker, and args from a client: neither may hang or crash this process. A schema is compiled
//! once, patterns without backtracking and in bounded memory, references only into the schema itself; how long a check
//! takes is reckoned before it is made (`cost`). Short checks are made at once, others in one thread with a large
//! stack. What cannot be checked within bounds, or in time, is not refused: the worker looks at it anyway. All checks of
//! a request have one time together, and who has gone is not checked for.

mod cost;

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{SyncSender, sync_channel},
    },
    time::Duration,
};

use bytes::Bytes;
use jsonschema::{PatternOptions, ValidationError, Validator, error::ValidationErrorKind};
use serde_json::Value;
use tokio::{
    sync::oneshot,
    time::{Instant, timeout_at},
};
use tracing::{debug, warn};

use self::cost::Costs;
use super::{
    App,
    fields::{Errors, FieldError},
    problem::Problem,
    submission::ERRORS_MAX,
};
use crate::job::{Envelope, Kind, QueueName, Schema, dead::clip};

/// Args up to so many bytes are checked at once, if that takes few steps.
const SHORT: usize = 4096;
/// So many steps are few: about a millisecond.
const FEW: u64 = 10_000;
/// Most steps of a check: some tenths of a second.
const STEPS_MAX: u64 = 2_000_000;
/// Longest time for the checks of a request, with those before them.
const PATIENCE: Duration = Duration::from_secs(5);
/// Checks that wait for the thread.
const WAITING_MAX: usize = 64;
/// The thread's stack: a check nests.
const STACK: usize = 32 << 20;
/// Most memory of a compiled pattern, in bytes.
const PATTERN_MAX: usize = 256 << 10;
/// Most schemas that are kept compiled.
const COMPILED_MAX: usize = 4096;
/// Most bytes of their texts.
const COMPILED_BYTES: usize = 16 << 20;
/// Longest text about a value that does not fit, in bytes.
const DETAIL_MAX: usize = 300;
/// Most names of members that are told as known.
const NAMES_MAX: usize = 20;

/// A schema that args can be checked by.
#[derive(Debug)]
struct Compiled {
    schema: Value,
    costs: Costs,
    validator: Validator,
}

/// What became of a check.
type Verdict = Result<(), Vec<FieldError>>;

/// Checks, and what they need; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Checks(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    compiled: Mutex<Cache>,
    /// None: there is no thread, and what is long is not checked.
    thread: Option<SyncSender<Task>>,
}

/// Schemas that were compiled.
#[derive(Debug, Default)]
struct Cache {
    /// None: not a valid schema, or none that can be checked in bounded time.
    known: HashMap<Schema, Option<Arc<Compiled>>>,
    bytes: usize,
}

impl Cache {
    fn keep(&mut self, schema: &Schema, compiled: Option<Arc<Compiled>>) {
        let len = schema.as_str().len();
        if self.known.len() >= COMPILED_MAX || self.bytes + len > COMPILED_BYTES {
            // Those in use come back.
            *self = Self::default();
        }
        // A text of its own: by who else holds the other one it is seen whether a worker still announces it.
        if self.known.insert(schema.copied(), compiled).is_none() {
            self.bytes += len;
        }
    }
}

/// A check for the thread.
struct Task {
    checks: Arc<Shared>,
    schemas: Vec<Schema>,
    args: Bytes,
    done: oneshot::Sender<Verdict>,
}

impl Checks {
    pub(super) fn new() -> Self {
        let (thread, tasks) = sync_channel::<Task>(WAITING_MAX);
        let run = move || tasks.into_iter().for_each(Task::work_off);
        let started = std::thread::Builder::new().name("schemas".to_owned()).stack_size(STACK).spawn(run);
        let started =
            started.map_err(|error| warn!(%error, "no thread for schemas: few args are checked")).is_ok();
        Self(Arc::new(Shared { compiled: Mutex::default(), thread: started.then_some(thread) }))
    }

    /// Whether this is a schema that can be checked by; none: nobody has time to look at it now.
    pub(super) async fn is_valid(&self, schema: &Schema) -> Option<bool> {
        let known = || self.0.compiled().known.get(schema).map(Option::is_some);
        if let Some(known) = known() {
            return Some(known);
        }
        // Compiled in the thread, and known then. What it says of these args does not matter.
        let _ = self.check(std::slice::from_ref(schema), b"{}", Instant::now() + PATIENCE).await;
        known()
    }

    /// Whether `args` fit one of these schemas, of which the first is the newest; if not, why not that one. What is not
    /// known at `until` is not told.
    async fn check(&self, schemas: &[Schema], args: &[u8], until: Instant) -> Verdict {
        if Instant::now() >= until {
            debug!("other args of the request took all the time: these are not checked");
            return Ok(());
        }
        if let Some(verdict) = self.0.check_short(schemas, args) {
            return verdict;
        }
        let Some(thread) = &self.0.thread else { return Ok(()) };
        let (done, verdict) = oneshot::channel();
        let (checks, schemas) = (Arc::clone(&self.0), schemas.to_vec());
        // Copied: who waits no longer gives back the room of the whole body, of which these may be a small part.
        let args = Bytes::copy_from_slice(args);
        if thread.try_send(Task { checks, schemas, args, done }).is_err() {
            debug!("too many args wait to be checked: these are not");
            return Ok(());
        }
        match timeout_at(until, verdict).await {
            Ok(Ok(verdict)) => verdict,
            _ => {
                debug!("args could not be checked in time");
                Ok(())
            }
        }
    }
}

impl Task {
    fn work_off(self) {
        let Self { checks, schemas, args, done } = self;
        // Whoever asked has gone, and others wait.
        if done.is_closed() {
            return;
        }
        let verdict = checks.check_whole(&schemas, &args);
        drop((checks, schemas, args));
        // Nobody may listen any more.
        let _ = done.send(verdict);
    }
}

impl Shared {
    /// The verdict, if it is found in a moment.
    fn check_short(&self, schemas: &[Schema], args: &[u8]) -> Option<Verdict> {
        if args.len() > SHORT {
            return None;
        }
        let known = {
            let compiled = self.compiled();
            schemas.iter().map(|schema| compiled.known.get(schema).cloned()).collect::<Option<Vec<_>>>()?
        };
        let Some(known) = known.into_iter().collect::<Option<Vec<_>>>() else { return Some(Ok(())) };
        let Ok(value) = serde_json::from_slice::<Value>(args) else { return Some(Ok(())) };
        if known.iter().any(|known| known.costs.check(&value, FEW).is_err()) {
            return None;
        }
        Some(guarded(|| verdict(&known, &value, true)))
    }

    fn check_whole(&self, schemas: &[Schema], args: &[u8]) -> Verdict {
        let known = schemas.iter().map(|schema| self.compile(schema)).collect::<Option<Vec<_>>>();
        // One that is no schema says nothing of its worker's args.
        let Some(known) = known else { return Ok(()) };
        // Numbers beyond a double cannot be looked at.
        let Ok(value) = serde_json::from_slice::<Value>(args) else { return Ok(()) };
        let mut few = true;
        for known in &known {
            match known.costs.check(&value, STEPS_MAX) {
                Ok(steps) => few &= steps <= FEW,
                Err(cost::TooMuch) => {
                    debug!(bytes = args.len(), "to check these args by their schema would take too long");
                    return Ok(());
                }
            }
        }
        guarded(|| verdict(&known, &value, few))
    }

    fn compile(&self, schema: &Schema) -> Option<Arc<Compiled>> {
        if let Some(known) = self.compiled().known.get(schema) {
            return known.clone();
        }
        let compiled = catch_unwind(AssertUnwindSafe(|| Compiled::new(schema)));
        let compiled = compiled.unwrap_or_else(|_| Err("made the validator panic".to_owned()));
        let compiled = compiled
            .map_err(|why| {
                warn!(
                    "an announced schema {why}: args are not checked by it ({})",
                    clip(schema.as_str(), 200)
                );
            })
            .ok()
            .map(Arc::new);
        self.compiled().keep(schema, compiled.clone());
        compiled
    }

    fn compiled(&self) -> MutexGuard<'_, Cache> {
        // It is whole after every statement, but for a number that is at most too small.
        self.compiled.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Compiled {
    fn new(schema: &Schema) -> Result<Self, String> {
        let schema: Value =
            serde_json::from_str(schema.as_str()).map_err(|error| format!("cannot be read: {error}"))?;
        let costs = Costs::of(&schema)?;
        let patterns = PatternOptions::regex().size_limit(PATTERN_MAX).dfa_size_limit(PATTERN_MAX);
        let validator = jsonschema::options()
            .offline()
            .with_pattern_options(patterns)
            // A format is what a type is called where it is read: its own reader knows better.
            .should_validate_formats(false)
            .should_ignore_unknown_formats(true)
            .build(&schema);
        let validator = validator
            .map_err(|error| format!("is not valid: {}", clip(&error.masked().to_string(), DETAIL_MAX)))?;
        Ok(Self { schema, costs, validator })
    }
}

/// What is found, unless the validator panics.
fn guarded(check: impl FnOnce() -> Verdict) -> Verdict {
    catch_unwind(AssertUnwindSafe(check)).unwrap_or_else(|_| {
        warn!("the validator panicked: these args are not checked");
        Ok(())
    })
}

/// Whether `value` fits one of these; if not, all that is wrong with it by the first, or where there may be much of it, one
/// thing.
fn verdict(schemas: &[Arc<Compiled>], value: &Value, all: bool) -> Verdict {
    if schemas.iter().any(|schema| schema.validator.is_valid(value)) {
        return Ok(());
    }
    let Some(newest) = schemas.first() else { return Ok(()) };
    let mut told = Vec::new();
    if all {
        for error in newest.validator.iter_errors(value).take(ERRORS_MAX) {
            newest.tell(&error, &mut told);
        }
    } else if let Err(error) = newest.validator.validate(value) {
        newest.tell(&error, &mut told);
    }
    if told.is_empty() {
        told.push(FieldError::at("", "does not fit the schema of the kind"));
    }
    Err(told)
}

impl Compiled {
    /// Says what is wrong, where, and what is allowed.
    fn tell(&self, error: &ValidationError<'_>, told: &mut Vec<FieldError>) {
        let at = error.instance_path().as_str();
        let member = |name: &str| format!("{at}/{}", clip(name, 100).replace('~', "~0").replace('/', "~1"));
        match error.kind() {
            ValidationErrorKind::Required { property } => {
                told.push(FieldError::at(member(property.as_str().unwrap_or_default()), "is missing"));
            }
            ValidationErrorKind::AdditionalProperties { unexpected }
            | ValidationErrorKind::UnevaluatedProperties { unexpected } => {
                let known = self.known_beside(error);
                let known = if known.is_empty() { String::new() } else { format!("; known are {known}") };
                for name in unexpected.iter().take(ERRORS_MAX) {
                    told.push(FieldError::at(member(name), format!("is unknown{known}")));
                }
            }
            ValidationErrorKind::AnyOf { context } | ValidationErrorKind::OneOfNotValid { context } => {
                // The alternative that fits best is the one that is wrong deepest inside.
                let depth = |errors: &Vec<ValidationError<'_>>| {
                    errors.iter().map(|error| error.instance_path().as_str().matches('/').count()).max()
                };
                let here = Some(at.matches('/').count());
                match context.iter().max_by_key(|errors| depth(errors)).filter(|errors| depth(errors) > here)
                {
                    Some(errors) => errors.iter().for_each(|error| self.tell(error, told)),
                    None => told.push(FieldError::at(at, alternatives(context))),
                }
            }
            ValidationErrorKind::Enum { options } => {
                told.push(FieldError::at(
                    at,
                    format!("must be one of {}", clip(&options.to_string(), DETAIL_MAX)),
                ));
            }
            ValidationErrorKind::Constant { expected_value } => {
                told.push(FieldError::at(
                    at,
                    format!("must be {}", clip(&expected_value.to_string(), DETAIL_MAX)),
                ));
            }
            _ => told.push(FieldError::at(at, words(error))),
        }
    }

    /// The members that the schema knows where one is unknown.
    fn known_beside(&self, error: &ValidationError<'_>) -> String {
        let keyword = error.schema_path().as_str();
        let schema = keyword.rfind('/').and_then(|end| self.schema.pointer(&keyword[..end]));
        let known = schema.and_then(|schema| schema.get("properties")?.as_object());
        let names: Vec<&str> = known.into_iter().flatten().map(|(name, _)| clip(name, 100)).collect();
        let more = if names.len() > NAMES_MAX { ", …" } else { "" };
        format!("{}{more}", names[..names.len().min(NAMES_MAX)].join(", "))
    }
}

/// What is wrong, without the value: it may be long, and whoever sent it has it.
fn words(error: &ValidationError<'_>) -> String {
    let text = error.masked().to_string();
    clip(text.strip_prefix("value ").unwrap_or(&text), DETAIL_MAX).to_owned()
}

/// What is wrong by each alternative.
fn alternatives(context: &[Vec<ValidationError<'_>>]) -> String {
    let mut each: Vec<String> = context.iter().filter_map(|errors| errors.first()).map(words).collect();
    each.dedup();
    clip(&format!("fits no alternative: {}", each.join("; ")), DETAIL_MAX).to_owned()
}

/// The checks of one request.
pub(super) struct Checking<'a> {
    app: &'a App,
    until: Instant,
    /// By kind and queue; none: anything is taken.
    wanted: HashMap<(Kind, QueueName), Option<Vec<Schema>>>,
}

impl App {
    /// Begins the checks of a request, which have one time together.
    pub(super) fn checking(&self) -> Checking<'_> {
        Checking { app: self, until: Instant::now() + PATIENCE, wanted: HashMap::new() }
    }
}

impl Checking<'_> {
    /// Checks a job's args by what the workers of its kind say of them. `at` is where they lie in the request's body, and at
    /// most `told` things that are wrong are told. Of a kind that nobody has announced, or in another queue, anything is
    /// taken.
    ///
    /// # Errors
    /// The problem, when they fit nothing that a worker takes that may be there.
    pub(super) async fn check(&mut self, job: &Envelope, at: &str, told: usize) -> Result<(), Problem> {
        self.check_args((&job.kind, &job.queue), &job.args, at, told).await
    }

    /// As [`Checking::check`], of args that a job of this kind, in this queue, is to have.
    ///
    /// # Errors
    /// As there.
    pub(super) async fn check_args(
        &mut self,
        (kind, queue): (&Kind, &QueueName),
        args: &[u8],
        at: &str,
        told: usize,
    ) -> Result<(), Problem> {
        let Self { app, until, wanted } = self;
        let wanted = wanted.entry((kind.clone(), queue.clone()));
        let wanted = wanted.or_insert_with(|| app.client.args_schemas(kind, queue));
        let Some(wanted) = wanted else { return Ok(()) };
        let Err(wrong) = app.checks.check(wanted, args, *until).await else { return Ok(()) };
        let mut errors = Errors::new(told);
        for error in wrong {
            errors.at(format!("{at}{}", error.pointer.unwrap_or_default()), error.detail);
        }
        Err(Problem::invalid(errors))
    }
}

#[cfg(test)]
#[path = "schemas/schemas_tests.rs"]
mod tests;
