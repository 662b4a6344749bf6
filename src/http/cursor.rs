//! Cursors of lists. Pure.
//!
//! A cursor is the place of the last job that was shown, and a digest of what the list was asked for: with another
//! filter it would silently skip jobs. Places are positions in the event log, so a page begins where the last one
//! ended, whatever is added meanwhile, and on every replica.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};

use super::problem::{Code, Problem};
use crate::record::model::{Filter, Position};

const VERSION: u8 = 1;
const LEN: usize = 1 + 8 + 2 + 8;

/// The cursor of a list of `filter` that goes on after `after`.
pub(super) fn encode(after: Position, filter: &Filter) -> String {
    let mut bytes = vec![VERSION];
    bytes.extend(after.offset.to_be_bytes());
    bytes.extend(after.index.to_be_bytes());
    bytes.extend(digest(filter));
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

/// Where the list of `filter` goes on.
///
/// # Errors
/// The problem, when this is no cursor, or one of another filter.
pub(super) fn decode(text: &str, filter: &Filter) -> Result<Position, Problem> {
    let bad = |detail: &'static str| Problem::new(Code::BadCursor, detail);
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).ok();
    let bytes: Option<[u8; LEN]> = bytes.and_then(|bytes| bytes.try_into().ok());
    let Some([VERSION, o0, o1, o2, o3, o4, o5, o6, o7, i0, i1, rest @ ..]) = bytes else {
        return Err(bad("this is no cursor: use `next` of an answer as it is"));
    };
    if rest != digest(filter) {
        return Err(bad(
            "the cursor belongs to a list with another filter: give the same parameters with it",
        ));
    }
    let offset = u64::from_be_bytes([o0, o1, o2, o3, o4, o5, o6, o7]);
    Ok(Position { offset, index: u16::from_be_bytes([i0, i1]) })
}

/// A digest of a filter that stays the same from version to version: 64 bits of FNV-1a over its JSON, and the queues of
/// who asks.
fn digest(filter: &Filter) -> [u8; 8] {
    // Texts and names of states: nothing here can fail.
    let mut text = serde_json::to_vec(filter).unwrap_or_default();
    for queue in filter.queues.iter().flatten() {
        text.push(b'\n');
        text.extend(queue.as_str().bytes());
    }
    let mix = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    text.iter().fold(0xcbf2_9ce4_8422_2325, mix).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{job::QueueName, record::model::JobStatus};

    fn filter(tag: &str) -> Filter {
        Filter { tag: Some(tag.to_owned()), status: vec![JobStatus::Dead], ..Filter::default() }
    }

    #[test]
    fn a_cursor_is_read_as_it_was_written() {
        for (offset, index) in [(0, 0), (1, 2), ((1 << 47) - 1, u16::MAX)] {
            let after = Position { offset, index };
            let cursor = encode(after, &filter("a"));
            assert_eq!(decode(&cursor, &filter("a")).unwrap(), after);
            assert!(cursor.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b'_'), "{cursor}");
        }
    }

    #[test]
    fn another_filters_cursor_is_refused() {
        let cursor = encode(Position::default(), &filter("a"));
        assert_eq!(decode(&cursor, &filter("b")).unwrap_err().code, Code::BadCursor);
        assert_eq!(decode(&cursor, &Filter::default()).unwrap_err().code, Code::BadCursor);
        let queues = Some(["media", "mail"].map(|name| QueueName::parse(name).unwrap()).into());
        let narrower = Filter { queues, ..filter("a") };
        assert_eq!(decode(&cursor, &narrower).unwrap_err().code, Code::BadCursor);
        assert!(decode(&encode(Position::default(), &narrower), &narrower).is_ok());
    }

    #[test]
    fn what_is_no_cursor_is_refused() {
        let good = encode(Position { offset: 77, index: 1 }, &filter("a"));
        let other_version = BASE64_URL_SAFE_NO_PAD.encode([2; LEN]);
        for bad in
            ["", "x", "!!!", "AAAA", &good[1..], &format!("{good}A"), &format!("{good}="), &other_version]
        {
            assert_eq!(decode(bad, &filter("a")).unwrap_err().code, Code::BadCursor, "{bad}");
        }
    }

    #[test]
    fn the_digest_stays_the_same() {
        // A cursor outlives an upgrade: a change here must come with a new version.
        assert_eq!(encode(Position { offset: 5, index: 3 }, &filter("a")), "AQAAAAAAAAAFAAMABUUIRFvPYg");
    }
}
