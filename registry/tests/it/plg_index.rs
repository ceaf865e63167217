//! Registries of packages: made, followed, and in every way turned back or mixed (case 24 of the threat list).

use std::fs;
use std::path::{Path, PathBuf};

use backplane_registry::Digest;
use backplane_registry::package::index::{Changes, Index, Registries, Registry, make};
use backplane_registry::package::{PackOptions, pack};
use backplane_registry::trust::{Envelope, SecretKey, Timestamp};
use serde_json::Value;

use crate::common::{Reply, Server};
use crate::plg::library_with;

fn key(seed: u8) -> SecretKey {
    SecretKey::of_seed(&[seed; 32])
}

/// A registry, a client's state directory, and a clock.
struct Scene {
    dir: tempfile::TempDir,
    now: Timestamp,
}

impl Scene {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), now: Timestamp::of_unix(1_800_000_000) }
    }

    fn tree(&self) -> PathBuf {
        self.dir.path().join("registry")
    }

    fn package(&self, version: &str) -> PathBuf {
        let library = library_with(&self.dir.path().join(format!("build-{version}")), version, &[]);
        let to = self.dir.path().join(format!("x-{version}.plg"));
        pack(&library, &PackOptions::default()).unwrap().write(&to, &[&key(1)]).unwrap();
        to
    }

    fn publish(&self, versions: &[&str], signer: u8) -> u64 {
        let add = versions.iter().map(|version| self.package(version)).collect();
        let changes = Changes { add, ..Changes::default() };
        make(&self.tree(), &changes, &[&key(signer)], self.now, self.now.plus_days(7)).unwrap()
    }

    fn registry(&self, keys: &[u8]) -> Registry {
        Registry {
            name: "acme".to_owned(),
            location: self.tree().display().to_string(),
            keys: keys.iter().map(|seed| key(*seed).public()).collect(),
        }
    }

    fn open(&self, keys: &[u8]) -> Result<Index, String> {
        self.open_at(keys, self.now)
    }

    fn open_at(&self, keys: &[u8], now: Timestamp) -> Result<Index, String> {
        let state = self.dir.path().join("state");
        Index::open(&state, &self.registry(keys), now, false).map_err(|error| error.to_string())
    }

    fn refused(&self, keys: &[u8], says: &str) {
        let refused = self.open(keys).unwrap_err();
        assert!(refused.contains(says), "expected `{says}`: {refused}");
    }

    /// The tree as it is now, to be put back later.
    fn keep(&self, name: &str) -> PathBuf {
        let to = self.dir.path().join(name);
        copy(&self.tree(), &to);
        to
    }

    fn put_back(&self, kept: &Path) {
        fs::remove_dir_all(self.tree()).unwrap();
        copy(kept, &self.tree());
    }

    fn timestamp(&self) -> PathBuf {
        self.tree().join("timestamp.dsse")
    }

    /// The blob that begins so.
    fn blob(&self, begins: &str) -> PathBuf {
        let blobs = fs::read_dir(self.tree().join("blobs/sha256")).unwrap();
        blobs
            .map(|entry| entry.unwrap().path())
            .find(|path| fs::read(path).unwrap().starts_with(begins.as_bytes()))
            .unwrap()
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let to = to.join(path.file_name().unwrap());
        if path.is_dir() { copy(&path, &to) } else { _ = fs::copy(&path, &to).unwrap() }
    }
}

const ID: &str = "com.acme.x";

#[test]
fn a_tree_is_followed_to_the_package() {
    let scene = Scene::new();
    assert_eq!(scene.publish(&["1.0.0", "1.10.0", "1.9.0", "2.0.0-rc.1"], 9), 1);
    let index = scene.open(&[9]).unwrap();
    assert_eq!(index.ids().collect::<Vec<_>>(), [ID]);
    let versions: Vec<_> = index.offers(ID).unwrap().into_iter().map(|offer| offer.version).collect();
    assert_eq!(versions, ["1.0.0", "1.9.0", "1.10.0", "2.0.0-rc.1"]);
    let newest = index.choose(ID, None).unwrap();
    assert_eq!(newest.version, "1.10.0", "a pre-release has to be asked for");
    assert_eq!(index.choose(ID, Some("2.0.0-rc.1")).unwrap().version, "2.0.0-rc.1");
    let to = tempfile::tempdir().unwrap();
    let brought = index.bring(ID, &newest, to.path()).unwrap();
    assert_eq!(fs::read(brought).unwrap(), fs::read(scene.package("1.10.0")).unwrap());

    let refused = index.choose("com.acme.y", None).unwrap_err().to_string();
    assert!(refused.contains("did you mean `com.acme.x`?"), "{refused}");
    let refused = index.choose(ID, Some("3.0.0")).unwrap_err().to_string();
    assert!(refused.contains("has not version 3.0.0") && refused.contains("1.10.0 for"), "{refused}");
}

#[test]
fn a_version_is_withdrawn_and_never_replaced() {
    let scene = Scene::new();
    scene.publish(&["1.0.0", "1.1.0"], 9);
    let yank = |version: &str| {
        let changes = Changes { yank: vec![(ID.to_owned(), version.to_owned())], ..Changes::default() };
        make(&scene.tree(), &changes, &[&key(9)], scene.now, scene.now.plus_days(7))
    };
    assert_eq!(yank("1.1.0").unwrap(), 2);
    assert!(yank("7.7.7").unwrap_err().to_string().contains("no version 7.7.7"));
    let index = scene.open(&[9]).unwrap();
    assert_eq!(index.choose(ID, None).unwrap().version, "1.0.0");
    assert!(index.choose(ID, Some("1.1.0")).unwrap_err().to_string().contains("was withdrawn"));

    // The same number for other contents.
    let library = library_with(&scene.dir.path().join("other"), "1.0.0", &["-DOTHER", "-g"]);
    let to = scene.dir.path().join("other.plg");
    let options = PackOptions { built: Some(99), ..PackOptions::default() };
    pack(&library, &options).unwrap().write(&to, &[&key(1)]).unwrap();
    let changes = Changes { add: vec![to.clone()], ..Changes::default() };
    let refused = make(&scene.tree(), &changes, &[&key(9)], scene.now, scene.now.plus_days(7)).unwrap_err();
    assert!(refused.to_string().contains("give it a new version"), "{refused}");
    // Nobody signed it; or it is damaged.
    let unsigned = scene.dir.path().join("unsigned.plg");
    pack(&library, &PackOptions::default()).unwrap().write_unsigned(&unsigned).unwrap();
    let mut bytes = fs::read(&to).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&to, bytes).unwrap();
    for (path, code) in [(unsigned, "package_unsigned"), (to, "package_modified")] {
        let changes = Changes { add: vec![path], ..Changes::default() };
        let refused =
            make(&scene.tree(), &changes, &[&key(9)], scene.now, scene.now.plus_days(7)).unwrap_err();
        assert_eq!(refused.problem.code(), code);
    }
}

#[test]
fn who_is_led_back_notices() {
    let scene = Scene::new();
    scene.publish(&["1.0.0"], 9);
    let old = scene.keep("old");
    scene.open(&[9]).unwrap();
    scene.publish(&["1.1.0"], 9);
    assert_eq!(scene.open(&[9]).unwrap().serial(), 2);
    assert_eq!(scene.open(&[9]).unwrap().serial(), 2, "the same again is fine");
    let new = scene.keep("new");
    scene.put_back(&old);
    scene.refused(&[9], "an older state than was seen before");
    scene.put_back(&new);
    assert_eq!(scene.open(&[9]).unwrap().serial(), 2, "and it goes on from there");
}

#[test]
fn who_is_kept_where_it_is_notices() {
    let scene = Scene::new();
    scene.publish(&["1.0.0"], 9);
    scene.open_at(&[9], scene.now.plus_days(6)).unwrap();
    let refused = scene.open_at(&[9], scene.now.plus_days(7)).unwrap_err();
    assert!(refused.contains("its timestamp ended at"), "{refused}");
    // Signed anew, without a change, it is believed again.
    let later = scene.now.plus_days(8);
    make(&scene.tree(), &Changes::default(), &[&key(9)], later, later.plus_days(7)).unwrap();
    scene.open_at(&[9], later).unwrap();
}

#[test]
fn parts_of_two_states_do_not_go_together() {
    let scene = Scene::new();
    scene.publish(&["1.0.0"], 9);
    let old_stamp = fs::read(scene.timestamp()).unwrap();
    let old_snapshot = scene.blob("{\"payloadType\"");
    let old_list = scene.blob("{\"version\"");
    let (old_snapshot_bytes, old_list_bytes) =
        (fs::read(&old_snapshot).unwrap(), fs::read(&old_list).unwrap());
    fs::remove_file(&old_snapshot).unwrap();
    fs::remove_file(&old_list).unwrap();
    // The next state; the blobs of the one before are gone, so these are the new ones.
    fs::write(&old_snapshot, &old_snapshot_bytes).unwrap();
    fs::write(&old_list, &old_list_bytes).unwrap();
    scene.publish(&["1.1.0"], 9);
    let blobs =
        || fs::read_dir(scene.tree().join("blobs/sha256")).unwrap().map(|entry| entry.unwrap().path());
    let new_snapshot = blobs()
        .find(|path| *path != old_snapshot && fs::read(path).unwrap().starts_with(b"{\"payloadType\""))
        .unwrap();
    let new_list = blobs()
        .find(|path| *path != old_list && fs::read(path).unwrap().starts_with(b"{\"version\""))
        .unwrap();
    let good = scene.keep("good");

    // The new timestamp with the old snapshot under the new one's name.
    fs::write(&new_snapshot, &old_snapshot_bytes).unwrap();
    scene.refused(&[9], "damaged, or another's");
    scene.put_back(&good);
    // The old list under the new one's name.
    fs::write(&new_list, &old_list_bytes).unwrap();
    let index = scene.open(&[9]).unwrap();
    assert!(index.offers(ID).unwrap_err().to_string().contains("damaged, or another's"));
    scene.put_back(&good);
    // The old timestamp with everything new.
    scene.open(&[9]).unwrap();
    fs::write(scene.timestamp(), old_stamp).unwrap();
    scene
        .refused(&[9], "signs it with another key, and you name that with `backplane plugin trust registry`");
    scene.put_back(&good);
    // Another package under the name of the one that is listed.
    let index = scene.open(&[9]).unwrap();
    let offer = index.choose(ID, Some("1.1.0")).unwrap();
    let other = index.choose(ID, Some("1.0.0")).unwrap();
    let blob = |digest: &Digest| scene.tree().join(format!("blobs/sha256/{digest}"));
    fs::copy(blob(&other.sha256), blob(&offer.sha256)).unwrap();
    let to = tempfile::tempdir().unwrap();
    assert!(index.bring(ID, &offer, to.path()).is_err());
}

#[test]
fn only_its_own_keys_sign_an_index() {
    let scene = Scene::new();
    scene.publish(&["1.0.0"], 8);
    scene.refused(&[9], "none of the keys that signed it is trusted");
    scene.open(&[9, 8]).unwrap();
    let mut bytes = fs::read(scene.timestamp()).unwrap();
    for place in 0..bytes.len() {
        bytes[place] ^= 1;
        fs::write(scene.timestamp(), &bytes).unwrap();
        assert!(scene.open(&[8]).is_err(), "byte {place} was flipped, and nobody saw it");
        bytes[place] ^= 1;
    }
    fs::write(scene.timestamp(), &bytes).unwrap();
    scene.open(&[8]).unwrap();
}

/// A key leaks, and who has it signs the highest serial there is. With a new key everything goes on.
#[test]
fn a_serial_run_to_its_end_is_survived_by_a_new_key() {
    let scene = Scene::new();
    scene.publish(&["1.0.0"], 9);
    scene.open(&[9]).unwrap();
    let good = scene.keep("good");
    let state = scene.dir.path().join("state/trust/registries/acme.json");
    let seen = fs::read_to_string(&state).unwrap();
    // What a client remembers after such a timestamp.
    fs::write(&state, seen.replace(":1}", &format!(":{}}}", u64::MAX))).unwrap();
    assert_ne!(fs::read_to_string(&state).unwrap(), seen);
    scene
        .refused(&[9], "signs it with another key, and you name that with `backplane plugin trust registry`");
    scene.put_back(&good);
    scene.publish(&[], 7);
    assert_eq!(scene.open(&[7]).unwrap().serial(), 2);
}

/// The same in the tree itself: it was signed, by mistake or not, and clients have seen it.
#[test]
fn a_highest_serial_that_was_signed_locks_nobody_out_for_ever() {
    let scene = Scene::new();
    scene.publish(&["1.0.0"], 9);
    let blob = |payload: &Value| {
        let kind = "application/vnd.backplane.snapshot.v1+json";
        let signed = Envelope::sign(kind, payload.to_string().into_bytes(), &[&key(9)]).to_json();
        let digest = Digest::of(&signed);
        fs::write(scene.tree().join(format!("blobs/sha256/{digest}")), signed).unwrap();
        digest
    };
    let envelope = |path: &Path| Envelope::parse(&fs::read(path).unwrap(), 1 << 20).unwrap();
    let signed = envelope(&scene.timestamp());
    let mut stamp: Value = serde_json::from_slice(signed.unverified_payload()).unwrap();
    let digest: Digest = serde_json::from_value(stamp["snapshot"].clone()).unwrap();
    let snapshot = envelope(&scene.tree().join(format!("blobs/sha256/{digest}")));
    let mut snapshot: Value = serde_json::from_slice(snapshot.unverified_payload()).unwrap();
    snapshot["serial"] = u64::MAX.into();
    stamp["serial"] = u64::MAX.into();
    stamp["snapshot"] = serde_json::to_value(blob(&snapshot)).unwrap();
    let kind = "application/vnd.backplane.timestamp.v1+json";
    let last = Envelope::sign(kind, stamp.to_string().into_bytes(), &[&key(9)]).to_json();
    fs::write(scene.timestamp(), last).unwrap();
    assert_eq!(scene.open(&[9]).unwrap().serial(), u64::MAX);

    let again = |signer: u8| {
        make(&scene.tree(), &Changes::default(), &[&key(signer)], scene.now, scene.now.plus_days(7))
    };
    let refused = again(9).unwrap_err().to_string();
    assert!(refused.contains("plugin keygen") && refused.contains("trust registry"), "{refused}");
    assert_eq!(again(7).unwrap(), 1);
    let index = scene.open(&[7]).unwrap();
    assert_eq!((index.serial(), index.ids().collect::<Vec<_>>()), (1, vec![ID]));
    // Who still has the old key only is refused, and told what to do.
    scene.refused(&[9], "none of the keys");
}

#[test]
fn a_registry_over_http_is_the_same_and_bounded() {
    let scene = Scene::new();
    scene.publish(&["1.0.0"], 9);
    let tree = scene.tree();
    let server =
        Server::new(move |request| match fs::read(tree.join(request.path.trim_start_matches("/r/"))) {
            Ok(bytes) => Reply::bytes(bytes),
            Err(_) => Reply::status(404),
        });
    let registry = Registry { location: format!("{}/r", server.url), ..scene.registry(&[9]) };
    let state = scene.dir.path().join("state");
    let index = Index::open(&state, &registry, scene.now, false).unwrap();
    let offer = index.choose(ID, None).unwrap();
    let to = tempfile::tempdir().unwrap();
    index.bring(ID, &offer, to.path()).unwrap();
    let offline = Index::open(&state, &registry, scene.now, true).unwrap_err().to_string();
    assert!(offline.contains("this is offline"), "{offline}");

    let endless = Server::new(|_| Reply::bytes(vec![b'{'; 1 << 20]));
    let registry = Registry { location: endless.url.clone(), ..scene.registry(&[9]) };
    assert!(Index::open(&state, &registry, scene.now, false).is_err());
    let gone = Server::new(|_| Reply::status(404));
    let registry = Registry { location: gone.url.clone(), ..scene.registry(&[9]) };
    let refused = Index::open(&state, &registry, scene.now, false).unwrap_err().to_string();
    assert!(refused.contains("timestamp.dsse"), "{refused}");
}

#[test]
fn registries_are_named_and_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let registries = Registries::at(dir.path());
    assert!(registries.list().unwrap().is_empty());
    let registry = |name: &str, location: &str| Registry {
        name: name.to_owned(),
        location: location.to_owned(),
        keys: vec![key(1).public()],
    };
    registries.add(registry("a", "/one")).unwrap();
    registries.add(registry("b", "/two")).unwrap();
    registries.add(registry("a", "/three")).unwrap();
    let names: Vec<_> = registries.list().unwrap().into_iter().map(|one| one.name + &one.location).collect();
    assert_eq!(names, ["b/two", "a/three"]);
    assert!(registries.remove("b").unwrap() && !registries.remove("b").unwrap());
    for name in ["", "../x", "A", "a/b"] {
        assert!(registries.add(registry(name, "/x")).is_err(), "{name}");
    }
}
