//! The keys of a process, as they are now: who shows one, whether it holds, and whether it still does.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval},
};

use super::{
    AccessError,
    bucket::Bucket,
    entry::Entry,
    file::{KeyFile, Stamp},
    key::{ApiKey, Bits, KeyId},
    session::{self, Session},
};

/// How often it is looked whether the file has changed.
const LOOK: Duration = Duration::from_secs(1);

/// Why nobody is let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Denied {
    /// There is no such key, or it holds no more.
    Unknown,
    /// The file of keys cannot be read: nobody knows which keys hold.
    Unreadable,
}

/// The keys that hold; none: that is not known.
type Known = Option<HashMap<KeyId, Arc<Entry>>>;

/// The keys of a process; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Keyring(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    file: KeyFile,
    known: watch::Sender<Known>,
    /// What keys with a rate have left. No more than there are keys.
    buckets: Mutex<HashMap<KeyId, Bucket>>,
    /// What the keys are compared with that do not exist.
    decoy: (Bits, Bits),
    read: Mutex<Option<Stamp>>,
}

impl Keyring {
    /// The keys in `file`.
    ///
    /// # Errors
    /// [`AccessError`]: the file cannot be read.
    pub(crate) fn open(file: KeyFile) -> Result<Self, AccessError> {
        let nobody = ApiKey::random()?;
        // Before it is read: what changes meanwhile is read again.
        let stamp = file.stamp();
        let known = live(file.read()?);
        Ok(Self(Arc::new(Inner {
            file,
            known: watch::Sender::new(Some(known)),
            buckets: Mutex::default(),
            decoy: (nobody.digest(), session::public_key(&nobody)?),
            read: Mutex::new(stamp),
        })))
    }

    /// Reads the file again whenever it has changed. While it cannot be read nobody is let in: it may be that a key was
    /// revoked.
    pub(crate) async fn follow(&self) {
        let mut due = interval(LOOK);
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            due.tick().await;
            let keyring = self.clone();
            // The disk may be slow. A panic there is told by the runtime, and the next look is soon.
            let _ = tokio::task::spawn_blocking(move || keyring.look()).await;
        }
    }

    /// Reads the file if it has changed, or could not be read.
    pub(super) fn look(&self) {
        let Inner { file, known, read, .. } = &*self.0;
        let mut read = read.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = file.stamp();
        let was_readable = known.borrow().is_some();
        if stamp == *read && was_readable && stamp.is_some() {
            return;
        }
        *read = stamp;
        let now = match file.read() {
            Ok(entries) => {
                let now = live(entries);
                tracing::info!(keys = now.len(), "read the file of keys");
                Some(now)
            }
            Err(error) => {
                if was_readable {
                    let error = anyhow::Error::from(error);
                    tracing::error!(
                        error = format!("{error:#}"),
                        "the file of keys cannot be read: nobody is let in"
                    );
                }
                None
            }
        };
        if let Some(now) = &now {
            self.buckets().retain(|id, _| now.contains_key(id));
        }
        known.send_if_modified(|known| {
            let changed = *known != now;
            *known = now;
            changed
        });
    }

    /// The key that this text is.
    pub(crate) fn find(&self, text: &str) -> Result<Arc<Entry>, Denied> {
        let Ok(key) = text.parse::<ApiKey>() else { return Err(self.nobody()) };
        self.find_key(&key)
    }

    fn find_key(&self, key: &ApiKey) -> Result<Arc<Entry>, Denied> {
        let digest = key.digest();
        let known = self.known(key.id())?;
        // An unknown id costs what a wrong secret costs.
        let kept = known.as_ref().map_or(&self.0.decoy.0, |entry| &entry.sha256);
        let matches = digest.matches(kept);
        known.filter(|_| matches).ok_or(Denied::Unknown)
    }

    /// The key whose session this text is.
    pub(crate) fn find_session(&self, text: &str, now: Timestamp) -> Result<Arc<Entry>, Denied> {
        let Some(session) = Session::read(text) else { return Err(self.nobody()) };
        let known = self.known(session.id)?;
        let kept = known.as_ref().map_or(&self.0.decoy.1, |entry| &entry.session);
        let holds = session.holds(kept, now);
        known.filter(|_| holds).ok_or(Denied::Unknown)
    }

    /// A session of the key that this text is.
    pub(crate) fn open_session(&self, text: &str, now: Timestamp) -> Result<(Arc<Entry>, String), Denied> {
        let Ok(key) = text.parse::<ApiKey>() else { return Err(self.nobody()) };
        let entry = self.find_key(&key)?;
        // No key of ours fails to sign.
        let session = session::open(&key, now).map_err(|_| Denied::Unknown)?;
        Ok((entry, session))
    }

    fn known(&self, id: KeyId) -> Result<Option<Arc<Entry>>, Denied> {
        match &*self.0.known.borrow() {
            Some(known) => Ok(known.get(&id).cloned()),
            None => Err(Denied::Unreadable),
        }
    }

    fn nobody(&self) -> Denied {
        if self.0.known.borrow().is_some() { Denied::Unknown } else { Denied::Unreadable }
    }

    /// Takes a request from what the key may make.
    ///
    /// # Errors
    /// When the next one may come.
    pub(crate) fn charge(&self, entry: &Entry, now: Instant) -> Result<(), Duration> {
        let Some(rate) = entry.rate else { return Ok(()) };
        let mut buckets = self.buckets();
        buckets.entry(entry.id).or_insert_with(|| Bucket::new(rate, now)).take(rate, 1.0, now)
    }

    /// Takes more for a request that was let in.
    pub(crate) fn charge_more(&self, entry: &Entry, requests: usize) {
        if entry.rate.is_some()
            && let Some(bucket) = self.buckets().get_mut(&entry.id)
        {
            bucket.owe(requests as f64);
        }
    }

    /// Completes when the key is no longer what it was.
    pub(crate) async fn until_changed(&self, entry: &Entry) {
        let same = |known: &Known| {
            known.as_ref().and_then(|known| known.get(&entry.id)).is_some_and(|now| **now == *entry)
        };
        // The sender lives as long as this does.
        let _ = self.0.known.subscribe().wait_for(|known| !same(known)).await;
    }

    fn buckets(&self) -> std::sync::MutexGuard<'_, HashMap<KeyId, Bucket>> {
        // The map is whole after every statement.
        self.0.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn live(entries: Vec<Entry>) -> HashMap<KeyId, Arc<Entry>> {
    entries.into_iter().filter(Entry::is_live).map(|entry| (entry.id, Arc::new(entry))).collect()
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::access::{Scope, entry::tests::made, file::tests::Place};

    fn keyring(place: &Place, entries: &[&Entry]) -> Keyring {
        place.write(entries);
        Keyring::open(place.file()).unwrap()
    }

    #[test]
    fn a_key_is_found_by_its_secret_alone() {
        let place = Place::new();
        let ((entry, key), (_, other)) = (made("a", &[Scope::Read], None), made("b", &[Scope::Read], None));
        let keyring = keyring(&place, &[&entry]);
        assert_eq!(*keyring.find(&key.expose()).unwrap(), entry);
        let mixed = format!("hl_{}_{}", key.id(), &other.expose()[16..]);
        for wrong in ["", "x", key.id().as_str(), &other.expose(), &mixed, &format!(" {}", key.expose())] {
            assert_eq!(keyring.find(wrong).unwrap_err(), Denied::Unknown, "{wrong}");
        }
        let now = Timestamp::now();
        let (_, session) = keyring.open_session(&key.expose(), now).unwrap();
        assert_eq!(keyring.find_session(&session, now).unwrap().id, key.id());
        for wrong in ["", &key.expose(), &session[1..]] {
            assert_eq!(keyring.find_session(wrong, now).unwrap_err(), Denied::Unknown, "{wrong}");
        }
        assert!(keyring.open_session(&mixed, now).is_err());
    }

    #[test]
    fn what_changes_in_the_file_counts_at_the_next_look() {
        let place = Place::new();
        let (entry, key) = made("a", &[Scope::Read], None);
        let keyring = keyring(&place, &[&entry]);
        let (key, now) = (key.expose(), Timestamp::now());
        let (_, session) = keyring.open_session(&key, now).unwrap();
        keyring.look();
        let held = keyring.find(&key).unwrap();
        assert!(keyring.until_changed(&held).now_or_never().is_none());

        let revoked = Entry { revoked: Some(now), ..entry.clone() };
        place.write(&[&revoked]);
        keyring.look();
        assert_eq!(keyring.find(&key).unwrap_err(), Denied::Unknown);
        assert_eq!(keyring.find_session(&session, now).unwrap_err(), Denied::Unknown);
        assert!(keyring.until_changed(&held).now_or_never().is_some());

        // Nobody knows who was revoked in a file that cannot be read.
        place.write(&[&entry]);
        keyring.look();
        assert!(keyring.find(&key).is_ok());
        std::fs::write(place.file().path(), "{").unwrap();
        keyring.look();
        assert_eq!(keyring.find(&key).unwrap_err(), Denied::Unreadable);
        assert_eq!(keyring.find("x").unwrap_err(), Denied::Unreadable);
        std::fs::remove_file(place.file().path()).unwrap();
        keyring.look();
        assert_eq!(keyring.find(&key).unwrap_err(), Denied::Unreadable);
        place.write(&[&entry]);
        keyring.look();
        assert!(keyring.find(&key).is_ok());
        assert!(keyring.until_changed(&held).now_or_never().is_none());
        // A narrower key is another one.
        place.write(&[&Entry { queues: Some([].into()), ..entry }]);
        keyring.look();
        assert!(keyring.until_changed(&held).now_or_never().is_some());
    }

    #[test]
    fn a_rate_is_each_keys_own() {
        let place = Place::new();
        let (slow, _) = made("slow", &[Scope::Read], None);
        let slow = Entry { rate: Some(1.0), ..slow };
        let (free, _) = made("free", &[Scope::Read], None);
        let (keyring, now) = (keyring(&place, &[&slow, &free]), Instant::now());
        assert_eq!(keyring.charge(&slow, now), Ok(()));
        assert_eq!(keyring.charge(&slow, now), Err(Duration::from_secs(1)));
        assert!((0..1000).all(|_| keyring.charge(&free, now).is_ok()));
        assert_eq!(keyring.buckets().len(), 1);
        keyring.charge_more(&slow, 9);
        assert_eq!(keyring.charge(&slow, now + Duration::from_secs(1)), Err(Duration::from_secs(9)));
        place.write(&[&free]);
        keyring.look();
        assert_eq!(keyring.buckets().len(), 0);
    }
}
