//! What `hopline up` tells its user once all is ready.

use std::{fmt::Write, time::Duration};

use serde::Deserialize;

use super::state::{Layout, Management, State};

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
