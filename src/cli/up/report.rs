//! What `hopline up` tells its user once all is ready.

use std::{fmt::Write, time::Duration};

use serde::Deserialize;

use super::{
    state::{Layout, Management, Scale, State},
    workers,
};

const MOST_QUEUES: usize = 12;

#[derive(Deserialize)]
struct Queue {
    name: String,
}

/// Addresses, login, queues and where the logs are.
pub(super) async fn up(layout: &Layout, state: &State, prefix: &str) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "  {name:<12}{value}");
    };
    line("HTTP", state.http().unwrap_or("(none)"));
    if let Some(broker) = &state.broker {
        line("AMQP", &broker.amqp);
        if let Some(Management { url, user, password }) = &broker.management {
            line("RabbitMQ UI", &format!("{url}   user {user}, password {password}"));
        }
        let management = broker.management.as_ref();
        line("queues", &queues(management, prefix).await.join(" "));
    }
    let running = state.scale.iter().filter(|(_, count)| **count > 0);
    let workers: Vec<_> = running.map(|(name, count)| format!("{name} ×{count}")).collect();
    let none = "none: no hopline-worker-* lies beside hopline";
    line("workers", &if workers.is_empty() { none.to_owned() } else { workers.join(", ") });
    let left_out = left_out(&state.scale, workers::off);
    if !left_out.is_empty() {
        line("left out", &left_out);
    }
    line("logs", &layout.logs().display().to_string());
    let dir = layout.dir.display();
    line(
        "end it",
        &format!(
            "hopline down --dir {}",
            if dir.to_string().contains(' ') { format!("'{dir}'") } else { dir.to_string() }
        ),
    );
    text.truncate(text.trim_end().len());
    text
}

/// The workers that are not started because they lack something, and what.
fn left_out(scale: &Scale, off: impl Fn(&str) -> Option<String>) -> String {
    let none = scale.iter().filter(|(_, count)| **count == 0);
    let told = none.filter_map(|(name, _)| Some(format!("{name} ({})", off(name)?)));
    told.collect::<Vec<_>>().join("; ")
}

/// The queues that jobs wait or lie dead in; their pattern where they cannot be asked for.
async fn queues(management: Option<&Management>, prefix: &str) -> Vec<String> {
    let start = format!("{prefix}.q.");
    let mut names = match management {
        Some(management) => ask(management).await.unwrap_or_default(),
        None => Vec::new(),
    };
    names.retain(|name| name.starts_with(&start));
    names.sort();
    if names.is_empty() {
        return vec![format!("{start}<queue>"), format!("{start}<queue>.dead")];
    }
    if names.len() > MOST_QUEUES {
        names.truncate(MOST_QUEUES);
        names.push("…".to_owned());
    }
    names
}

async fn ask(management: &Management) -> reqwest::Result<Vec<String>> {
    let url = format!("{}/api/queues?columns=name", management.url);
    let client = crate::cli::local_http(Duration::from_secs(5))?;
    let request = client.get(url).basic_auth(&management.user, Some(&management.password));
    let queues: Vec<Queue> = request.send().await?.error_for_status()?.json().await?;
    Ok(queues.into_iter().map(|queue| queue.name).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_for_a_lack_is_told() {
        let scale = [("demo", 0), ("exec", 0), ("mail", 1), ("media", 0)];
        let scale: Scale = scale.map(|(name, count)| (name.to_owned(), count)).into();
        let off = |name: &str| (name != "demo").then(|| format!("no {name}.toml"));
        assert_eq!(left_out(&scale, off), "exec (no exec.toml); media (no media.toml)");
        assert_eq!(left_out(&Scale::new(), off), "");
    }
}
