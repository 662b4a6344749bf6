//! A file of API keys, and requests with them.

use std::path::PathBuf;

use hopline::{
    Config, JobId, QueueName,
    access::{ApiKey, Entry, KeyFile, Scope, Wanted},
};
use jiff::Timestamp;
use reqwest::{Method, RequestBuilder};

use super::front::{Answer, Front};

/// A file of keys, and what fronts need to use it. Dropped, it is removed.
pub(crate) struct Keys {
    file: KeyFile,
    folder: PathBuf,
}

impl Keys {
    pub(crate) fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("hopline-it-keys-{}", JobId::new()));
        std::fs::create_dir(&folder).expect("a folder");
        let file = KeyFile::new(folder.join("keys"));
        file.update(|_| Ok(())).expect("an empty file of keys");
        Self { file, folder }
    }

    /// The configuration of a front that asks for these keys.
    pub(crate) fn guard(&self, config: &Config) -> Config {
        let mut config = config.clone();
        config.http.keys = Some(self.file.path().to_owned());
        config
    }

    /// Makes a key; a front that runs already knows it soon.
    pub(crate) fn make(&self, scopes: &[Scope], queues: Option<&[&QueueName]>) -> ApiKey {
        let queues = queues.map(|queues| queues.iter().map(|queue| (*queue).clone()).collect());
        let name = format!("k-{}", JobId::new());
        let wanted = Wanted { name, scopes: scopes.iter().copied().collect(), queues, rate: None };
        let (entry, key) = Entry::generate(wanted, Timestamp::now()).expect("a key");
        self.file
            .update(|known| {
                known.push(entry);
                Ok(())
            })
            .expect("a file of keys");
        key
    }

    /// The name of a key.
    pub(crate) fn name(&self, key: &ApiKey) -> String {
        let known = self.file.read().expect("a file of keys");
        known.into_iter().find(|entry| entry.id == key.id()).expect("a key of ours").name
    }

    pub(crate) fn revoke(&self, key: &ApiKey) {
        self.file
            .update(|known| {
                for entry in known.iter_mut().filter(|entry| entry.id == key.id()) {
                    entry.revoked = Some(Timestamp::now());
                }
                Ok(())
            })
            .expect("a file of keys");
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// A front, seen by who has a key.
pub(crate) struct Seen<'a> {
    pub(crate) front: &'a Front,
    pub(crate) key: &'a ApiKey,
}

impl Seen<'_> {
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.front.method(method, path).bearer_auth(self.key.expose())
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.front.send(self.request(Method::GET, path)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.front.send(self.request(Method::DELETE, path)).await
    }

    /// Sends JSON.
    pub(crate) async fn send(&self, method: Method, path: &str, body: impl Into<String>) -> Answer {
        let request = self.request(method, path).header("content-type", "application/json");
        self.front.send(request.body(body.into())).await
    }

    pub(crate) async fn post(&self, path: &str, body: impl Into<String>) -> Answer {
        self.send(Method::POST, path, body).await
    }
}
