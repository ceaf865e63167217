//! The document: sections of what was asked, what came back, and how it ended.

use std::fmt::Write as _;
use std::path::Path;

/// What is being written.
#[derive(Debug)]
pub struct Document {
    text: String,
    /// Texts of this run alone and what stands for them, such as the state directory.
    names: Vec<(String, String)>,
}

impl Document {
    pub fn new(intro: &str) -> Self {
        Self { text: format!("{}\n", intro.trim()), names: Vec::new() }
    }

    /// From now on `text` is shown as `name`.
    pub fn name(&mut self, text: impl Into<String>, name: &str) {
        self.names.push((text.into(), name.to_owned()));
        // A path inside a path is looked for first.
        self.names.sort_by_key(|(text, _)| std::cmp::Reverse(text.len()));
    }

    /// `text` with the names that this run has for things.
    pub fn named(&self, text: &str) -> String {
        self.names.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
    }

    pub fn chapter(&mut self, title: &str, about: &str) {
        writeln!(self.text, "\n## {title}").unwrap();
        self.paragraph(about);
    }

    pub fn section(&mut self, title: &str, about: &str) {
        writeln!(self.text, "\n### {title}").unwrap();
        self.paragraph(about);
    }

    fn paragraph(&mut self, text: &str) {
        if !text.is_empty() {
            writeln!(self.text, "\n{}", text.trim()).unwrap();
        }
    }

    /// One thing that was done: its command, what came, and how it ended. The text is normalised already.
    pub fn step(&mut self, command: &str, output: &str, end: &str) {
        let output = self.named(output);
        let output = output.trim_end();
        let newline = if output.is_empty() { "" } else { "\n" };
        let fence = if output.contains("```") { "````" } else { "```" };
        writeln!(self.text, "\n{fence}console\n$ {}\n{output}{newline}[{end}]\n{fence}", self.named(command))
            .unwrap();
    }

    /// What was seen beside a command: a file, or what a site was asked.
    pub fn log(&mut self, title: &str, text: &str) {
        let text = self.named(text);
        writeln!(self.text, "\n{title}\n\n```text\n{}\n```", text.trim_end()).unwrap();
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    /// Compares with the file, or writes it where `UPDATE_ACCEPTANCE` is set.
    pub fn check(&self, file: &Path) {
        if std::env::var_os("UPDATE_ACCEPTANCE").is_some() {
            std::fs::write(file, &self.text).unwrap();
            return;
        }
        let there = std::fs::read_to_string(file).unwrap_or_default();
        if let Some(difference) = difference(&there, &self.text) {
            panic!(
                "{} is not what the program does: {difference}\nif the program is right: `UPDATE_ACCEPTANCE=1 cargo test -p e2e --test acceptance`, and read what changed",
                file.display()
            );
        }
    }
}

/// The first line in which two texts differ, with what stands before it.
fn difference(expected: &str, found: &str) -> Option<String> {
    let (expected, found): (Vec<&str>, Vec<&str>) = (expected.lines().collect(), found.lines().collect());
    let at = (0..expected.len().max(found.len())).find(|line| expected.get(*line) != found.get(*line))?;
    let before = expected[at.saturating_sub(12).min(expected.len())..at.min(expected.len())].join("\n  ");
    let show = |lines: &[&str]| lines.get(at).map_or("(its end)".to_owned(), |line| (*line).to_owned());
    Some(format!("line {}\n  {before}\n- {}\n+ {}", at + 1, show(&expected), show(&found)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_difference_is_shown() {
        assert_eq!(difference("a\nb\n", "a\nb\n"), None);
        assert_eq!(difference("a\nb\n", "a\nc\n").unwrap(), "line 2\n  a\n- b\n+ c");
        assert_eq!(difference("a\n", "a\nc\n").unwrap(), "line 2\n  a\n- (its end)\n+ c");
    }

    #[test]
    fn a_longer_name_wins() {
        let mut document = Document::new("x");
        document.name("/tmp/a", "$HOME");
        document.name("/tmp/a/state", "$STATE");
        document.step("ls /tmp/a/state", "/tmp/a/x", "exit 0");
        assert_eq!(document.text(), "x\n\n```console\n$ ls $STATE\n$HOME/x\n[exit 0]\n```\n");
    }
}
