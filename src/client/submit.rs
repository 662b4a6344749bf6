//! One submit: what is looked at before, the publish, and the event that tells of it.

use jiff::Timestamp;
use tokio::time::Instant;
use tracing::debug;

use super::{
    APP_ID, Client, Submission, SubmitError,
    live::{Live, Patience, Role},
};
use crate::{amqp::delay, event::Event, record::writer::Item, trace};

impl Client {
    pub(super) async fn submit_with(&self, job: Submission, wait_for_room: bool) -> Result<(), SubmitError> {
        let give_up = Instant::now() + self.inner.config.amqp.confirm_timeout;
        self.submit_watched(job, wait_for_room, give_up, || {}).await.map(drop)
    }

    /// Submits a job, and goes on waiting for the confirm until `give_up`: who would publish the job again must know
    /// what became of it. Nothing else takes longer than it does otherwise. `confirmed` is told when the broker has the
    /// job; its event, which is returned, is written after that: when it returns, or, if the job has a caller that waits
    /// for its reply, soon ([`Client::until_told`]).
    pub(crate) async fn submit_watched(
        &self,
        mut job: Submission,
        wait_for_room: bool,
        give_up: Instant,
        confirmed: impl FnOnce() + Send,
    ) -> Result<Event, SubmitError> {
        let ticks = self.check(&mut job)?;
        if let Some(recording) = &self.inner.recording {
            let event = job.event(APP_ID, usize::MAX, false);
            recording.add(job.envelope, job.delay);
            return Ok(event);
        }
        let live = self.live().map_err(SubmitError::Unavailable)?;
        let deadline = Instant::now() + self.inner.config.amqp.confirm_timeout;
        let room = (wait_for_room || self.inner.role != Role::Http).then_some(deadline);
        self.look_ahead(live, &mut job, ticks, room).await?;
        let patience = Patience { room, confirm: give_up };
        live.publish_job(&live.publisher, &job.envelope, ticks, patience).await?;
        let telling = live.untold.begin(vec![job.envelope.id], &live.events);
        confirmed();
        let event = self.event_of(live, &job);
        let is_call = job.envelope.reply_to.is_some();
        let soon = is_call.then(|| live.events.write_soon(vec![Item::new(&event)])).and_then(Result::ok);
        match soon {
            // Its caller waits for the reply, and not for the record.
            Some(written) => drop(tokio::spawn(async move {
                if written.await.is_ok() {
                    telling.done();
                }
            })),
            None => {
                if self.tell(live, std::slice::from_ref(&event), deadline).await {
                    telling.done();
                }
            }
        }
        Ok(event)
    }

    /// What can be said of a job without the broker; its way there, in ticks of the ladder.
    pub(super) fn check(&self, job: &mut Submission) -> Result<u32, SubmitError> {
        if job.routed {
            self.route(job)?;
        }
        trace::inherit(&mut job.envelope, self.cause.as_deref());
        let (limits, len) = (&self.inner.config.limits, job.envelope.args.len());
        if len > limits.args {
            return Err(SubmitError::TooLarge { len, limit: limits.args });
        }
        delay::ticks(job.delay).filter(|_| job.delay <= limits.max_delay).ok_or(SubmitError::DelayTooLong)
    }

    /// Looks whether a job can be published: `room` is until when it waits for what is not there.
    pub(super) async fn look_ahead(
        &self,
        live: &Live,
        job: &mut Submission,
        ticks: u32,
        room: Option<Instant>,
    ) -> Result<(), SubmitError> {
        job.envelope.due_at = job.run_at(Timestamp::now());
        if self.inner.role == Role::Http {
            // A batch waits for room, but never for a connection.
            live.publisher.link().up().map_err(|down| SubmitError::Unavailable(down.0))?;
        }
        if ticks > 0 {
            // `mandatory` proves only that the ladder takes the job, not that its queue exists.
            let checked = live.check_queue(&job.envelope.queue, room.unwrap_or_else(Instant::now));
            // Boxed: jobs that are due at once need no room for it.
            Box::pin(checked).await?;
        }
        Ok(())
    }

    /// Chooses the queue of a job whose submitter named none. An HTTP process that has not read the control log yet does
    /// not know where the kind's workers are: it must not guess.
    ///
    /// # Errors
    /// [`SubmitError::Unavailable`].
    pub(crate) fn route(&self, job: &mut Submission) -> Result<(), SubmitError> {
        let live = self.live().map_err(SubmitError::Unavailable)?;
        // What keeps the connection away says more.
        live.publisher.link().up().map_err(|down| SubmitError::Unavailable(down.0))?;
        if live.known.get().is_some_and(|known| !known.is_caught_up()) {
            let why = "it is not known yet which queue this kind goes to: the control log is being read";
            return Err(SubmitError::Unavailable(why.to_owned()));
        }
        job.envelope.queue = self.queue_of(&job.envelope.kind);
        Ok(())
    }

    /// Publishes a job that was accepted some time ago, when its time has come or on its way there, and waits for the
    /// confirm until `give_up`. Its limits were checked then. If its queue does not exist any more, the job takes the way
    /// of one that is due in such a queue: it is offered again for a while, and ends dead, `unroutable`.
    ///
    /// # Errors
    /// [`SubmitError`], except `UnknownQueue`, `DelayTooLong` and `TooLarge`.
    #[cfg(feature = "server")]
    pub(crate) async fn forward(&self, job: &Submission, give_up: Instant) -> Result<(), SubmitError> {
        let mut job = job.clone();
        if job.routed {
            self.route(&mut job)?;
        }
        let live = self.live().map_err(SubmitError::Unavailable)?;
        let deadline = Instant::now() + self.inner.config.amqp.confirm_timeout;
        let patience = Patience { room: Some(deadline), confirm: give_up };
        let now = Timestamp::now();
        let ticks = delay::ticks_capped(job.remaining(now));
        job.envelope.due_at = job.run_at(now);
        let publisher = live.forwarding();
        match live.publish_job(publisher, &job.envelope, ticks, patience).await {
            // The ladder takes it for any queue.
            Err(SubmitError::UnknownQueue(_)) => {
                live.publish_job(publisher, &job.envelope, 1, patience).await?;
            }
            other => other?,
        }
        let telling = live.untold.begin(vec![job.envelope.id], &live.events);
        if self.tell(live, &[self.event_of(live, &job)], deadline).await {
            telling.done();
        }
        Ok(())
    }

    /// The event that says that a job was submitted.
    pub(super) fn event_of(&self, live: &Live, job: &Submission) -> Event {
        let private = live.known.get().is_some_and(|known| known.is_private(&job.envelope.kind));
        job.event(&live.instance, self.inner.config.record.max_inline, private)
    }

    /// Writes that jobs were submitted. They are accepted whatever becomes of that: events that are not confirmed in
    /// time are written later, and a worker's own events make a record too. Whether the log has them now.
    pub(super) async fn tell(&self, live: &Live, events: &[Event], deadline: Instant) -> bool {
        let written = live.events.write(events, deadline).await;
        if let Err(error) = &written {
            debug!(jobs = events.len(), %error, "submitted, but that is not in the log yet");
        }
        written.is_ok()
    }
}
