//! Vector search beside reading the same memory (`plugins/vector/examples/scan.rs`).
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot measure says so and ends")]

mod support;

use support::Against::{AtLeast, Nothing};
use support::Table;

fn main() {
    let lines = support::yardstick(&support::example("backplane-vector", "scan"), &[]);
    let mut table = Table::new("vector");
    for line in lines {
        let number = |key: &str| line[key].parse::<f64>().unwrap();
        let (read, search) = (number("read_ms"), number("search_ms"));
        table.row(
            format!("{} MB of {}: reading it in a loop", line["megabytes"], line["dtype"]),
            read,
            "ms CPU",
            Nothing,
        );
        table.row(format!("  {}, exact, the best ten", line["queries"]), search, "ms CPU", Nothing);
        if line["queries"].starts_with("one query") {
            table.row("  of the rate at which memory is read", read / search, "", AtLeast(0.7));
        }
    }
}
