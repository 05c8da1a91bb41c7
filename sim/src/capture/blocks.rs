//! Block logs: a line `@ SECONDS.MICROS`, then what a tool printed at that moment, and so on.

use std::io::BufRead;
use std::sync::Arc;

use super::lines::Lines;
use super::place::{Parsed, Place, ReadError, Skipped, Stamp};

/// How a line is counted that has no end.
pub(super) const LINE_BROKEN_OFF: &str = "line broken off or longer than 64 KiB";
/// How a file is counted that ends within a block header.
pub(super) const HEADER_BROKEN_OFF: &str = "last block header broken off";
/// Begins a line by which a recorder says that rows may be missing in its block; the reason follows.
pub const INCOMPLETE: &str = "# incomplete: ";

/// What one tool printed at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block<T> {
    /// The moment in its header.
    pub at: Stamp,
    /// The number of its header's line.
    pub line: u64,
    /// Its rows, in their order.
    pub rows: Vec<T>,
    /// Every line of it was understood and the file did not break off in it. Only then does a missing row
    /// mean anything.
    pub complete: bool,
}

/// Reads a block log, one block in memory at a time.
#[derive(Debug)]
pub struct Blocks<R, P> {
    file: Arc<str>,
    lines: Lines<R>,
    parse: P,
    next_header: Option<(Stamp, u64)>,
    started: bool,
    /// The last block is whole, though nothing follows it.
    finished: bool,
    understood: u64,
    last_unknown: Option<(u64, &'static str)>,
    skipped: Skipped,
}

impl<R: BufRead, T, P: FnMut(&str) -> Parsed<T>> Blocks<R, P> {
    /// Blocks of the file named `file`, whose lines `parse` understands.
    pub fn new(file: Arc<str>, reader: R, parse: P) -> Self {
        Self {
            file,
            lines: Lines::new(reader),
            parse,
            next_header: None,
            started: false,
            finished: true,
            understood: 0,
            last_unknown: None,
            skipped: Skipped::default(),
        }
    }

    /// Says whether the file was finished in order; if not, rows of its last block may be missing.
    #[must_use]
    pub fn finished(mut self, finished: bool) -> Self {
        self.finished = finished;
        self
    }

    /// The file's name.
    pub fn file(&self) -> Arc<str> {
        self.file.clone()
    }

    /// What was read past so far.
    pub const fn skipped(&self) -> &Skipped {
        &self.skipped
    }

    /// The next block, or `None` at the end.
    ///
    /// # Errors
    /// If the file cannot be read, has no header at all, has a header that is no time, or if nothing in it
    /// was understood.
    pub fn next_block(&mut self) -> Result<Option<Block<T>>, ReadError> {
        if !self.started {
            self.started = true;
            self.find_first_header()?;
        }
        let Some((at, line)) = self.next_header.take() else {
            return self.finish();
        };
        let mut block = Block {
            at,
            line,
            rows: Vec::new(),
            complete: true,
        };
        while let Some(text) = self.line()? {
            if is_header(&text.text) {
                self.next_header = self.header(&text.text, text.number, text.cut)?;
                break;
            }
            self.take_row(
                &mut block,
                &text.text,
                text.number,
                text.cut || text.too_long,
            );
        }
        if self.next_header.is_none() && !self.finished {
            block.complete = false;
        }
        Ok(Some(block))
    }

    fn take_row(&mut self, block: &mut Block<T>, text: &str, number: u64, doubtful: bool) {
        let place = Place::Line(number);
        if doubtful {
            block.complete = false;
            self.skipped.count(&self.file, LINE_BROKEN_OFF, place);
            return;
        }
        if text.trim().is_empty() {
            return;
        }
        if text.starts_with(INCOMPLETE) {
            block.complete = false;
            let why = "listing that may lack rows, as its recorder says";
            self.skipped.count(&self.file, why, place);
            return;
        }
        match (self.parse)(text) {
            Parsed::Item(row) => block.rows.push(row),
            Parsed::Heading => {}
            Parsed::Foreign(why) => self.skipped.count(&self.file, why, place),
            Parsed::Unknown(why) => {
                block.complete = false;
                self.last_unknown = self.last_unknown.or(Some((number, why)));
                self.skipped.count(&self.file, why, place);
                return;
            }
        }
        self.understood += 1;
    }

    fn finish(&mut self) -> Result<Option<Block<T>>, ReadError> {
        match self.last_unknown.take() {
            Some((number, why)) if self.understood == 0 => Err(ReadError::new(
                &self.file,
                Place::Line(number),
                format!("no line of this file is of the expected kind; this one has {why}"),
            )),
            _ => Ok(None),
        }
    }

    fn find_first_header(&mut self) -> Result<(), ReadError> {
        while let Some(text) = self.line()? {
            if is_header(&text.text) {
                self.next_header = self.header(&text.text, text.number, text.cut)?;
                return Ok(());
            }
            if !text.text.trim().is_empty() {
                let reason = "expected a block header such as `@ 1700000000.012863` first";
                return Err(self.error(text.number, reason));
            }
        }
        Ok(())
    }

    fn header(
        &mut self,
        text: &str,
        number: u64,
        cut: bool,
    ) -> Result<Option<(Stamp, u64)>, ReadError> {
        let stamp = Stamp::parse(text[1..].trim());
        if cut {
            // The time may lack digits: a block that cannot be dated is no block.
            let place = Place::Line(number);
            self.skipped.count(&self.file, HEADER_BROKEN_OFF, place);
            return Ok(None);
        }
        match stamp {
            Some(stamp) => Ok(Some((stamp, number))),
            None => Err(self.error(
                number,
                format!(
                    "`{}` is not a block header such as `@ 1700000000.012863`",
                    excerpt(text)
                ),
            )),
        }
    }

    fn line(&mut self) -> Result<Option<super::lines::TextLine>, ReadError> {
        self.lines
            .next_line()
            .map_err(|e| self.error(self.lines.number() + 1, format!("cannot be read: {e}")))
    }

    fn error(&self, line: u64, reason: impl Into<String>) -> ReadError {
        ReadError::new(&self.file, Place::Line(line), reason)
    }
}

/// Whether a line starts a block.
pub fn is_header(text: &str) -> bool {
    text.starts_with('@')
}

/// At most 60 characters of a line, for messages.
pub fn excerpt(text: &str) -> String {
    let mut short = text.chars().take(60).collect::<String>();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<(Vec<Block<u32>>, Skipped), ReadError> {
        let parse = |line: &str| match line {
            "head" => Parsed::Heading,
            "v6" => Parsed::Foreign("IPv6"),
            _ => line
                .parse()
                .map_or(Parsed::Unknown("no number"), Parsed::Item),
        };
        let mut blocks = Blocks::new(Arc::from("t.log"), text.as_bytes(), parse);
        let mut all = Vec::new();
        while let Some(block) = blocks.next_block()? {
            all.push(block);
        }
        Ok((all, blocks.skipped().clone()))
    }

    #[test]
    fn blocks_are_read_in_order_with_their_rows() {
        let (blocks, skipped) = read("@ 1.5\nhead\n1\nv6\n2\n@ 2\n\n@ 3\n7\n").unwrap();
        let rows = blocks.iter().map(|b| b.rows.clone()).collect::<Vec<_>>();
        assert_eq!(rows, [vec![1, 2], vec![], vec![7]]);
        assert!(blocks.iter().all(|b| b.complete));
        assert_eq!((skipped.of("IPv6"), blocks[2].line), (1, 8));
    }

    #[test]
    fn a_broken_last_block_is_kept_and_marked() {
        let (blocks, skipped) = read("@ 1\n1\n@ 2\n3\n4").unwrap();
        assert_eq!(blocks[1].rows, [3]);
        assert!(blocks[0].complete && !blocks[1].complete);
        assert_eq!(skipped.rows().count(), 1);
        let (blocks, skipped) = read("@ 1\n1\n@ 17").unwrap();
        assert_eq!((blocks.len(), blocks[0].complete), (1, true));
        assert_eq!(skipped.of("last block header broken off"), 1);
    }

    #[test]
    fn unknown_lines_make_a_block_incomplete_and_a_file_of_them_unreadable() {
        let (blocks, skipped) = read("@ 1\n1\nwhat\n@ 2\n2\n").unwrap();
        assert!(!blocks[0].complete && blocks[1].complete);
        assert_eq!(skipped.of("no number"), 1);
        let error = read("@ 1\nwhat\n").unwrap_err();
        assert_eq!(error.place, Place::Line(2));
        assert!(read("").unwrap().0.is_empty());
        assert!(read("1\n").unwrap_err().to_string().contains("@ 17"));
        assert!(read("@ x\n").unwrap_err().to_string().contains("`@ x`"));
    }
}
