//! Sizes as people read them.

/// `98 MB`, as the disk's maker counts: two figures at the least, rounded.
pub fn size_text(bytes: u64) -> String {
    const UNITS: [(u64, &str); 4] =
        [(1_000_000_000_000, "TB"), (1_000_000_000, "GB"), (1_000_000, "MB"), (1_000, "kB")];
    let rounded = |by: u64| bytes.saturating_add(by / 2) / by;
    // What rounds up to a thousand is one of the next unit.
    let Some((unit, name)) = UNITS.iter().find(|(unit, _)| 1000 <= rounded(unit / 1000)) else {
        return format!("{bytes} B");
    };
    match rounded(unit / 10) {
        tenths if tenths < 100 => format!("{}.{} {name}", tenths / 10, tenths % 10),
        _ => format!("{} {name}", rounded(*unit)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_rounded_and_keep_two_figures() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1_000, "1.0 kB"),
            (9_949, "9.9 kB"),
            (9_950, "10 kB"),
            (999_499, "999 kB"),
            (999_500, "1.0 MB"),
            (92_871_040, "93 MB"),
            (98_362_432, "98 MB"),
            (1_117_320_768, "1.1 GB"),
            (u64::MAX, "18446744 TB"),
        ] {
            assert_eq!(size_text(bytes), text, "{bytes}");
        }
    }
}
