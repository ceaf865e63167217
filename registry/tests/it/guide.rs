//! `docs/models.md` says what the catalogue holds and what a card may be.

use backplane_registry::{Card, Catalogue, Kind, size_text};
use std::path::PathBuf;

const BEGIN: &str =
    "<!-- catalogue: written by `cargo test -p backplane-registry` with BACKPLANE_BLESS=1 -->\n";
const END: &str = "<!-- end of catalogue -->";

fn guide() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/models.md"))
}

/// The catalogue as a table. What is transferred for a file may be more than the file: it comes in a package.
fn table() -> String {
    let mut lines = vec![
        "| name | what | format | licence | size | download |".to_owned(),
        "|---|---|---|---|---|---|".to_owned(),
    ];
    for card in Catalogue::embedded().cards() {
        let aliases: Vec<String> = card.aliases.iter().map(|alias| format!("`{alias}`")).collect();
        // Of a file for several systems one is fetched; all are much alike.
        let files = || {
            let first = card.files.first().and_then(|file| file.platform.clone());
            card.files.iter().filter(move |file| file.platform == first)
        };
        let size: u64 = files().filter_map(|file| file.size).sum();
        let download: u64 = files().filter_map(|file| file.download.or(file.size)).sum();
        let format = if card.kind == Kind::Runtime { "runtime" } else { &card.format };
        lines.push(format!(
            "| `{}` ({}) | {} | {format} | {} | {} | {} |",
            card.name,
            aliases.join(", "),
            card.description.as_deref().unwrap_or_default(),
            card.licence.as_deref().unwrap_or_default(),
            size_text(size),
            size_text(download),
        ));
    }
    lines.extend([String::new(), "| set | of | what it does |".to_owned(), "|---|---|---|".to_owned()]);
    for set in Catalogue::embedded().sets() {
        let models: Vec<String> = set.models.iter().map(|name| format!("`{name}`")).collect();
        lines.push(format!("| `{}` | {} | {} |", set.name, models.join(", "), set.description));
    }
    lines.join("\n")
}

#[test]
fn the_guide_lists_the_catalogue() {
    let text = std::fs::read_to_string(guide()).unwrap();
    let (before, rest) = text.split_once(BEGIN).unwrap();
    let (_, after) = rest.split_once(END).unwrap();
    let expected = format!("{before}{BEGIN}{}\n{END}{after}", table());
    if std::env::var_os("BACKPLANE_BLESS").is_some() {
        std::fs::write(guide(), expected).unwrap();
    } else {
        assert!(text == expected, "run this test with BACKPLANE_BLESS=1; the table should be\n{}", table());
    }
}

#[test]
fn the_guide_s_cards_are_cards() {
    let text = std::fs::read_to_string(guide()).unwrap();
    let cards: Vec<&str> =
        text.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert!(!cards.is_empty());
    for card in cards {
        Card::parse(card, "docs/models.md").unwrap();
    }
}
