//! Says what a plugin library is, without running it: `cargo run -p backplane-registry --example inspect -- FILE...`

use std::io::Write as _;

fn main() -> std::io::Result<()> {
    let mut out = std::io::stdout();
    for path in std::env::args_os().skip(1) {
        match backplane_registry::plugin::inspect(path.as_ref()) {
            Ok(file) => writeln!(out, "{file:#?}")?,
            Err(error) => writeln!(out, "{error}")?,
        }
    }
    Ok(())
}
