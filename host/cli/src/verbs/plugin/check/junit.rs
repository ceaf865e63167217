//! The results as JUnit XML, which every CI reads.

use super::result::{Ended, Row};
use std::fmt::Write as _;
use std::time::Duration;

pub fn report(plugin: &str, rows: &[Row], seed: u64, took: Duration) -> String {
    let count = |is: fn(&Row) -> bool| rows.iter().filter(|row| is(row)).count();
    let errors = count(|row| matches!(row.result, Ended::Crashed | Ended::TimedOut));
    let failures = count(|row| row.result == Ended::Failed && row.breaks_the_contract());
    let skipped = count(|row| row.result == Ended::Skipped);
    let mut xml = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n<testsuite name=\"{}\" tests=\"{}\" \
         failures=\"{failures}\" errors=\"{errors}\" skipped=\"{skipped}\" time=\"{:.3}\">\n<properties>\
         <property name=\"seed\" value=\"{seed}\"/></properties>\n",
        escape(plugin),
        rows.len(),
        took.as_secs_f64()
    );
    for row in rows {
        let group = row.check.id.split('.').next().unwrap_or_default();
        // Writing to a String cannot fail.
        let _ = write!(
            xml,
            "<testcase classname=\"{group}\" name=\"{}\" time=\"{:.3}\">",
            escape(&row.name),
            row.seconds
        );
        let first = row.problems.first().map(|found| escape(&found.what)).unwrap_or_default();
        let whole: Vec<_> = row.problems.iter().map(told).collect();
        let whole = escape(&whole.join("\n\n"));
        let _ = match row.result {
            Ended::Passed => Ok(()),
            Ended::Skipped => write!(xml, "<skipped message=\"{}\"/>", escape(&row.seen)),
            Ended::Failed if !row.breaks_the_contract() => write!(xml, "<system-out>{whole}</system-out>"),
            Ended::Failed => write!(xml, "<failure message=\"{first}\">{whole}</failure>"),
            ended => write!(xml, "<error type=\"{}\" message=\"{first}\">{whole}</error>", ended.name()),
        };
        xml.push_str("</testcase>\n");
    }
    xml.push_str("</testsuite>\n</testsuites>\n");
    xml
}

fn told(found: &super::result::Found) -> String {
    let place = found
        .passage()
        .map_or(String::new(), |passage| format!("backplane.h:{} ({}): ", passage.line, passage.section));
    format!("{}\n{place}{}\nto do: {}", found.what, found.rule, found.advice)
}

/// XML knows no control characters, whatever a plugin writes into its messages.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\n' => escaped.push_str("&#10;"),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}
