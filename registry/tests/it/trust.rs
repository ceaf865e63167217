//! Signed documents as strangers send them, and what becomes of keys.

use std::collections::BTreeSet;

use backplane_registry::trust::*;
use proptest::prelude::*;
use serde_json::json;

const NOW: i64 = 1_800_000_000;
const LIMIT: usize = 64 << 10;

fn now() -> Timestamp {
    Timestamp::of_unix(NOW)
}

fn secret(seed: u8) -> SecretKey {
    SecretKey::of_seed(&[seed; 32])
}

fn trusted(seed: u8, roles: &[Role]) -> TrustedKey {
    TrustedKey::new(secret(seed).public(), "acme", roles)
}

fn trust(keys: impl IntoIterator<Item = TrustedKey>) -> TrustSet {
    let mut set = TrustSet::default();
    keys.into_iter().for_each(|key| set.add(key));
    set
}

fn check(bytes: &[u8], trust: &TrustSet) -> Result<VerifiedPayload> {
    Envelope::parse(bytes, LIMIT)?.verify(trust, Role::License, payload_type::LICENSE, now())
}

fn sealed(keys: &[&SecretKey]) -> Vec<u8> {
    Envelope::sign(payload_type::LICENSE, br#"{"v":1,"id":"lic_1"}"#.to_vec(), keys).to_json()
}

#[test]
fn the_bytes_that_are_signed_are_those_of_the_standard() {
    assert_eq!(
        pae("http://example.com/HelloWorld", b"hello world"),
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    );
    assert_eq!(pae("", b""), b"DSSEv1 0  0 ");
}

#[test]
fn a_signed_document_is_believed_by_who_trusts_its_key() {
    let bytes = sealed(&[&secret(1)]);
    let payload = check(&bytes, &trust([trusted(1, &[Role::License])])).unwrap();
    assert_eq!(payload.json().unwrap()["id"], "lic_1");
    assert_eq!(payload.signers()[0].owner, "acme");
    assert!(payload.signer_for("com.acme.x").is_some());
    assert_eq!(Envelope::parse(&bytes, LIMIT).unwrap().to_json(), bytes);
}

#[test]
fn each_reason_not_to_believe_a_document_has_its_name() {
    let bytes = sealed(&[&secret(1)]);
    let code = |set: TrustSet| check(&bytes, &set).unwrap_err().code();
    let good = || trusted(1, &[Role::License]);
    assert_eq!(code(trust([])), "signer_unknown");
    assert_eq!(code(trust([trusted(2, &[Role::License])])), "signer_unknown");
    assert_eq!(code(trust([trusted(1, &[Role::Plugin, Role::Index, Role::Revocation])])), "key_role");
    assert_eq!(code(trust([TrustedKey { not_before: Some(now().plus(1)), ..good() }])), "key_not_yet_valid");
    assert_eq!(code(trust([TrustedKey { not_after: Some(now()), ..good() }])), "key_expired");
    let mut revoked = trust([good()]);
    revoked.revoke(good().id());
    assert_eq!(code(revoked), "key_revoked");

    let set = trust([good()]);
    let other_type = Envelope::sign(payload_type::PLUGIN, b"{}".to_vec(), &[&secret(1)]).to_json();
    assert_eq!(check(&other_type, &set).unwrap_err().code(), "wrong_type");
    let retyped = String::from_utf8(other_type).unwrap().replace("plugin.v1", "license.v1");
    assert_eq!(check(retyped.as_bytes(), &set).unwrap_err().code(), "signature_invalid");
    assert_eq!(check(&vec![b' '; 10 << 20], &set).unwrap_err().code(), "too_large");
}

#[test]
fn while_keys_change_one_known_key_is_enough_and_a_wrong_signature_never_is() {
    let bytes = sealed(&[&secret(1), &secret(2)]);
    for known in [1, 2] {
        let payload = check(&bytes, &trust([trusted(known, &[Role::License])])).unwrap();
        assert_eq!(payload.signers().len(), 1);
    }
    let both = trust([trusted(1, &[Role::License]), trusted(2, &[Role::License])]);
    assert_eq!(check(&bytes, &both).unwrap().signers().len(), 2);
    let one_for_another_role = trust([trusted(1, &[Role::Plugin]), trusted(2, &[Role::License])]);
    assert_eq!(check(&bytes, &one_for_another_role).unwrap().signers().len(), 1);

    let mut wire: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    wire["signatures"][1]["sig"] = wire["signatures"][0]["sig"].clone();
    assert_eq!(check(wire.to_string().as_bytes(), &both).unwrap_err().code(), "signature_invalid");
}

#[test]
fn a_document_has_one_way_to_be_written() {
    let set = trust([trusted(1, &[Role::License])]);
    let text = String::from_utf8(sealed(&[&secret(1)])).unwrap();
    let id = trusted(1, &[]).id();
    let wire: serde_json::Value = serde_json::from_str(&text).unwrap();
    let with = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut wire = wire.clone();
        change(&mut wire);
        wire.to_string()
    };
    for (changed, says) in [
        (text.replace(r#""payload":"#, r#""payload":"","payload":"#), "stands twice"),
        (with(&|wire| wire["cert"] = json!("x")), "unknown field `cert`"),
        (with(&|wire| wire["signatures"] = json!([])), "nobody signed"),
        (with(&|wire| wire["signatures"] = json!(vec![wire["signatures"][0].clone(); 9])), "more than 8"),
        (with(&|wire| wire["signatures"] = json!(vec![wire["signatures"][0].clone(); 2])), "signed twice"),
        (with(&|wire| wire["signatures"][0]["keyid"] = json!("")), "no id of a key"),
        (with(&|wire| wire["signatures"][0]["sig"] = json!("AAAA")), "has not 64 bytes"),
        (with(&|wire| wire["payload"] = json!("e30")), "not canonical base64"),
        (with(&|wire| wire["payload"] = json!("e31=")), "not canonical base64"),
        (with(&|wire| wire["payload"] = json!("e3 0=")), "not canonical base64"),
        (with(&|wire| wire["payload"] = json!("_-8=")), "not canonical base64"),
        (with(&|wire| wire["signatures"] = json!(1)), "`signatures`"),
        (format!("{text}x"), "trailing characters"),
        (json!([wire["payloadType"], wire["payload"], wire["signatures"]]).to_string(), "expected an object"),
        (
            with(&|wire| {
                let only = &wire["signatures"][0];
                wire["signatures"] = json!([[only["keyid"], only["sig"]]]);
            }),
            "no object",
        ),
        ("null".to_owned(), "expected"),
    ] {
        let refused = check(changed.as_bytes(), &set).unwrap_err();
        assert_eq!(refused.code(), "envelope_invalid", "{changed}");
        assert!(refused.to_string().contains(says), "{changed}\n=> {refused}");
    }
    assert!(text.contains(id.as_str()));
}

#[test]
fn no_flipped_bit_passes() {
    let set = trust([trusted(1, &[Role::License])]);
    let bytes = sealed(&[&secret(1)]);
    check(&bytes, &set).unwrap();
    for place in 0..bytes.len() {
        for bit in 0..8 {
            let mut flipped = bytes.clone();
            flipped[place] ^= 1 << bit;
            let refused = check(&flipped, &set);
            assert!(refused.is_err(), "byte {place}, bit {bit}: {}", String::from_utf8_lossy(&flipped));
        }
        assert!(check(&bytes[..place], &set).is_err(), "cut at {place}");
    }
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), text in ".{0,200}") {
        let set = trust([trusted(1, &[Role::License])]);
        prop_assert!(check(&bytes, &set).is_err());
        prop_assert!(check(text.as_bytes(), &set).is_err());
        prop_assert!(armour::read("LICENSE", &text).is_err());
        prop_assert!(text.parse::<PublicKey>().is_err());
    }
}

#[test]
fn keys_are_kept_added_and_removed() {
    let state = tempfile::tempdir().unwrap();
    let store = TrustStore::at(state.path());
    assert_eq!(store.load(now()).unwrap().keys.keys().count(), 0);
    let key = TrustedKey {
        not_after: Some(now()),
        ..trusted(1, &[Role::License, Role::Plugin]).plugins(vec!["com.acme.*".parse().unwrap()])
    };
    store.add(key.clone()).unwrap();
    store.add(key.clone()).unwrap();
    store.add(trusted(2, &[Role::Index])).unwrap();
    let loaded = store.load(now()).unwrap();
    assert_eq!((loaded.keys.keys().count(), loaded.keys.key(&key.id())), (2, Some(&key)));
    assert!(key.covers("com.acme.x") && !key.covers("com.acmeevil.x") && !key.covers("com.acme"));
    assert_eq!(store.remove(&key.id()).unwrap(), Some(key.clone()));
    assert_eq!(store.remove(&key.id()).unwrap(), None);
    std::fs::write(state.path().join("trust/keys.toml"), "[[key]]\nkey = 'x'\n").unwrap();
    let refused = store.load(now()).unwrap_err().to_string();
    assert!(refused.contains("keys.toml: line 2") && refused.contains("`x` is no key"), "{refused}");
}

#[test]
fn revocation_lists_are_checked_kept_and_never_go_back() {
    let state = tempfile::tempdir().unwrap();
    let store = TrustStore::at(state.path());
    for seed in 1..=3 {
        store.add(trusted(seed, &[Role::License, Role::Revocation])).unwrap();
    }
    let list = |serial, keys: &[u8]| RevocationList {
        serial,
        iat: now(),
        expires: None,
        licenses: BTreeSet::from([format!("lic_{serial}")]),
        keys: keys.iter().map(|&seed| trusted(seed, &[]).id()).collect(),
        plugin_digests: BTreeSet::new(),
    };
    let sign = |seed, list: &RevocationList| {
        let payload = serde_json::to_vec(list).unwrap();
        Envelope::sign(payload_type::REVOCATIONS, payload, &[&secret(seed)]).to_json()
    };
    store.add_revocations(&sign(1, &list(7, &[2])), now()).unwrap();
    let loaded = store.load(now()).unwrap();
    assert!(loaded.revocations.revokes_license("lic_7", "acme") && loaded.problems.is_empty());
    assert!(loaded.keys.is_revoked(&trusted(2, &[]).id()) && !loaded.keys.is_revoked(&trusted(1, &[]).id()));

    let older = store.add_revocations(&sign(1, &list(6, &[])), now()).unwrap_err();
    assert_eq!(older.code(), "serial_old");
    let revoked = store.add_revocations(&sign(2, &list(u64::MAX, &[1, 3])), now()).unwrap_err();
    assert_eq!(revoked.code(), "key_revoked");
    store.add_revocations(&sign(3, &list(1, &[])), now()).unwrap();
    assert!(store.load(now()).unwrap().revocations.revokes_license("lic_1", "acme"));

    // An older file put back by hand is not believed, and this is said.
    let file = state.path().join(format!("trust/revocations/{}.dsse", trusted(1, &[]).id()));
    std::fs::write(&file, sign(1, &list(6, &[]))).unwrap();
    let loaded = store.load(now()).unwrap();
    assert_eq!(loaded.problems.len(), 1);
    assert!(loaded.problems[0].to_string().contains("one with 7"), "{:?}", loaded.problems);
}

#[test]
fn a_key_that_the_project_revokes_revokes_nothing_more() {
    let state = tempfile::tempdir().unwrap();
    let store = TrustStore::at(state.path());
    store.add(trusted(9, &[Role::Revocation]).level(Level::Core)).unwrap();
    store.add(trusted(1, &[Role::Revocation])).unwrap();
    let sign = |seed, keys: &[u8], licenses: &[&str]| {
        let list = RevocationList {
            serial: 1,
            iat: now(),
            expires: None,
            licenses: licenses.iter().map(|&id| id.to_owned()).collect(),
            keys: keys.iter().map(|&seed| trusted(seed, &[]).id()).collect(),
            plugin_digests: BTreeSet::new(),
        };
        let payload = serde_json::to_vec(&list).unwrap();
        Envelope::sign(payload_type::REVOCATIONS, payload, &[&secret(seed)]).to_json()
    };
    store.add_revocations(&sign(1, &[], &["lic_1"]), now()).unwrap();
    assert!(store.load(now()).unwrap().revocations.revokes_license("lic_1", "acme"));
    store.add_revocations(&sign(9, &[1], &[]), now()).unwrap();
    let loaded = store.load(now()).unwrap();
    assert!(!loaded.revocations.revokes_license("lic_1", "acme"));
    assert!(loaded.problems[0].to_string().contains("was revoked"), "{:?}", loaded.problems);
}
