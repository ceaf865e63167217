//! Vector search on a GPU beside copying as much memory on it (`plugins/cuda/examples/search.rs`), and 64 queries at once beside
//! a product of cuBLAS with a top-k behind it (`cublas.py`), where there is one.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot measure says so and ends")]
#![allow(clippy::print_stdout, reason = "it says that it measured nothing")]

mod support;

use std::collections::HashMap;
use support::Against::{AtLeast, AtMost, Nothing};
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
        if line["queries"] == "64"
            && let Some(peer) = cublas(&line)
        {
            let took = peer["ms"].parse::<f64>().unwrap();
            table.row(format!("  the same by cuBLAS and a top-k, {}", peer["on"]), took, "ms", Nothing);
            table.row("  of its time", search / took, "", AtMost(1.0));
            let theirs: Vec<&str> = peer["hits"].split(',').collect();
            let both = line["hits"].split(',').filter(|hit| theirs.contains(hit)).count();
            table.row("  of a query's hits, found by it as well", both as f64, "", Nothing);
        }
    }
}

/// What the peer says of the same rows and queries; nothing where it is not installed.
fn cublas(line: &HashMap<String, String>) -> Option<HashMap<String, String>> {
    // It may be there for processors alone.
    if !e2e::python().args(["-c", "import jax; jax.devices('cuda')"]).output().unwrap().status.success() {
        println!(
            "cuda: JAX is not installed with CUDA, and nothing is held against cuBLAS; `make bench` installs it, or\n  \
             {:?} -m pip install -r {}",
            e2e::python().get_program(),
            e2e::root().join("tests/bench/cublas.txt").display()
        );
        return None;
    }
    let mut python = e2e::python();
    python.arg(e2e::root().join("tests/bench/cublas.py"));
    let sizes = [&*line["rows"], &line["dimension"], &line["queries"], "10", "15"];
    support::measured(python.args(sizes)).pop()
}
