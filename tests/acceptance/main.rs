//! Writes `docs/acceptance.md`: every verb, route and model source, with its command, its output and how it ended; and
//! fails where the committed document says something else. `UPDATE_ACCEPTANCE=1` writes it anew.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test a failure is the test's")]

mod disk;
mod document;
mod net;
mod normalise;
mod routes;
mod shell;
mod sources;
mod verbs;

use document::Document;
use shell::Shell;

const INTRO: &str = "
# Acceptance

What the program does, written by `tests/acceptance` from a run of the real program with real plugins and models, and
compared with a new run by every `make test`. Nothing here is typed by hand; `UPDATE_ACCEPTANCE=1 make e2e` writes it anew.

How to read it. `2>` marks standard error. JSON is shown indented, whatever it came as. What differs from run to run or from
machine to machine stands in angle brackets: `<when>`, `<port>`, `<size>`, and `<words>` or `<answer>` for what a model said
(which must not be empty). `$STATE` is the state directory, `$PWD` the folder in which the commands are run.
";

#[test]
fn the_document_is_what_the_program_does() {
    let mut document = Document::new(INTRO);
    let mut shell = Shell::new(&mut document);
    verbs::offline(&mut document, &shell);
    let mut server = verbs::serve(&mut document, &shell);
    verbs::served(&mut document, &shell, &server);
    let asked = routes::write(&mut document, &server);
    sources::write(&mut document, &mut shell);
    sources::opened(&mut document, &shell);
    routes::stop(&mut document, &server, asked);
    assert_eq!(server.wait(), 0);
    let again = shell.serve(&["--plugin-dir", e2e::built().plugins.to_str().unwrap()]);
    verbs::stop_server(&mut document, &shell, again);
    document.check(&e2e::root().join("docs/acceptance.md"));
}
