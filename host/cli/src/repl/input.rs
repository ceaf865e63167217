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

    fn line(&mut self, prompt: &str) -> Option<String> {
        match self {
            Self::Pipe(stdin) => {
                let mut line = String::new();
                (0 < stdin.read_line(&mut line).ok()?).then(|| line.trim_end_matches(['\r', '\n']).to_owned())
            }
            Self::Terminal { editor, .. } => match editor.readline(prompt) {
                Ok(line) => Some(line),
                // Ctrl+C throws away the line, as in a shell.
                Err(ReadlineError::Interrupted) => Some(String::new()),
                Err(_) => None,
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

/// One line, or the lines between fences.
fn gather(mut line: impl FnMut(&str) -> Option<String>) -> Option<String> {
    let first = line(PROMPT)?;
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
            Some(next) => rest = next,
            None => return Some(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &str) -> Vec<String> {
        let mut lines = text.lines().map(str::to_owned);
        std::iter::from_fn(|| gather(|_| lines.next())).collect()
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
