//! The name of every exchange, queue, routing and binding key: made here and nowhere else.

use crate::job::{Kind, QueueName, dead::clip, name::QUEUE_MAX};

use super::delay::{self, LEVELS};

/// The lane of jobs submitted without one. Lanes are not shown to users yet.
const LANE: &str = "normal";

/// Names under a prefix (`amqp.prefix`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    prefix: String,
    ladder: String,
}

impl Names {
    /// Names that start with `prefix`; those of the delay ladder with `ladder`, or with `prefix` where that is
    /// empty.
    #[must_use]
    pub fn new(prefix: &str, ladder: &str) -> Self {
        let ladder = if ladder.is_empty() { prefix } else { ladder };
        Self { prefix: prefix.to_owned(), ladder: ladder.to_owned() }
    }

    /// The queue of acts. Where several prefixes share one delay ladder, each needs a name of its own.
    #[must_use]
    pub fn acts(&self) -> QueueName {
        let own = format!("acts-{}", self.prefix);
        let name = if self.ladder == self.prefix { "hopline-acts" } else { clip(&own, QUEUE_MAX) };
        // A prefix keeps the rule of queue names.
        QueueName::parse(name).expect("a name within the rule")
    }

    /// No work queue: its dead-letter queue holds what belongs to none that has one.
    #[must_use]
    pub fn nowhere() -> QueueName {
        QueueName::parse("nowhere").expect("a literal within the rule")
    }

    /// The queue of callbacks, named like that of acts.
    #[must_use]
    pub fn callbacks(&self) -> QueueName {
        let own = format!("callbacks-{}", self.prefix);
        let name = if self.ladder == self.prefix { "hopline-callbacks" } else { clip(&own, QUEUE_MAX) };
        // A prefix keeps the rule of queue names.
        QueueName::parse(name).expect("a name within the rule")
    }

    /// Direct exchange: jobs to be run now, of Hopline's own processes. A topic exchange costs the broker half as much
    /// again for each job (`docs/design.md`).
    #[must_use]
    pub fn direct(&self) -> String {
        format!("{}.direct", self.prefix)
    }

    /// Topic exchange: jobs to be run now, of anybody.
    #[must_use]
    pub fn jobs(&self) -> String {
        format!("{}.jobs", self.prefix)
    }

    /// Topic exchange: dead jobs.
    #[must_use]
    pub fn dead(&self) -> String {
        format!("{}.dead", self.prefix)
    }

    /// Topic exchange: announcements.
    #[must_use]
    pub fn control(&self) -> String {
        format!("{}.control", self.prefix)
    }

    /// Stream: the control log.
    #[must_use]
    pub fn control_log(&self) -> String {
        format!("{}.control.log", self.prefix)
    }

    /// Topic exchange: lifecycle events for whoever binds a queue.
    #[must_use]
    pub fn events(&self) -> String {
        format!("{}.events", self.prefix)
    }

    /// Fanout exchange: the way of events into the log, and nowhere else.
    #[must_use]
    pub fn record(&self) -> String {
        format!("{}.record", self.prefix)
    }

    /// Stream: the event log.
    #[must_use]
    pub fn log(&self) -> String {
        format!("{}.log", self.prefix)
    }

    /// Queue: workers ask here whether a job has ended.
    #[must_use]
    pub fn lookup(&self) -> String {
        format!("{}.lookup", self.prefix)
    }

    /// The queue of one connection of one HTTP process for what workers say of themselves.
    #[must_use]
    pub fn heartbeat_queue(&self, instance: &str, epoch: u64) -> String {
        format!("{}.heartbeats.{instance}.{epoch}", self.prefix)
    }

    /// Routing key of what a worker says of itself.
    #[must_use]
    pub fn heartbeat_key(worker: &str) -> String {
        format!("worker.heartbeat.{worker}")
    }

    /// Name of the exclusive queue whose declaration is the cluster-wide lock on a pass over a dead-letter queue.
    #[must_use]
    pub fn pass_lock(&self, queue: &QueueName) -> String {
        format!("{}.pass.{queue}", self.prefix)
    }

    /// Direct exchange: replies to our own callers.
    #[must_use]
    pub fn replies(&self) -> String {
        format!("{}.replies", self.prefix)
    }

    /// The result queue of one connection of one process. A new connection gets a new name: RabbitMQ keeps an
    /// exclusive one locked for a while after its connection was cut.
    #[must_use]
    pub fn reply_queue(&self, instance: &str, epoch: u64) -> String {
        format!("{}.replies.{instance}.{epoch}", self.prefix)
    }

    /// Whether a reply address is one of our result queues.
    #[must_use]
    pub fn is_reply_queue(&self, reply_to: &str) -> bool {
        reply_to.strip_prefix(self.prefix.as_str()).is_some_and(|rest| rest.starts_with(".replies."))
    }

    /// Fanout exchange and queue: what the broker moved by itself. Of the work queues.
    #[must_use]
    pub fn strays(&self) -> String {
        format!("{}.strays", self.prefix)
    }

    /// Fanout exchange and queue: what fell off the ladder because its queue is gone.
    #[must_use]
    pub fn ladder_strays(&self) -> String {
        format!("{}.strays", self.ladder)
    }

    /// Quorum queue: jobs waiting.
    #[must_use]
    pub fn queue(&self, queue: &QueueName) -> String {
        format!("{}.q.{queue}", self.prefix)
    }

    /// The work queue that has this name, if one has.
    #[cfg(feature = "server")]
    #[must_use]
    pub(crate) fn work_queue_of(&self, name: &str) -> Option<QueueName> {
        let rest = name.strip_prefix(self.prefix.as_str())?.strip_prefix(".q.")?;
        QueueName::parse(rest).ok()
    }

    /// What all names start with, before a dot: one or two.
    #[cfg(feature = "server")]
    #[must_use]
    pub(crate) fn prefixes(&self) -> Vec<&str> {
        let mut both = vec![self.prefix.as_str(), self.ladder.as_str()];
        both.dedup();
        both
    }

    /// Whether a queue is one that a process declares for itself.
    #[cfg(feature = "server")]
    #[must_use]
    pub(crate) fn is_of_instance(&self, name: &str) -> bool {
        let rest = name.strip_prefix(self.prefix.as_str()).unwrap_or_default();
        [".replies.", ".heartbeats.", ".pass."].iter().any(|kind| rest.starts_with(kind))
    }

    /// Quorum queue: dead jobs of a queue.
    #[must_use]
    pub fn dead_queue(&self, queue: &QueueName) -> String {
        format!("{}.q.{queue}.dead", self.prefix)
    }

    /// Exchange and queue of one level of the ladder.
    #[must_use]
    pub fn delay(&self, level: u32) -> String {
        format!("{}.delay.{level:02}", self.ladder)
    }

    /// Topic exchange: the foot of the ladder.
    #[must_use]
    pub fn ready(&self) -> String {
        format!("{}.delay.ready", self.ladder)
    }

    /// The address of a job: its routing key at [`Names::jobs`], and what follows the bits on the ladder.
    #[must_use]
    pub fn address(queue: &QueueName, kind: &str) -> String {
        format!("{queue}.{LANE}.{kind}")
    }

    /// Routing key of a dead job.
    #[must_use]
    pub fn dead_key(queue: &QueueName, kind: Option<&Kind>) -> String {
        format!("{queue}.{}", kind.map_or("unknown", Kind::as_str))
    }

    /// Binding of a work queue at [`Names::direct`], and the routing key there. [`Names::jobs_binding`] matches it as
    /// well.
    #[must_use]
    pub fn direct_key(queue: &QueueName) -> String {
        format!("{queue}.{LANE}")
    }

    /// Binding of a work queue at [`Names::jobs`].
    #[must_use]
    pub fn jobs_binding(queue: &QueueName) -> String {
        format!("{queue}.{LANE}.#")
    }

    /// Binding of a work queue at the foot of the ladder: exactly the bits, then the address. A plain `#` would
    /// also match an address that ends like this one.
    #[must_use]
    pub fn ready_binding(queue: &QueueName) -> String {
        format!("{}{queue}.{LANE}.#", "*.".repeat(LEVELS as usize))
    }

    /// Binding of a dead-letter queue at [`Names::dead`].
    #[must_use]
    pub fn dead_binding(queue: &QueueName) -> String {
        format!("{queue}.#")
    }

    /// Where a job is published that is to run after `ticks` of the ladder: exchange and routing key.
    #[must_use]
    pub fn route(&self, queue: &QueueName, kind: &str, ticks: u32) -> (String, String) {
        match delay::entry_level(ticks) {
            None => (self.direct(), Self::direct_key(queue)),
            Some(level) => (self.delay(level), delay::key(ticks, &Self::address(queue, kind))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::name::KIND_MAX;

    #[test]
    fn the_names_of_the_wire_contract() {
        let (names, media) = (Names::new("hopline", ""), QueueName::parse("media").unwrap());
        assert_eq!(names.queue(&media), "hopline.q.media");
        assert_eq!(names.dead_queue(&media), "hopline.q.media.dead");
        assert_eq!(names.delay(3), "hopline.delay.03");
        assert_eq!(names.ready(), "hopline.delay.ready");
        assert_eq!(names.reply_queue("web-1", 7), "hopline.replies.web-1.7");
        assert_eq!(
            names.route(&media, "image.thumbnail", 0),
            ("hopline.direct".into(), "media.normal".into())
        );
        let (exchange, key) = names.route(&media, "image.thumbnail", 1);
        assert_eq!(exchange, "hopline.delay.00");
        assert!(key.ends_with(".media.normal.image.thumbnail"), "{key}");
        assert_eq!(Names::jobs_binding(&media), "media.normal.#");
        assert_eq!(Names::ready_binding(&media).matches("*.").count(), 28);
        assert_eq!(Names::new("a", "b").delay(0), "b.delay.00");
        assert_eq!((names.acts().as_str(), Names::new("a", "b").acts().as_str()), ("hopline-acts", "acts-a"));
        assert_eq!(Names::new(&"p".repeat(QUEUE_MAX), "b").acts().as_str().len(), QUEUE_MAX);
        let callbacks = |prefix: &str, ladder: &str| Names::new(prefix, ladder).callbacks().to_string();
        assert_eq!(callbacks("a", ""), "hopline-callbacks");
        assert_eq!(callbacks("a", "b"), "callbacks-a");
        assert_eq!(callbacks(&"p".repeat(QUEUE_MAX), "b").len(), QUEUE_MAX);
    }

    #[cfg(feature = "server")]
    #[test]
    fn a_work_queue_is_known_by_its_name() {
        let names = Names::new("hopline", "");
        let found = |name: &str| names.work_queue_of(name).map(|queue| queue.to_string());
        assert_eq!(found("hopline.q.media").as_deref(), Some("media"));
        for other in
            ["hopline.q.media.dead", "hopline.q.", "hopliner.q.media", "hopline.log", "other.q.media"]
        {
            assert_eq!(found(other), None, "{other}");
        }
        assert_eq!((names.prefixes().len(), Names::new("a", "b").prefixes()), (1, vec!["a", "b"]));
    }

    #[test]
    fn only_our_own_result_queues_are_ours() {
        let names = Names::new("hopline", "");
        assert!(names.is_reply_queue("hopline.replies.web.1"));
        for other in
            ["hopline.q.media", "amq.rabbitmq.reply-to.x", "hoplines.replies.x", "", "hopline.replies"]
        {
            assert!(!names.is_reply_queue(other), "{other}");
        }
    }

    #[test]
    fn the_longest_names_fit_a_routing_key() {
        let (queue, kind) = (QueueName::parse("q".repeat(QUEUE_MAX)).unwrap(), "k".repeat(KIND_MAX));
        let (_, key) = Names::new("hopline", "").route(&queue, &kind, u32::MAX >> 4);
        assert!(key.len() <= 255, "{}", key.len());
    }
}
