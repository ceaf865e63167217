//! `backplane.h`, and where in it a rule is written.

/// The header that this suite holds plugins to.
pub const HEADER: &str = include_str!("../../include/backplane.h");

/// A place in the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passage {
    /// From 1.
    pub line: usize,
    /// The heading it stands under.
    pub section: &'static str,
}

/// Where the header says what a rule quotes: its first quotation that stands there, else the table and member, the
/// numbered rule or the section that it names.
pub fn passage(rule: &str) -> Option<Passage> {
    let quotes = rule.split('"').skip(1).step_by(2);
    let line = quotes.filter_map(quoted).next().or_else(|| rule.split(':').next().and_then(named))?;
    Some(Passage { line, section: section(line) })
}

/// The text of a line of a comment or of code, without the comment's decoration.
fn bare(line: &str) -> &str {
    let line = line.trim();
    let line = line.strip_prefix("/*").or_else(|| line.strip_prefix('*')).unwrap_or(line);
    line.strip_suffix("*/").unwrap_or(line).trim()
}

/// The line on which this text begins, however it is broken into lines.
fn quoted(text: &str) -> Option<usize> {
    let words: Vec<&str> = text.split_whitespace().collect();
    // The first words have to do where the rest is a paraphrase.
    let enough = words.len().min(6);
    if enough < 2 {
        return None;
    }
    let all: Vec<(usize, &str)> = HEADER
        .lines()
        .enumerate()
        .flat_map(|(at, line)| bare(line).split_whitespace().map(move |word| (at + 1, word)))
        .collect();
    let same = |(word, there): (&&str, &(usize, &str))| {
        there.1.trim_matches(['*', '/', '"', ',', '.', ';', ':'])
            == word.trim_matches(['*', '/', '"', ',', '.', ';', ':'])
    };
    all.windows(enough).find(|window| words.iter().zip(*window).all(same)).map(|window| window[0].0)
}

/// `bp_host.push`, `bp_entry_v1`, `Rules, 1`, `Failure`; of a list the first.
fn named(name: &str) -> Option<usize> {
    if let Some(number) = name.strip_prefix("Rules, ") {
        return find(|line| bare(line).starts_with(&format!("{}. ", number.trim())), 0);
    }
    let name = name.split([',', ';', ' ']).next()?;
    let (table, member) = name.split_once('.').map_or((name, None), |(table, member)| (table, Some(member)));
    let word = |line: &str, word: &str| {
        line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').any(|found| found == word)
    };
    let of_the_abi = table.starts_with("bp_") || table.starts_with("BP_");
    if !of_the_abi {
        return find(|line| line.contains(&format!("---- {table} -")), 0);
    }
    let begin = find(|line| line == format!("typedef struct {table} {{"), 0)
        .or_else(|| find(|line| !line.trim_start().starts_with(['*', '/']) && word(line, table), 0))?;
    match member {
        None => Some(begin),
        // The member itself, not a comment that speaks of it.
        Some(member) => find(|line| !line.trim_start().starts_with(['*', '/']) && word(line, member), begin),
    }
}

fn find(is_it: impl Fn(&str) -> bool, after: usize) -> Option<usize> {
    HEADER.lines().enumerate().skip(after).find(|(_, line)| is_it(line)).map(|(at, _)| at + 1)
}

fn section(line: usize) -> &'static str {
    let heading = |text: &'static str| {
        let text = bare(text);
        let name = text.trim_matches(['-', '=', ' ']);
        ((text.starts_with("---- ") || text.starts_with("==== ")) && !name.is_empty()).then_some(name)
    };
    HEADER.lines().take(line).filter_map(heading).last().unwrap_or("The shape")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line_of(rule: &str) -> &'static str {
        let passage = passage(rule).unwrap_or_else(|| panic!("{rule}"));
        HEADER.lines().nth(passage.line - 1).unwrap()
    }

    #[test]
    fn a_quotation_is_found_across_lines() {
        let rule = "bp_host.finish: \"Ends the request, exactly once, after which its handles\"";
        assert!(line_of(rule).contains("Ends the request, exactly once"));
        assert_eq!(passage(rule).unwrap().section, "The host's table");
    }

    #[test]
    fn a_name_is_found_where_nothing_is_quoted() {
        assert!(line_of("bp_model.instance_new").contains("(*instance_new)"));
        assert!(line_of("bp_entry_v1").starts_with("bp_code bp_entry_v1("));
        assert!(line_of("Rules, 3").contains("No implicit padding"));
        assert!(
            line_of("bp_instance.submit: requests are answered on their own merits").contains("(*submit)")
        );
        assert_eq!(passage("Failure: nothing").unwrap().section, "Failure");
        assert_eq!(passage("the case is a request that works"), None);
    }
}
