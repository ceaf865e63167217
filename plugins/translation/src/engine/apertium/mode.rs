//! A mode: the programs of a pair, as a file says them.

use super::super::Pair;
use super::pair_of;
use std::path::{Path, PathBuf};

/// Programs that a mode may name. Each knows `-z`: let go of what it has at a null character.
const PROGRAMS: &[&str] = &[
    "lt-proc",
    "apertium-tagger",
    "apertium-pretransfer",
    "apertium-posttransfer",
    "apertium-transfer",
    "apertium-interchunk",
    "apertium-postchunk",
    "apertium-anaphora",
    "apertium-wblank-attach",
    "apertium-wblank-detach",
    "apertium-extract-caps",
    "apertium-restore-caps",
    "cg-proc",
    "hfst-proc",
    "lrx-proc",
    "lsx-proc",
    "rtx-proc",
];

/// The folders of `PATH`, and those where the system has programs.
pub fn search_path() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> =
        std::env::split_paths(&path).filter(|folder| folder.is_absolute()).collect();
    for usual in ["/usr/local/bin", "/usr/bin"] {
        if !folders.iter().any(|folder| folder == Path::new(usual)) {
            folders.push(PathBuf::from(usual));
        }
    }
    folders
}

/// A pair that is installed.
#[derive(Clone, Debug, PartialEq)]
pub struct Mode {
    pub name: String,
    pair: Pair,
    /// Each with its arguments.
    pub programs: Vec<(PathBuf, Vec<String>)>,
}

impl Mode {
    /// Reads a file; `None` if it is no mode of two languages, or has anything in it but known programs.
    pub fn read(file: &Path) -> Option<Self> {
        if file.extension()? != "mode" {
            return None;
        }
        let name = file.file_stem()?.to_str()?.to_owned();
        let pair = pair_of(&name)?;
        let text = std::fs::read_to_string(file).ok()?;
        let programs = parse(&text)?
            .into_iter()
            .map(|(program, arguments)| Some((which(&program)?, arguments)))
            .collect::<Option<Vec<_>>>()?;
        Some(Self { name, pair, programs })
    }

    /// Programs that are no mode of Apertium's.
    #[cfg(test)]
    pub fn of(programs: Vec<(PathBuf, Vec<String>)>) -> Self {
        let name = "eng-spa".to_owned();
        Self { pair: pair_of(&name).expect("both are languages"), name, programs }
    }

    pub fn pair(&self) -> Pair {
        self.pair
    }
}

fn which(program: &str) -> Option<PathBuf> {
    search_path().into_iter().map(|folder| folder.join(program)).find(|path| path.is_file())
}

/// The programs of a pipeline with their arguments. `$1` stands for how unknown words are shown, which is marked; `$2` for an
/// option that nobody wants.
fn parse(text: &str) -> Option<Vec<(String, Vec<String>)>> {
    text.trim()
        .split('|')
        .map(|stage| {
            let mut words = words(stage)?.into_iter();
            let program = words.next().filter(|program| PROGRAMS.contains(&&**program))?;
            let arguments = words.filter_map(|word| match &*word {
                "$1" => Some("-g".to_owned()),
                "$2" => None,
                _ => Some(word),
            });
            let arguments = std::iter::once("-z".to_owned()).chain(arguments).collect();
            Some((program, arguments))
        })
        .collect()
}

/// The words of a command. Only single and double quotes mean something; what a shell would do more about is refused.
fn words(command: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for c in command.trim().chars() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (None, ';' | '&' | '<' | '>' | '`' | '(' | ')' | '\\' | '*' | '?' | '~') => return None,
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    let only_known = words.iter().all(|word| !word.contains('$') || word == "$1" || word == "$2");
    (quote.is_none() && only_known).then_some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipeline_is_read_without_a_shell() {
        let text = "lt-proc '/a b/x.bin' | apertium-tagger -g $2 \"/y\" | lt-proc $1 /z.bin\n";
        let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        assert_eq!(
            parse(text).unwrap(),
            [
                ("lt-proc".to_owned(), owned(&["-z", "/a b/x.bin"])),
                ("apertium-tagger".to_owned(), owned(&["-z", "-g", "/y"])),
                ("lt-proc".to_owned(), owned(&["-z", "-g", "/z.bin"])),
            ]
        );
    }

    #[test]
    fn what_only_a_shell_would_do_is_refused() {
        for text in [
            "rm -rf x",
            "lt-proc x; rm y",
            "lt-proc `x`",
            "lt-proc $(x)",
            "lt-proc x > y",
            "lt-proc 'x",
            "/bin/lt-proc x",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
