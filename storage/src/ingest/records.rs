//! A CSV file's records as they are written. A quote that is never closed costs its own line, not the rest of the file.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use crate::{Error, Result};

/// A record with more lines or bytes than this is one whose quote was never closed.
const MAX_LINES: usize = 1000;
const MAX_BYTES: usize = 1 << 20;
/// Bytes of such a record's first line that are shown.
const SHOWN: usize = 200;

pub(super) enum Record {
    /// A whole record with its line end.
    Whole(Vec<u8>),
    /// The beginning of a record that does not end. What follows its first line is read as records of their own.
    Open(String),
}

/// Reads records from front to back, without a byte order mark and empty lines.
pub(super) struct Records<R = BufReader<File>> {
    inner: R,
    /// Lines that were read ahead for a record that did not end.
    ahead: VecDeque<Vec<u8>>,
    is_first: bool,
}

impl Records {
    pub fn open(path: &Path) -> Result<Records> {
        let file = File::open(path).map_err(Error::io(path))?;
        Ok(Records { inner: BufReader::with_capacity(1 << 18, file), ahead: VecDeque::new(), is_first: true })
    }
}

/// Where a record stands after some of its bytes.
#[derive(Clone, Copy, PartialEq)]
enum State {
    FieldStart,
    Unquoted,
    Quoted,
    /// Behind a quote within quotes: the end of the field, or the first of two.
    Quote,
    /// A field goes on behind its closing quote.
    Stray,
}

impl State {
    fn next(self, byte: u8) -> State {
        match (self, byte) {
            (State::FieldStart | State::Quote, b'"') => State::Quoted,
            (State::Quoted, b'"') => State::Quote,
            (State::Quoted, _) => State::Quoted,
            (_, b',') => State::FieldStart,
            (State::Quote, b'\r' | b'\n') => State::Quote,
            (State::Quote | State::Stray, _) => State::Stray,
            (State::FieldStart | State::Unquoted, _) => State::Unquoted,
        }
    }
}

impl<R: BufRead> Records<R> {
    /// Returns the next line with its end, none at the end of the file; at most some bytes above the limit.
    fn line(&mut self) -> io::Result<Option<Vec<u8>>> {
        if let Some(line) = self.ahead.pop_front() {
            return Ok(Some(line));
        }
        let mut line = Vec::new();
        loop {
            let buffer = self.inner.fill_buf()?;
            let end = buffer.iter().position(|b| matches!(b, b'\n' | b'\r'));
            let taken = end.map_or(buffer.len(), |end| end + 1);
            line.extend_from_slice(&buffer[..taken]);
            self.inner.consume(taken);
            if std::mem::take(&mut self.is_first) && line.starts_with(b"\xef\xbb\xbf") {
                line.drain(..3);
            }
            if end.is_some() || taken == 0 || line.len() > MAX_BYTES {
                return Ok((!line.is_empty()).then_some(line));
            }
        }
    }

    fn record(&mut self) -> io::Result<Option<Record>> {
        let mut first = loop {
            match self.line()? {
                None => return Ok(None),
                Some(line) if matches!(line[..], [b'\n' | b'\r']) => {}
                Some(line) => break line,
            }
        };
        let mut state = first.iter().fold(State::FieldStart, |state, byte| state.next(*byte));
        if state != State::Quoted && first.len() <= MAX_BYTES {
            if !first.ends_with(b"\n") && !first.ends_with(b"\r") {
                first.push(b'\n');
            }
            return Ok(Some(Record::Whole(first)));
        }
        let (mut lines, mut bytes): (VecDeque<Vec<u8>>, usize) = (VecDeque::new(), first.len());
        while state == State::Quoted && lines.len() < MAX_LINES && bytes <= MAX_BYTES {
            let Some(line) = self.line()? else { break };
            // Within a line the reader of records knows what to make of text behind a quote; here it is the sign of
            // another record's quote.
            for byte in &line {
                state = state.next(*byte);
                if state == State::Stray {
                    break;
                }
            }
            bytes += line.len();
            lines.push_back(line);
        }
        if matches!(state, State::Quoted | State::Stray) || bytes > MAX_BYTES {
            lines.append(&mut self.ahead);
            self.ahead = lines;
            let shown = String::from_utf8_lossy(&first[..first.len().min(SHOWN)]).trim_end().to_string();
            return Ok(Some(Record::Open(shown)));
        }
        lines.iter().for_each(|line| first.extend_from_slice(line));
        if !first.ends_with(b"\n") && !first.ends_with(b"\r") {
            first.push(b'\n');
        }
        Ok(Some(Record::Whole(first)))
    }
}

impl<R: BufRead> Iterator for Records<R> {
    type Item = io::Result<Record>;

    fn next(&mut self) -> Option<Self::Item> {
        self.record().transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(text: &str) -> Vec<String> {
        let records = Records { inner: text.as_bytes(), ahead: VecDeque::new(), is_first: true };
        let shown = |record: io::Result<Record>| match record.unwrap() {
            Record::Whole(record) => String::from_utf8(record).unwrap(),
            Record::Open(first) => format!("open {first}"),
        };
        records.map(shown).collect()
    }

    #[test]
    fn records_end_where_their_quotes_do() {
        assert_eq!(records("\u{feff}a,b\r\n\r\n1,\"x\ny\"\n2,\"a \"\"q\"\"\""), ["a,b\r", "1,\"x\ny\"\n", "2,\"a \"\"q\"\"\"\n"]);
        assert_eq!(records("1,\"x\r\ny\",z\n2"), ["1,\"x\r\ny\",z\n", "2\n"]);
        assert_eq!(records("1,a \"b\n2,\"a \"b\" c\"\n"), ["1,a \"b\n", "2,\"a \"b\" c\"\n"]);
    }

    #[test]
    fn an_open_quote_costs_its_line() {
        assert_eq!(records("1,\"never\n2,two\n3,three\n"), ["open 1,\"never", "2,two\n", "3,three\n"]);
        assert_eq!(records("1,\"never\n2,two\n3,\"three\"\n4,four"), ["open 1,\"never", "2,two\n", "3,\"three\"\n", "4,four\n"]);
        let many = format!("1,\"never\n{}", "2,two\n".repeat(MAX_LINES + 5));
        assert_eq!(records(&many).len(), MAX_LINES + 6);
        assert_eq!(records("").len(), 0);
    }

    proptest::proptest! {
        #[test]
        fn nothing_is_lost(text in "[a,\"\n\r]{0,60}") {
            let letters = |text: &str| text.matches('a').count();
            let read: usize = records(&text).iter().map(|record| letters(record)).sum();
            proptest::prop_assert_eq!(read, letters(&text));
        }
    }
}
