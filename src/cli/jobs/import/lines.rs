//! The lines of an import: read one by one, checked, named. Pure but for the reading.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, Read},
};

use serde_json::value::{RawValue, to_raw_value};

/// Longest line in bytes: above the longest args that any server takes.
const LONGEST: u64 = 17 << 20;
/// What some programs begin a file of UTF-8 with (U+FEFF).
const MARK: &[u8] = "\u{feff}".as_bytes();

/// A job to be submitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    /// From 1.
    pub(super) number: u64,
    /// One JSON object.
    pub(super) text: String,
    /// Whether it has an id or a key: submitted twice, it is one job.
    pub(super) is_named: bool,
}

/// The lines of a file.
#[derive(Debug)]
pub(super) struct Lines<R> {
    input: R,
    key: Option<String>,
    first: u64,
    number: u64,
    bytes: u64,
}

/// A line that is no job, by its number, and why.
type Wrong = (u64, String);

impl<R: BufRead> Lines<R> {
    /// With a key, each line without a name of its own gets one from it; lines before `first` are passed over.
    pub(super) fn new(input: R, key: Option<String>, first: u64) -> Self {
        Self { input, key, first, number: 0, bytes: 0 }
    }

    /// How many bytes were read.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The next line that is not blank; `None`: there are no more.
    pub(super) fn next(&mut self) -> io::Result<Option<Result<Line, Wrong>>> {
        loop {
            let mut line = Vec::new();
            let read = (&mut self.input).take(LONGEST).read_until(b'\n', &mut line)?;
            if read == 0 {
                return Ok(None);
            }
            self.bytes += read as u64;
            self.number += 1;
            if self.number == 1 && line.starts_with(MARK) {
                line.drain(..MARK.len());
            }
            let whole = line.ends_with(b"\n") || (read as u64) < LONGEST;
            if !whole {
                self.skip_rest()?;
            }
            if self.number < self.first || line.trim_ascii().is_empty() {
                continue;
            }
            let job = if whole { self.job(&line) } else { Err(format!("longer than {LONGEST} bytes")) };
            return Ok(Some(job.map_err(|why| (self.number, why))));
        }
    }

    fn skip_rest(&mut self) -> io::Result<()> {
        loop {
            let mut more = Vec::new();
            let read = (&mut self.input).take(LONGEST).read_until(b'\n', &mut more)?;
            self.bytes += read as u64;
            if read == 0 || more.ends_with(b"\n") {
                return Ok(());
            }
        }
    }

    fn job(&self, line: &[u8]) -> Result<Line, String> {
        let text = std::str::from_utf8(line).map_err(|_| "not UTF-8".to_owned())?.trim();
        let wrong = |error: serde_json::Error| format!("no JSON object: {error}");
        // Values as they are: large numbers and the order of args are the job's own affair.
        let mut members: BTreeMap<String, Box<RawValue>> = serde_json::from_str(text).map_err(wrong)?;
        let is_named = members.contains_key("id") || members.contains_key("idempotency_key");
        let number = self.number;
        match &self.key {
            Some(key) if !is_named => {
                let key = to_raw_value(&format!("{key}/{number}")).map_err(wrong)?;
                members.insert("idempotency_key".to_owned(), key);
                Ok(Line { number, text: serde_json::to_string(&members).map_err(wrong)?, is_named: true })
            }
            _ => Ok(Line { number, text: text.to_owned(), is_named }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &[u8], key: Option<&str>, first: u64) -> Vec<Result<Line, Wrong>> {
        let mut lines = Lines::new(text, key.map(str::to_owned), first);
        let mut found = Vec::new();
        while let Some(line) = lines.next().unwrap() {
            found.push(line);
        }
        assert_eq!(lines.bytes(), text.len() as u64);
        found
    }

    #[test]
    fn lines_keep_their_numbers_and_their_text() {
        let text =
            b"{\"kind\": \"a\", \"args\": [12345678901234567890123]}\r\n\n  \n{\"kind\":\"b\",\"id\":\"x\"}";
        let found = read(text, None, 1);
        let expected = [
            (1, "{\"kind\": \"a\", \"args\": [12345678901234567890123]}", false),
            (4, "{\"kind\":\"b\",\"id\":\"x\"}", true),
        ];
        assert_eq!(
            found,
            expected.map(|(number, text, is_named)| Ok(Line { number, text: text.to_owned(), is_named }))
        );
        assert_eq!(read(text, None, 2).len(), 1);
    }

    #[test]
    fn a_byte_order_mark_is_passed_over_at_the_start() {
        for (text, jobs) in
            [("\u{feff}{}\n{}\n", 2), ("\u{feff}\n{}", 1), ("\u{feff}", 0), ("{}\n\u{feff}{}", 1)]
        {
            let found = read(text.as_bytes(), None, 1);
            assert_eq!(found.iter().filter(|line| line.is_ok()).count(), jobs, "{text:?}");
        }
    }

    #[test]
    fn a_key_names_each_line_that_has_no_name() {
        let found = read(
            b"{\"kind\":\"a\",\"args\":[1.00]}\n{\"kind\":\"b\",\"idempotency_key\":\"own\"}\n",
            Some("k"),
            1,
        );
        let texts: Vec<&str> = found.iter().map(|line| line.as_ref().unwrap().text.as_str()).collect();
        assert_eq!(
            texts,
            [
                "{\"args\":[1.00],\"idempotency_key\":\"k/1\",\"kind\":\"a\"}",
                "{\"kind\":\"b\",\"idempotency_key\":\"own\"}"
            ]
        );
        assert!(found.iter().all(|line| line.as_ref().unwrap().is_named));
    }

    #[test]
    fn what_is_no_job_is_told_by_its_line() {
        let found = read(b"{\n[]\n\xff\n17\n{}\n", None, 1);
        let wrong: Vec<u64> =
            found.iter().filter_map(|line| line.as_ref().err()).map(|(number, _)| *number).collect();
        assert_eq!((wrong, found.len()), (vec![1, 2, 3, 4], 5));
        let long =
            [b"{\"kind\":\"".as_slice(), &vec![b'x'; usize::try_from(LONGEST * 2).unwrap()], b"\"}\n{}\n"]
                .concat();
        let found = read(&long, None, 1);
        assert!(
            matches!((&found[0], &found[1]), (Err((1, why)), Ok(Line { number: 2, .. })) if why.contains("longer"))
        );
    }
}
