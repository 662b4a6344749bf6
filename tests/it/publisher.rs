//! The publisher: every `Ok` is true, and every answer is the right message's, however many callers share it.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use futures_util::{StreamExt, future::join_all};
use hopline::{
    Client, Envelope, Job, Kind, QueueName,
    client::{Submission, SubmitError},
};
use lapin::{
    Channel,
    options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions},
    types::FieldTable,
};
use tokio::task::JoinHandle;

use crate::support::{
    eventually,
    probe::Probe,
    stage::{stage, submit_all},
};

/// A job that nobody runs.
fn job(queue: &QueueName) -> Submission {
    let kind = Kind::parse(Probe::KIND).expect("a kind");
    Submission::new(Envelope::new(kind, queue.clone(), Bytes::from_static(b"{}")), Default::default())
}

type Ids = Arc<Mutex<HashSet<String>>>;

/// Takes everything out of a queue, and notes the ids.
async fn drain(channel: Channel, queue: String) -> (Ids, JoinHandle<()>) {
    let ids = Ids::default();
    channel.basic_qos(100, BasicQosOptions::default()).await.expect("a prefetch");
    let (options, args) = (BasicConsumeOptions::default(), FieldTable::default());
    let mut consumer =
        channel.basic_consume(queue.into(), "".into(), options, args).await.expect("a consumer");
    let noted = Arc::clone(&ids);
    let task = tokio::spawn(async move {
        while let Some(Ok(message)) = consumer.next().await {
            let id = message.properties.message_id().as_ref().expect("an id").as_str().to_owned();
            assert!(noted.lock().expect("one writer").insert(id), "each message once");
            let options = BasicAckOptions::default();
            channel.basic_ack(message.delivery_tag, options).await.expect("acknowledged");
        }
    });
    (ids, task)
}

/// Submits so many jobs; the ids of those accepted, and the number of those refused.
async fn submit(client: Client, queue: QueueName, count: usize) -> (HashSet<String>, usize) {
    let (mut accepted, mut refused) = (HashSet::new(), 0);
    for _ in 0..count / 250 {
        let jobs: Vec<Submission> = (0..250).map(|_| job(&queue)).collect();
        let ids: Vec<String> = jobs.iter().map(|job| job.envelope.id.to_string()).collect();
        for (id, answer) in ids.into_iter().zip(client.submit_all(jobs).await) {
            match answer {
                Ok(()) => drop(accepted.insert(id)),
                Err(SubmitError::Refused) => refused += 1,
                Err(error) => panic!("neither accepted nor refused: {error}"),
            }
        }
    }
    (accepted, refused)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_publishes_to_a_full_queue_are_answered_right() {
    stage(async |stage| {
        let client = stage.client();
        // Afterwards the queue is declared.
        submit_all(&client, vec![job(&stage.queue)]).await;
        stage.rabbit.purge(&stage.work_queue()).await;
        stage.rabbit.limit(&stage.config.amqp.prefix, &stage.work_queue(), 200).await;
        let (stored, draining) = drain(stage.rabbit.channel().await, stage.work_queue()).await;

        let callers = (0..8).map(|_| tokio::spawn(submit(client.clone(), stage.queue.clone(), 12_500)));
        let (mut accepted, mut refused) = (HashSet::new(), 0);
        for caller in join_all(callers).await {
            let (ids, count) = caller.expect("no panic");
            accepted.extend(ids);
            refused += count;
        }
        assert_eq!(accepted.len() + refused, 100_000);
        assert!(refused > 0 && !accepted.is_empty(), "both happened: {refused} refused");
        eventually("all that was accepted is found", async || {
            let stored = stored.lock().expect("one writer");
            (stored.len() >= accepted.len()).then_some(())
        })
        .await;
        stage.rabbit.wait_count(&stage.work_queue(), 0).await;
        draining.abort();
        let stored = stored.lock().expect("one writer");
        let false_acks = accepted.difference(&stored).count();
        let false_nacks = stored.difference(&accepted).count();
        assert_eq!((false_acks, false_nacks), (0, 0), "{} accepted", accepted.len());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn returned_messages_are_told_from_stored_ones() {
    stage(async |stage| {
        let client = stage.client();
        let nowhere = stage.other_queue("nowhere");
        let caller = |caller: usize| {
            let (client, known, unknown) = (client.clone(), stage.queue.clone(), nowhere.clone());
            tokio::spawn(async move {
                let mut stored = 0;
                for round in 0..10 {
                    // Known and unknown in ever other patterns.
                    let is_known = |index: usize| (index * (caller + 3) + round) % 5 < 2;
                    let jobs =
                        (0..250).map(|index| job(if is_known(index) { &known } else { &unknown })).collect();
                    for (index, answer) in client.submit_all(jobs).await.into_iter().enumerate() {
                        match answer {
                            Ok(()) if is_known(index) => stored += 1,
                            Err(SubmitError::UnknownQueue(queue)) if !is_known(index) && queue == unknown => {
                            }
                            other => {
                                panic!("job {index} of round {round}, known: {}: {other:?}", is_known(index))
                            }
                        }
                    }
                }
                stored
            })
        };
        let callers: Vec<_> = (0..8).map(caller).collect();
        let mut stored = 0;
        for caller in join_all(callers).await {
            stored += caller.expect("every answer is the right one");
        }
        assert_eq!(stage.rabbit.count(&stage.work_queue()).await, Some(stored));
    })
    .await;
}
