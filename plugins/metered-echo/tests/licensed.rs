//! What is off without a licence and on with one, and that the plugin believes its vendor and not its host.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test a failure is the test's")]

use backplane_testkit::{Case, Code, License, PluginTest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signer as _, SigningKey};
use serde_json::{Value, json};

const TYPE: &str = "application/vnd.backplane.license.v1+json";

fn licence(members: Value) -> Value {
    let mut licence = json!({
        "v": 1, "id": "lic_1", "serial": 1, "issuer": "example", "licensee": {"id": "c", "name": "C"},
        "product": {"plugin": "dev.backplane.metered-echo"}, "features": {"shout": true},
        "iat": "2026-01-01T00:00:00Z", "nbf": "2026-01-01T00:00:00Z", "exp": "2099-01-01T00:00:00Z",
    });
    licence.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
    licence
}

/// An envelope of this type, signed with the key of this seed.
fn sealed(licence: &Value, payload_type: &str, seed: u8) -> Vec<u8> {
    let payload = licence.to_string();
    let message = format!("DSSEv1 {} {payload_type} {} {payload}", payload_type.len(), payload.len());
    let signature = SigningKey::from_bytes(&[seed; 32]).sign(message.as_bytes());
    let signatures = json!([{"keyid": "0", "sig": STANDARD.encode(signature.to_bytes())}]);
    let envelope =
        json!({"payloadType": payload_type, "payload": STANDARD.encode(payload), "signatures": signatures});
    envelope.to_string().into_bytes()
}

/// A host that says everything is licensed, with these bytes.
fn host(envelope: Vec<u8>) -> License {
    License {
        serves: true,
        features: vec![("shout".to_owned(), 1)],
        envelope,
        install_id: "ins_here".to_owned(),
    }
}

fn plugin() -> PluginTest {
    PluginTest::of(backplane_metered_echo::backplane_export::bp_entry_v1)
}

/// What it answers to a request to shout: the text, or the reason and message of its refusal.
fn shout(plugin: &PluginTest) -> Result<String, (String, String)> {
    let model = plugin.open(r#"{"name":"metered-echo","capabilities":["metered.echo"]}"#).unwrap();
    let instance = model.instance().unwrap();
    let quiet = instance.submit("metered.echo", r#"{"text":"hello"}"#, vec![]).wait();
    assert_eq!(quiet.json()["text"], "hello", "what needs no licence needs none");
    let loud = instance.submit("metered.echo", r#"{"text":"hello","shout":true}"#, vec![]).wait();
    match loud.failure() {
        None => Ok(loud.json()["text"].as_str().unwrap().to_owned()),
        Some(failure) => {
            assert_eq!(failure.canonical(), Some(Code::PermissionDenied));
            Err((failure.reason.clone(), failure.message.clone()))
        }
    }
}

#[test]
fn it_shouts_with_a_licence_and_not_without() {
    let (reason, _) = shout(&plugin()).unwrap_err();
    assert_eq!(reason, "feature_not_licensed");
    let (reason, _) = shout(&plugin().licensed(License::default())).unwrap_err();
    assert_eq!(reason, "feature_not_licensed");
    let good = host(sealed(&licence(json!({})), TYPE, 7));
    assert_eq!(shout(&plugin().licensed(good)).unwrap(), "HELLO");
    let bound = licence(json!({"bind": {"kind": "install", "ids": ["ins_here"]}}));
    assert_eq!(shout(&plugin().licensed(host(sealed(&bound, TYPE, 7)))).unwrap(), "HELLO");
}

#[test]
fn a_host_that_says_what_the_vendor_did_not_is_not_believed() {
    let good = sealed(&licence(json!({})), TYPE, 7);
    let says = |members: Value| sealed(&licence(members), TYPE, 7);
    let mut changed: Value = serde_json::from_slice(&good).unwrap();
    changed["payload"] = STANDARD.encode(licence(json!({"id": "lic_2"})).to_string()).into();
    for (envelope, why) in [
        (Vec::new(), "there is none"),
        (b"{}".to_vec(), "did not sign"),
        (sealed(&licence(json!({})), TYPE, 8), "did not sign"),
        (sealed(&licence(json!({})), "application/vnd.backplane.revocations.v1+json", 7), "did not sign"),
        (changed.to_string().into_bytes(), "did not sign"),
        (says(json!({"product": {"plugin": "com.acme.other"}})), "another plugin"),
        (says(json!({"exp": "2026-02-01T00:00:00Z"})), "has ended"),
        (says(json!({"nbf": "2098-01-01T00:00:00Z"})), "has not begun"),
        (says(json!({"bind": {"kind": "install", "ids": ["ins_other"]}})), "another installation"),
        (says(json!({"features": {"shout": false}})), "does not have it"),
        (says(json!({"tenants": {"nobody": {}}})), "does not have it"),
    ] {
        let (reason, message) = shout(&plugin().licensed(host(envelope))).unwrap_err();
        assert!(reason == "feature_not_licensed" && message.contains(why), "{why}: {message}");
    }
}

#[test]
fn it_keeps_the_contract() {
    let case = Case::new(
        r#"{"name":"metered-echo","capabilities":["metered.echo"]}"#,
        "metered.echo",
        r#"{"text":"hello"}"#,
    );
    plugin().rounds(20).check_conformance(&[case]).assert_ok();
}
