//! The manifest that a library carries, read as a host reads it: without running anything.

use super::{Bench, Verdict, ensure, failed, skipped};
use object::Endianness;
use object::elf::FileHeader64;
use object::read::elf::{FileHeader, SectionHeader};

const NOTE: &str = "\"An ELF note in a section named BP_NOTE_SECTION (allocated, so that it survives strip): name \
                    Backplane\\0, type BP_NOTE_MANIFEST, description = the text of plugin.toml\"";
const EMBED: &str = "embed plugin.toml as the note describes; in Rust `export_plugin!` does";

pub fn note(bench: &Bench<'_>) -> Verdict {
    let Some(path) = &bench.test.path else { return skipped("the plugin is linked into this test") };
    let manifest = match std::fs::read(path).map_err(|error| error.to_string()).and_then(|file| read(&file)) {
        Ok(manifest) => manifest,
        Err(what) => return failed(what, NOTE, EMBED),
    };
    let manifest: toml::Table = match toml::from_str(&manifest) {
        Ok(manifest) => manifest,
        Err(error) => {
            return failed(format!("the manifest in the library is not TOML: {error}"), NOTE, EMBED);
        }
    };
    let facts = bench.plugin()?.raw.facts();
    for (key, said) in [("id", &facts.id), ("version", &facts.version)] {
        let written = manifest.get(key).and_then(toml::Value::as_str);
        ensure(
            written == Some(said.as_str()),
            || format!("the manifest says `{key}` is {written:?}, and the library says `{said}`"),
            "bp_plugin.id, version: \"as in the manifest; the host refuses a library where they differ\"",
            "write the same in both",
        )?;
    }
    Ok(format!("{} {}", facts.id, facts.version))
}

/// The text of the note.
fn read(file: &[u8]) -> Result<String, String> {
    let broken = |error: object::read::Error| format!("the library is not a 64-bit ELF file: {error}");
    let header = FileHeader64::<Endianness>::parse(file).map_err(broken)?;
    let endian = header.endian().map_err(broken)?;
    let sections = header.sections(endian, file).map_err(broken)?;
    let name = backplane_abi::NOTE_SECTION;
    let (_, section) = sections
        .section_by_name(endian, name.as_bytes())
        .ok_or_else(|| format!("the library has no section `{name}`"))?;
    if section.sh_flags(endian) & u64::from(object::elf::SHF_ALLOC) == 0 {
        return Err(format!("the section `{name}` is not allocated: `strip` would take it away"));
    }
    let not_a_note = || format!("the section `{name}` does not hold the note");
    // Read from its bytes: some compilers do not mark the section as one of notes.
    let data = section.data(endian, file).map_err(broken)?;
    let word = |at: usize| {
        data.get(at..at + 4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]) as usize)
    };
    let (Some(name_len), Some(len), Some(kind)) = (word(0), word(4), word(8)) else {
        return Err(not_a_note());
    };
    let start = 12 + name_len.next_multiple_of(4);
    let (owner, text) = (data.get(12..12 + name_len), data.get(start..start + len));
    match (owner, text) {
        (Some(owner), Some(text))
            if owner == backplane_abi::NOTE_NAME && kind == backplane_abi::NOTE_MANIFEST as usize =>
        {
            // The padding may have been counted in.
            let end = text.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            String::from_utf8(text[..end].to_vec())
                .map_err(|_| "the manifest in the library is not UTF-8".to_owned())
        }
        _ => Err(not_a_note()),
    }
}
