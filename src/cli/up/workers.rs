//! Which worker binaries there are, and how many of each are wanted.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};

use super::state::Scale;
use crate::near;

/// Worker programs by the worker's name.
pub(super) type Programs = BTreeMap<String, PathBuf>;

/// What the name of a worker's program begins with, if it is to be found beside `hopline`.
pub(super) const PREFIX: &str = "hopline-worker-";
/// Most processes of one worker on one machine: more is a slip of the finger.
const MOST: u32 = 64;

/// The worker binaries beside `hopline`, by name: `media` for `hopline-worker-media`.
pub(super) fn beside(hopline: &Path) -> anyhow::Result<Programs> {
    let dir = hopline.parent().context("`hopline` lies in no folder")?;
    let entries = std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let named = entries.filter_map(|entry| {
        let path = entry.ok()?.path();
        let name = path.file_name()?.to_str()?.strip_prefix(PREFIX)?.to_owned();
        // Beside them lie the compiler's own files, as `hopline-worker-media.d`.
        (is_name(&name) && path.is_file()).then_some((name, path))
    });
    Ok(named.collect())
}

/// Whether a worker may be called so: the name is that of its processes and of their logs, too.
pub(super) fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}

/// All workers there are: those found beside `hopline`, and those that were named.
pub(super) fn with_own(mut found: Programs, own: &Programs) -> anyhow::Result<Programs> {
    for (name, program) in own {
        if let Some(other) = found.insert(name.clone(), program.clone()) {
            bail!("{} and {} would both be worker `{name}`: rename one", other.display(), program.display());
        }
    }
    Ok(found)
}

/// `media=4`.
pub(super) fn parse(text: &str) -> Result<(String, u32), String> {
    let (name, count) = text.split_once('=').ok_or("write it as name=number, as in media=4")?;
    let count = count.parse().map_err(|_| format!("`{count}` is no number"))?;
    if count > MOST { Err(format!("at most {MOST}")) } else { Ok((name.to_owned(), count)) }
}

/// Workers that are off until there is what they cannot start without: a variable that names it, or one of the folders
/// where they look by themselves.
const OFF_WITHOUT: [(&str, &str, &[&str]); 3] = [
    ("exec", "EXEC_CONFIG", &[]),
    ("mail", "MAIL_CONFIG", &[]),
    ("media", "MEDIA_ROOT", &["pictures", "workers/media/pictures"]),
];

/// Why a worker is off in this process's environment and working folder; `None`: it is not.
pub(super) fn off(name: &str) -> Option<String> {
    let is_set = |variable: &str| std::env::var_os(variable).is_some_and(|value| !value.is_empty());
    off_where(name, is_set, |folder| Path::new(folder).is_dir())
}

fn off_where(name: &str, is_set: impl Fn(&str) -> bool, is_folder: impl Fn(&str) -> bool) -> Option<String> {
    let (_, variable, folders) = OFF_WITHOUT.iter().find(|(worker, ..)| *worker == name)?;
    if is_set(variable) || folders.iter().any(|folder| is_folder(folder)) {
        return None;
    }
    let none =
        if folders.is_empty() { String::new() } else { format!(", no folder {} here", folders.join(" or ")) };
    Some(format!("{variable} is not set{none}"))
}

/// One of each that is not off, where nothing else is asked for.
pub(super) fn initial(
    found: &Programs,
    asked: &Scale,
    is_off: impl Fn(&str) -> bool,
) -> anyhow::Result<Scale> {
    check(found, asked)?;
    let usual = |name: &str| u32::from(!is_off(name));
    Ok(found
        .keys()
        .map(|name| (name.clone(), asked.get(name).copied().unwrap_or_else(|| usual(name))))
        .collect())
}

pub(super) fn check(found: &Programs, asked: &Scale) -> anyhow::Result<()> {
    for name in asked.keys() {
        let names = found.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        ensure!(
            !found.is_empty(),
            "there is no worker `{name}`: no {PREFIX}* lies beside hopline; build them first, or name one by --worker"
        );
        if !found.contains_key(name) {
            let hint = near::did_you_mean(name, found.keys().map(String::as_str));
            let hint = hint.map(|hint| format!(". {hint}")).unwrap_or_default();
            bail!("there is no worker `{name}`; there is {names}{hint}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_are_found_by_name_and_scaled_by_it() {
        let dir = std::env::temp_dir().join(format!("hopline workers {}", crate::JobId::new()));
        std::fs::create_dir(&dir).unwrap();
        for name in ["", "-worker-media", "-worker-media.d", "-worker-demo", "-worker-exec"] {
            std::fs::write(dir.join(format!("hopline{name}")), "").unwrap();
        }
        let found = beside(&dir.join("hopline")).unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
        assert_eq!(found.keys().collect::<Vec<_>>(), ["demo", "exec", "media"]);
        let scale = |asked: &[(&str, u32)], set: bool| {
            let asked = asked.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
            let scale = initial(&found, &asked, |name| name == "exec" && !set);
            scale.map(|scale| scale.into_values().collect::<Vec<_>>()).map_err(|error| error.to_string())
        };
        assert_eq!(scale(&[("media", 4)], false), Ok(vec![1, 0, 4]));
        assert_eq!(scale(&[("media", 4)], true), Ok(vec![1, 1, 4]));
        assert_eq!(scale(&[("exec", 2), ("media", 0)], false), Ok(vec![1, 2, 0]));
        let error = "there is no worker `medai`; there is demo, exec, media. Did you mean media?";
        assert_eq!(scale(&[("medai", 4)], true), Err(error.to_owned()));

        let own = |name: &str| Programs::from([(name.to_owned(), PathBuf::from("/x").join(name))]);
        assert_eq!(with_own(found.clone(), &own("greet")).unwrap().len(), 4);
        let error = with_own(found, &own("media")).unwrap_err().to_string();
        assert!(error.contains("and /x/media would both be worker `media`"), "{error}");
    }

    #[test]
    fn workers_are_off_without_what_they_need() {
        let exec = "EXEC_CONFIG is not set";
        let media = "MEDIA_ROOT is not set, no folder pictures or workers/media/pictures here";
        for (name, set, folder, why) in [
            ("exec", "", "", Some(exec)),
            ("exec", "EXEC_CONFIG", "", None),
            ("exec", "MEDIA_ROOT", "pictures", Some(exec)),
            ("media", "", "", Some(media)),
            ("media", "MEDIA_ROOT", "", None),
            ("media", "", "pictures", None),
            ("media", "", "workers/media/pictures", None),
            ("demo", "", "", None),
        ] {
            let off = off_where(name, |variable| variable == set, |path| path == folder);
            assert_eq!(off.as_deref(), why, "{name} {set} {folder}");
        }
        // Where the worker looks is written there.
        let source = include_str!("../../../workers/media/src/media.rs");
        assert!(source.contains(&format!("{:?}", OFF_WITHOUT[2].2)), "another list of folders");
    }

    #[test]
    fn a_scale_is_a_name_and_a_number() {
        assert_eq!(parse("media=4"), Ok(("media".to_owned(), 4)));
        for bad in ["media", "media=", "media=-1", "media=four", "media=1000"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
