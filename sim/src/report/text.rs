//! Small pieces of text that every report needs: numbers as people read them, colours, aligned columns.
//!
//! Colours are escape sequences in the text; who writes it to a pipe or a file strips them (`anstream`).

use anstyle::{AnsiColor, Style};
use ipvs_model::time::{Instant, NANOS_PER_SEC, Span};

/// What the reader's terminal can show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// Bars and signs outside ASCII.
    pub unicode: bool,
    /// Escape sequences for colours.
    pub colour: bool,
}

/// What a piece of text is about; each meaning has one colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// A heading.
    Heading,
    /// All is well.
    Good,
    /// Something to know: late, or out of ports.
    Warn,
    /// Failed.
    Bad,
    /// Something happened to pods or tables.
    Event,
    /// Less important than the rest.
    Dim,
}

impl Tone {
    fn style(self) -> Style {
        let colour = |colour: AnsiColor| Style::new().fg_color(Some(anstyle::Color::Ansi(colour)));
        match self {
            Self::Heading => Style::new().bold(),
            Self::Good => colour(AnsiColor::Green).bold(),
            Self::Warn => colour(AnsiColor::Yellow),
            Self::Bad => colour(AnsiColor::Red).bold(),
            Self::Event => colour(AnsiColor::Cyan),
            Self::Dim => Style::new().dimmed(),
        }
    }
}

impl Look {
    /// `text` in the colour of `tone`.
    pub fn paint(self, tone: Tone, text: &str) -> String {
        if self.colour && !text.is_empty() {
            let style = tone.style();
            format!("{style}{text}{style:#}")
        } else {
            text.to_owned()
        }
    }

    /// `unicode` where it can be shown, else `ascii`.
    pub const fn pick(self, unicode: &'static str, ascii: &'static str) -> &'static str {
        if self.unicode { unicode } else { ascii }
    }
}

/// With a comma between each three digits: `1,234,567`.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A share in percent with one decimal, and below 1 % and above 99 % with two significant digits: `76.5 %`, `0.59 %`,
/// `0.0012 %`. Only nothing is `0 %` and only everything `100 %`. `-` if there is nothing to have a share of.
pub fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "-".to_owned();
    }
    if part == 0 {
        return "0 %".to_owned();
    }
    if part >= whole {
        return "100 %".to_owned();
    }
    let hundred = |count: u64| 100.0 * count as f64 / whole as f64;
    // 99.98 % needs as many decimals as the 0.02 % that are missing.
    let smaller = hundred(part.min(whole - part));
    let mut decimals = 1;
    let mut unit = 1.0;
    while smaller < unit && decimals < 12 {
        unit /= 10.0;
        decimals += 1;
    }
    format!("{:.decimals$} %", hundred(part))
}

/// A moment in seconds with milliseconds: `171.024 s`.
pub fn moment(at: Instant) -> String {
    format!("{} s", seconds(at.0, 3))
}

/// A length of time with four digits at most behind its leading ones: `41.2 s`, `5.000 s`, `350 ms`, `0.2 ms`.
pub fn length(span: Span) -> String {
    let nanos = span.0;
    if nanos == 0 {
        "0 s".to_owned()
    } else if nanos < 10_000_000 {
        format!("{}.{} ms", nanos / 1_000_000, nanos % 1_000_000 / 100_000)
    } else if nanos < NANOS_PER_SEC {
        format!("{} ms", nanos / 1_000_000)
    } else if nanos.is_multiple_of(NANOS_PER_SEC) {
        format!("{} s", thousands(nanos / NANOS_PER_SEC))
    } else {
        let tenths = (nanos + 50_000_000) / 100_000_000;
        format!("{}.{} s", thousands(tenths / 10), tenths % 10)
    }
}

/// Nanoseconds as seconds with `decimals` (0 to 9) decimals, cut off and not rounded, so that no moment moves into the
/// next second.
pub fn seconds(nanos: u64, decimals: usize) -> String {
    let whole = nanos / NANOS_PER_SEC;
    if decimals == 0 {
        return whole.to_string();
    }
    let fraction = format!("{:09}", nanos % NANOS_PER_SEC);
    format!("{whole}.{}", &fraction[..decimals.min(9)])
}

/// Breaks at blanks so that no line has more than `width` characters, if words allow.
pub fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut length = 0;
    for word in text.split(' ') {
        let more = word.chars().count();
        if length > 0 && length + 1 + more > width {
            lines.push(String::new());
            length = 0;
        }
        let last = lines.len() - 1;
        if length > 0 {
            lines[last].push(' ');
            length += 1;
        }
        lines[last].push_str(word);
        length += more;
    }
    lines
}

/// `1 request`, `2 requests`.
pub fn count_of(number: u64, one: &str, many: &str) -> String {
    let word = if number == 1 { one } else { many };
    format!("{} {word}", thousands(number))
}

/// Which end of a column its text keeps to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// Rows of cells as aligned lines, two blanks between columns, each line after `indent`. Cells hold no escape
/// sequences; columns beyond `aligns` are words. No blanks at the ends of lines.
pub fn columns(indent: &str, aligns: &[Align], rows: &[Vec<String>]) -> String {
    let mut widths = Vec::<usize>::new();
    for row in rows {
        widths.resize(widths.len().max(row.len()), 0);
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    for row in rows {
        let mut line = String::from(indent);
        for (place, cell) in row.iter().enumerate() {
            if place > 0 {
                line.push_str("  ");
            }
            let blanks = " ".repeat(widths[place] - cell.chars().count());
            match aligns.get(place) {
                Some(Align::Right) => line.extend([blanks.as_str(), cell]),
                _ => line.extend([cell.as_str(), &blanks]),
            }
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_grouped() {
        let cases = [
            (0, "0"),
            (999, "999"),
            (1_000, "1,000"),
            (1_234_567, "1,234,567"),
        ];
        for (number, text) in cases {
            assert_eq!(thousands(number), text);
        }
    }

    #[test]
    fn a_share_never_rounds_to_nothing_or_everything() {
        let cases = [
            (1_234, 210_000, "0.59 %"),
            (1, 10_000_000, "0.000010 %"),
            (5_506_080, 7_200_000, "76.5 %"),
            (1, 2, "50.0 %"),
            (3, 100, "3.0 %"),
            (97, 100, "97.0 %"),
            (209_999, 210_000, "99.99952 %"),
            (0, 5, "0 %"),
            (5, 5, "100 %"),
            (0, 0, "-"),
        ];
        for (part, whole, text) in cases {
            assert_eq!(percent(part, whole), text, "{part} of {whole}");
        }
    }

    #[test]
    fn times_read_as_people_say_them() {
        assert_eq!(moment(Instant(171_024_999_999)), "171.024 s");
        assert_eq!(length(Span::from_millis(41_249)), "41.2 s");
        assert_eq!(length(Span::from_secs(5)), "5 s");
        assert_eq!(length(Span::from_millis(350)), "350 ms");
        assert_eq!(length(Span(250_000)), "0.2 ms");
        assert_eq!(seconds(1_999_999_999, 0), "1");
    }

    #[test]
    fn columns_align_without_trailing_blanks() {
        let rows = [
            vec!["12".to_owned(), "a".to_owned()],
            vec!["3".to_owned(), "bcd".to_owned()],
        ];
        let text = columns("  ", &[Align::Right], &rows);
        assert_eq!(text, "  12  a\n   3  bcd\n");
    }

    #[test]
    fn paint_is_plain_without_colour() {
        let plain = Look::default();
        assert_eq!(plain.paint(Tone::Bad, "x"), "x");
        let coloured = Look {
            unicode: false,
            colour: true,
        };
        assert_eq!(
            coloured.paint(Tone::Bad, "x"),
            "\u{1b}[1m\u{1b}[31mx\u{1b}[0m"
        );
    }
}
