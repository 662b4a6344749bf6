//! `hopline top`: what happens on a server, live in the terminal.
//!
//! Owns the command, the loop and the terminal, which is given back however the loop ends: by a key, an error, a panic or
//! a signal; and set up again when it goes on after it was stopped. What is shown comes from the HTTP interface (`seen`);
//! what keys do is in `state`, how it looks in `view`, both pure.

mod grid;
mod seen;
mod state;
mod view;

use std::{
    io::{self, IsTerminal},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use crossterm::{
    event::{Event, EventStream},
    execute,
    terminal::{Clear, ClearType, EnterAlternateScreen, disable_raw_mode, enable_raw_mode},
};
use futures_util::StreamExt;
use ratatui::{
    DefaultTerminal, Terminal,
    backend::{CrosstermBackend, TestBackend},
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    task::AbortHandle,
};

use self::{
    seen::Seen,
    state::{State, Wish},
};
use super::{
    Usage,
    api::{Server, Target},
    input, say,
};

/// Columns of a frame that is printed to no terminal.
const WIDTH: u16 = 120;
/// Lines of a frame that is printed, at most: what does not fit is in `queues ls`, `workers ls` and `jobs ls`.
const HEIGHT: u16 = 200;

#[derive(Debug, clap::Args)]
pub(super) struct Top {
    /// Print one frame, as plain text, and end. Needs no terminal.
    #[arg(long)]
    once: bool,
    /// How often the server is asked.
    #[arg(long, default_value = "2s", value_name = "DURATION", value_parser = interval)]
    every: Duration,
    #[command(flatten)]
    target: Target,
}

fn interval(text: &str) -> Result<Duration, String> {
    let every = input::duration(text)?;
    let allowed = Duration::from_millis(200)..=Duration::from_secs(3600);
    if allowed.contains(&every) { Ok(every) } else { Err("must be 200ms to 1h".to_owned()) }
}

impl Top {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let is_terminal = io::stdout().is_terminal() && io::stdin().is_terminal();
        if !self.once && !is_terminal {
            let text = "hopline top needs a terminal; --once prints one frame without one";
            return Err(Usage(text.to_owned()).into());
        }
        match anstream::ColorChoice::global() {
            anstream::ColorChoice::Never => crossterm::style::force_color_output(false),
            anstream::ColorChoice::Auto => {} // by NO_COLOR
            _ => crossterm::style::force_color_output(true),
        }
        let server = Server::new(&self.target)?;
        // Where nobody answers at the start, that is said as by any other command.
        let first = Seen::look(&server).await?;
        let mut state = State::new(server.address(), self.every);
        state.see(first);
        if self.once {
            say::result(&plain(&state)?)?;
        } else {
            live(state, server).await?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// One frame as text.
fn plain(state: &State) -> anyhow::Result<String> {
    let width = say::width().and_then(|columns| u16::try_from(columns).ok()).unwrap_or(WIDTH);
    let mut terminal = Terminal::new(TestBackend::new(width, view::height(state, width).min(HEIGHT)))?;
    terminal.draw(|frame| view::draw(frame, &mut state.clone()))?;
    Ok(view::text(terminal.backend().buffer()))
}

/// The terminal, given back when this is dropped. A panic gives it back before it is told.
struct Screen(DefaultTerminal);

impl Screen {
    fn open() -> io::Result<Self> {
        ratatui::try_init().map(Self)
    }

    /// Sets the terminal up once more: the shell had it meanwhile.
    fn reopen(&mut self) -> io::Result<()> {
        // What was made raw once counts as raw until it is given back.
        disable_raw_mode()?;
        enable_raw_mode()?;
        execute!(io::stdout(), EnterAlternateScreen, Clear(ClearType::All))?;
        // A new one, which takes nothing for drawn. To clear the old one is to ask for the cursor's place, and the answer
        // would come among the keys.
        self.0 = Terminal::new(CrosstermBackend::new(io::stdout()))?;
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // Nobody can be told, and a terminal that is gone needs nothing.
        let _ = ratatui::try_restore();
    }
}

/// The signals that end it.
struct Ends([Signal; 4]);

impl Ends {
    fn listen() -> io::Result<Self> {
        let kinds =
            [SignalKind::terminate(), SignalKind::hangup(), SignalKind::interrupt(), SignalKind::quit()];
        let [term, hangup, interrupt, quit] = kinds.map(signal);
        Ok(Self([term?, hangup?, interrupt?, quit?]))
    }

    async fn one(&mut self) {
        let [term, hangup, interrupt, quit] = &mut self.0;
        tokio::select! {
            _ = term.recv() => {}
            _ = hangup.recv() => {}
            _ = interrupt.recv() => {}
            _ = quit.recv() => {}
        }
    }
}

/// The signal that it goes on after it was stopped.
fn goings_on() -> io::Result<Signal> {
    signal(SignalKind::from_raw(rustix::process::Signal::CONT.as_raw()))
}

/// Ends a task when it is dropped.
struct Ended(AbortHandle);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn live(mut state: State, server: Server) -> anyhow::Result<()> {
    let mut ends = Ends::listen().context("cannot listen for signals")?;
    let mut goings_on = goings_on().context("cannot listen for signals")?;
    let (mut news, _looking) = look_on(server, state.every());
    let mut screen = Screen::open().context("cannot use the terminal")?;
    let mut events = EventStream::new();
    loop {
        screen.0.draw(|frame| view::draw(frame, &mut state)).context("cannot write to the terminal")?;
        tokio::select! {
            event = events.next() => match event {
                Some(Ok(Event::Key(key))) => if state.key(key) == Wish::End { return Ok(()) },
                // Another size, above all: it is drawn anew.
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error).context("cannot read the terminal"),
                None => return Ok(()),
            },
            changed = news.changed() => match changed {
                Ok(()) => match &*news.borrow_and_update() {
                    Some(Ok(seen)) => state.see(Seen::clone(seen)),
                    Some(Err(trouble)) => state.trouble(trouble.clone()),
                    None => {}
                },
                // The task ends with this function only.
                Err(_) => return Ok(()),
            },
            () = ends.one() => return Ok(()),
            _ = goings_on.recv() => screen.reopen().context("cannot use the terminal")?,
        }
    }
}

/// What the last look gave.
type News = Option<Result<Arc<Seen>, String>>;

/// Asks the server again and again, beside the loop: a slow answer holds up no key.
fn look_on(server: Server, every: Duration) -> (watch::Receiver<News>, Ended) {
    let (sender, receiver) = watch::channel(None);
    let task = tokio::spawn(async move {
        loop {
            tokio::time::sleep(every).await;
            let seen = Seen::look(&server).await.map(Arc::new).map_err(|error| format!("{error:#}"));
            sender.send_replace(Some(seen));
        }
    });
    (receiver, Ended(task.abort_handle()))
}
