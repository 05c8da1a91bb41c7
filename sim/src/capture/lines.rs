//! Lines of text of any length and encoding, in bounded memory.

use std::io::{self, BufRead};

/// A line longer than this is cut: no tool prints such lines, and memory must stay bounded.
const LINE_MAX: usize = 64 * 1024;

/// One line of a file, without its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextLine {
    /// Counted from 1.
    pub number: u64,
    /// The text; bytes that are not UTF-8 are replaced.
    pub text: String,
    /// The file ended without a line end here: the rest may be missing.
    pub cut: bool,
    /// The line was too long and is not whole.
    pub too_long: bool,
}

/// Reads lines one at a time.
#[derive(Debug)]
pub struct Lines<R> {
    reader: R,
    number: u64,
    peeked: Option<TextLine>,
}

impl<R: BufRead> Lines<R> {
    /// Lines of `reader`, numbered from 1.
    pub const fn new(reader: R) -> Self {
        Self {
            reader,
            number: 0,
            peeked: None,
        }
    }

    /// The next line, or `None` at the end.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn next_line(&mut self) -> io::Result<Option<TextLine>> {
        if let Some(line) = self.peeked.take() {
            return Ok(Some(line));
        }
        self.read()
    }

    /// The next line, which stays the next.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn peek(&mut self) -> io::Result<Option<&TextLine>> {
        if self.peeked.is_none() {
            self.peeked = self.read()?;
        }
        Ok(self.peeked.as_ref())
    }

    /// The number of the line that was read last; 0 before the first.
    pub fn number(&self) -> u64 {
        self.number
    }

    fn read(&mut self) -> io::Result<Option<TextLine>> {
        let mut bytes = Vec::new();
        let mut too_long = false;
        let mut ended = false;
        let mut any = false;
        while !ended {
            let chunk = match self.reader.fill_buf() {
                Ok(chunk) => chunk,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if chunk.is_empty() {
                break;
            }
            any = true;
            let line_end = chunk.iter().position(|&b| b == b'\n');
            let taken = &chunk[..line_end.unwrap_or(chunk.len())];
            let room = LINE_MAX - bytes.len();
            bytes.extend_from_slice(&taken[..taken.len().min(room)]);
            too_long |= taken.len() > room;
            ended = line_end.is_some();
            let used = taken.len() + usize::from(ended);
            self.reader.consume(used);
        }
        if !any {
            return Ok(None);
        }
        if bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
        self.number += 1;
        Ok(Some(TextLine {
            number: self.number,
            text: String::from_utf8(bytes)
                .unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()),
            cut: !ended,
            too_long,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_encodings_and_lengths() {
        let mut text = b"one\r\n\xff\xfe\n".to_vec();
        text.extend(std::iter::repeat_n(b'x', LINE_MAX + 5));
        text.extend(b"\nlast");
        let mut lines = Lines::new(&text[..]);
        assert_eq!(lines.peek().unwrap().unwrap().text, "one");
        assert_eq!(lines.next_line().unwrap().unwrap().text, "one");
        assert_eq!(lines.next_line().unwrap().unwrap().text, "\u{fffd}\u{fffd}");
        let long = lines.next_line().unwrap().unwrap();
        assert!(long.too_long && long.text.len() == LINE_MAX && !long.cut);
        let last = lines.next_line().unwrap().unwrap();
        assert_eq!(
            (last.number, last.cut, last.text.as_str()),
            (4, true, "last")
        );
        assert_eq!(lines.next_line().unwrap(), None);
    }
}
