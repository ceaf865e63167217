//! Tensors that stay on a device on their way from plugin to plugin. The device is made up (`support/device.c`), and no
//! processor can read its memory: who follows an address of it is ended.

#![allow(clippy::unwrap_used, reason = "in a test a failure is the test's")]

mod support;

use backplane::auth::{KeyLimits, NewKey, Role, TokenBudget};
use backplane::limiter::Period;
use backplane::{Answer, Caller, Config, ErrorCode, Host, Request};
use serde_json::{Value, json};
use support::{device, soon};

const CONTENT: &str = "on the device!!!";

/// A host with one that owns the device, one that knows it, one that does not, and one that asks them.
struct Scene {
    host: Host,
    caller: Caller,
    _folders: [tempfile::TempDir; 2],
}

impl Scene {
    fn new() -> Self {
        let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let [plugins, state] = folders.each_ref().map(tempfile::TempDir::path);
        device(plugins, "the.maker", "device.make", &[]);
        device(plugins, "a.device", "device.take", &["TAKES=1"]);
        device(plugins, "a.processor", "device.take", &[]);
        device(plugins, "the.relay", "device.relay", &[]);
        std::fs::copy(support::plugins().join("libecho.so"), plugins.join("libecho.so")).unwrap();
        let host =
            Host::builder().config(Config::for_tests()).state_dir(state).plugin_dir(plugins).start().unwrap();
        Self { host, caller: Caller::internal("tests"), _folders: folders }
    }

    async fn ask(&self, what: &str, how: &str) -> backplane::Result<Answer> {
        let params = json!({"how": how}).to_string();
        self.host.serve(Request::new(self.caller.clone(), what, params)).await?.collect().await
    }

    /// A figure of the plugin that owns the device.
    fn figure(&self, name: &str) -> f64 {
        let running = self.host.model("the.maker").unwrap().running.unwrap();
        running.engine.iter().find(|(figure, _)| figure == name).unwrap().1
    }

    /// Tensors that the host had copied, and their bytes.
    fn copies(&self) -> [u64; 2] {
        let text = self.host.metrics().render();
        ["backplane_device_copies_total ", "backplane_device_copied_bytes_total "]
            .map(|name| text.lines().find_map(|line| line.strip_prefix(name)).unwrap().parse().unwrap())
    }

    /// Waits until all memory of the device is given back.
    async fn settles(&self) {
        let figure = |name| self.figure(name);
        soon("all memory is given back", || figure("device_made_total") == figure("device_released_total"))
            .await;
    }
}

fn said(answer: &Answer) -> Value {
    answer.json::<Value>().unwrap().remove(0)
}

#[tokio::test]
async fn memory_of_a_device_goes_from_plugin_to_plugin_as_it_is() {
    let scene = Scene::new();
    let answer = said(&scene.ask("device.relay", "a.device").await.unwrap());
    let at = &answer["made"]["at"];
    let took = json!({"kind": 12, "id": 3, "at": at, "event": 77, "buffer": true, "text": CONTENT});
    assert_eq!(answer["took"], took);
    assert_eq!((scene.figure("device_made_total"), scene.figure("device_copied_total")), (1.0, 0.0));
    assert_eq!(scene.copies(), [0, 0]);
    scene.settles().await;
}

#[tokio::test]
async fn who_does_not_know_the_device_gets_a_copy_that_its_owner_made() {
    let scene = Scene::new();
    let took = said(&scene.ask("device.relay", "a.processor").await.unwrap())["took"].clone();
    assert_eq!((&took["kind"], &took["event"], &took["text"]), (&json!(1), &json!(0), &json!(CONTENT)));
    assert_eq!(scene.copies(), [1, 16]);
    assert_eq!(scene.figure("device_copied_total"), 1.0);

    // The plugin that asked may have it copied itself, but for what is not there.
    let read = said(&scene.ask("device.relay", "itself").await.unwrap());
    assert_eq!(read, json!({"beyond": 11, "read": 0, "text": CONTENT}));
    assert_eq!(scene.copies(), [2, 32]);
    scene.settles().await;
}

#[tokio::test]
async fn memory_of_a_device_does_not_leave_the_plugins() {
    let scene = Scene::new();
    // A plugin that sees who asks leaves nothing there; of one that does all the same it is copied.
    for (what, how, copies) in [
        ("device.make", "as asked", [0, 0]),
        ("device.make", "always", [1, 16]),
        ("device.relay", "keep", [2, 32]),
    ] {
        let answer = scene.ask(what, how).await.unwrap();
        let x = answer.tensor("x").unwrap();
        assert_eq!((&*x.shape, &*x.data), (&[2, 8][..], CONTENT.as_bytes()), "{what}: {how}");
        assert_eq!(scene.copies(), copies, "{what}: {how}");
    }
    scene.settles().await;
}

/// The SDK's way: echo asks and hands on what it is answered with, wherever that is.
#[tokio::test]
async fn a_plugin_in_rust_hands_on_what_it_never_looks_at() {
    let scene = Scene::new();
    let make = json!({"capability": "device.make", "model": "the.maker", "params": {}});
    let again = json!({"capability": "echo", "model": "echo-serial", "params": {"text": "b", "call": make}});
    for (call, copies) in [(&make, 1), (&again, 2)] {
        let params = json!({"text": "a", "call": call}).to_string();
        let request = Request::new(scene.caller.clone(), "echo", params).model("echo");
        let answer = scene.host.serve(request).await.unwrap().collect().await.unwrap();
        assert_eq!(&*answer.tensor("x").unwrap().data, CONTENT.as_bytes());
        // However many hand it on, it is copied once, where it leaves them.
        assert_eq!(scene.copies(), [copies, 16 * copies], "{call}");
    }
    scene.settles().await;
}

#[tokio::test]
async fn what_was_on_a_lost_device_is_an_error_that_has_a_name() {
    let scene = Scene::new();
    for to in ["a.processor", "keep", "itself"] {
        let result = scene.ask("device.relay", &format!("lose {to}")).await;
        match to {
            "a.processor" => {
                let error = result.unwrap_err();
                assert_eq!((error.code, &*error.reason), (ErrorCode::Unavailable, "device_lost"), "{error}");
            }
            "keep" => assert_eq!(result.unwrap_err().code, ErrorCode::Unavailable),
            _ => assert_eq!(said(&result.unwrap())["read"], json!(14)),
        }
    }
    assert_eq!(scene.copies(), [0, 0]);
    scene.settles().await;
    // Another instance has taken the place of each that lost it.
    said(&scene.ask("device.relay", "a.device").await.unwrap());
    assert_eq!(scene.host.model("the.maker").unwrap().running.unwrap().replaced, 3);
}

/// Out of memory, and a lost device: each is told to who asked, charged once, and served past.
#[tokio::test]
async fn a_device_that_fails_is_named_replaced_and_charged_once() {
    const BUDGET: u64 = 1_000;
    let mut scene = Scene::new();
    let limits = KeyLimits {
        requests_per_minute: None,
        tokens: Some(TokenBudget { tokens: BUDGET, window: Period::Total }),
    };
    let key = NewKey { name: "tests".to_owned(), role: Role::User, limits, lifetime: None };
    let secret = scene.host.create_key(key).await.unwrap().secret;
    scene.caller = scene.host.identify(Some(&secret)).unwrap();
    let spent = |scene: &Scene| {
        let limits = scene.host.limits(&scene.caller);
        BUDGET - limits.iter().find(|limit| limit.dimension == "tokens").unwrap().remaining
    };
    let mut cost = 0;
    for (how, code, reason, replaced) in [
        ("full", ErrorCode::ResourceExhausted, "device_memory", 0),
        ("lose", ErrorCode::Unavailable, "device_lost", 1),
        ("full", ErrorCode::ResourceExhausted, "device_memory", 1),
        ("lose", ErrorCode::Unavailable, "device_lost", 2),
    ] {
        let error = scene.ask("device.make", how).await.unwrap_err();
        assert_eq!((error.code, &*error.reason), (code, reason), "{error}");
        // What it says it used until then, as of any request.
        cost += 5;
        assert_eq!(spent(&scene), cost, "{how}");
        scene.ask("device.make", "as asked").await.unwrap();
        cost += 5;
        assert_eq!(spent(&scene), cost, "the next one is served");
        assert_eq!(scene.host.model("the.maker").unwrap().running.unwrap().replaced, replaced, "{how}");
    }
}
