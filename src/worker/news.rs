//! What a handler tells while it runs.
//!
//! Telling never waits: the newest word replaces the one before, and whoever passes it on (`work`, or a child process
//! to its parent) does so at its own pace.

use std::sync::{Mutex, PoisonError};

use tokio::sync::watch;

use crate::job::dead::clip;

/// Longest message, in bytes.
const MESSAGE_MAX: usize = 1024;

/// How far a handler says that it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Said {
    /// 0 to 100.
    pub(crate) percent: u8,
    /// At most [`MESSAGE_MAX`] bytes.
    pub(crate) message: String,
}

impl Said {
    /// Brings both within their bounds.
    pub(crate) fn new(percent: u64, message: &str) -> Self {
        let percent = u8::try_from(percent.min(100)).unwrap_or(100);
        Self { percent, message: clip(message, MESSAGE_MAX).to_owned() }
    }
}

/// The news of one attempt.
#[derive(Debug, Default)]
pub(crate) struct News {
    latest: watch::Sender<Option<Said>>,
    /// Everything, for tests. Grows with the test that tells.
    all: Option<Mutex<Vec<Said>>>,
}

impl News {
    /// News that remember everything.
    pub(crate) fn remembering() -> Self {
        Self { all: Some(Mutex::default()), ..Self::default() }
    }

    pub(crate) fn say(&self, said: Said) {
        if let Some(all) = &self.all {
            all.lock().unwrap_or_else(PoisonError::into_inner).push(said.clone());
        }
        self.latest.send_replace(Some(said));
    }

    /// Everything said so far, where it is remembered.
    pub(crate) fn all(&self) -> Vec<Said> {
        let all = self.all.as_ref();
        all.map(|all| all.lock().unwrap_or_else(PoisonError::into_inner).clone()).unwrap_or_default()
    }

    pub(crate) fn listen(&self) -> Listener {
        Listener(self.latest.subscribe())
    }
}

/// Hears the newest word, each at most once.
#[derive(Debug)]
pub(crate) struct Listener(watch::Receiver<Option<Said>>);

impl Listener {
    /// The next word that was not heard yet. Completes never when nobody can say anything any more. Cancel safe.
    pub(crate) async fn next(&mut self) -> Said {
        loop {
            if self.0.changed().await.is_err() {
                return std::future::pending().await;
            }
            if let Some(said) = self.unheard() {
                return said;
            }
        }
    }

    /// The newest word, unless it was heard.
    pub(crate) fn rest(&mut self) -> Option<Said> {
        self.0.has_changed().unwrap_or(false).then(|| self.unheard()).flatten()
    }

    fn unheard(&mut self) -> Option<Said> {
        self.0.borrow_and_update().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_brought_within_their_bounds() {
        assert_eq!(Said::new(7, "a"), Said { percent: 7, message: "a".into() });
        let long = Said::new(u64::MAX, &"ä".repeat(MESSAGE_MAX));
        assert_eq!((long.percent, long.message.len()), (100, MESSAGE_MAX));
    }

    #[tokio::test]
    async fn the_newest_word_is_heard_once() {
        let news = News::remembering();
        let mut listener = news.listen();
        assert_eq!(listener.rest(), None);
        news.say(Said::new(1, ""));
        news.say(Said::new(2, ""));
        assert_eq!(listener.next().await, Said::new(2, ""));
        assert_eq!(listener.rest(), None);
        news.say(Said::new(3, ""));
        assert_eq!(listener.rest(), Some(Said::new(3, "")));
        assert_eq!(listener.rest(), None);
        assert_eq!(news.all().len(), 3);
    }
}
