//! Plugin packages: made, signed, checked, installed; and in every way wrong (case 22 of the threat list).

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use backplane_registry::Digest;
use backplane_registry::package::{
    Act, Level, PackOptions, PackageManifest, Plugins, Trust, Version, open, pack, sign,
};
use backplane_registry::trust::{
    self, Envelope, Role, SecretKey, Timestamp, TrustStore, TrustedKey, payload_type,
};
use proptest::prelude::*;

use crate::plugins::{SHARED, compile, source};

fn key() -> SecretKey {
    SecretKey::of_seed(&[7; 32])
}

fn toml(version: &str) -> String {
    format!("id = 'com.acme.x'\nversion = '{version}'\nabi = '1.0'\ncapabilities = ['chat']\nlater = 0.5\n")
}

pub fn library_with(folder: &Path, version: &str, flags: &[&str]) -> PathBuf {
    fs::create_dir_all(folder).unwrap();
    compile(folder, "libx.so", &source(&["bp_entry_v1"], Some(&toml(version))), &[SHARED, flags].concat())
}

/// A state directory that trusts the key, and a folder to work in.
struct Scene {
    dir: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let scene = Self { dir: tempfile::tempdir().unwrap() };
        scene.trust_key(TrustedKey::new(key().public(), "acme", &[Role::Plugin]));
        scene
    }

    fn trust_key(&self, key: TrustedKey) {
        TrustStore::at(&self.state()).add(key).unwrap();
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    fn trust(&self) -> Trust {
        Trust::load(&self.state(), Level::Org, Timestamp::now()).unwrap()
    }

    fn plugins(&self) -> Plugins {
        Plugins::at(&self.state())
    }

    fn packed(&self, version: &str) -> PathBuf {
        let library = library_with(&self.dir.path().join(format!("build-{version}")), version, &[]);
        let notice = self.dir.path().join("NOTICE");
        fs::write(&notice, "mind the step").unwrap();
        let files = BTreeMap::from([("doc/notice.txt".parse().unwrap(), notice)]);
        let to = self.dir.path().join(format!("x-{version}.plg"));
        pack(&library, &PackOptions { files, built: Some(1) }).unwrap().write(&to, &[&key()]).unwrap();
        to
    }

    fn install(&self, package: &Path) -> Result<String, String> {
        let trust = self.trust();
        let package = open(package, &trust).map_err(|error| error.to_string())?;
        let installed =
            self.plugins().install(&package, &trust, "test").map_err(|error| error.to_string())?;
        Ok(installed.version)
    }

    /// Everything below `plugins/`, but the lock.
    fn left(&self) -> Vec<String> {
        fn walk(folder: &Path, root: &Path, all: &mut Vec<String>) {
            for entry in fs::read_dir(folder).into_iter().flatten() {
                let path = entry.unwrap().path();
                all.push(path.strip_prefix(root).unwrap().display().to_string());
                if path.is_dir() && !path.is_symlink() {
                    walk(&path, root, all);
                }
            }
        }
        let root = self.state().join("plugins");
        let mut all = Vec::new();
        walk(&root, &root, &mut all);
        all.retain(|name| name != ".lock");
        all.sort();
        all
    }

    /// The package is refused, wherever it is offered, and nothing of it stays.
    fn refused(&self, package: &Path, says: &str) {
        let before = self.left();
        let trust = self.trust();
        let verified = open(package, &trust).and_then(|package| package.check()).unwrap_err().to_string();
        assert!(verified.contains(says), "expected `{says}`: {verified}");
        let installed = self.install(package).unwrap_err();
        assert!(installed.contains(says), "expected `{says}`: {installed}");
        assert_eq!(self.left(), before, "{says}: something was left");
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    }
}

/// Magic, envelope and payload of a package.
fn split(bytes: &[u8]) -> (Envelope, Vec<u8>) {
    let length = u32::from_le_bytes(bytes[8..12].try_into().unwrap()) as usize;
    (Envelope::parse(&bytes[12..12 + length], 1 << 20).unwrap(), bytes[12 + length..].to_vec())
}

fn join(envelope: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut bytes = b"\x89BPPLG\r\n".to_vec();
    bytes.extend((envelope.len() as u32).to_le_bytes());
    bytes.extend(envelope);
    bytes.extend(payload);
    bytes
}

/// A package whose author is hostile and has a good key: manifest and archive as the author likes.
fn forged(manifest: &serde_json::Value, archive: &[u8]) -> Vec<u8> {
    let mut manifest = manifest.clone();
    let payload = zstd::encode_all(archive, 3).unwrap();
    manifest["payload"] = serde_json::json!({
        "sha256": Digest::of(&payload).to_string(), "size": payload.len(), "unpacked": archive.len(),
    });
    let document = serde_json::to_vec(&manifest).unwrap();
    join(&Envelope::sign(payload_type::PLUGIN, document, &[&key()]).to_json(), &payload)
}

fn unpacked(payload: &[u8]) -> Vec<u8> {
    zstd::decode_all(payload).unwrap()
}

fn header(name: &[u8], size: u64, kind: tar::EntryType) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    // Past the checks of the tar crate, as an attacker would.
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.set_size(size);
    header.set_mode(0o644);
    header.set_entry_type(kind);
    header.set_cksum();
    header
}

fn entry(name: &str, bytes: &[u8]) -> Vec<u8> {
    let mut out = header(name.as_bytes(), bytes.len() as u64, tar::EntryType::Regular).as_bytes().to_vec();
    out.extend(bytes);
    out.resize(out.len().next_multiple_of(512), 0);
    out
}

/// A good package, its manifest and its archive without the end.
struct Good {
    manifest: serde_json::Value,
    archive: Vec<u8>,
    bytes: Vec<u8>,
}

static GOOD: LazyLock<Good> = LazyLock::new(|| {
    let scene = Scene::new();
    let bytes = fs::read(scene.packed("1.0.0")).unwrap();
    let (envelope, payload) = split(&bytes);
    let mut archive = unpacked(&payload);
    archive.truncate(archive.len() - 1024);
    Good { manifest: serde_json::from_slice(envelope.unverified_payload()).unwrap(), archive, bytes }
});

const END: [u8; 1024] = [0; 1024];

/// The good archive with this before its first file.
fn archive_with(first: &[u8]) -> Vec<u8> {
    [first, &GOOD.archive, &END].concat()
}

#[test]
fn the_same_files_give_the_same_bytes_and_all_of_it_arrives() {
    let (one, two) = (Scene::new(), Scene::new());
    let first = one.packed("1.0.0");
    assert_eq!(fs::read(&first).unwrap(), fs::read(two.packed("1.0.0")).unwrap());

    assert_eq!(one.install(&first).unwrap(), "1.0.0");
    let version = one.plugins().in_use("com.acme.x").unwrap();
    assert_eq!(fs::read_to_string(version.folder.join("doc/notice.txt")).unwrap(), "mind the step");
    let checked = one.plugins().check(&version, &one.trust()).unwrap();
    assert_eq!(checked.verified.level, Level::Org);
    assert_eq!(checked.verified.signer.owner, "acme");
    assert_eq!(checked.verified.manifest.built, Some(1));
    assert_eq!(checked.library.sha256, Digest::of_file(&checked.path).unwrap());
    let name = version.folder.file_name().unwrap().to_string_lossy().into_owned();
    assert_eq!(name, format!("1.0.0-{}", checked.verified.digest.short()));
    let read_only = |path: &Path| {
        use std::os::unix::fs::PermissionsExt as _;
        path.metadata().unwrap().permissions().mode() & 0o222 == 0
    };
    assert!(read_only(&version.folder) && read_only(&version.folder.join("doc")) && read_only(&checked.path));
}

#[test]
fn what_nobody_or_nobody_known_signed_is_refused() {
    let scene = Scene::new();
    let library = library_with(&scene.dir.path().join("b"), "1.0.0", &[]);
    let packed = pack(&library, &PackOptions::default()).unwrap();
    let unsigned = scene.dir.path().join("unsigned.plg");
    packed.write_unsigned(&unsigned).unwrap();
    scene.refused(&unsigned, "it is not signed");

    let stranger = SecretKey::of_seed(&[8; 32]);
    let foreign = scene.dir.path().join("foreign.plg");
    sign(&unsigned, &foreign, &[&stranger]).unwrap();
    scene.refused(&foreign, "none of the keys that signed it is trusted");

    // Known, but not for packages; known for packages, but of others.
    scene.trust_key(TrustedKey::new(stranger.public(), "other", &[Role::License]));
    scene.refused(&foreign, "not for `plugin`");
    scene.trust_key(
        TrustedKey::new(stranger.public(), "other", &[Role::Plugin])
            .plugins(vec!["com.other.*".parse().unwrap()]),
    );
    scene.refused(&foreign, "not for `com.acme.x`");

    // A signature over the same bytes as another kind of document.
    let (envelope, payload) = split(&GOOD.bytes);
    let licence =
        Envelope::sign(payload_type::LICENSE, envelope.unverified_payload().to_vec(), &[&key()]).to_json();
    scene.refused(
        &scene.write("type.plg", &join(&licence, &payload)),
        "expected `application/vnd.backplane.plugin",
    );

    sign(&unsigned, &foreign, &[&stranger, &key()]).unwrap();
    assert_eq!(scene.install(&foreign).unwrap(), "1.0.0", "one known signer is enough");
}

#[test]
fn a_key_or_package_that_was_revoked_is_refused_installed_or_not() {
    let scene = Scene::new();
    let package = scene.packed("1.0.0");
    scene.install(&package).unwrap();
    let digest = open(&package, &scene.trust()).unwrap().verified().digest;
    scene.trust_key(
        TrustedKey::new(key().public(), "acme", &[Role::Plugin, Role::Revocation]).level(trust::Level::Org),
    );
    let list = serde_json::json!({
        "serial": 1, "iat": Timestamp::now().to_string(), "plugin_digests": [digest.to_string()],
    });
    let list = Envelope::sign(payload_type::REVOCATIONS, list.to_string().into_bytes(), &[&key()]).to_json();
    TrustStore::at(&scene.state()).add_revocations(&list, Timestamp::now()).unwrap();

    scene.refused(&package, "revocation list");
    let version = scene.plugins().in_use("com.acme.x").unwrap();
    let refused = scene.plugins().check(&version, &scene.trust()).unwrap_err();
    assert_eq!(refused.problem.code(), "package_revoked");
    assert_eq!(scene.plugins().revoked(&version, &scene.trust()).unwrap().code(), "package_revoked");
    // Nor is it a way back.
    scene.install(&scene.packed("1.1.0")).unwrap();
    let refused = scene.plugins().rollback("com.acme.x", None, &scene.trust()).unwrap_err();
    assert_eq!(refused.problem.code(), "package_revoked");
    assert_eq!(scene.plugins().in_use("com.acme.x").unwrap().version, "1.1.0");
}

#[test]
fn a_policy_refuses_what_is_below_it() {
    let scene = Scene::new();
    let package = scene.packed("1.0.0");
    let strict = Trust::load(&scene.state(), Level::Verified, Timestamp::now()).unwrap();
    let refused = open(&package, &strict).unwrap_err();
    assert_eq!(refused.problem.code(), "package_policy");
    assert!(refused.to_string().contains("level `org`"), "{refused}");
    scene.trust_key(TrustedKey::new(key().public(), "acme", &[Role::Plugin]).level(trust::Level::Verified));
    let strict = Trust::load(&scene.state(), Level::Verified, Timestamp::now()).unwrap();
    assert_eq!(open(&package, &strict).unwrap().verified().level, Level::Verified);
}

/// Every byte, and what is said of it.
#[test]
fn a_bit_that_is_flipped_anywhere_is_refused() {
    let scene = Scene::new();
    let head = 12 + u32::from_le_bytes(GOOD.bytes[8..12].try_into().unwrap()) as usize;
    let trust = scene.trust();
    let path = scene.dir.path().join("flipped.plg");
    let mut codes = std::collections::BTreeSet::new();
    for place in 0..GOOD.bytes.len() {
        let mut bytes = GOOD.bytes.clone();
        bytes[place] ^= 1 << (place % 8);
        fs::write(&path, &bytes).unwrap();
        let result = open(&path, &trust).and_then(|package| {
            let folder = tempfile::tempdir().unwrap();
            package.check().inspect_err(|_| assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0))
        });
        let Err(refused) = result else { panic!("byte {place} was flipped, and nobody saw it") };
        codes.insert(refused.problem.code());
        let said = refused.to_string();
        assert!(said.contains("flipped.plg: ") && said.len() > 40, "byte {place}: {said}");
        // Behind the manifest there is one reason: it is not what was signed.
        assert!(place < head || refused.problem.code() == "package_modified", "byte {place}: {said}");
    }
    for code in ["package_modified", "package_untrusted", "package_invalid"] {
        assert!(codes.contains(code), "{code} is not among {codes:?}");
    }
    // All bits of the first bytes of the envelope, which JSON might read in two ways.
    for (place, bit) in (0..200).flat_map(|place| (0..8).map(move |bit| (place, bit))) {
        let mut bytes = GOOD.bytes.clone();
        bytes[place] ^= 1 << bit;
        fs::write(&path, &bytes).unwrap();
        assert!(open(&path, &trust).and_then(|package| package.check()).is_err(), "byte {place}, bit {bit}");
    }
    assert!(scene.left().is_empty());
}

/// Also where there is nothing to unpack.
#[test]
fn a_damaged_package_of_what_is_installed_already_is_refused() {
    let scene = Scene::new();
    scene.install(&scene.write("good.plg", &GOOD.bytes)).unwrap();
    let mut bytes = GOOD.bytes.clone();
    *bytes.last_mut().unwrap() ^= 1;
    let refused = scene.install(&scene.write("damaged.plg", &bytes)).unwrap_err();
    assert!(refused.contains("damaged.plg"), "{refused}");
}

#[test]
fn a_package_that_was_cut_or_goes_on_is_refused() {
    let scene = Scene::new();
    let whole = &GOOD.bytes;
    for length in [0, 5, 8, 11, 12, 100, whole.len() / 2, whole.len() - 1] {
        let path = scene.write("cut.plg", &whole[..length]);
        let refused = open(&path, &scene.trust()).and_then(|package| package.check());
        assert!(refused.is_err(), "{length}");
    }
    let mut longer = whole.clone();
    longer.push(0);
    scene.refused(&scene.write("longer.plg", &longer), "longer than");
    let mut huge = whole.clone();
    huge[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
    scene.refused(&scene.write("huge.plg", &huge), "at most 262144 are read");
    scene.refused(&scene.write("text.plg", b"hello"), "not a plugin package");
    scene.refused(Path::new("/dev/null"), "not a file");
}

/// The author's key is good; what the archive does is not.
#[test]
fn an_archive_that_holds_anything_but_the_files_listed_is_refused() {
    use tar::EntryType as Type;
    let scene = Scene::new();
    let good = archive_with(&[]);
    let sane = scene.write("sane.plg", &forged(&GOOD.manifest, &good));
    open(&sane, &scene.trust()).and_then(|package| package.check()).unwrap();

    let link = |kind, name: &str, to: &str| {
        let mut header = header(name.as_bytes(), 0, kind);
        header.as_old_mut().linkname[..to.len()].copy_from_slice(to.as_bytes());
        header.set_cksum();
        header.as_bytes().to_vec()
    };
    let of_kind = |kind, name: &str| header(name.as_bytes(), 0, kind).as_bytes().to_vec();
    // A PAX header that says another size for the file after it: readers that take it and readers that do not see
    // different archives.
    let pax = |records: &[u8]| {
        let mut out = header(b"pax", records.len() as u64, Type::XHeader).as_bytes().to_vec();
        out.extend(records);
        out.resize(out.len().next_multiple_of(512), 0);
        out
    };
    let mut nul = header(b"doc/notice.txt", 0, Type::Regular);
    nul.as_old_mut().name[20] = b'x';
    nul.set_cksum();

    for (first, says) in [
        (entry("extra.txt", b"more"), "`extra.txt`, which its manifest does not list"),
        (entry("doc/notice.txt", b"mind the step"), "twice"),
        (link(Type::Symlink, "doc", "/etc"), "symbolic link"),
        (link(Type::Symlink, "libx.so", "/tmp/evil.so"), "symbolic link"),
        (link(Type::Link, "libx.so", "/etc/passwd"), "hard link"),
        (of_kind(Type::Directory, "doc/"), "a folder"),
        (of_kind(Type::Char, "doc/notice.txt"), "a device"),
        (of_kind(Type::Fifo, "doc/notice.txt"), "a pipe"),
        (of_kind(Type::GNUSparse, "doc/notice.txt"), "sparse"),
        (of_kind(Type::GNULongName, "doc/notice.txt"), "a long name"),
        (entry("../../etc/cron.d/x", b"x"), "`..`"),
        (entry("doc/../libx.so", b"x"), "`..`"),
        (entry("/etc/passwd", b"x"), "absolute"),
        (entry("LIBX.so", b"x"), "upper-case"),
        (entry("doc/Notice.txt", b"x"), "upper-case"),
        (entry(".manifest.dsse", b"x"), "begins with a dot"),
        (entry("a b", b"x"), "characters"),
        (pax(b"16 size=9999999\n"), "extended header"),
        (pax(b"30 path=../../../etc/passwd\n"), "extended header"),
        (of_kind(Type::XGlobalHeader, "pax"), "extended header"),
    ] {
        let path = scene.write("bad.plg", &forged(&GOOD.manifest, &archive_with(&first)));
        scene.refused(&path, says);
    }

    // The end comes first, and what follows it is for a reader that goes on.
    let hidden = [&GOOD.archive[..], &END, &entry("evil.so", b"x"), &END].concat();
    scene.refused(&scene.write("hidden.plg", &forged(&GOOD.manifest, &hidden)), "goes on after its end");
    // A file is missing, shorter, or other than signed.
    scene.refused(
        &scene.write(
            "none.plg",
            &forged(&GOOD.manifest, &[END.to_vec(), vec![0; GOOD.archive.len()]].concat()),
        ),
        "lacks `doc/notice.txt`",
    );
    let notice = 512..512 + 13;
    let mut other = good.clone();
    other[notice.clone()].copy_from_slice(b"mind the shop");
    scene.refused(
        &scene.write("other.plg", &forged(&GOOD.manifest, &other)),
        "contents are not what was signed",
    );
    let mut short = header(b"doc/notice.txt", 12, Type::Regular).as_bytes().to_vec();
    short.extend(&good[512..]);
    scene.refused(
        &scene.write("short.plg", &forged(&GOOD.manifest, &short)),
        "has 12 bytes in its archive, signed are 13",
    );
    let mut broken = good.clone();
    broken[0] ^= 1;
    scene.refused(&scene.write("header.plg", &forged(&GOOD.manifest, &broken)), "cannot be read");
}

#[test]
fn a_bomb_is_stopped_at_the_size_that_was_signed() {
    let scene = Scene::new();
    // A gigabyte of zeros behind a small manifest: 32 kB compressed.
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
    encoder.write_all(&GOOD.archive).unwrap();
    let zeros = vec![0; 1 << 20];
    (0..1024).for_each(|_| encoder.write_all(&zeros).unwrap());
    let bomb = encoder.finish().unwrap();
    let with = |unpacked: u64, payload: &[u8]| {
        let mut manifest = GOOD.manifest.clone();
        manifest["payload"] = serde_json::json!({
            "sha256": Digest::of(payload).to_string(), "size": payload.len(), "unpacked": unpacked,
        });
        let document = serde_json::to_vec(&manifest).unwrap();
        join(&Envelope::sign(payload_type::PLUGIN, document, &[&key()]).to_json(), payload)
    };
    let honest = GOOD.archive.len() as u64 + 1024;
    let started = std::time::Instant::now();
    scene.refused(&scene.write("bomb.plg", &with(honest, &bomb)), "more than the size that was signed");
    assert!(started.elapsed().as_secs() < 20, "it was not unpacked to its end");
    scene.refused(&scene.write("most.plg", &with(u64::MAX, &bomb)), "longer than");

    // A window that would take 128 MiB.
    let mut wide = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
    wide.window_log(27).unwrap();
    let whole = archive_with(&[]);
    wide.write_all(&whole).unwrap();
    let wide = wide.finish().unwrap();
    scene.refused(&scene.write("wide.plg", &with(honest, &wide)), "cannot be read");
    // A second frame after the archive.
    let two = [zstd::encode_all(&whole[..], 3).unwrap(), zstd::encode_all(&b"more"[..], 3).unwrap()].concat();
    scene.refused(&scene.write("two.plg", &with(honest, &two)), "bytes follow its compressed archive");
}

#[test]
fn a_manifest_that_says_something_else_is_refused() {
    let scene = Scene::new();
    let good = archive_with(&[]);
    let with = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut manifest = GOOD.manifest.clone();
        change(&mut manifest);
        forged(&manifest, &good)
    };
    let toml = GOOD.manifest["plugin"].as_str().unwrap();
    let plugin = |from: &str, to: &str| {
        let text = toml.replace(from, to);
        assert_ne!(text, toml);
        with(&|m| m["plugin"] = text.clone().into())
    };
    let foreign = if cfg!(target_arch = "x86_64") { "aarch64" } else { "x86_64" };
    for (bytes, says) in [
        (with(&|m| m["format"] = 2.into()), "format 2 is not known"),
        (with(&|m| m["platform"]["arch"] = foreign.into()), "built for linux-"),
        (with(&|m| m["platform"]["os"] = "plan9".into()), "built for plan9"),
        (plugin("'1.0'", "'2.0'"), "built for ABI 2.0"),
        (plugin("later = 0.5", "min_host_minor = 999"), "needs a host with ABI 1.999"),
        (plugin("'1.0.0'", "'1.0.1'"), "`version` is `1.0.0` there, signed is `1.0.1`"),
        (plugin("['chat']", "['embed']"), "not the one that was signed"),
        (plugin("com.acme.x", "x"), "reversed domain name"),
        (with(&|m| m["entry"] = "none.so".into()), "`none.so` is not among its files"),
        (with(&|m| m["entry"] = "doc/notice.txt".into()), "second library"),
        (with(&|m| m["files"][0]["path"] = "../x".into()), "`..`"),
        (with(&|m| m["files"][0]["path"] = "zzz".into()), "not in order"),
        (with(&|m| m["files"][0] = m["files"][1].clone()), "listed twice"),
        (with(&|m| m["files"][0]["size"] = (1_u64 << 60).into()), "its files need"),
        (with(&|m| m["surprise"] = 1.into()), "surprise"),
    ] {
        scene.refused(&scene.write("bad.plg", &bytes), says);
    }
}

#[test]
fn a_library_that_would_map_others_is_neither_packed_nor_installed() {
    let scene = Scene::new();
    let folder = scene.dir.path().join("bad");
    for (flags, says) in [
        (&["-Wl,-rpath,/tmp"][..], "`/tmp` (RPATH)"),
        (&["-Wl,--disable-new-dtags,-rpath,/tmp:/opt"], "`/tmp` (RPATH)"),
        (&["-Wl,-rpath,$ORIGIN/../lib"], "$ORIGIN/../lib"),
        (&["-Wl,--auxiliary,libevil.so"], "`libevil.so` beside it"),
    ] {
        let library = library_with(&folder, "1.0.0", flags);
        let refused = pack(&library, &PackOptions::default()).unwrap_err().to_string();
        assert!(refused.contains(says), "{refused}");
        // Who packs it with a tool of their own gets no further.
        let bytes = fs::read(&library).unwrap();
        let mut manifest = GOOD.manifest.clone();
        manifest["files"] = serde_json::json!([{
            "path": "libx.so", "size": bytes.len(), "sha256": Digest::of(&bytes).to_string(),
        }]);
        let archive = [entry("libx.so", &bytes), END.to_vec()].concat();
        scene.refused(&scene.write("bad.plg", &forged(&manifest, &archive)), says);
    }
    // A library of one's own beside the plugin.
    let own = compile(&folder, "libhelper.so", "int help(void) { return 1; }", SHARED);
    let c = format!(
        "int help(void); int used(void) {{ return help(); }}\n{}",
        source(&["bp_entry_v1"], Some(&toml("1.0.0")))
    );
    let folder_flag = format!("-L{}", folder.display());
    let flags = [SHARED, &[folder_flag.as_str(), "-Wl,--no-as-needed", "-lhelper"]].concat();
    let library = compile(&folder, "libx.so", &c, &flags);
    let refused = pack(&library, &PackOptions::default()).unwrap_err().to_string();
    assert!(refused.contains("needs `libhelper.so`"), "{refused}");
    let good = library_with(&folder, "1.0.0", &[]);
    let files = BTreeMap::from([("lib/libhelper.so".parse().unwrap(), own)]);
    let refused = pack(&good, &PackOptions { files, built: None }).unwrap_err().to_string();
    assert!(refused.contains("second library"), "{refused}");
}

#[test]
fn what_a_host_would_refuse_is_not_packed() {
    let scene = Scene::new();
    let folder = scene.dir.path().join("b");
    let text = scene.write("x.so", b"no library");
    assert!(pack(&text, &PackOptions::default()).unwrap_err().to_string().contains("not an ELF file"));
    let library = library_with(&folder, "1", &[]);
    assert!(pack(&library, &PackOptions::default()).unwrap_err().to_string().contains("as in 1.0.0"));
    let library = library_with(&folder, "1.0.0", &[]);
    let capital = folder.join("LibX.so");
    fs::rename(&library, &capital).unwrap();
    assert!(pack(&capital, &PackOptions::default()).unwrap_err().to_string().contains("rename the library"));
}

#[test]
fn versions_follow_each_other_and_the_last_three_stay() {
    let scene = Scene::new();
    let plugins = scene.plugins();
    let id = "com.acme.x";
    let in_use = || plugins.in_use(id).unwrap().version;
    for version in ["1.0.0", "1.1.0", "1.2.0", "1.10.0"] {
        scene.install(&scene.packed(version)).unwrap();
        assert_eq!(in_use(), version);
    }
    let names = |versions: Vec<Version>| versions.into_iter().map(|v| v.version).collect::<Vec<_>>();
    assert_eq!(
        names(plugins.versions(id).unwrap()),
        ["1.1.0", "1.2.0", "1.10.0"],
        "by SemVer, three of them"
    );

    let trust = scene.trust();
    assert_eq!(plugins.rollback(id, None, &trust).unwrap().version, "1.2.0");
    assert_eq!(in_use(), "1.2.0");
    assert_eq!(plugins.rollback(id, Some("1.1.0"), &trust).unwrap().version, "1.1.0");
    let refused = plugins.rollback(id, Some("9.9.9"), &trust).unwrap_err().to_string();
    assert!(refused.contains("installed: `1.1.0`, `1.2.0`, `1.10.0`"), "{refused}");

    let refused = plugins.remove(id, Some("1.1.0"), &trust).unwrap_err().to_string();
    assert!(refused.contains("is in use"), "{refused}");
    assert_eq!(plugins.remove(id, Some("1.10.0"), &trust).unwrap().len(), 1);
    assert_eq!(plugins.remove(id, None, &trust).unwrap().len(), 2);
    assert_eq!(scene.left(), ["ledger.jsonl"]);
    let refused = plugins.in_use("com.acme.y").unwrap_err().to_string();
    assert!(refused.contains("no package of this plugin"), "{refused}");
    let acts: Vec<_> = plugins.ledger().unwrap().into_iter().map(|entry| entry.act).collect();
    assert_eq!(
        acts[..6],
        [Act::Install, Act::Install, Act::Install, Act::Install, Act::Rollback, Act::Rollback]
    );
    assert_eq!(acts[6..], [Act::Remove; 3]);
}

#[test]
fn a_name_that_is_nearly_right_is_suggested() {
    let scene = Scene::new();
    scene.install(&scene.packed("1.0.0")).unwrap();
    let refused = scene.plugins().in_use("com.acme.z").unwrap_err().to_string();
    assert!(refused.contains("did you mean `com.acme.x`?"), "{refused}");
}

#[test]
fn what_was_changed_after_the_install_is_not_loaded_and_mended_by_another_install() {
    let scene = Scene::new();
    let package = scene.packed("1.0.0");
    scene.install(&package).unwrap();
    let plugins = scene.plugins();
    let version = plugins.in_use("com.acme.x").unwrap();
    let library = version.folder.join("libx.so");
    let replace = |path: &Path, bytes: &[u8]| {
        use std::os::unix::fs::PermissionsExt as _;
        fs::set_permissions(path.parent().unwrap(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::remove_file(path).unwrap();
        fs::write(path, bytes).unwrap();
    };
    replace(&library, b"evil");
    let refused = plugins.check(&version, &scene.trust()).unwrap_err();
    assert_eq!(refused.problem.code(), "package_modified");
    scene.install(&package).unwrap();
    plugins.check(&version, &scene.trust()).unwrap();
    assert!(scene.left().iter().all(|name| !name.contains("incoming")));

    // Another version's manifest, which is signed too.
    scene.install(&scene.packed("1.1.0")).unwrap();
    let newer = plugins.in_use("com.acme.x").unwrap();
    let other = fs::read(newer.folder.join(".manifest.dsse")).unwrap();
    replace(&version.folder.join(".manifest.dsse"), &other);
    let refused = plugins.check(&version, &scene.trust()).unwrap_err().to_string();
    assert!(refused.contains("it lies where com.acme.x 1.0.0 belongs"), "{refused}");
    // A library that is a link.
    replace(&newer.folder.join("libx.so"), b"");
    fs::remove_file(newer.folder.join("libx.so")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", newer.folder.join("libx.so")).unwrap();
    assert!(plugins.check(&newer, &scene.trust()).is_err());
    // `current` may lead only to a version.
    let current = scene.state().join("plugins/com.acme.x/current");
    fs::remove_file(&current).unwrap();
    std::os::unix::fs::symlink("../../elsewhere", &current).unwrap();
    assert!(plugins.in_use("com.acme.x").is_err());
}

/// Case 23: whoever swaps the file after it was checked gains nothing, for what was checked is the copy.
#[test]
fn a_library_that_is_swapped_after_the_check_is_not_what_is_mapped() {
    let scene = Scene::new();
    scene.install(&scene.packed("1.0.0")).unwrap();
    let plugins = scene.plugins();
    let version = plugins.in_use("com.acme.x").unwrap();
    let checked = plugins.check(&version, &scene.trust()).unwrap();
    let evil = scene.write("evil.so", b"evil");
    fs::rename(evil, &checked.path).unwrap();
    assert_eq!(fs::read(&checked.path).unwrap(), b"evil");
    let mapped = fs::read(checked.library.path()).unwrap();
    let signed = checked.verified.manifest.file(&checked.verified.manifest.entry).unwrap().sha256;
    assert_eq!(Digest::of(&mapped), signed);
}

#[test]
fn what_an_install_that_died_left_is_swept() {
    let scene = Scene::new();
    let stale = scene.state().join("plugins/.incoming-dead");
    fs::create_dir_all(&stale).unwrap();
    fs::write(stale.join("libx.so"), "half").unwrap();
    scene.install(&scene.packed("1.0.0")).unwrap();
    assert!(!stale.exists());
}

#[test]
fn the_manifest_is_one_document_with_one_reading() {
    let (envelope, _) = split(&GOOD.bytes);
    let manifest: PackageManifest = serde_json::from_slice(envelope.unverified_payload()).unwrap();
    assert_eq!(manifest.plugin.id, "com.acme.x");
    assert_eq!(manifest.plugin.unknown_keys, ["later"], "what a later host understands is signed too");
    assert_eq!(serde_json::to_vec(&manifest).unwrap(), envelope.unverified_payload());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the bytes: refused, without a panic, and nothing left.
    #[test]
    fn no_bytes_get_past(noise in proptest::collection::vec(any::<u8>(), 0..600), keep in 0_usize..1200) {
        let scene = Scene::new();
        let mut bytes = GOOD.bytes[..keep.min(GOOD.bytes.len())].to_vec();
        bytes.extend(noise);
        let path = scene.write("noise.plg", &bytes);
        prop_assert!(open(&path, &scene.trust()).and_then(|package| package.check()).is_err());
        prop_assert!(scene.left().is_empty());
    }

    #[test]
    fn no_name_in_an_archive_leaves_the_folder(name in "[a-z./]{1,60}") {
        let scene = Scene::new();
        let archive = archive_with(&entry(&name, b"x"));
        let path = scene.write("name.plg", &forged(&GOOD.manifest, &archive));
        prop_assert!(scene.install(&path).is_err());
        prop_assert!(scene.left().is_empty());
        prop_assert!(!scene.dir.path().join("x").exists());
    }
}
