//! Server-sent events (WHATWG HTML, section 9.2): the bytes of a stream to events. Pure.
//!
//! Not here: connecting, and connecting again (`events`).

use thiserror::Error;

/// Longest event, in bytes. The server's events have no args and no output; this is far above any of them.
const EVENT_MAX: usize = 4 << 20;

/// An event that is longer than any that a server of ours sends.
#[derive(Debug, PartialEq, Eq, Error)]
#[error("an event of the stream is longer than {EVENT_MAX} bytes")]
pub(super) struct TooLong;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct SseEvent {
    /// The last `id` of the stream up to here: what a reconnect resumes after.
    pub(super) id: Option<String>,
    /// Its `event`; empty: `message`.
    pub(super) name: String,
    /// Its `data`, several lines joined by line feeds.
    pub(super) data: String,
}

/// Reads a stream as it arrives, however it is cut into pieces.
#[derive(Debug, Default)]
pub(super) struct Parser {
    /// The line that has not ended yet.
    line: Vec<u8>,
    /// The last byte was a carriage return: a line feed after it belongs to it.
    after_cr: bool,
    begun: bool,
    /// The `id` of the frame that has not ended yet, or the last one before it.
    id: Option<String>,
    /// The `id` of the last frame that ended.
    last_id: Option<String>,
    name: String,
    data: String,
    has_data: bool,
}

impl Parser {
    /// A parser whose events carry this id until the stream gives one.
    pub(super) fn resuming(id: Option<String>) -> Self {
        Self { last_id: id.clone(), id, ..Self::default() }
    }

    /// What a reconnect resumes after. A frame without data moves it too: the server says so where nothing happens.
    pub(super) fn last_id(&self) -> Option<&str> {
        self.last_id.as_deref().filter(|id| !id.is_empty())
    }

    /// The events that end in these bytes.
    ///
    /// # Errors
    /// [`TooLong`]; nothing can be read after it.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Result<Vec<SseEvent>, TooLong> {
        let mut events = Vec::new();
        for &byte in bytes {
            match byte {
                b'\n' if std::mem::take(&mut self.after_cr) => {}
                b'\n' | b'\r' => {
                    self.after_cr = byte == b'\r';
                    events.extend(self.end_line());
                }
                _ => {
                    self.after_cr = false;
                    self.line.push(byte);
                }
            }
            if self.line.len() + self.data.len() > EVENT_MAX {
                return Err(TooLong);
            }
        }
        Ok(events)
    }

    fn end_line(&mut self) -> Option<SseEvent> {
        let line = std::mem::take(&mut self.line);
        let line = String::from_utf8_lossy(&line);
        let line = if std::mem::replace(&mut self.begun, true) {
            &*line
        } else {
            line.strip_prefix('\u{feff}').unwrap_or(&line)
        };
        if line.is_empty() {
            return self.end_event();
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.name),
            "data" => {
                if std::mem::replace(&mut self.has_data, true) {
                    self.data.push('\n');
                }
                self.data.push_str(value);
            }
            "id" if !value.contains('\0') => self.id = Some(value.to_owned()),
            // A comment, a `retry` (we have our own pauses), or what a later version says.
            _ => {}
        }
        None
    }

    fn end_event(&mut self) -> Option<SseEvent> {
        let (name, data) = (std::mem::take(&mut self.name), std::mem::take(&mut self.data));
        let complete = std::mem::take(&mut self.has_data);
        self.last_id.clone_from(&self.id);
        complete.then(|| SseEvent { id: self.last_id().map(str::to_owned), name, data })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(id: &str, name: &str, data: &str) -> SseEvent {
        let id = Some(id.to_owned()).filter(|id| !id.is_empty());
        SseEvent { id, name: name.to_owned(), data: data.to_owned() }
    }

    fn cases() -> Vec<(&'static str, Vec<SseEvent>)> {
        vec![
            ("", vec![]),
            (": keep-alive\n\n", vec![]),
            ("data: {}\n\n", vec![event("", "", "{}")]),
            ("data: not ended\n", vec![]),
            (
                "id: 12.0\nevent: hopline.job.started\ndata: {\"a\":1}\n\n",
                vec![event("12.0", "hopline.job.started", "{\"a\":1}")],
            ),
            ("id: 1.0\ndata: a\n\ndata: b\n\n", vec![event("1.0", "", "a"), event("1.0", "", "b")]),
            ("id: 1.0\n\nevent: x\n\ndata: a\n\n", vec![event("1.0", "", "a")]),
            ("id: 1.0\nid\ndata: a\n\n", vec![event("", "", "a")]),
            ("id: 1.0\nid: a\0b\ndata: a\n\n", vec![event("1.0", "", "a")]),
            ("data:a\ndata: b\ndata:  c\ndata\n\n", vec![event("", "", "a\nb\n c\n")]),
            ("data\n\n", vec![event("", "", "")]),
            (
                "data: a\r\n\r\ndata: b\r\rdata: c\n\n",
                vec![event("", "", "a"), event("", "", "b"), event("", "", "c")],
            ),
            ("\u{feff}data: größe: 1\nretry: 10\nother: x\n\n", vec![event("", "", "größe: 1")]),
        ]
    }

    #[test]
    fn streams_are_read_as_the_standard_says() {
        for (stream, events) in cases() {
            assert_eq!(Parser::default().feed(stream.as_bytes()).unwrap(), events, "{stream:?}");
        }
    }

    #[test]
    fn it_does_not_matter_how_a_stream_is_cut() {
        for (stream, events) in cases() {
            let mut parser = Parser::default();
            let read: Vec<_> = stream.bytes().flat_map(|byte| parser.feed(&[byte]).unwrap()).collect();
            assert_eq!(read, events, "{stream:?}");
        }
    }

    #[test]
    fn a_resumed_stream_keeps_its_place() {
        let mut parser = Parser::resuming(Some("7.1".to_owned()));
        assert_eq!(parser.feed(b"data: a\n\n").unwrap(), [event("7.1", "", "a")]);
    }

    #[test]
    fn a_keep_alive_moves_the_place_when_it_has_ended() {
        let mut parser = Parser::resuming(Some("7.1".to_owned()));
        for (piece, place) in [(": keep-alive\nid: 9.0\n", "7.1"), ("\n", "9.0"), ("id: 9.5\ndata: x", "9.0")]
        {
            assert_eq!(parser.feed(piece.as_bytes()).unwrap(), []);
            assert_eq!(parser.last_id(), Some(place), "{piece:?}");
        }
    }

    #[test]
    fn an_endless_event_ends_the_stream() {
        let mut parser = Parser::default();
        let line = [b"data: ".as_slice(), &[b'x'; 1 << 20], b"\n"].concat();
        assert!((0..4).any(|_| parser.feed(&line) == Err(TooLong)));
    }
}
