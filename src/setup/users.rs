//! Logins on the broker: what is there, and making what is missing.
//!
//! A new login's password is random and written into a file before the login exists; it is never printed. A login that
//! is there keeps its password, its tags and its permissions.

use std::{
    collections::BTreeSet,
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    path::Path,
};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Item, State, rights::Login};
use crate::{
    amqp::probe::Target,
    config::AmqpUrl,
    management::{Management, ManagementError, part, read},
};

/// Bytes of chance in a password.
const CHANCE: usize = 24;

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Permission {
    vhost: String,
    configure: String,
    write: String,
    read: String,
}

/// How each login and its permissions stand.
pub(crate) async fn compare(management: &Management, logins: &[Login]) -> Result<Vec<Item>, ManagementError> {
    let mut items = Vec::new();
    for login in logins {
        let path = format!("users/{}", part(&login.name));
        let there = management.find(&path).await?;
        items.push(user_item(login, there.as_ref()));
        let mut found = None;
        if there.is_some() {
            let path = format!("{path}/permissions");
            let all: Vec<Permission> = read(&path, management.get(&path).await?)?;
            found = all.into_iter().find(|one| part(&one.vhost) == management.vhost());
        }
        items.push(permission(login, found.as_ref()));
    }
    Ok(items)
}

fn user_item(login: &Login, found: Option<&Value>) -> Item {
    let item = |state| Item::new("user", &login.name, state);
    let Some(found) = found else { return item(State::Missing) };
    let tags = tags(&found["tags"]);
    if tags.iter().eq(split(login.tags).iter()) {
        return item(State::Same);
    }
    let told = |tags: &str| if tags.is_empty() { "none".to_owned() } else { tags.to_owned() };
    let Login { name, tags: wanted, .. } = login;
    let found: Vec<&str> = tags.iter().map(String::as_str).collect();
    item(State::Kept)
        .because(format!("its tags are {}, not {}", told(&found.join(" ")), told(wanted)))
        .advise(format!("if they should be: rabbitmqctl set_user_tags {name} {wanted}").trim_end().to_owned())
}

/// A user's tags: a list, or, before RabbitMQ 3.9, a text.
fn tags(value: &Value) -> BTreeSet<String> {
    match value {
        Value::Array(all) => all.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        Value::String(text) => split(text),
        _ => BTreeSet::new(),
    }
}

fn split(text: &str) -> BTreeSet<String> {
    text.split([',', ' ']).filter(|tag| !tag.is_empty()).map(str::to_owned).collect()
}

fn permission(login: &Login, found: Option<&Permission>) -> Item {
    let item = |state| Item::new("permission", &login.name, state);
    let Some(found) = found else { return item(State::Missing) };
    let pairs = [
        ("configure", &found.configure, &login.configure),
        ("write", &found.write, &login.write),
        ("read", &found.read, &login.read),
    ];
    let differences: Vec<String> = pairs
        .into_iter()
        .filter(|(_, found, wanted)| found != wanted)
        .map(|(right, found, wanted)| format!("{right} is {found}, not {wanted}"))
        .collect();
    if differences.is_empty() {
        return item(State::Same);
    }
    let Login { name, configure, write, read, .. } = login;
    let by_hand =
        format!("if it should be: rabbitmqctl set_permissions {name} '{configure}' '{write}' '{read}'");
    item(State::Kept).because(differences.join("; ")).advise(by_hand)
}

/// Makes the logins and permissions that `items` call missing. New passwords go into `<folder>/<user>.url`, as an
/// address that `HOPLINE_AMQP_URL_FILE` takes.
pub(crate) async fn make(
    management: &Management,
    amqp: &AmqpUrl,
    logins: &[Login],
    folder: Option<&Path>,
    items: &mut [Item],
) {
    for login in logins {
        for object in ["user", "permission"] {
            let missing = |item: &&mut Item| {
                item.object == object && item.name == login.name && item.state == State::Missing
            };
            let Some(item) = items.iter_mut().find(missing) else { continue };
            let made = if object == "user" {
                user(management, amqp, login, folder).await
            } else {
                let body = json!({
                    "configure": login.configure, "write": login.write, "read": login.read,
                });
                let path = format!("permissions/{}/{}", management.vhost(), part(&login.name));
                management.put(&path, &body).await.map(|()| None).map_err(|error| error.to_string())
            };
            match made {
                Ok(detail) => {
                    item.state = State::Made;
                    item.detail = detail;
                }
                Err(why) => {
                    item.state = State::Failed;
                    item.detail = Some(why);
                }
            }
        }
    }
}

async fn user(
    management: &Management,
    amqp: &AmqpUrl,
    login: &Login,
    folder: Option<&Path>,
) -> Result<Option<String>, String> {
    let folder = folder.ok_or("its new password needs a place: --credentials DIR")?;
    let file = folder.join(format!("{}.url", login.name));
    let password = password().map_err(|error| format!("no random password: {error}"))?;
    let address = address(amqp, &login.name, &password)?;
    // Before the login exists: a password that nobody has would be of no use.
    write(folder, &file, &address).map_err(|error| format!("cannot write {}: {error}", file.display()))?;
    let body = json!({ "password": password, "tags": login.tags });
    match management.put(&format!("users/{}", part(&login.name)), &body).await {
        Ok(()) => {}
        // It may have been made; then nobody else has its password.
        Err(error @ ManagementError::Unreachable { .. }) => {
            let file = file.display();
            return Err(format!(
                "{error}; it may have been made: if it is there when you ask again, its address is in {file}; if not, remove \
                 that file first"
            ));
        }
        Err(error) => {
            // No login, no password: it can be tried again.
            let _ = std::fs::remove_file(&file);
            return Err(error.to_string());
        }
    }
    Ok(Some(format!("its address and password are in {}", file.display())))
}

/// The broker's address with another login. The password has nothing that is encoded.
fn address(amqp: &AmqpUrl, user: &str, password: &str) -> Result<String, String> {
    let target = Target::of(amqp)?;
    let url = amqp.expose();
    let (scheme, rest) = url.split_once("://").ok_or("amqp.url is no address")?;
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    Ok(format!("{scheme}://{user}:{password}@{}:{}{}", target.host, target.port, &rest[end..]))
}

fn password() -> io::Result<String> {
    let mut bytes = [0; CHANCE];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(BASE64_URL_SAFE_NO_PAD.encode(bytes))
}

/// Writes a new file that nobody else can read.
fn write(folder: &Path, file: &Path, text: &str) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut opened = options.open(file)?;
    let written = writeln!(opened, "{text}").and_then(|()| opened.sync_all());
    if written.is_err() {
        // Half of it would be in the way of the next attempt.
        let _ = std::fs::remove_file(file);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{amqp::Names, setup::rights};

    #[test]
    fn the_address_keeps_all_but_the_login() {
        for (url, expected) in [
            ("amqp://a:b@host:5673/v%2Fh?heartbeat=5", "amqp://u:p@host:5673/v%2Fh?heartbeat=5"),
            ("amqps://host", "amqps://u:p@host:5671"),
            ("amqp://a:p%2F@127.0.0.1:5672", "amqp://u:p@127.0.0.1:5672"),
        ] {
            assert_eq!(address(&AmqpUrl::new(url), "u", "p").as_deref(), Ok(expected));
        }
    }

    #[test]
    fn a_permission_that_differs_is_its_owners() {
        let login = rights::logins(&Names::new("hopline", ""), false).remove(1);
        let same = Permission {
            vhost: "/".into(),
            configure: login.configure.clone(),
            write: login.write.clone(),
            read: login.read.clone(),
        };
        assert_eq!(permission(&login, Some(&same)).state, State::Same);
        assert_eq!(permission(&login, None).state, State::Missing);
        let wide = Permission { read: ".*".into(), ..same };
        let item = permission(&login, Some(&wide));
        assert_eq!(item.state, State::Kept);
        assert!(item.detail.unwrap().starts_with("read is .*, not ^hopline"));
        assert!(item.to_do.unwrap().contains("set_permissions hopline-worker"));
    }

    #[test]
    fn tags_that_differ_are_told() {
        let names = Names::new("hopline", "");
        let state = |login: usize, tags: Value| {
            let login = rights::logins(&names, false).remove(login);
            let item = user_item(&login, Some(&json!({ "name": login.name, "tags": tags })));
            (item.state, item.detail.unwrap_or_default())
        };
        for (login, tags) in
            [(1, json!([])), (1, json!("")), (2, json!(["monitoring"])), (2, json!("monitoring"))]
        {
            assert_eq!(state(login, tags.clone()).0, State::Same, "{tags}");
        }
        let (kept, detail) = state(1, json!(["administrator"]));
        assert_eq!((kept, detail.as_str()), (State::Kept, "its tags are administrator, not none"));
        assert_eq!(state(2, json!("")).1, "its tags are none, not monitoring");
        let login = rights::logins(&names, false).remove(1);
        assert_eq!(user_item(&login, None).state, State::Missing);
    }

    #[test]
    fn passwords_differ_and_need_no_encoding() {
        let (one, other) = (password().unwrap(), password().unwrap());
        assert!(one != other && one.len() == 32, "{one}");
        assert_eq!(part(&one), one);
    }
}
