//! The licence verbs, through the real program.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test a failure is the test's")]

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use support::{Done, run};

const TEMPLATE: &str = "grace_days = 14\nlicensee = { id = 'cus_42', name = 'Example GmbH' }\nproduct = { plugin = 'com.acme.trt', versions = '>=2,<4' }\n\
    features = { fp8 = true, max_lora = 8 }\ntenants = { default = { features = ['fp8'] } }\n";

/// A vendor with a key, and an operator's state directory.
struct Scene {
    folder: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let scene = Self { folder: tempfile::tempdir().unwrap() };
        std::fs::write(scene.file("basic.toml"), TEMPLATE).unwrap();
        scene.run(&["license", "keygen", "--owner", "acme-ai", "--out", &scene.at("acme")]).expect(0);
        scene
    }

    /// One whose operator trusts the vendor.
    fn trusting() -> Self {
        let scene = Self::new();
        scene.run(&["license", "trust", "add", &scene.at("acme.pub")]).expect(0);
        scene
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn at(&self, name: &str) -> String {
        self.file(name).to_str().unwrap().to_owned()
    }

    fn run(&self, arguments: &[&str]) -> Done {
        run(&self.file("state"), arguments)
    }

    /// A licence with these members; returns its file.
    fn issue(&self, id: &str, members: &[&str]) -> String {
        let file = self.at(&format!("{id}.lic"));
        let id = format!("id={id}");
        let (key, template) = (self.at("acme.key"), self.at("basic.toml"));
        let mut arguments =
            vec!["license", "issue", "--key", &key, "--template", &template, "--out", &file, "--set", &id];
        members.iter().for_each(|member| arguments.extend(["--set", member]));
        self.run(&arguments).expect(0);
        file
    }

    /// Its exit code, the code of the failure, and what it said.
    fn refused(&self, arguments: &[&str]) -> (i32, String, String) {
        let mut all = vec!["--json"];
        all.extend(arguments);
        let done = self.run(&all);
        let error: serde_json::Value =
            serde_json::from_str(&done.err).unwrap_or_else(|_| panic!("{done:#?}"));
        let error = &error["error"];
        let text = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
        (done.code, text("code"), format!("{} | {}", text("message"), text("next")))
    }
}

#[test]
fn the_guide_does_what_it_says() {
    let folder = tempfile::tempdir().unwrap();
    let guide = include_str!("../../../docs/licences.md");
    let blocks = |language: &str| {
        let fence = format!("```{language}\n");
        guide
            .split(&fence)
            .skip(1)
            .map(|rest| rest.split("```").next().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    std::fs::write(folder.path().join("basic.toml"), &blocks("toml")[0]).unwrap();
    let commands = blocks("sh");
    assert!(commands.len() >= 6, "{commands:?}");
    let bin = Path::new(env!("CARGO_BIN_EXE_backplane")).parent().unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let done = Command::new("sh")
        .args(["-exc", &commands.concat()])
        .current_dir(folder.path())
        .env("PATH", path)
        .env("BACKPLANE_STATE", folder.path().join("state"))
        .env_remove("BACKPLANE_ADDR")
        .env_remove("BACKPLANE_CONFIG")
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let out = String::from_utf8_lossy(&done.stdout);
    for said in
        ["state: valid", "lic_42 installed for com.acme.trt: valid", "fp8: on", "revocation list 1 installed"]
    {
        assert!(out.contains(said), "`{said}` is missing in\n{out}");
    }
}

#[test]
fn inspect_ticks_every_step_and_its_exit_code_says_the_same() {
    let scene = Scene::trusting();
    let good = scene.issue("lic_good", &["exp=2099-01-01T00:00:00Z"]);
    let done = scene.run(&["license", "inspect", &good, "--for", "com.acme.trt@3.1.0"]).expect(0);
    for step in ["signature", "key role", "version", "binding", "revocation", "time"] {
        assert!(done.out.lines().any(|line| line.starts_with(&format!("✓ {step}"))), "{step}: {done:#?}");
    }
    let report = scene.run(&["license", "inspect", &good, "--json"]).expect(0).json();
    assert_eq!((&report["state"], &report["serves"]), (&"valid".into(), &true.into()));
    assert_eq!(report["licence"]["issuer"], "acme-ai");

    let says = |file: &str, plugin: &str, exit: i32, code: &str, words: &[&str]| {
        let (found, found_code, text) = scene.refused(&["license", "inspect", file, "--for", plugin]);
        assert_eq!((found, found_code.as_str()), (exit, code), "{text}");
        words.iter().for_each(|word| assert!(text.contains(word), "{word}: {text}"));
    };
    let plugin = "com.acme.trt@3.1.0";
    says(
        &good,
        "com.acme.trt@4.0.0",
        3,
        "version_mismatch",
        &["lic_good.lic", "licence lic_good", "product.versions"],
    );
    says(&good, "com.acme.other", 3, "product_mismatch", &["product.plugin", "com.acme.other"]);
    let ended = scene.issue("lic_ended", &["nbf=2020-01-01T00:00:00Z", "exp=2021-01-01T00:00:00Z"]);
    says(&ended, plugin, 1, "license_expired", &["licence lic_ended", "`exp`", "renew it"]);
    let early = scene.issue("lic_early", &["nbf=2098-01-01T00:00:00Z"]);
    says(&early, plugin, 1, "license_not_yet_valid", &["`nbf`", "clock"]);
    let foreign = scene.issue("lic_foreign", &["bind.kind=install", r#"bind.ids=["ins_0"]"#]);
    says(&foreign, plugin, 3, "bind_mismatch", &["bind.ids", "license fingerprint com.acme.trt"]);
    let warned = scene.issue("lic_soon", &["exp=2098-01-01T00:00:00Z", "warn_days=100000"]);
    says(&warned, plugin, 2, "expiring", &["2098-01-01"]);
    let grace = scene
        .issue("lic_grace", &["nbf=2020-01-01T00:00:00Z", "exp=2021-01-01T00:00:00Z", "grace_days=100000"]);
    says(&grace, plugin, 2, "grace", &["2021-01-01"]);

    let text = std::fs::read_to_string(&good).unwrap();
    let changed = scene.at("changed.lic");
    std::fs::write(&changed, text.replacen("ey", "fy", 1)).unwrap();
    let (exit, _, text) = scene.refused(&["license", "inspect", &changed]);
    assert!(exit == 1 && text.contains("changed.lic"), "{text}");
    std::fs::write(&changed, vec![b' '; 10 << 20]).unwrap();
    says(&changed, plugin, 1, "too_large", &["65536"]);
    assert_eq!(scene.refused(&["license", "inspect", "/nowhere"]).0, 3);
}

#[test]
fn only_a_trusted_vendors_licence_is_installed() {
    let scene = Scene::new();
    let file = scene.issue("lic_1", &[]);
    let (exit, code, text) = scene.refused(&["license", "install", &file]);
    assert_eq!((exit, code.as_str()), (1, "signer_unknown"));
    assert!(text.contains("license trust add"), "{text}");
    let trust = |roles: &[&str]| {
        let key = scene.at("acme.pub");
        let mut arguments = vec!["license", "trust", "add", key.as_str()];
        roles.iter().for_each(|role| arguments.extend(["--role", role]));
        scene.run(&arguments).expect(0);
    };
    trust(&["plugin"]);
    assert_eq!(scene.refused(&["license", "install", &file]).1, "key_role");
    // Trust in the vendor's packages is not taken away by trust in its licences.
    let (exit, code, text) = scene.refused(&["license", "trust", "add", &scene.at("acme.pub")]);
    assert_eq!((exit, code.as_str()), (1, "key_trusted"));
    assert!(text.contains("--role plugin --role license --role revocation"), "{text}");
    assert_eq!(scene.refused(&["license", "install", &file]).1, "key_role");
    trust(&["plugin", "license", "revocation"]);
    scene.run(&["license", "install", &file]).expect(0);
    let listed = scene.run(&["license", "list", "--json"]).expect(0).json();
    assert_eq!((&listed[0]["licence"]["id"], &listed[0]["state"]), (&"lic_1".into(), &"valid".into()));
    let keys = scene.run(&["license", "trust", "list", "--json"]).expect(0).json();
    assert_eq!(keys[0]["roles"], serde_json::json!(["plugin", "license", "revocation"]));
    let id = keys[0]["id"].as_str().unwrap();
    scene.run(&["license", "trust", "remove", id]).expect(0);
    scene.run(&["license", "trust", "remove", id]).expect(3);
    let status = scene.run(&["license", "list"]).expect(0);
    assert!(status.out.contains("invalid"), "{status:?}");
    scene.run(&["license", "remove", "lic_1"]).expect(0);
    assert_eq!(scene.refused(&["license", "remove", "lic_1"]).1, "license_not_found");
}

#[test]
fn a_feature_is_licensed_for_a_tenant_until_the_licence_is_taken_back() {
    let scene = Scene::trusting();
    let check = |feature: &str, tenant: &str| {
        scene.run(&["license", "check", "com.acme.trt", feature, "--tenant", tenant, "--json"])
    };
    assert_eq!(check("fp8", "default").code, 5);
    let file = scene.issue("lic_1", &[]);
    scene.run(&["license", "install", &file]).expect(0);
    assert_eq!(check("fp8", "default").expect(0).json()["value"], true);
    for (feature, tenant) in [("max_lora", "default"), ("fp8", "stranger"), ("warp", "default")] {
        let done = check(feature, tenant).expect(5);
        assert!(done.err.contains("feature_not_licensed") && done.err.contains("lic_1"), "{done:?}");
    }
    let status = scene.run(&["license", "status", "--json"]).expect(0).json();
    assert_eq!((&status[0]["plugin"], &status[0]["state"]), (&"com.acme.trt".into(), &"valid".into()));

    let (key, list) = (scene.at("acme.key"), scene.at("acme.dsse"));
    let revoke = |id: &str| scene.run(&["license", "revoke", "--key", &key, "--list", &list, id]).expect(0);
    revoke("lic_0");
    let old = std::fs::read(&list).unwrap();
    revoke("lic_1");
    scene.run(&["license", "install", &list]).expect(0);
    let done = check("fp8", "default").expect(5);
    assert!(done.err.contains("license_revoked"), "{done:?}");
    std::fs::write(&list, old).unwrap();
    let (exit, code, text) = scene.refused(&["license", "install", &list]);
    assert_eq!((exit, code.as_str()), (1, "serial_old"), "{text}");

    let renewed = scene.issue("lic_2", &[]);
    scene.run(&["license", "install", &renewed]).expect(0);
    check("fp8", "default").expect(0);
}

#[test]
fn a_vendors_slip_is_found_before_a_customer_has_it() {
    let scene = Scene::new();
    let key = scene.at("acme.key");
    let template = scene.at("basic.toml");
    let issue = |member: &str| {
        scene.refused(&["license", "issue", "--key", &key, "--template", &template, "--set", member])
    };
    for (member, says) in [
        ("grace_day=3", "`grace_day` is nothing that a licence has"),
        ("limits.gpu=1", "`limits.gpu` is nothing"),
        ("exp=tomorrow", "`exp`"),
        ("features.x=1.5", "`features"),
        ("issuer=other", "no host would believe it"),
        ("exp=2001-01-01T00:00:00Z", "`exp` is not after `nbf`"),
    ] {
        let (exit, _, text) = issue(member);
        assert!(exit == 1 && text.contains(says), "{member}: {text}");
    }
    let again = scene.refused(&["license", "keygen", "--owner", "acme-ai", "--out", &scene.at("acme")]);
    assert!(again.0 == 1 && again.2.contains("acme.key"), "a key is never overwritten: {again:?}");
    use std::os::unix::fs::PermissionsExt as _;
    let mode = |mode| std::fs::set_permissions(&key, std::fs::Permissions::from_mode(mode)).unwrap();
    assert_eq!(std::fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    mode(0o644);
    assert!(issue("serial=1").2.contains("chmod 600"));
}

#[test]
fn what_a_licence_can_be_bound_to_stays_the_same() {
    let scene = Scene::new();
    let print = |plugin: &str| scene.run(&["license", "fingerprint", plugin, "--json"]).expect(0).json();
    let first = print("com.acme.trt");
    assert_eq!(first, print("com.acme.trt"));
    assert!(first["install"].as_str().unwrap().starts_with("ins_"));
    assert_eq!(first["install"], print("com.other.x")["install"]);
    let usage = scene.run(&["license", "usage", "--json"]).expect(0).json();
    assert_eq!(usage, serde_json::json!([]));
    scene.run(&["license", "list", "--host", "example.com"]).expect(2);
}
