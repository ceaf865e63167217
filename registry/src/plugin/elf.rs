//! What an ELF shared library says in its headers and tables. Bounded by the file, and no code of it runs.

use object::elf;
use object::read::elf::{
    Dyn as _, FileHeader as _, ProgramHeader as _, SectionHeader as _, SectionTable, Sym as _,
};
use object::read::{ReadRef as _, StringTable};
use object::{Endianness, pod};

pub(crate) type Header = elf::FileHeader64<Endianness>;

/// Why bytes are not a shared library of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ElfError {
    NotElf,
    Truncated,
    Not64Bit,
    WrongMachine { found: String },
    NotALibrary,
    Malformed(String),
}

#[derive(Debug, Default)]
pub(crate) struct Library<'data> {
    pub machine: String,
    pub soname: Option<String>,
    pub needed: Vec<String>,
    /// Where the linker is told to look for them: `DT_RPATH` and `DT_RUNPATH`.
    pub search: Vec<String>,
    /// Libraries that the linker is told to map beside or instead of it: filters and auditors.
    pub pulls: Vec<String>,
    /// Exported symbols that begin as an entry symbol does.
    pub entries: Vec<String>,
    /// Contents of the note section, if there is one.
    pub note: Option<&'data [u8]>,
}

/// Reads a library. `section` is the note section to look for, `prefix` how entry symbols begin.
pub(crate) fn read<'data>(
    data: &'data [u8],
    section: &str,
    prefix: &str,
) -> Result<Library<'data>, ElfError> {
    let header = identify(data)?;
    let endian = header.endian().map_err(malformed)?;
    whole(data, header, endian)?;
    let sections = header.sections(endian, data).map_err(malformed)?;
    let mut library =
        Library { machine: machine_name(header.e_machine(endian), endian), ..Library::default() };

    for entry in sections.iter() {
        if sections.section_name(endian, entry).map_err(malformed)? == section.as_bytes() {
            library.note = Some(entry.data(endian, data).map_err(malformed)?);
        }
    }
    if let Some(dynamic) = dynamic(data, header, &sections, endian)? {
        for entry in dynamic.entries {
            let text = || dynamic.text(entry, endian);
            match entry.tag32(endian) {
                Some(elf::DT_NEEDED) => library.needed.push(text()?),
                Some(elf::DT_SONAME) => library.soname = Some(text()?),
                Some(elf::DT_RPATH | elf::DT_RUNPATH) => library.search.push(text()?),
                Some(elf::DT_AUXILIARY | elf::DT_FILTER | elf::DT_AUDIT | elf::DT_DEPAUDIT) => {
                    library.pulls.push(text()?);
                }
                _ => {}
            }
        }
    }
    let symbols = sections.symbols(endian, data, elf::SHT_DYNSYM).map_err(malformed)?;
    for symbol in symbols.iter() {
        let visible = matches!(symbol.st_bind(), elf::STB_GLOBAL | elf::STB_WEAK);
        if symbol.is_undefined(endian) || !visible {
            continue;
        }
        let name = symbol.name(endian, symbols.strings()).map_err(malformed)?;
        if name.starts_with(prefix.as_bytes()) {
            library.entries.push(String::from_utf8_lossy(name).into_owned());
        }
    }
    library.entries.sort();
    Ok(library)
}

/// The header, if it is that of a shared library for this machine.
pub(crate) fn identify(data: &[u8]) -> Result<&Header, ElfError> {
    if !data.starts_with(&elf::ELFMAG) {
        return Err(if data.len() < 4 && elf::ELFMAG.starts_with(data) && !data.is_empty() {
            ElfError::Truncated
        } else {
            ElfError::NotElf
        });
    }
    match data.get(4) {
        None => return Err(ElfError::Truncated),
        Some(&elf::ELFCLASS64) => {}
        Some(&elf::ELFCLASS32) => return Err(ElfError::Not64Bit),
        Some(class) => return Err(ElfError::Malformed(format!("unknown ELF class {class}"))),
    }
    let (header, _) = pod::from_bytes::<Header>(data).map_err(|()| ElfError::Truncated)?;
    let endian = header.endian().map_err(malformed)?;
    let machine = header.e_machine(endian);
    let little = matches!(endian, Endianness::Little);
    if Some(machine) != this_machine() || little != cfg!(target_endian = "little") {
        return Err(ElfError::WrongMachine { found: machine_name(machine, endian) });
    }
    match header.e_type(endian) {
        elf::ET_DYN => Ok(header),
        _ => Err(ElfError::NotALibrary),
    }
}

/// What the linker is told.
pub(crate) struct Dynamic<'data> {
    /// Without the one that ends them.
    pub entries: &'data [elf::Dyn64<Endianness>],
    strings: StringTable<'data>,
}

impl Dynamic<'_> {
    /// The text that an entry names.
    pub(crate) fn text(
        &self,
        entry: &elf::Dyn64<Endianness>,
        endian: Endianness,
    ) -> Result<String, ElfError> {
        let text = entry.string(endian, self.strings).map_err(malformed)?;
        Ok(String::from_utf8_lossy(text).into_owned())
    }
}

/// The table that the linker reads, found as the linker finds it: by the program headers, and by where they map it. The
/// section headers, which it never looks at, have to say the same: else other tools would show another library than the
/// one that is mapped.
pub(crate) fn dynamic<'data>(
    data: &'data [u8],
    header: &Header,
    sections: &SectionTable<'data, Header>,
    endian: Endianness,
) -> Result<Option<Dynamic<'data>>, ElfError> {
    let wrong = |what: &str| ElfError::Malformed(what.to_owned());
    let differs = || {
        wrong(
            "what its section headers and its program headers say of the dynamic table differs; link it anew",
        )
    };
    let segments = header.program_headers(endian, data).map_err(malformed)?;
    let mut named = segments.iter().filter(|segment| segment.p_type(endian) == elf::PT_DYNAMIC);
    let listed = sections.dynamic(endian, data).map_err(malformed)?;
    let (segment, (listed, link)) = match (named.next(), listed, named.next()) {
        (None, None, _) => return Ok(None),
        (Some(segment), Some(listed), None) => (segment, listed),
        _ => return Err(differs()),
    };
    let mapped = Mapped::of(segments, endian)?;
    let nowhere = || wrong("its dynamic table lies where nothing of the file is mapped");
    let size = segment.p_filesz(endian);
    let start = mapped.offset(segment.p_vaddr(endian), size).ok_or_else(nowhere)?;
    let count = usize::try_from(size).unwrap_or(0) / size_of::<elf::Dyn64<Endianness>>();
    let entries: &[elf::Dyn64<Endianness>] =
        data.read_slice_at(start, count).map_err(|()| ElfError::Truncated)?;
    let end = entries.iter().position(|entry| entry.d_tag(endian) == u64::from(elf::DT_NULL));
    let entries = &entries[..end.ok_or_else(|| wrong("its dynamic table has no end"))?];
    let value = |tag: u32| {
        let last = entries.iter().rev().find(|entry| entry.d_tag(endian) == u64::from(tag));
        last.map(|entry| entry.d_val(endian)).ok_or_else(|| wrong("its dynamic table names no strings"))
    };
    let (address, size) = (value(elf::DT_STRTAB)?, value(elf::DT_STRSZ)?);
    let strings = mapped.offset(address, size).ok_or_else(nowhere)?;
    let theirs = sections.section(link).map_err(malformed)?.sh_offset(endian);
    if !std::ptr::eq(entries.as_ptr(), listed.as_ptr()) || strings != theirs {
        return Err(differs());
    }
    Ok(Some(Dynamic { entries, strings: StringTable::new(data, strings, strings + size) }))
}

/// The smallest page of any machine.
const PAGE: u64 = 4096;

/// What of a file is mapped where: address, offset and length of each part.
struct Mapped(Vec<(u64, u64, u64)>);

impl Mapped {
    fn of(segments: &[elf::ProgramHeader64<Endianness>], endian: Endianness) -> Result<Self, ElfError> {
        let mut parts = Vec::new();
        let mut before = 0;
        for segment in segments.iter().filter(|segment| segment.p_type(endian) == elf::PT_LOAD) {
            let (address, offset) = (segment.p_vaddr(endian), segment.p_offset(endian));
            let (in_file, in_memory) = (segment.p_filesz(endian), segment.p_memsz(endian));
            let end = address.checked_add(in_memory).and_then(|end| end.checked_next_multiple_of(PAGE));
            let whole = in_file <= in_memory && address % PAGE == offset % PAGE;
            // Of two at one address the linker takes the later one.
            let (Some(end), true, true) = (end, whole, before <= address - address % PAGE) else {
                return Err(ElfError::Malformed("its program headers map one part over another".into()));
            };
            before = end;
            parts.push((address, offset, in_file));
        }
        Ok(Self(parts))
    }

    /// Where in the file so many bytes lie that are mapped at an address.
    fn offset(&self, address: u64, size: u64) -> Option<u64> {
        let end = address.checked_add(size)?;
        let part = self.0.iter().find(|(start, _, length)| *start <= address && end - start <= *length)?;
        part.1.checked_add(address - part.0)
    }
}

/// Whether everything that the headers speak of lies within the file.
pub(crate) fn whole(data: &[u8], header: &Header, endian: Endianness) -> Result<(), ElfError> {
    let length = data.len() as u64;
    let within = |start: u64, size: u64| match start.checked_add(size) {
        Some(end) if end <= length => Ok(()),
        _ => Err(ElfError::Truncated),
    };
    let table = |count: u16, entry: u16| u64::from(count) * u64::from(entry);
    within(header.e_phoff(endian), table(header.e_phnum(endian), header.e_phentsize(endian)))?;
    within(header.e_shoff(endian), table(header.e_shnum(endian), header.e_shentsize(endian)))?;
    for segment in header.program_headers(endian, data).map_err(malformed)? {
        if segment.p_type(endian) == elf::PT_LOAD {
            within(segment.p_offset(endian), segment.p_filesz(endian))?;
        }
    }
    if header.e_shoff(endian) == 0 {
        return Err(ElfError::Malformed("its section headers were stripped; strip symbols only".into()));
    }
    Ok(())
}

pub(crate) fn malformed(error: object::read::Error) -> ElfError {
    ElfError::Malformed(error.to_string())
}

fn this_machine() -> Option<u16> {
    MACHINES.iter().find(|(_, name)| *name == std::env::consts::ARCH).map(|(machine, _)| *machine)
}

/// Machines by Rust's names, which people know from targets.
const MACHINES: [(u16, &str); 9] = [
    (elf::EM_X86_64, "x86_64"),
    (elf::EM_AARCH64, "aarch64"),
    (elf::EM_RISCV, "riscv64"),
    (elf::EM_PPC64, "powerpc64"),
    (elf::EM_S390, "s390x"),
    (elf::EM_LOONGARCH, "loongarch64"),
    (elf::EM_386, "x86"),
    (elf::EM_ARM, "arm"),
    (elf::EM_MIPS, "mips"),
];

fn machine_name(machine: u16, endian: Endianness) -> String {
    let name = MACHINES.iter().find(|(number, _)| *number == machine).map(|(_, name)| (*name).to_owned());
    let name = name.unwrap_or_else(|| format!("machine {machine}"));
    match endian {
        Endianness::Little => name,
        Endianness::Big => format!("{name} (big-endian)"),
    }
}
