//! Where the lines of a chat come from: an editor with history on a terminal, else standard input.

use rustyline::config::Configurer;
use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::{DefaultEditor, Editor};
use std::io::{BufRead, IsTerminal, StdinLock};
use std::path::{Path, PathBuf};

const PROMPT: &str = ">>> ";
const MORE: &str = "... ";
/// Begins and ends a text of several lines.
const FENCE: &str = "\"\"\"";

/// The lines.
pub enum Input {
    Terminal { editor: Box<Editor<(), FileHistory>>, history: PathBuf },
    Pipe(StdinLock<'static>),
}

impl Input {
    /// The terminal where there is one. A history that cannot be read is none.
    pub fn open(state: &Path) -> Self {
        let terminal = std::io::stdin().is_terminal().then(DefaultEditor::new).and_then(Result::ok);
        match terminal {
            Some(mut editor) => {
                let history = state.join("history");
                editor.set_max_history_size(1000).ok();
                editor.set_auto_add_history(false);
                editor.load_history(&history).ok();
                Self::Terminal { editor: Box::new(editor), history }
            }
            None => Self::Pipe(std::io::stdin().lock()),
        }
    }

    /// The next line, or text between fences. `None` at the end.
    pub fn read(&mut self) -> Option<String> {
        let text = gather(|prompt| self.line(prompt))?;
        if let Self::Terminal { editor, .. } = self {
            editor.add_history_entry(text.trim_end()).ok();
        }
        Some(text)
    }

    fn line(&mut self, prompt: &str) -> Line {
        match self {
            Self::Pipe(stdin) => {
                let mut line = String::new();
                match stdin.read_line(&mut line) {
                    Ok(0) | Err(_) => Line::End,
                    Ok(_) => Line::Text(line.trim_end_matches(['\r', '\n']).to_owned()),
                }
            }
            Self::Terminal { editor, .. } => match editor.readline(prompt) {
                Ok(line) => Line::Text(line),
                Err(ReadlineError::Interrupted) => Line::ThrownAway,
                Err(_) => Line::End,
            },
        }
    }

    /// Keeps the history.
    pub fn close(self) {
        if let Self::Terminal { mut editor, history } = self {
            // rustyline makes the file readable by its owner only.
            editor.save_history(&history).ok();
        }
    }
}

/// What was typed.
enum Line {
    Text(String),
    /// By Ctrl+C, as in a shell: the line, or all since the fence.
    ThrownAway,
    End,
}

/// One line, or the lines between fences.
fn gather(mut line: impl FnMut(&str) -> Line) -> Option<String> {
    let first = match line(PROMPT) {
        Line::Text(first) => first,
        Line::ThrownAway => return Some(String::new()),
        Line::End => return None,
    };
    let Some((before, rest)) = first.split_once(FENCE) else { return Some(first) };
    // Words before the fence belong to it: `/set system """`.
    let mut text = before.to_owned();
    let mut rest = rest.to_owned();
    loop {
        if let Some((last, _)) = rest.split_once(FENCE) {
            text.push_str(last);
            return Some(text);
        }
        text.push_str(&rest);
        text.push('\n');
        match line(MORE) {
            Line::Text(next) => rest = next,
            Line::ThrownAway => return Some(String::new()),
            Line::End => return Some(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &str) -> Vec<String> {
        let mut lines = text.lines();
        let mut line = |_: &str| match lines.next() {
            Some("^C") => Line::ThrownAway,
            Some(text) => Line::Text(text.to_owned()),
            None => Line::End,
        };
        std::iter::from_fn(|| gather(&mut line)).collect()
    }

    #[test]
    fn an_interrupt_throws_away_all_since_the_fence() {
        assert_eq!(all("^C\none"), ["", "one"]);
        assert_eq!(all("\"\"\"a\nb\n^C\none"), ["", "one"]);
    }

    #[test]
    fn fences_hold_several_lines_together() {
        assert_eq!(all("one\ntwo"), ["one", "two"]);
        assert_eq!(all("\"\"\"a\nb\n\"\"\"\nc"), ["a\nb\n", "c"]);
        assert_eq!(all("\"\"\"a\"\"\""), ["a"]);
        assert_eq!(all("/set system \"\"\"a\nb\"\"\""), ["/set system a\nb"]);
        assert_eq!(all("\"\"\"never\nclosed"), ["never\nclosed\n"]);
    }
}
