//! What an ELF shared library says in its headers and tables. Bounded by the file, and no code of it runs.

use object::elf;
use object::read::elf::{Dyn as _, FileHeader as _, ProgramHeader as _, SectionHeader as _, Sym as _};
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
    if let Some((dynamic, strings)) = sections.dynamic(endian, data).map_err(malformed)? {
        let strings = sections.strings(endian, data, strings).map_err(malformed)?;
        for entry in dynamic {
            let text = || -> Result<String, ElfError> {
                Ok(String::from_utf8_lossy(entry.string(endian, strings).map_err(malformed)?).into_owned())
            };
            match entry.tag32(endian) {
                Some(elf::DT_NEEDED) => library.needed.push(text()?),
                Some(elf::DT_SONAME) => library.soname = Some(text()?),
                Some(elf::DT_RPATH | elf::DT_RUNPATH) => library.search.push(text()?),
                Some(elf::DT_AUXILIARY | elf::DT_FILTER | elf::DT_AUDIT | elf::DT_DEPAUDIT) => {
                    library.pulls.push(text()?);
                }
                Some(elf::DT_NULL) => break,
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
