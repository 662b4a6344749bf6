//! Logins on the broker: what is there, and making what is missing.
//!
//! A new login's password is random and written into a file before the login exists; it is never printed. A login that
//! is there keeps its password, its tags and its permissions.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    path::Path,
};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use serde::Deserialize;
use serde_json::json;

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
        let exists = management.find(&path).await?.is_some();
        items.push(Item::new("user", &login.name, if exists { State::Same } else { State::Missing }));
        let mut found = None;
        if exists {
            let path = format!("{path}/permissions");
            let all: Vec<Permission> = read(&path, management.get(&path).await?)?;
            found = all.into_iter().find(|one| part(&one.vhost) == management.vhost());
        }
        items.push(permission(login, found.as_ref()));
    }
    Ok(items)
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
    if let Err(error) = management.put(&format!("users/{}", part(&login.name)), &body).await {
        // No login, no password: it can be tried again.
        let _ = std::fs::remove_file(&file);
        return Err(error.to_string());
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
    let mut file = options.open(file)?;
    writeln!(file, "{text}")?;
    file.sync_all()
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
    fn passwords_differ_and_need_no_encoding() {
        let (one, other) = (password().unwrap(), password().unwrap());
        assert!(one != other && one.len() == 32, "{one}");
        assert_eq!(part(&one), one);
    }
}
