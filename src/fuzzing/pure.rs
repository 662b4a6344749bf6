//! Targets of parts that anybody may see.

use super::{bounded, event_is_kept};
use crate::{
    amqp::{Names, delay},
    config::Config,
    event::batch,
    job::{JobId, Kind, QueueName, envelope::id_of, wire::Message},
};

/// A batch of events, as anybody may write it into the log.
pub(super) fn events(data: &[u8]) {
    match batch::decode(data) {
        Ok((events, _)) => {
            assert!(events.is_sorted_by_key(|(index, _)| *index));
            for (_, event) in &events {
                event_is_kept(event);
                event_is_kept(&event.public());
                let public = event.public();
                assert!(public.data.args.is_none() && public.data.output.is_none());
            }
        }
        Err(error) => bounded(&error.to_string()),
    }
}

/// Names, and the keys that are made of them: `<queue> <kind> <ticks>`, or any text.
pub(super) fn routing_key(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    crate::acts::fuzzing::key_holds(&text);
    let mut words = text.split(' ');
    let (queue, kind) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (queue, kind) = match (QueueName::parse(queue), Kind::parse(kind)) {
        (Ok(queue), Ok(kind)) => (queue, kind),
        (queue, kind) => {
            queue.err().into_iter().chain(kind.err()).for_each(|error| bounded(&error.to_string()));
            return;
        }
    };
    assert_eq!(queue.as_str().parse().as_ref(), Ok(&queue));
    let ticks: u32 = words.next().and_then(|ticks| ticks.parse().ok()).unwrap_or(0);
    let ticks = ticks.min(delay::MAX_TICKS);
    let names = Names::new("hopline", "");
    let (exchange, key) = names.route(&queue, kind.as_str(), ticks);
    assert!(exchange.len() <= 255 && key.len() <= 255);
    assert!(!names.is_reply_queue(&exchange));
    if ticks == 0 {
        assert_eq!(key, Names::direct_key(&queue));
    } else {
        let address = key.splitn(29, '.').nth(28);
        assert_eq!(address, Some(Names::address(&queue, kind.as_str()).as_str()));
        let bits = key.split('.').take(28).fold(0, |bits, bit| bits << 1 | u32::from(bit == "1"));
        assert_eq!(bits, ticks);
        crate::acts::fuzzing::key_leads_to(&key, &queue);
    }
    if let Some(id) = words.next() {
        // Whatever it is, the job has one id in this queue.
        let message = Message { message_id: Some(format!("{id}.")), ..Message::default() };
        assert_eq!(id_of(&message, &queue), id_of(&message, &queue));
        match id.parse::<JobId>() {
            Ok(id) => assert_eq!(id.to_string().parse().as_ref(), Ok(&id)),
            Err(error) => bounded(&error.to_string()),
        }
    }
}

/// A file, and after a line of `---` variables, one a line.
pub(super) fn config(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (file, variables) = text.split_once("\n---\n").unwrap_or((&text, ""));
    let variables = variables.lines().filter_map(|line| line.split_once('='));
    // Those name files of this machine.
    let variables = variables.filter(|(name, _)| !name.ends_with("_FILE"));
    let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
    match Config::read(Some(file), None, variables) {
        Ok(config) => {
            let written = serde_json::to_string(&config).expect("names, numbers and texts");
            let read: Config =
                serde_json::from_str(&written).unwrap_or_else(|error| panic!("{error}: {written}"));
            assert_eq!(serde_json::to_string(&read).expect("the same"), written);
            for queue in config.worker.queues.keys() {
                assert!(usize::from(config.worker.prefetch_of(queue)) >= config.worker.concurrency_of(queue));
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
