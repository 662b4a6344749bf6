//! How far long work is: a bar on standard error, where that is a terminal; nothing elsewhere.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// What a bar counts.
#[derive(Debug, Clone, Copy)]
pub(super) enum Of {
    /// Hundredths, which somebody else reckons.
    Percent,
    /// Bytes of a file of this size.
    Bytes(u64),
    /// Something without a known end.
    Open,
}

/// A bar, wiped out when it is dropped.
#[derive(Debug)]
pub(super) struct Bar(ProgressBar);

impl Bar {
    pub(super) fn new(of: Of) -> Self {
        let (length, template) = match of {
            Of::Percent => (Some(100), "{bar:30} {pos:>3} %  {elapsed}  {wide_msg}"),
            Of::Bytes(length) => {
                (Some(length), "{bar:30} {percent:>3} %  {elapsed}, {eta} to go  {wide_msg}")
            }
            Of::Open => (None, "{spinner} {elapsed}  {wide_msg}"),
        };
        // Draws nothing where standard error is no terminal.
        let bar = ProgressBar::with_draw_target(length, ProgressDrawTarget::stderr());
        // Literals that are right: a wrong one would leave the usual style.
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        Self(bar)
    }

    /// Whether anybody sees it.
    pub(super) fn is_shown(&self) -> bool {
        !self.0.is_hidden()
    }

    /// So far, and what there is to say.
    pub(super) fn set(&self, position: u64, message: String) {
        self.0.set_position(position);
        self.0.set_message(message);
    }

    /// Writes a line of standard error above it.
    pub(super) fn say(&self, text: impl std::fmt::Display) {
        self.0.suspend(|| super::say::error(text));
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_styles_can_be_read_and_a_hidden_bar_does_no_harm() {
        for of in [Of::Percent, Of::Bytes(1 << 30), Of::Open] {
            let bar = Bar::new(of);
            bar.set(50, "half of it".to_owned());
            assert_eq!((bar.0.position(), bar.0.message().as_str()), (50, "half of it"));
        }
    }
}
