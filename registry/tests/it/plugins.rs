//! Plugin libraries, made with the C compiler, whole and in every way broken.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use backplane_registry::plugin::{InspectError, MAX_NOTE, inspect, scan};
use proptest::prelude::*;

const MANIFEST: &str =
    "id = 'com.acme.x'\nversion = '1.2.3'\nabi = '1.0'\ncapabilities = ['chat']\nformats = ['gguf']\n";

/// C of a library with these entry symbols and a note with this text.
pub fn source(entries: &[&str], note: Option<&str>) -> String {
    let mut c = String::new();
    for entry in entries {
        c.push_str(&format!("__attribute__((visibility(\"default\"))) int {entry}(void) {{ return 0; }}\n"));
    }
    if let Some(text) = note {
        let bytes = text.bytes().map(|byte| byte.to_string()).collect::<Vec<_>>().join(",");
        c.push_str(&format!(
            "__attribute__((section(\".note.backplane\"), used, aligned(4)))\n\
             static const struct {{ unsigned n, d, t; char name[12]; unsigned char text[{}]; }} note =\n\
             {{ 10, {}, 1, \"Backplane\", {{ {bytes} }} }};\n",
            text.len(),
            text.len(),
        ));
    }
    c
}

pub fn compile(folder: &Path, name: &str, c: &str, flags: &[&str]) -> PathBuf {
    let (from, to) = (folder.join(format!("{name}.c")), folder.join(name));
    std::fs::write(&from, c).unwrap();
    let output = Command::new("cc").args(["-o"]).arg(&to).arg(&from).args(flags).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::remove_file(from).unwrap();
    to
}

pub const SHARED: &[&str] = &["-shared", "-fPIC", "-fvisibility=hidden"];

/// A library that is right, as bytes.
static GOOD: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let flags = [SHARED, &["-Wl,-soname,libx.so.1", "-Wl,--no-as-needed", "-lm"]].concat();
    std::fs::read(compile(folder.path(), "x.so", &source(&["bp_entry_v1", "helper"], Some(MANIFEST)), &flags))
        .unwrap()
});

fn refusal(bytes: &[u8]) -> InspectError {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.so");
    std::fs::write(&path, bytes).unwrap();
    let error = inspect(&path).unwrap_err();
    assert!(error.to_string().contains("x.so"), "the file is named: {error}");
    error
}

#[test]
fn a_library_is_read_without_being_run() {
    let folder = tempfile::tempdir().unwrap();
    let ran = folder.path().join("ran");
    let c = format!(
        "#include <stdio.h>\n__attribute__((constructor)) static void run(void) {{ fclose(fopen(\"{}\", \"w\")); }}\n{}",
        ran.display(),
        source(&["bp_entry_v1"], Some(MANIFEST))
    );
    let path = compile(folder.path(), "x.so", &c, SHARED);
    inspect(&path).unwrap();
    assert!(!ran.exists());
}

#[test]
fn a_library_says_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.so");
    std::fs::write(&path, &*GOOD).unwrap();
    let file = inspect(&path).unwrap();
    assert_eq!((file.manifest.id.as_str(), file.manifest.version.as_str()), ("com.acme.x", "1.2.3"));
    assert_eq!(file.manifest.formats, ["gguf"]);
    assert_eq!(file.machine, std::env::consts::ARCH);
    assert_eq!(file.soname.as_deref(), Some("libx.so.1"));
    assert!(file.needed.iter().any(|library| library.starts_with("libm.so")), "{:?}", file.needed);
    assert_eq!(file.entries, ["bp_entry_v1"]);
    assert_eq!(file.size, GOOD.len() as u64);
    assert_eq!(file.sha256, backplane_registry::Digest::of(&GOOD).to_string());

    // The note survives strip.
    assert!(Command::new("strip").arg(&path).status().unwrap().success());
    assert_eq!(inspect(&path).unwrap().manifest, file.manifest);
}

/// What the linker maps is what the program headers say, whatever sections are called: a library that shows something
/// else there is refused.
#[test]
fn a_library_cannot_hide_from_its_sections_what_the_linker_maps() {
    let folder = tempfile::tempdir().unwrap();
    let flags = [SHARED, &["-Wl,-rpath,/tmp/evil", "-Wl,--no-as-needed", "-lm"]].concat();
    let c = source(&["bp_entry_v1"], Some(MANIFEST));
    let path = compile(folder.path(), "x.so", &c, &flags);
    let library = std::fs::read(&path).unwrap();
    assert_eq!(inspect(&path).unwrap().search, ["/tmp/evil"]);
    let word = |at: usize| u64::from_ne_bytes(library[at..at + 8].try_into().unwrap()) as usize;
    let half = |at: usize| u32::from_ne_bytes(library[at..at + 4].try_into().unwrap());
    let count = usize::from(u16::from_ne_bytes(library[60..62].try_into().unwrap()));
    let header = |kind: u32| {
        let mut all = (0..count).map(|place| word(40) + 64 * place);
        all.find(|at| half(at + 4) == kind).unwrap()
    };
    // SHT_DYNAMIC, and the strings that it is linked to.
    let dynamic = header(6);
    let strings = word(40) + 64 * half(dynamic + 40) as usize;
    let patched = |at: usize, value: &[u8], tail: &[u8]| {
        let mut copy = library.clone();
        copy[at..at + value.len()].copy_from_slice(value);
        copy.extend(tail);
        refusal(&copy).to_string()
    };
    let end = library.len().to_ne_bytes();
    let forged = [&end[..], &32_usize.to_ne_bytes()].concat();
    for (how, said) in [
        ("it has none", patched(dynamic + 4, &1_u32.to_ne_bytes(), &[])),
        ("an empty one at its end", patched(dynamic + 24, &forged, &[0; 32])),
        ("other strings", patched(strings + 24, &forged, &[0; 4096])),
    ] {
        assert!(said.contains("section headers"), "{how}: {said}");
    }
    // The linker's own table of segments has to be one that can be read one way.
    let segments = word(32);
    let segment = |kind: u32| (0..).map(|n| segments + 56 * n).find(|at| half(*at) == kind).unwrap();
    let twice = patched(segment(0x6474_e551), &2_u32.to_ne_bytes(), &[]);
    assert!(twice.contains("section headers"), "{twice}");
    let second = (0..).map(|n| segments + 56 * n).filter(|at| half(*at) == 1).nth(1).unwrap();
    let over = patched(second + 16, &[0; 8], &[]);
    assert!(over.contains("one part over another"), "{over}");
}

#[test]
fn what_is_no_library_of_this_machine_is_named() {
    assert!(matches!(inspect(Path::new("/nonexistent/x.so")), Err(InspectError::Missing { .. })));
    assert!(matches!(inspect(Path::new("/")), Err(InspectError::Unreadable { .. })));
    for text in [&b""[..], b"#!/bin/sh\n", b"\x7fEL_"] {
        assert!(matches!(refusal(text), InspectError::NotElf { .. }));
    }
    for length in [2, 4, 16, 63, 64, GOOD.len() / 2, GOOD.len() - 1] {
        assert!(matches!(refusal(&GOOD[..length]), InspectError::Truncated { .. }), "{length}");
    }
    let patched = |at: usize, bytes: &[u8]| {
        let mut copy = GOOD.clone();
        copy[at..at + bytes.len()].copy_from_slice(bytes);
        refusal(&copy)
    };
    assert!(matches!(patched(4, &[1]), InspectError::Not64Bit { .. }));
    let foreign = if cfg!(target_arch = "x86_64") { 183_u16 } else { 62 };
    let error = patched(18, &foreign.to_ne_bytes()).to_string();
    assert!(error.contains("aarch64") && error.contains("x86_64"), "both machines are named: {error}");
    assert!(patched(18, &0xfffe_u16.to_ne_bytes()).to_string().contains("machine 65534"));
    assert!(matches!(patched(16, &2_u16.to_ne_bytes()), InspectError::NotALibrary { .. }));
    assert!(matches!(
        patched(40, &0_u64.to_ne_bytes()),
        InspectError::Malformed { .. } | InspectError::Truncated { .. }
    ));

    let folder = tempfile::tempdir().unwrap();
    let object = compile(folder.path(), "x.o", &source(&["bp_entry_v1"], Some(MANIFEST)), &["-c", "-fPIC"]);
    assert!(matches!(inspect(&object), Err(InspectError::NotALibrary { .. })));
}

#[test]
fn entries_and_notes_that_do_not_fit_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let build = |name: &str, c: &str| inspect(&compile(folder.path(), name, c, SHARED)).unwrap_err();

    let error = build("v2.so", &source(&["bp_entry_v2"], Some(MANIFEST)));
    assert!(matches!(error, InspectError::OtherMajor { .. }));
    let said = error.to_string();
    assert!(
        said.contains("exports `bp_entry_v2` only; this host speaks ABI 1.0")
            && said.contains("upgrade the host"),
        "{said}"
    );
    assert!(
        build("v0.so", &source(&["bp_entry_v0"], None))
            .to_string()
            .contains("use a newer version of the plugin")
    );

    assert!(matches!(build("none.so", &source(&["other"], None)), InspectError::NotAPlugin { .. }));
    assert!(matches!(build("entry.so", &source(&["bp_entry_v1"], None)), InspectError::NoNote { .. }));
    assert!(matches!(build("note.so", &source(&["other"], Some(MANIFEST))), InspectError::NoEntry { .. }));
    let hidden = source(&["other"], Some(MANIFEST)) + "int bp_entry_v1(void) { return 0; }";
    assert!(matches!(build("hidden.so", &hidden), InspectError::NoEntry { .. }));
    let undefined = source(&["other"], Some(MANIFEST))
        + "extern __attribute__((visibility(\"default\"))) int bp_entry_v1(void);\nint (*keep)(void) = bp_entry_v1;\n\
           __attribute__((visibility(\"default\"))) int call(void) { return keep(); }";
    assert!(matches!(build("undefined.so", &undefined), InspectError::NoEntry { .. }));

    let with = |text: &str| build("m.so", &source(&["bp_entry_v1"], Some(text)));
    assert!(matches!(
        with(&MANIFEST.replace("abi = '1.0'", "abi = '2.0'")),
        InspectError::AbiMismatch { .. }
    ));
    let old = with(&format!("min_host_minor = 7\n{}", MANIFEST.replace("'1.0'", "'1.9'"))).to_string();
    assert!(
        old.contains("built for ABI 1.9 and needs a host with 1.7 or later; this host speaks 1.0"),
        "{old}"
    );
    let typo = with("id = 'com.acme.x'\nabi = '1.0'\n").to_string();
    assert!(typo.contains("plugin.toml inside it") && typo.contains("version"), "{typo}");
    assert!(matches!(
        with(&format!("{MANIFEST}# {}", "x".repeat(MAX_NOTE))),
        InspectError::NoteTooLarge { .. }
    ));

    let good = source(&["bp_entry_v1"], Some(MANIFEST));
    for (from, to) in
        [("\"Backplane\"", "\"Otherplane\""), (", 1, \"Back", ", 9, \"Back"), ("{ 10, ", "{ 0x7fffffff, ")]
    {
        let error = build("c.so", &good.replace(from, to));
        assert!(matches!(error, InspectError::NoteCorrupt { .. }), "{error}");
    }
    let latin = source(&["bp_entry_v1"], Some(&format!("# {MANIFEST}"))).replacen("35,32", "255,254", 1);
    assert!(build("l.so", &latin).to_string().contains("not UTF-8"));
}

#[test]
fn a_folder_is_scanned_past_its_bad_files() {
    let folder = tempfile::tempdir().unwrap();
    let write = |path: &str, bytes: &[u8]| {
        let path = folder.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    };
    write("b.so", b"garbage");
    write("a.so", &GOOD);
    write("README.md", b"no library");
    write("com.acme.x/1.2.3-abc/libx.so", &GOOD);
    std::os::unix::fs::symlink("/nonexistent", folder.path().join("c.so")).unwrap();
    let found: Vec<String> = scan(folder.path())
        .iter()
        .map(|one| {
            let path = one.path.strip_prefix(folder.path()).unwrap().display().to_string();
            match &one.result {
                Ok(file) => format!("{path} {}", file.manifest.id),
                Err(InspectError::NotElf { .. }) => format!("{path} not elf"),
                Err(InspectError::Missing { .. }) => format!("{path} missing"),
                Err(error) => format!("{path} {error}"),
            }
        })
        .collect();
    assert_eq!(found, ["a.so com.acme.x", "b.so not elf", "c.so missing",]);
    assert!(scan(&folder.path().join("absent")).is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever the bytes, there is an answer: never a panic, never a hang.
    #[test]
    fn damage_is_refused_or_harmless(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..32),
        headers in prop::collection::vec((0_usize..64, any::<u8>()), 0..4),
        cut in any::<Option<prop::sample::Index>>(),
    ) {
        let mut bytes = GOOD.clone();
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        for (at, value) in headers {
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.so");
        std::fs::write(&path, &bytes).unwrap();
        match inspect(&path) {
            Ok(file) => prop_assert_eq!(file.size, bytes.len() as u64),
            Err(error) => prop_assert!(error.to_string().contains("x.so")),
        }
    }

    #[test]
    fn any_bytes_after_an_elf_magic_get_an_answer(tail in prop::collection::vec(any::<u8>(), 0..2000)) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.so");
        std::fs::write(&path, [&GOOD[..20], &tail].concat()).unwrap();
        prop_assert!(inspect(&path).is_err());
    }
}
