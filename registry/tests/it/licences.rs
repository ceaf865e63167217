//! Licences as they arrive, are damaged, run out and are renewed.

use std::collections::{BTreeMap, BTreeSet};

use backplane_registry::license::*;
use backplane_registry::trust::*;
use proptest::prelude::*;
use serde_json::{Value, json};

const START: &str = "2027-01-01T00:00:00Z";
const END: &str = "2028-01-01T00:00:00Z";

fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn secret(seed: u8) -> SecretKey {
    SecretKey::of_seed(&[seed; 32])
}

fn payload() -> Value {
    json!({
        "v": 1, "id": "lic_1", "serial": 7, "issuer": "acme-ai",
        "licensee": {"id": "cus_42", "name": "Example GmbH"},
        "product": {"plugin": "com.acme.trt", "versions": ">=2,<4", "updates_until": "2027-11-01"},
        "iat": START, "nbf": START, "exp": END, "warn_days": 30, "grace_days": 14, "mode": "prod",
        "bind": {"kind": "install", "ids": ["ins_a"], "match": "any"},
        "limits": {"gpus": 2, "tokens_month": 1000},
        "features": {"fp8": true, "int4": false, "max_lora": 8},
        "tenants": {"default": {"features": ["fp8"]}, "ten_x": {"features": [], "limits": {"tokens_month": 0}}},
        "on_expiry": "block", "overage": "block", "ttl_days": null, "crit": ["bind"],
        "of a later version": {"nested": [1]},
    })
}

fn changed(change: impl FnOnce(&mut Value)) -> Value {
    let mut value = payload();
    change(&mut value);
    value
}

fn seal_bytes(payload: &[u8], seed: u8) -> String {
    let envelope = Envelope::sign(payload_type::LICENSE, payload.to_vec(), &[&secret(seed)]);
    armour::write(LABEL, &[], &envelope.to_json())
}

fn seal(payload: &Value) -> String {
    seal_bytes(payload.to_string().as_bytes(), 1)
}

struct Host {
    trust: TrustSet,
    revocations: Revocations,
    machine: Machine,
    plugin: Running,
    used: Use,
    now: Timestamp,
}

impl Host {
    fn new() -> Self {
        let mut trust = TrustSet::default();
        trust.add(key(1, "acme-ai", &[Role::License]));
        Self {
            trust,
            revocations: Revocations::default(),
            machine: Machine::of(Some("ins_a".to_owned()), Vec::new()),
            plugin: Running {
                id: "com.acme.trt".to_owned(),
                version: Some("3.1.0".to_owned()),
                built: Some("2027-10-01".parse().unwrap()),
                pinned: vec![secret(1).public().to_string(), secret(9).public().to_string()],
            },
            used: Use::default(),
            now: time("2027-06-01T00:00:00Z"),
        }
    }

    fn situation(&self) -> Situation<'_> {
        Situation {
            trust: &self.trust,
            revocations: &self.revocations,
            machine: &self.machine,
            plugin: Some(&self.plugin),
            used: Some(&self.used),
            first_seen: None,
            now: self.now.into(),
        }
    }

    fn check(&self, text: impl AsRef<[u8]>) -> Report {
        check(text.as_ref(), &self.situation())
    }
}

fn key(seed: u8, owner: &str, roles: &[Role]) -> TrustedKey {
    TrustedKey::new(secret(seed).public(), owner, roles)
}

/// Its state, and the code and field of the first refusal.
fn refused(report: &Report) -> (State, &str, &str) {
    let refusal = report.refusal().unwrap_or_else(|| panic!("nothing was refused: {report:#?}"));
    assert!(!refusal.reason.is_empty() && !refusal.remedy.is_empty());
    assert!(!report.standing.serves);
    (report.standing.state, refusal.code, refusal.field.as_str())
}

#[test]
fn a_sound_licence_passes_every_step() {
    let report = Host::new().check(seal(&payload()));
    assert_eq!(report.refusal(), None, "{report:#?}");
    assert_eq!((report.standing.state, report.standing.serves), (State::Valid, true));
    let names: Vec<_> = report.checks.iter().map(|check| check.name).collect();
    assert_eq!(
        names,
        [
            "format",
            "type",
            "signature",
            "key role",
            "payload",
            "issuer",
            "vendor key",
            "product",
            "version",
            "build date",
            "binding",
            "revocation",
            "time",
            "limits"
        ]
    );
    assert!(report.checks.iter().all(|check| matches!(check.outcome, Outcome::Passed { .. })));
}

#[test]
fn each_thing_that_is_wrong_has_its_state_code_and_field() {
    let says = |value: Value, expected: (State, &str, &str)| {
        let report = Host::new().check(seal(&value));
        assert_eq!(refused(&report), expected, "{value}");
    };
    let invalid = |code, field| (State::Invalid, code, field);
    says(changed(|p| p["issuer"] = json!("other")), invalid("issuer_mismatch", "issuer"));
    says(
        changed(|p| p["product"]["plugin"] = json!("com.acme.other")),
        invalid("product_mismatch", "product.plugin"),
    );
    says(
        changed(|p| p["product"]["versions"] = json!("<3")),
        invalid("version_mismatch", "product.versions"),
    );
    says(
        changed(|p| p["product"]["updates_until"] = json!("2027-09-30")),
        invalid("build_too_new", "product.updates_until"),
    );
    says(
        changed(|p| p["bind"]["ids"] = json!(["ins_b"])),
        (State::BindMismatch, "bind_mismatch", "bind.ids"),
    );
    says(
        changed(|p| p["nbf"] = json!("2027-06-02T00:00:00Z")),
        (State::NotYetValid, "license_not_yet_valid", "nbf"),
    );
    says(changed(|p| p["exp"] = json!("2027-03-01T00:00:00Z")), (State::Expired, "license_expired", "exp"));
    says(changed(|p| p["ttl_days"] = json!(10)), (State::Expired, "license_expired", "ttl_days"));
    says(changed(|p| p["crit"] = json!(["bind", "hsm"])), invalid("license_too_new", "crit"));
    says(changed(|p| p["v"] = json!(2)), invalid("license_too_new", "v"));
    says(changed(|p| p["serial"] = json!(1.5)), invalid("payload_invalid", "payload"));
    says(changed(|p| p["exp"] = json!("2027-03-01")), invalid("payload_invalid", "payload"));
    says(changed(|p| p["mode"] = json!("free")), invalid("payload_invalid", "payload"));
    says(changed(|p| p["exp"] = p["nbf"].clone()), invalid("payload_invalid", "payload"));
    says(changed(|p| p["id"] = json!("../x")), invalid("payload_invalid", "payload"));
    says(changed(|p| p["bind"]["ids"] = json!([])), invalid("payload_invalid", "payload"));
    says(json!([1]), invalid("payload_invalid", "payload"));
    says(json!({}), invalid("payload_invalid", "payload"));

    let twice = payload().to_string().replacen("{", r#"{"serial":9,"#, 1);
    let report = Host::new().check(seal_bytes(twice.as_bytes(), 1));
    assert_eq!(refused(&report), invalid("payload_invalid", "payload"));
    assert!(report.refusal().unwrap().reason.contains("`serial` stands twice"));
}

#[test]
fn whose_key_signed_it_is_asked_before_anything_of_it_is_read() {
    let says = |host: &Host, text: &str, code: &str| {
        let report = host.check(text);
        assert_eq!(refused(&report).1, code);
        assert_eq!(report.licence, None);
        report
    };
    let host = Host::new();
    says(&host, &seal_bytes(b"no JSON at all", 2), "signer_unknown");
    let other = Envelope::sign(payload_type::PLUGIN, payload().to_string().into_bytes(), &[&secret(1)]);
    says(&host, &armour::write(LABEL, &[], &other.to_json()), "wrong_type");
    says(&host, &" ".repeat(10 << 20), "too_large");
    says(&host, "", "armour_invalid");

    let mut host = Host::new();
    host.trust.add(key(1, "acme-ai", &[Role::Plugin]));
    says(&host, &seal(&payload()), "key_role");
    host.trust.add(TrustedKey { not_after: Some(host.now), ..key(1, "acme-ai", &[Role::License]) });
    says(&host, &seal(&payload()), "key_expired");
    host.trust.revoke(secret(1).public().id());
    assert_eq!(says(&host, &seal(&payload()), "key_revoked").standing.state, State::Revoked);
    host = Host::new();
    host.trust.add(key(1, "acme-ai", &[Role::License]).plugins(vec!["com.acme.x.*".parse().unwrap()]));
    assert_eq!(refused(&host.check(seal(&payload()))).1, "issuer_mismatch");
}

#[test]
fn no_flipped_bit_and_no_cut_changes_what_a_licence_says() {
    let host = Host::new();
    let text = seal(&payload());
    let good = host.check(&text).licence.unwrap();
    let bytes = text.into_bytes();
    let mut unchanged = 0;
    for place in 0..bytes.len() {
        for bit in 0..8 {
            let mut flipped = bytes.clone();
            flipped[place] ^= 1 << bit;
            let report = host.check(&flipped);
            match &report.licence {
                // White space of the armour became other white space.
                Some(same) => {
                    assert_eq!(
                        (same, report.standing.state),
                        (&good, State::Valid),
                        "byte {place}, bit {bit}"
                    );
                    unchanged += 1;
                }
                None => assert_eq!(refused(&report).0, State::Invalid),
            }
        }
        let cut = host.check(&bytes[..place]);
        assert!(cut.licence.is_none_or(|cut| cut == good && place + 1 == bytes.len()), "cut at {place}");
    }
    let lines = bytes.iter().filter(|&&byte| byte == b'\n').count();
    assert!(unchanged <= 8 * lines, "only ends of lines may be something else: {unchanged}");
}

#[test]
fn what_mail_does_to_a_licence_changes_nothing() {
    let text = seal(&payload());
    let quoted: String = text.lines().map(|line| format!("> {line}\r\n")).collect();
    let indented: String = text.lines().map(|line| format!("    {line}\n")).collect();
    for text in [
        text.replace('\n', "\r\n"),
        format!("\u{feff}{text}"),
        quoted,
        indented,
        format!("Hello,\n{text}Bye"),
    ] {
        assert_eq!(Host::new().check(&text).standing.state, State::Valid, "{text}");
    }
}

#[test]
fn a_revoked_licence_has_no_grace() {
    let mut host = Host::new();
    let list = RevocationList {
        serial: 1,
        iat: time(START),
        expires: None,
        licenses: BTreeSet::from(["lic_1".to_owned()]),
        keys: BTreeSet::new(),
        plugin_digests: BTreeSet::new(),
    };
    host.revocations.add(&[key(3, "other", &[Role::Revocation])], &list);
    assert_eq!(host.check(seal(&payload())).standing.state, State::Valid, "another vendor has no say");
    host.revocations.add(&[key(1, "acme-ai", &[Role::Revocation])], &list);
    assert_eq!(refused(&host.check(seal(&payload()))), (State::Revoked, "license_revoked", "id"));
    host.now = time(END);
    assert_eq!(host.check(seal(&payload())).standing.state, State::Revoked);
}

#[test]
fn limits_hold_with_what_the_licence_says_of_overage() {
    let state = |overage: &str, tokens: u64| {
        let mut host = Host::new();
        host.used.tokens_month = tokens;
        host.check(seal(&changed(|p| p["overage"] = json!(overage)))).standing.state
    };
    assert_eq!(state("block", 1000), State::Valid);
    assert_eq!(state("block", 1001), State::OverLimit);
    assert_eq!(state("pct:10", 1100), State::Valid);
    assert_eq!(state("pct:10", 1101), State::OverLimit);
    assert_eq!(state("report", u64::MAX), State::Valid);
    assert_eq!(state("a lot", 0), State::Invalid);
}

#[test]
fn a_tenant_has_what_the_licence_gives_it() {
    let licence = Host::new().check(seal(&payload())).licence.unwrap();
    assert_eq!(licence.feature("default", "fp8"), Some(1));
    assert_eq!(licence.feature("default", "max_lora"), None, "not among the tenant's");
    assert_eq!(licence.feature("default", "int4"), None, "off");
    assert_eq!(licence.feature("ten_x", "fp8"), None);
    assert!(!licence.covers_tenant("stranger") && licence.feature("stranger", "fp8").is_none());
    assert_eq!(licence.tenant_limits("ten_x").tokens_month, Some(0));
    assert_eq!(licence.tenant_limits("default").tokens_month, Some(1000));
    let open = Licence { tenants: BTreeMap::new(), ..licence };
    assert_eq!(open.feature("anybody", "max_lora"), Some(8));
}

#[test]
fn the_states_follow_each_other_at_their_second() {
    let licence = Host::new().check(seal(&payload())).licence.unwrap();
    let at = |text: &str| standing(&licence, None, None, time(text));
    for (moment, state, changes) in [
        ("2026-12-31T23:59:59Z", State::NotYetValid, Some(START)),
        (START, State::Valid, Some("2027-12-02T00:00:00Z")),
        ("2027-12-01T23:59:59Z", State::Valid, Some("2027-12-02T00:00:00Z")),
        ("2027-12-02T00:00:00Z", State::Expiring, Some(END)),
        (END, State::Grace, Some("2028-01-15T00:00:00Z")),
        ("2028-01-14T23:59:59Z", State::Grace, Some("2028-01-15T00:00:00Z")),
        ("2028-01-15T00:00:00Z", State::Expired, None),
    ] {
        let standing = at(moment);
        assert_eq!((standing.state, standing.changes), (state, changes.map(time)), "{moment}");
    }
    let trial = Licence { mode: Mode::Trial, exp: None, ..licence.clone() };
    assert_eq!(standing(&trial, None, None, time(END)).state, State::Trial);
    let ttl = Licence { ttl_days: Some(10), ..licence };
    let seen = Some(time("2027-03-01T00:00:00Z"));
    assert_eq!(standing(&ttl, None, seen, time(END)).ends, Some(time("2027-03-11T00:00:00Z")));
}

#[test]
fn an_ended_licence_for_updates_only_runs_the_builds_that_it_covers() {
    let value = changed(|p| p["on_expiry"] = json!("updates_only"));
    let mut host = Host::new();
    host.now = time("2030-01-01T00:00:00Z");
    let report = host.check(seal(&value));
    assert_eq!(
        (report.standing.state, report.standing.serves, report.refusal()),
        (State::Expired, true, None)
    );
    host.plugin.built = Some("2027-11-02".parse().unwrap());
    assert_eq!(refused(&host.check(seal(&value))).1, "build_too_new");
    host.plugin.built = None;
    assert_eq!(refused(&host.check(seal(&value))).1, "license_expired");
}

#[test]
fn a_library_in_a_folder_has_the_date_that_its_vendor_wrote_into_it() {
    let of = |built: &str, packed: Option<u64>| {
        let text = format!("id = 'com.acme.trt'\nversion = '3.1.0'\nabi = '1.0'\n{built}");
        Running::of(&backplane_registry::plugin::Manifest::parse(&text).unwrap(), packed).built
    };
    let day = |text: &str| Some(text.parse::<Day>().unwrap());
    assert_eq!(of("", None), None);
    assert_eq!(of("built = '2027-12-01'", None), day("2027-12-01"));
    assert_eq!(of("built = '2027-12-01'", Some(0)), day("2027-12-01"), "a package says no earlier day");
    assert_eq!(of("built = '1970-01-01'", Some(86_400)), day("1970-01-02"));
    let mut host = Host::new();
    host.plugin = Running { built: of("built = '2027-12-01'", None), ..host.plugin };
    assert_eq!(refused(&host.check(seal(&payload()))).1, "build_too_new");
}

#[test]
fn of_several_files_the_highest_serial_that_serves_counts() {
    let state = tempfile::tempdir().unwrap();
    let licences = Licences::at(state.path());
    let mut host = Host::new();
    let put = |id: &str, serial: u64, nbf: &str| {
        let value = changed(|p| {
            p["id"] = json!(id);
            p["serial"] = json!(serial);
            p["nbf"] = json!(nbf);
        });
        licences.install(id, seal(&value).as_bytes()).unwrap();
    };
    put("lic_old", 1, START);
    put("lic_new", 2, START);
    put("lic_next", 3, "2027-07-01T00:00:00Z");
    std::fs::write(licences.folder().join("nonsense.lic"), vec![b'x'; 10 << 20]).unwrap();
    std::fs::write(licences.folder().join("notes.txt"), "not a licence").unwrap();
    // A file that everybody may open, and nobody can read from its beginning.
    std::os::unix::fs::symlink("/proc/self/mem", licences.folder().join("unreadable.lic")).unwrap();
    let counts = |host: &Host| {
        let held = licences.of_plugin("com.acme.trt", &host.situation()).unwrap().unwrap();
        held.report.id().unwrap().to_owned()
    };
    assert_eq!(counts(&host), "lic_new");
    host.now = time("2027-08-01T00:00:00Z");
    assert_eq!(counts(&host), "lic_next");
    let held = licences.load(&host.situation()).unwrap();
    assert_eq!(held.len(), 5);
    let told = held[4].report.refusal().unwrap().reason.clone();
    assert!(told.contains("unreadable.lic"), "{told}");
    let [error] = &licences.unreadable().unwrap()[..] else { panic!("one") };
    assert!(error.to_string().contains("unreadable.lic"), "{error}");
    assert_eq!(held.iter().filter(|held| held.superseded).count(), 2);
    // What cannot be read may be the licence of one that has none, and what names another plugin is not.
    let other = || licences.of_plugin("com.acme.other", &host.situation()).unwrap();
    let told = other().unwrap().report;
    assert_eq!((told.standing.state, told.standing.serves), (State::Invalid, false));
    std::fs::remove_file(licences.folder().join("nonsense.lic")).unwrap();
    std::fs::remove_file(licences.folder().join("unreadable.lic")).unwrap();
    let foreign = changed(|p| p["id"] = json!("lic_foreign"));
    licences.install("lic_foreign", seal_bytes(foreign.to_string().as_bytes(), 9).as_bytes()).unwrap();
    assert!(other().is_none());
    licences.remove("lic_foreign").unwrap();
    assert!(licences.remove("lic_next").unwrap() && !licences.remove("lic_next").unwrap());
    assert!(licences.remove("../../etc/passwd").is_err());
    assert_eq!(counts(&host), "lic_new");
}

#[test]
fn what_a_vendor_seals_is_what_a_host_reads() {
    let host = Host::new();
    let licence = host.check(seal(&payload())).licence.unwrap();
    let again = host.check(licence.seal(&[&secret(1)]).unwrap());
    assert_eq!(again.licence.as_ref(), Some(&licence));
    let unsound = Licence { id: String::new(), ..licence };
    assert!(unsound.seal(&[&secret(1)]).is_err());
}

/// The order in which time moves a licence.
fn rank(state: State) -> u8 {
    match state {
        State::NotYetValid => 0,
        State::Trial | State::Valid => 1,
        State::Expiring => 2,
        State::Grace => 3,
        State::Expired => 4,
        other => panic!("dates alone never say {other}"),
    }
}

proptest! {
    /// Time moves a licence one way; and nothing happens before the moment that is announced.
    #[test]
    fn the_states_are_monotone_in_time(
        (life, warn, grace, ttl) in (1_i64..4000, 0_u32..5000, 0_u32..400, proptest::option::of(0_u32..4000)),
        trial in any::<bool>(),
        mut moments in proptest::collection::vec(-400_i64 * 86_400..6000 * 86_400, 2..20),
    ) {
        let base = Host::new().check(seal(&payload())).licence.unwrap();
        let licence = Licence {
            exp: Some(base.nbf.plus(life * 86_400)), warn_days: warn, grace_days: grace, ttl_days: ttl,
            mode: if trial { Mode::Trial } else { Mode::Prod }, ..base
        };
        moments.sort_unstable();
        let at = |moment: i64| standing(&licence, None, None, licence.nbf.plus(moment));
        for pair in moments.windows(2) {
            let (before, after) = (at(pair[0]), at(pair[1]));
            prop_assert!(rank(before.state) <= rank(after.state));
            let changed = before.state != after.state;
            let due = before.changes.is_some_and(|change| change <= licence.nbf.plus(pair[1]));
            prop_assert_eq!(changed, due);
            if let Some(change) = before.changes {
                prop_assert_ne!(standing(&licence, None, None, change).state, before.state);
            }
        }
    }

    /// Whatever a vendor signs by mistake: a report, never a panic.
    #[test]
    fn no_payload_panics(text in ".{0,300}", member in 0_usize..20, value in "[0-9a-z\\-:{}\\[\\]\",]{0,12}") {
        let host = Host::new();
        host.check(seal_bytes(text.as_bytes(), 1));
        let mut odd = payload();
        let names: Vec<String> = odd.as_object().unwrap().keys().cloned().collect();
        odd[&names[member % names.len()]] =
            serde_json::from_str(&value).unwrap_or_else(|_| Value::from(value.clone()));
        host.check(seal(&odd));
    }
}

#[test]
fn a_key_that_the_operator_trusts_and_the_plugin_does_not_name_signs_nothing() {
    let mut host = Host::new();
    host.trust.add(key(2, "acme-ai", &[Role::License]));
    let foreign = seal_bytes(payload().to_string().as_bytes(), 2);
    assert_eq!(refused(&host.check(&foreign)), (State::Invalid, "vendor_key_mismatch", "keyid"));
    host.plugin.pinned.clear();
    assert_eq!(
        host.check(&foreign).refusal(),
        None,
        "where the plugin names no key, the operator's trust is enough"
    );
}

/// While a key gives way to another, licences are signed by both.
#[test]
fn a_key_gives_way_to_another_without_anybody_noticing() {
    let envelope =
        Envelope::sign(payload_type::LICENSE, payload().to_string().into_bytes(), &[&secret(1), &secret(2)]);
    let both = armour::write(LABEL, &[], &envelope.to_json());
    let (old, new) = (key(1, "acme-ai", &[Role::License]), key(2, "acme-ai", &[Role::License]));
    let host = |keys: Vec<TrustedKey>, pinned: &[u8]| {
        let mut host = Host::new();
        host.trust = TrustSet::default();
        keys.into_iter().for_each(|key| host.trust.add(key));
        host.plugin.pinned = pinned.iter().map(|seed| secret(*seed).public().to_string()).collect();
        host
    };
    // Whoever trusts one of them, for a plugin that names one of them.
    for (keys, pinned) in
        [(vec![old.clone()], &[1][..]), (vec![old.clone(), new.clone()], &[1]), (vec![new.clone()], &[1, 2])]
    {
        assert_eq!(host(keys, pinned).check(&both).refusal(), None);
    }
    // The old one leaked: the new one takes it back, and what only the old one signed is gone.
    let mut host = host(vec![old, new.clone()], &[1, 2]);
    let list = RevocationList {
        serial: 1,
        iat: time(START),
        expires: None,
        licenses: BTreeSet::new(),
        keys: BTreeSet::from([secret(1).public().id()]),
        plugin_digests: BTreeSet::new(),
    };
    host.revocations.add(&[TrustedKey { roles: BTreeSet::from([Role::Revocation]), ..new }], &list);
    host.revocations.apply(&mut host.trust);
    assert_eq!(host.check(&both).refusal(), None);
    assert_eq!(refused(&host.check(seal(&payload()))).0, State::Revoked);
}

#[test]
fn the_time_that_counts_is_not_what_the_clock_was_set_back_to() {
    let state = tempfile::tempdir().unwrap();
    let host = Host { machine: Machine::of(Some("ins_a".to_owned()), Vec::new()), ..Host::new() };
    let licences = Licences::at(state.path());
    let standing = |clock: &Clock, system: &str| {
        let situation = Situation { used: None, now: time(system).into(), ..host.situation() };
        licences.standing_of("com.acme.trt", &situation, clock).unwrap().standing.state
    };
    let clock = Clock::new(time("2027-06-01T00:00:00Z"));
    assert_eq!(standing(&clock, "2027-06-01T00:00:00Z"), State::Missing);
    licences.install("lic_1", seal(&payload()).as_bytes()).unwrap();
    assert_eq!(standing(&clock, "2027-06-01T00:00:00Z"), State::Valid);
    assert_eq!(standing(&clock, "2026-06-01T00:00:00Z"), State::Valid, "it was seen in 2027");

    // A day of running confirms what the clock says; then setting it back gives nothing.
    let mut late = Clock::new(time("2027-06-01T00:00:00Z"));
    late.observe(time("2028-03-01T00:00:00Z"), CONFIRMED_AFTER);
    late.observe(time("2028-03-02T00:00:00Z"), CONFIRMED_AFTER);
    late.write(state.path()).unwrap();
    let late = Clock::read(state.path()).unwrap().unwrap();
    assert_eq!(standing(&late, "2027-06-01T00:00:00Z"), State::Expired);

    // What the vendor signed is a time that has come.
    let early = Clock::new(time("2026-01-01T00:00:00Z"));
    assert_eq!(standing(&early, "2026-01-01T00:00:00Z"), State::Valid, "it was signed in 2027");
}
