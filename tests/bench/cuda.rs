//! Vector search on a GPU beside copying as much memory on it (`plugins/cuda/examples/search.rs`), where there is one.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot measure says so and ends")]
#![allow(clippy::print_stdout, reason = "it says that it measured nothing")]

mod support;

use support::Against::{AtLeast, Nothing};
use support::Table;

fn main() {
    let runtimes =
        std::env::var_os("BACKPLANE_TEST_MODELS").map(|state| std::path::Path::new(&state).join("runtimes"));
    let arguments: Vec<_> = runtimes.iter().map(|folder| folder.as_os_str()).collect();
    let lines = support::yardstick(&support::example("backplane-cuda", "search"), &arguments);
    if lines.is_empty() {
        println!("cuda: there is no GPU here, and nothing was measured");
        return;
    }
    let mut table = Table::new("cuda");
    for line in lines {
        let number = |key: &str| line[key].parse::<f64>().unwrap();
        let (search, copy) = (number("search_ms"), number("copy_ms"));
        let what = format!("{} MB of 16-bit rows, {}", line["megabytes"], line["gpu"]);
        table.row(format!("{what}: copied on the device"), copy, "ms", Nothing);
        table.row(
            format!("  searched by {} queries at once, the best ten", line["queries"]),
            search,
            "ms",
            Nothing,
        );
        if line["queries"] == "1" {
            // A copy reads and writes; a search only reads.
            table.row("  of the rate at which a copy moves bytes", copy / (2.0 * search), "", AtLeast(0.8));
        }
        table.row("  hits that a CPU finds as well", number("recall"), "", AtLeast(1.0));
    }
}
