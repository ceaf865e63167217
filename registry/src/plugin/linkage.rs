//! What an ELF library asks of the system that maps it, and how it was linked.

use std::collections::BTreeSet;

use object::Endianness;
use object::elf;
use object::read::elf::{
    Dyn as _, FileHeader as _, ProgramHeader as _, SectionHeader as _, SectionTable, Sym as _,
};

use super::elf::{ElfError, Header, identify, malformed, whole};

type Sections<'data> = SectionTable<'data, Header>;

/// A version of glibc, such as 2.34.
pub(crate) type GlibcVersion = (u32, u32);

#[derive(Debug, Default, PartialEq)]
pub(crate) struct Linkage {
    /// Every symbol that others can see.
    pub exports: BTreeSet<String>,
    /// Every symbol that it expects of others.
    pub imports: BTreeSet<String>,
    pub needed: Vec<String>,
    /// `DT_RPATH` and `DT_RUNPATH`, split at colons.
    pub rpath: Vec<String>,
    pub runpath: Vec<String>,
    pub text_relocations: bool,
    pub executable_stack: bool,
    pub static_tls: bool,
    /// The linker was told that the library is never unmapped.
    pub nodelete: bool,
    /// The newest version of glibc of which it needs a symbol.
    pub glibc: Option<GlibcVersion>,
    /// The newest version of glibc that it defines: that of glibc itself.
    pub provides_glibc: Option<GlibcVersion>,
    /// What compilers wrote into `.comment`.
    pub compilers: Vec<String>,
}

/// Reads how a library was linked.
pub(crate) fn read(data: &[u8]) -> Result<Linkage, ElfError> {
    let header = identify(data)?;
    let endian = header.endian().map_err(malformed)?;
    whole(data, header, endian)?;
    let sections = header.sections(endian, data).map_err(malformed)?;
    let mut linkage = Linkage { executable_stack: true, ..Linkage::default() };

    // Without the header the kernel takes the stack to be executable.
    for segment in header.program_headers(endian, data).map_err(malformed)? {
        if segment.p_type(endian) == elf::PT_GNU_STACK {
            linkage.executable_stack = segment.p_flags(endian) & elf::PF_X != 0;
        }
    }
    dynamic(&mut linkage, header, &sections, endian, data)?;
    symbols(&mut linkage, &sections, endian, data)?;
    versions(&mut linkage, &sections, endian, data)?;
    if let Some((_, comment)) = sections.section_by_name(endian, b".comment") {
        let text = comment.data(endian, data).map_err(malformed)?;
        let lines = text.split(|byte| *byte == 0).filter(|line| !line.is_empty());
        linkage.compilers = lines.map(|line| String::from_utf8_lossy(line).trim().to_owned()).collect();
        linkage.compilers.dedup();
    }
    Ok(linkage)
}

fn dynamic(
    linkage: &mut Linkage,
    header: &Header,
    sections: &Sections<'_>,
    endian: Endianness,
    data: &[u8],
) -> Result<(), ElfError> {
    let Some(table) = super::elf::dynamic(data, header, sections, endian)? else { return Ok(()) };
    for entry in table.entries {
        let text = || table.text(entry, endian);
        let paths = || text().map(|paths| paths.split(':').map(str::to_owned).collect::<Vec<_>>());
        let value = entry.d_val(endian);
        match entry.tag32(endian) {
            Some(elf::DT_NEEDED) => linkage.needed.push(text()?),
            Some(elf::DT_RPATH) => linkage.rpath = paths()?,
            Some(elf::DT_RUNPATH) => linkage.runpath = paths()?,
            Some(elf::DT_TEXTREL) => linkage.text_relocations = true,
            Some(elf::DT_FLAGS) => {
                linkage.text_relocations |= value & u64::from(elf::DF_TEXTREL) != 0;
                linkage.static_tls = value & u64::from(elf::DF_STATIC_TLS) != 0;
            }
            Some(elf::DT_FLAGS_1) => linkage.nodelete = value & u64::from(elf::DF_1_NODELETE) != 0,
            _ => {}
        }
    }
    Ok(())
}

fn symbols(
    linkage: &mut Linkage,
    sections: &Sections<'_>,
    endian: Endianness,
    data: &[u8],
) -> Result<(), ElfError> {
    let symbols = sections.symbols(endian, data, elf::SHT_DYNSYM).map_err(malformed)?;
    for symbol in symbols.iter() {
        if !matches!(symbol.st_bind(), elf::STB_GLOBAL | elf::STB_WEAK | elf::STB_GNU_UNIQUE) {
            continue;
        }
        let name = symbol.name(endian, symbols.strings()).map_err(malformed)?;
        let name = String::from_utf8_lossy(name).into_owned();
        // An absolute symbol is the name of a version, not something to call.
        match symbol.st_shndx(endian) {
            elf::SHN_UNDEF => _ = linkage.imports.insert(name),
            elf::SHN_ABS => {}
            _ => _ = linkage.exports.insert(name),
        }
    }
    Ok(())
}

fn versions(
    linkage: &mut Linkage,
    sections: &Sections<'_>,
    endian: Endianness,
    data: &[u8],
) -> Result<(), ElfError> {
    if let Some((mut files, strings)) = sections.gnu_verneed(endian, data).map_err(malformed)? {
        let strings = sections.strings(endian, data, strings).map_err(malformed)?;
        while let Some((_, mut names)) = files.next().map_err(malformed)? {
            while let Some(name) = names.next().map_err(malformed)? {
                linkage.glibc = linkage.glibc.max(glibc(name.name(endian, strings).map_err(malformed)?));
            }
        }
    }
    if let Some((mut defined, strings)) = sections.gnu_verdef(endian, data).map_err(malformed)? {
        let strings = sections.strings(endian, data, strings).map_err(malformed)?;
        while let Some((_, mut names)) = defined.next().map_err(malformed)? {
            if let Some(name) = names.next().map_err(malformed)? {
                let version = glibc(name.name(endian, strings).map_err(malformed)?);
                linkage.provides_glibc = linkage.provides_glibc.max(version);
            }
        }
    }
    Ok(())
}

/// `GLIBC_2.34`, `GLIBC_2.2.5`; not `GLIBC_PRIVATE`, and nobody else's versions.
fn glibc(name: &[u8]) -> Option<GlibcVersion> {
    let mut parts = std::str::from_utf8(name).ok()?.strip_prefix("GLIBC_")?.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::glibc;

    #[test]
    fn only_versions_of_glibc_count() {
        assert_eq!(glibc(b"GLIBC_2.34"), Some((2, 34)));
        assert_eq!(glibc(b"GLIBC_2.2.5"), Some((2, 2)));
        assert_eq!(glibc(b"GLIBC_PRIVATE"), None);
        assert_eq!(glibc(b"GLIBCXX_3.4"), None);
        assert!(Some((2, 34)) > Some((2, 4)) && Some((2, 4)) > None);
    }
}
