//! The only way to the terminal: results on standard output, everything else on standard error.
//!
//! Colours only where a person looks and `NO_COLOR` is not set; with `--json` a result is one JSON value.

use crate::args::Global;
use crate::exit::Failure;
use serde::Serialize;
use serde_json::json;
use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// How to talk.
#[derive(Debug)]
pub struct Output {
    /// Results are JSON.
    pub json: bool,
    /// Standard output is a terminal.
    pub terminal: bool,
    /// A person can be asked: standard input and standard error are a terminal.
    pub asks: bool,
    colour: bool,
    quiet: bool,
    reader_left: AtomicBool,
    /// Why results could not be written.
    unwritten: OnceLock<io::Error>,
}

/// How a piece of text looks.
#[derive(Clone, Copy, Debug)]
pub enum Style {
    Bold,
    Faint,
    Good,
    Warning,
    Bad,
}

impl Style {
    fn code(self) -> &'static str {
        match self {
            Style::Bold => "1",
            Style::Faint => "2",
            Style::Good => "32",
            Style::Warning => "33",
            Style::Bad => "31",
        }
    }
}

impl Output {
    pub fn new(global: &Global) -> Self {
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let terminal = io::stdout().is_terminal();
        let errors = io::stderr().is_terminal();
        Self {
            json: global.json,
            terminal,
            asks: errors && io::stdin().is_terminal(),
            colour: !set("NO_COLOR") && terminal && errors,
            quiet: global.quiet,
            reader_left: AtomicBool::new(false),
            unwritten: OnceLock::new(),
        }
    }

    /// The text in this style, where styles are shown.
    pub fn styled(&self, style: Style, text: &str) -> String {
        if self.colour { format!("\x1b[{}m{text}\x1b[0m", style.code()) } else { text.to_owned() }
    }

    /// Text as it is, at once. A reader that left is no failure; a disk that is full is.
    pub fn write(&self, text: &str) {
        let mut out = io::stdout().lock();
        if let Err(error) = out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            self.reader_left.store(true, Ordering::Relaxed);
            if error.kind() != io::ErrorKind::BrokenPipe {
                self.unwritten.get_or_init(|| error);
            }
        }
    }

    /// What kept results from being written, if anything did.
    pub fn unwritten(&self) -> Option<Failure> {
        let error = self.unwritten.get()?;
        Some(Failure::failed(format!("standard output cannot be written: {error}")))
    }

    /// Text of a model. On a terminal without what would steer it; elsewhere as it is.
    pub fn say(&self, text: &str) {
        if self.terminal {
            self.write(&tame(text));
        } else {
            self.write(text);
        }
    }

    /// Whether nobody reads the results any more: what goes on for ever ends then.
    pub fn reader_left(&self) -> bool {
        self.reader_left.load(Ordering::Relaxed)
    }

    /// A line of the result.
    pub fn line(&self, text: impl AsRef<str>) {
        self.write(&format!("{}\n", text.as_ref()));
    }

    /// A result for machines.
    pub fn value(&self, value: &impl Serialize) {
        let text =
            if self.terminal { serde_json::to_string_pretty(value) } else { serde_json::to_string(value) };
        // Values of ours have text keys and no failing part.
        self.line(text.unwrap_or_else(|error| json!({ "error": error.to_string() }).to_string()));
    }

    /// A line about what is going on. Not shown with `--quiet`.
    pub fn note(&self, text: impl AsRef<str>) {
        if !self.quiet {
            self.complain(text);
        }
    }

    /// A line that must be seen.
    pub fn complain(&self, text: impl AsRef<str>) {
        writeln!(io::stderr(), "{}", text.as_ref()).ok();
    }

    /// Whether progress is shown: a terminal, and nobody asked for silence.
    pub fn shows_progress(&self) -> bool {
        !self.quiet && !self.json && io::stderr().is_terminal()
    }

    /// What was wrong, and what would help.
    pub fn failure(&self, failure: &Failure) {
        if self.json {
            self.complain(json!({ "error": failure.json() }).to_string());
            return;
        }
        self.complain(format!("{} {}", self.styled(Style::Bad, "error:"), tame(&failure.what)));
        if let Some(next) = &failure.next {
            self.complain(format!("{} {}", self.styled(Style::Bold, " next:"), tame(next)));
        }
    }

    /// A table about what is going on.
    pub fn note_table(&self, table: &Table) {
        table.lines().into_iter().for_each(|line| self.note(line));
    }

    /// Asks a question that is answered with yes or no; Enter is `default`.
    pub fn ask(&self, question: &str, default: bool) -> bool {
        write!(io::stderr(), "{question} [{}] ", if default { "Y/n" } else { "y/N" }).ok();
        let mut answer = String::new();
        match io::stdin().read_line(&mut answer) {
            Ok(0) | Err(_) => false,
            Ok(_) => match answer.trim() {
                "" => default,
                answer => answer.eq_ignore_ascii_case("y") || answer.eq_ignore_ascii_case("yes"),
            },
        }
    }

    /// A table; its last column may be as long as it likes.
    pub fn table(&self, table: &Table) {
        for (place, line) in table.lines().into_iter().enumerate() {
            self.line(if place == 0 { self.styled(Style::Bold, &line) } else { line });
        }
    }
}

/// Rows under a head, columns as wide as their widest cell.
#[derive(Debug)]
pub struct Table(Vec<Vec<String>>);

impl Table {
    pub fn new(head: &[&str]) -> Self {
        Self(vec![head.iter().map(|&cell| cell.to_owned()).collect()])
    }

    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.0.push(cells.into_iter().map(|cell| printable(&cell)).collect());
    }

    fn lines(&self) -> Vec<String> {
        let columns = self.0.first().map_or(0, Vec::len);
        let width = |column: usize| {
            self.0
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let line = |row: &Vec<String>| {
            let cells: Vec<String> =
                row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}")).collect();
            cells.join("   ").trim_end().to_owned()
        };
        self.0.iter().map(line).collect()
    }
}

/// Text without control characters: what a file or a server says must not steer the terminal.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// The same for text of several lines.
fn tame(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && !matches!(c, '\n' | '\t') { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&["NAME", "SIZE"]);
        table.row(["größer".to_owned(), "1 MB".to_owned()]);
        table.row(["a".to_owned(), String::new()]);
        assert_eq!(table.lines(), ["NAME     SIZE", "größer   1 MB", "a"]);
    }

    #[test]
    fn a_cell_cannot_steer_the_terminal() {
        assert_eq!(printable("a\x1b[2Jb\nc"), "a [2Jb c");
        assert_eq!(tame("a\x1b]0;title\x07b\u{9b}2J\n\tc\r"), "a ]0;title b 2J\n\tc ");
    }
}
