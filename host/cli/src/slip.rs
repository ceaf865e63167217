//! A command line that was not understood: what clap says of it, without advice that misleads.

use crate::args::{Cli, Global};
use crate::exit::{Exit, Failure};
use crate::output::Output;
use clap::CommandFactory;
use clap::error::{ContextKind, ContextValue, Error, ErrorKind};

/// From here on a word is taken for another one, misspelt.
const ALIKE: f64 = 0.7;

/// Also for `--help` and `--version`. Where nobody reads the text there is nothing left to say.
pub fn told(error: Error) -> Exit {
    let exit = match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Exit::Done,
        _ => Exit::Usage,
    };
    let error = mended(error);
    // What was not understood cannot say that it wants JSON; the word can.
    if exit == Exit::Usage && std::env::args_os().any(|word| word == "--json") {
        let text = error.render().to_string();
        let what = text.trim_start_matches("error:").trim();
        let output = Output::new(&Global { json: true, ..Global::default() });
        output.failure(&Failure::usage(what).code("usage"));
    } else {
        error.print().ok();
    }
    exit
}

/// clap takes every flag that it does not know for a value that begins with a dash, and `help` suggests no verb.
fn mended(mut error: Error) -> Error {
    if let Some(ContextValue::StyledStrs(mut tips)) = error.remove(ContextKind::Suggested) {
        tips.retain(|tip| !tip.to_string().starts_with("to pass '-"));
        if !tips.is_empty() {
            error.insert(ContextKind::Suggested, ContextValue::StyledStrs(tips));
        }
    }
    if error.kind() == ErrorKind::InvalidSubcommand
        && error.get(ContextKind::SuggestedSubcommand).is_none()
        && let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidSubcommand)
        && let Some(verb) = nearest(word)
    {
        error.insert(ContextKind::SuggestedSubcommand, ContextValue::Strings(vec![verb]));
    }
    error
}

/// The verb that this word may have been meant for.
fn nearest(word: &str) -> Option<String> {
    let command = Cli::command();
    let verbs = command.get_subcommands().map(clap::Command::get_name);
    let scored =
        verbs.map(|verb| (strsim::damerau_levenshtein(word, verb), strsim::jaro_winkler(word, verb), verb));
    let best = scored.min_by(|a, b| a.0.cmp(&b.0).then(b.1.total_cmp(&a.1)))?;
    (best.0 <= 1 || ALIKE <= best.1).then(|| best.2.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn said(line: &[&str]) -> String {
        let line = [&["backplane"], line].concat();
        mended(Cli::try_parse_from(line).unwrap_err()).render().to_string()
    }

    #[test]
    fn a_slip_is_told_without_advice_that_misleads() {
        for line in [
            &["logs", "--levl", "warn"][..],
            &["key", "create", "x", "--tokens", "-1"],
            &["embed", "m", "--cut"],
        ] {
            assert!(!said(line).contains("as a value, use"), "{}", said(line));
        }
        assert!(said(&["logs", "--levl", "warn"]).contains("'--level'"));
        assert!(said(&["key", "create", "x", "--tokens", "-1"]).contains("invalid value '-1' for '--tokens"));
        assert!(said(&["run", "m", "--set", "temperature"]).contains("`temperature=0`"));
        assert!(said(&["serve", "--set", "models"]).contains("`models.keep_alive=forever`"));
    }

    #[test]
    fn help_of_a_misspelt_verb_names_the_verb() {
        assert!(said(&["help", "rnu"]).contains("'run'"), "{}", said(&["help", "rnu"]));
        assert!(said(&["help", "serv"]).contains("'serve'"));
        assert!(!said(&["help", "zzzzzz"]).contains("tip"), "{}", said(&["help", "zzzzzz"]));
    }
}
