//! What the processes of a benchmark are told, and answer: a line of JSON each, on standard input and output.

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufRead, Lines},
    sync::mpsc,
};

use super::super::say;
use crate::amqp::baseline::Events;

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub(super) enum Order {
    /// Bare lapin: publish.
    Submit { count: usize, events: Events },
    /// Bare lapin: consume and acknowledge. Answered by `Ready` first.
    Work { count: usize, events: Events },
    /// Bare lapin: answer calls until the next order. Answered by `Ready`, and in the end by `Ready`.
    Serve { events: Events },
    /// Bare lapin: call.
    Call { count: usize, events: Events },
    /// Bare lapin: end serving.
    Stop,
    /// Worker: count from nothing, and say when so many jobs have been run. Answered by `Ready` first.
    Expect { count: usize },
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub(super) enum Answer {
    /// The order has been taken.
    Ready,
    /// When it began and when it was done, on the machine's clock.
    Done { began: u64, ended: u64 },
    /// How long each call took, in nanoseconds.
    Times { each: Vec<u64> },
    /// It could not be done.
    Failed { why: String },
}

/// Answers whoever gave the order.
pub(super) fn answer(answer: &Answer) {
    // It has text as keys and nothing that fails.
    say::line(serde_json::to_string(answer).unwrap_or_default());
}

/// The next answer of another process; `None` at its end.
pub(super) async fn heard(lines: &mut Lines<impl AsyncBufRead + Unpin>) -> anyhow::Result<Option<Answer>> {
    let line = lines.next_line().await?;
    Ok(line.map(|line| serde_json::from_str(&line)).transpose()?)
}

/// The orders of this process. Read by a thread, because reading standard input blocks; it ends with the input, or with
/// the process.
pub(super) struct Orders(mpsc::Receiver<std::io::Result<String>>);

impl Orders {
    pub(super) fn own() -> Self {
        let (sender, orders) = mpsc::channel(1);
        std::thread::spawn(move || {
            for line in std::io::stdin().lines() {
                if sender.blocking_send(line).is_err() {
                    return;
                }
            }
        });
        Self(orders)
    }

    /// The next order; `None` at the end of input.
    pub(super) async fn next(&mut self) -> anyhow::Result<Option<Order>> {
        let line = self.0.recv().await.transpose()?;
        Ok(line.map(|line| serde_json::from_str(&line)).transpose()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_lines() {
        let orders = [
            (
                Order::Submit { count: 3, events: Events::Batched },
                r#"{"do":"submit","count":3,"events":"batched"}"#,
            ),
            (Order::Serve { events: Events::None }, r#"{"do":"serve","events":"none"}"#),
            (Order::Stop, r#"{"do":"stop"}"#),
            (Order::Expect { count: 1 }, r#"{"do":"expect","count":1}"#),
        ];
        for (order, line) in orders {
            assert_eq!(serde_json::to_string(&order).unwrap(), line);
            assert_eq!(serde_json::from_str::<Order>(line).unwrap(), order);
        }
    }

    #[tokio::test]
    async fn answers_are_heard_until_the_end() {
        let text = "{\"is\":\"ready\"}\n{\"is\":\"done\",\"began\":1,\"ended\":2}\n";
        let mut lines = tokio::io::AsyncBufReadExt::lines(text.as_bytes());
        assert_eq!(heard(&mut lines).await.unwrap(), Some(Answer::Ready));
        assert_eq!(heard(&mut lines).await.unwrap(), Some(Answer::Done { began: 1, ended: 2 }));
        assert_eq!(heard(&mut lines).await.unwrap(), None);
    }
}
