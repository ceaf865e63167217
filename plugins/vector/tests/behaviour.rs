//! What a caller sees: operations, refusals, what outlasts a restart.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use backplane_testkit::{Answer, Code, DType, Failure, Instance, PluginTest, TensorInput};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;

const MODEL: &str = r#"{"name":"vectors","capabilities":["vector.search"]}"#;

fn plugin(config: Value) -> PluginTest {
    PluginTest::of(backplane_vector::backplane_export::bp_entry_v1).config(config.to_string())
}

fn start(config: Value) -> Instance {
    plugin(config).open(MODEL).unwrap().instance().unwrap()
}

fn on(folder: &Path) -> Instance {
    start(json!({"data": folder}))
}

fn ask(instance: &Instance, params: Value) -> Answer {
    instance.submit("vector.search", &params.to_string(), vec![]).wait()
}

fn ok(instance: &Instance, params: Value) -> Value {
    let answer = ask(instance, params.clone());
    assert!(answer.failure().is_none(), "{params}: {:?}", answer.failure());
    answer.json()
}

fn refused(instance: &Instance, params: Value) -> Failure {
    ask(instance, params.clone()).failure().unwrap_or_else(|| panic!("{params} was served")).clone()
}

fn fill(instance: &Instance, collection: &str, more: Value) {
    let mut create = json!({"operation": "create", "collection": collection, "dimension": 2});
    create.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    ok(instance, create);
    let vectors = json!({"operation": "upsert", "collection": collection, "ids": ["east", "north", "west"],
        "vectors": [[2, 0], [0, 1], [-3, 0]], "metadata": [{"cold": false}, {"cold": true}, null]});
    assert_eq!(ok(instance, vectors)["count"], 3);
}

fn ids(answer: &Value, query: usize) -> Vec<&str> {
    answer["results"][query].as_array().unwrap().iter().map(|hit| hit["id"].as_str().unwrap()).collect()
}

#[test]
fn each_metric_orders_by_what_it_says() {
    let instance = start(json!({}));
    for (metric, order, scores) in [
        ("cosine", ["east", "north", "west"], [0.8, 0.6, -0.8]),
        ("dot", ["east", "north", "west"], [1.6, 0.6, -2.4]),
        ("l2", ["north", "east", "west"], [0.894_427_2, 1.341_640_8, 3.847_076_8]),
    ] {
        fill(&instance, metric, json!({"metric": metric}));
        let found = ok(&instance, json!({"collection": metric, "vectors": [[0.8, 0.6]]}));
        assert_eq!(ids(&found, 0), order, "{metric}");
        for (hit, score) in found["results"][0].as_array().unwrap().iter().zip(scores) {
            assert!((hit["score"].as_f64().unwrap() - score).abs() < 1e-6, "{metric}: {hit}");
        }
    }
}

#[test]
fn vectors_are_replaced_filtered_and_deleted() {
    let instance = start(json!({}));
    fill(&instance, "c", json!({}));
    let query = json!([[1, 0]]);
    let search = |more: Value| {
        let mut params = json!({"operation": "search", "collection": "c", "vectors": query});
        params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        ok(&instance, params)
    };
    assert_eq!(ids(&search(json!({"k": 2})), 0), ["east", "north"]);
    assert_eq!(ids(&search(json!({"filter": {"metadata": {"cold": true}}})), 0), ["north"]);
    assert_eq!(ids(&search(json!({"filter": {"ids": ["west", "nobody"]}})), 0), ["west"]);
    let with = search(json!({"include_metadata": true}));
    assert_eq!(with["results"][0][1]["metadata"], json!({"cold": true}));
    assert!(with["results"][0][2].get("metadata").is_none());

    ok(&instance, json!({"operation": "upsert", "collection": "c", "ids": ["west"], "vectors": [[5, 0.1]]}));
    assert_eq!(ids(&search(json!({})), 0), ["east", "west", "north"]);
    let gone = ok(&instance, json!({"operation": "delete", "collection": "c", "ids": ["east", "nobody"]}));
    assert_eq!(gone["count"], 1);
    assert_eq!(ids(&search(json!({})), 0), ["west", "north"]);
    let listed = ok(&instance, json!({"operation": "list"}));
    let collection = &listed["collections"][0];
    assert_eq!((&collection["name"], &collection["count"]), (&json!("c"), &json!(2)));
    assert_eq!(ok(&instance, json!({"operation": "drop", "collection": "c"}))["count"], 2);
    assert_eq!(ok(&instance, json!({"operation": "list"}))["collections"], json!([]));
}

#[test]
fn tensors_carry_vectors_of_every_kind() {
    let instance = start(json!({}));
    let half = |values: [f32; 4]| {
        values.iter().flat_map(|value| half::f16::from_f32(*value).to_le_bytes()).collect()
    };
    let tensors = [
        TensorInput::fp32("vectors", &[2, 2], &[1.0, 0.0, 0.0, 1.0]),
        TensorInput::new("vectors", DType::Fp16, &[2, 2], half([1.0, 0.0, 0.0, 1.0])),
        TensorInput::new("vectors", DType::Int8, &[2, 2], vec![1, 0, 0, 1]),
    ];
    for dtype in ["f32", "f16", "i8"] {
        let create = json!({"operation": "create", "collection": dtype, "dimension": 2, "dtype": dtype});
        ok(&instance, create);
        for tensor in &tensors {
            let upsert = json!({"operation": "upsert", "collection": dtype, "ids": ["x", "y"]}).to_string();
            let kept = instance.submit("vector.search", &upsert, vec![tensor.clone()]).wait();
            assert_eq!(kept.json()["count"], 2);
            let search = json!({"collection": dtype, "k": 1}).to_string();
            let found = instance.submit("vector.search", &search, vec![tensor.clone()]).wait().json();
            assert_eq!((ids(&found, 0), ids(&found, 1)), (vec!["x"], vec!["y"]), "{dtype}");
        }
    }
}

#[test]
fn what_makes_no_sense_is_refused_by_its_name() {
    let instance = start(json!({}));
    fill(&instance, "c", json!({}));
    fill(&instance, "small", json!({"dtype": "i8", "metric": "dot"}));
    let upsert =
        |vector: Value| json!({"operation": "upsert", "collection": "c", "ids": ["x"], "vectors": [vector]});
    for (params, names, says) in [
        (json!({"operation": "find"}), "operation", "`find`"),
        (json!({"collection": "c"}), "vectors", "is missing"),
        (json!({"vectors": [[1, 2]]}), "collection", "is missing"),
        (json!({"collection": "no", "vectors": [[1, 2]]}), "collection", "no collection `no`"),
        (
            json!({"collection": "c", "vectors": [[1, 2, 3]]}),
            "vectors",
            "3 components, and the collection's have 2",
        ),
        (json!({"collection": "c", "vectors": [[0, 0]]}), "vectors", "no direction"),
        (json!({"collection": "c", "vectors": [[1, 2]], "k": 0}), "k", "from 1 to 10000"),
        (json!({"collection": "c", "vectors": [[1, 2]], "top": 3}), "top", "no parameter `top`"),
        (json!({"collection": "c", "vectors": [[1, 2]], "filter": {"id": []}}), "filter", "`id`"),
        (upsert(json!([1, 1e30])), "vectors", "vector `x` has the component"),
        (upsert(json!([0, 0])), "vectors", "vector `x` is zero"),
        (
            json!({"operation": "upsert", "collection": "small", "ids": ["x"], "vectors": [[1, 0.5]]}),
            "vectors",
            "whole number",
        ),
        (
            json!({"operation": "upsert", "collection": "c", "ids": ["x", "x"], "vectors": [[1, 2], [3, 4]]}),
            "ids",
            "twice",
        ),
        (
            json!({"operation": "upsert", "collection": "c", "ids": ["x"], "vectors": [[1, 2], [3, 4]]}),
            "ids",
            "1 `ids` for 2",
        ),
        (
            json!({"operation": "upsert", "collection": "c", "ids": [""], "vectors": [[1, 2]]}),
            "ids",
            "0 bytes",
        ),
        (json!({"operation": "create", "collection": "a/b", "dimension": 2}), "collection", "letters"),
        (json!({"operation": "create", "collection": "d", "dimension": 0}), "dimension", "from 1 to 65536"),
        (
            json!({"operation": "create", "collection": "c", "dimension": 3}),
            "collection",
            "of dimension 2, dtype f32 and metric cosine",
        ),
        (json!({"operation": "list", "collection": "c"}), "collection", "no parameter"),
    ] {
        let failure = refused(&instance, params.clone());
        assert!(failure.message.contains(says), "{params}: {failure}");
        let named = failure.details["param"].as_str().unwrap_or_default();
        assert!(named.starts_with(names), "{params}: {named}");
    }
    // What was refused changed nothing.
    assert_eq!(ok(&instance, json!({"operation": "list"}))["collections"][0]["count"], 3);
    let odd = TensorInput::fp32("vectors", &[2, 3], &[0.0; 6]);
    let failure = instance.submit("vector.search", r#"{"collection":"c"}"#, vec![odd]).wait();
    assert!(failure.failure().unwrap().message.contains("must be [count, 2]"));
}

#[test]
fn collections_outlast_the_host() {
    let folder = tempfile::tempdir().unwrap();
    let instance = on(folder.path());
    fill(&instance, "kept", json!({}));
    fill(&instance, "dropped", json!({}));
    ok(&instance, json!({"operation": "delete", "collection": "kept", "ids": ["west"]}));
    ok(&instance, json!({"operation": "drop", "collection": "dropped"}));
    let search = json!({"collection": "kept", "vectors": [[1, 0]], "include_metadata": true});
    let before = ok(&instance, search.clone());
    drop(instance);
    let instance = on(folder.path());
    assert_eq!(ok(&instance, search), before);
    assert_eq!(ok(&instance, json!({"operation": "list"}))["collections"].as_array().unwrap().len(), 1);
}

/// None, or one that nobody may write to: `/sys` is such a place for root, too.
#[test]
fn without_a_folder_they_last_as_long_as_the_plugin() {
    for config in [json!({}), json!({"data": "/sys/backplane/vector"})] {
        let model = plugin(config).open(MODEL).unwrap();
        let instance = model.instance().unwrap();
        fill(&instance, "c", json!({}));
        drop(instance);
        let instance = model.instance().unwrap();
        assert_eq!(ok(&instance, json!({"operation": "list"}))["collections"][0]["count"], 3);
    }
}

#[test]
fn a_damaged_collection_is_told_and_harms_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let instance = on(folder.path());
    fill(&instance, "good", json!({}));
    fill(&instance, "bad", json!({}));
    drop(instance);
    let mut folders = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path());
    let file =
        folders.find_map(|tenant| Some(tenant.join("bad.vectors")).filter(|file| file.exists())).unwrap();
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[10] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let instance = on(folder.path());
    let search = |name: &str| json!({"collection": name, "vectors": [[1, 0]]});
    assert_eq!(ids(&ok(&instance, search("good")), 0)[0], "east");
    let failure = refused(&instance, search("bad"));
    assert_eq!((failure.canonical(), &*failure.reason), (Some(Code::DataLoss), "collection_damaged"));
    ok(&instance, json!({"operation": "drop", "collection": "bad"}));
    fill(&instance, "bad", json!({}));
}

#[test]
fn memory_is_bounded_and_comes_back() {
    let instance = start(json!({"memory": "64KiB"}));
    ok(&instance, json!({"operation": "create", "collection": "c", "dimension": 1000}));
    let upsert = |n: usize| {
        let params = json!({"operation": "upsert", "collection": "c", "ids": [format!("v{n}")]}).to_string();
        let row = TensorInput::fp32("vectors", &[1, 1000], &[1.0; 1000]);
        instance.submit("vector.search", &params, vec![row]).wait().failure().cloned()
    };
    let fits = (0..100).take_while(|n| upsert(*n).is_none()).count();
    assert!((10..16).contains(&fits), "{fits} vectors of 4000 bytes in 64 KiB");
    let failure = upsert(99).unwrap();
    assert_eq!((failure.canonical(), &*failure.reason), (Some(Code::ResourceExhausted), "vector_memory"));
    assert!(failure.message.contains("of 65536 are left"), "{failure}");
    ok(&instance, json!({"operation": "delete", "collection": "c", "ids": ["v0"]}));
    assert!(upsert(99).is_none());
    ok(&instance, json!({"operation": "drop", "collection": "c"}));
    ok(&instance, json!({"operation": "create", "collection": "c", "dimension": 1000}));
    assert_eq!((0..100).take_while(|n| upsert(*n).is_none()).count(), fits);
}

/// The files of the only tenant of these tests.
fn tenant(folder: &Path) -> PathBuf {
    let mut folders = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    folders.find(|path| path.is_dir()).unwrap()
}

fn create(name: &str) -> Value {
    json!({"operation": "create", "collection": name, "dimension": 2})
}

#[test]
fn collections_are_bounded_in_number_and_keep_no_file_open() {
    let folder = tempfile::tempdir().unwrap();
    let config = |most: usize| json!({"data": folder.path(), "collections": most});
    let open = || {
        let files = std::fs::read_dir("/proc/self/fd")
            .unwrap()
            .filter_map(|entry| entry.unwrap().path().read_link().ok());
        files.filter(|file| file.starts_with(folder.path())).collect::<Vec<_>>()
    };
    let instance = start(config(20));
    let before = open();
    for number in 0..20 {
        fill(&instance, &format!("c{number}"), json!({}));
    }
    assert_eq!(open(), before, "its lock, and none of theirs");
    let failure = refused(&instance, create("c20"));
    assert_eq!(
        (failure.canonical(), &*failure.reason),
        (Some(Code::ResourceExhausted), "vector_collections")
    );
    assert!(failure.message.contains("`collections`"), "{failure}");
    // One that is there is as before, and makes room when it goes.
    ok(&instance, create("c7"));
    ok(&instance, json!({"operation": "drop", "collection": "c7"}));
    ok(&instance, create("c20"));
    drop(instance);
    // Who lowers the number loses nothing.
    let instance = start(config(3));
    assert_eq!(ok(&instance, json!({"operation": "list"}))["collections"].as_array().unwrap().len(), 20);
    assert_eq!(refused(&instance, create("c21")).reason, "vector_collections");
}

#[test]
fn a_file_that_cannot_be_read_is_not_called_damaged() {
    let folder = tempfile::tempdir().unwrap();
    let instance = on(folder.path());
    fill(&instance, "c", json!({}));
    drop(instance);
    let file = tenant(folder.path()).join("c.vectors");
    let aside = folder.path().join("aside");
    std::fs::rename(&file, &aside).unwrap();
    // As root reads whatever there is, but no folder.
    std::fs::create_dir(&file).unwrap();
    let instance = on(folder.path());
    let failure = refused(&instance, json!({"collection": "c", "vectors": [[1, 0]]}));
    assert_eq!((failure.canonical(), &*failure.reason), (Some(Code::Unavailable), "vector_disk"));
    assert!(
        failure.message.contains("mend that and restart") && !failure.message.contains("drop"),
        "{failure}"
    );
    assert_eq!(refused(&instance, create("c")).reason, "vector_disk", "nothing is put in its place");
    drop(instance);
    std::fs::remove_dir(&file).unwrap();
    std::fs::rename(&aside, &file).unwrap();
    let found = ok(&on(folder.path()), json!({"collection": "c", "vectors": [[1, 0]]}));
    assert_eq!(ids(&found, 0)[0], "east");
}

#[test]
fn a_collection_whose_file_cannot_be_removed_is_as_before() {
    let folder = tempfile::tempdir().unwrap();
    let instance = on(folder.path());
    fill(&instance, "c", json!({}));
    let file = tenant(folder.path()).join("c.vectors");
    let aside = folder.path().join("aside");
    std::fs::rename(&file, &aside).unwrap();
    std::fs::create_dir(&file).unwrap();
    let remove = json!({"operation": "drop", "collection": "c"});
    assert_eq!(refused(&instance, remove.clone()).reason, "vector_disk");
    let search = json!({"collection": "c", "vectors": [[1, 0]]});
    assert_eq!(ids(&ok(&instance, search.clone()), 0)[0], "east");
    let upsert = json!({"operation": "upsert", "collection": "c", "ids": ["south"], "vectors": [[9, -1]]});
    assert_eq!(refused(&instance, upsert.clone()).reason, "vector_disk");
    std::fs::remove_dir(&file).unwrap();
    std::fs::rename(&aside, &file).unwrap();
    ok(&instance, upsert);
    assert_eq!(ok(&instance, remove)["count"], 4);
    assert_eq!(refused(&instance, search).reason, "collection_not_found");
}

#[test]
fn who_waits_for_the_disk_keeps_nobody_else() {
    let folder = tempfile::tempdir().unwrap();
    let model = plugin(json!({"data": folder.path()})).open(MODEL).unwrap();
    let instance = model.instance().unwrap();
    fill(&instance, "c", json!({}));
    // A disk that takes its time: a pipe is open when both ends are.
    let pipe = tenant(folder.path()).join("slow.new");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let slow = instance.submit("vector.search", &create("slow").to_string(), vec![]);
    let (sender, others) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(200));
        let found = ok(&instance, json!({"collection": "c", "vectors": [[1, 0]]}));
        let stats = model.stats().unwrap();
        sender.send((found, stats)).unwrap();
    });
    let (found, stats) = others.recv_timeout(Duration::from_secs(20)).expect("others are kept waiting");
    assert_eq!(ids(&found, 0)[0], "east");
    assert!(stats.contains(&("vectors".to_owned(), 3.0)), "{stats:?}");
    assert!(slow.is_open());
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut std::fs::File::open(&pipe).unwrap(), &mut bytes).unwrap();
    // No disk holds what went into a pipe.
    assert_eq!(slow.wait().failure().unwrap().reason, "vector_disk");
}

#[test]
fn a_cancelled_search_that_waits_for_threads_is_noticed() {
    let model = plugin(json!({})).open(MODEL).unwrap();
    let instance = model.instance().unwrap();
    fill(&instance, "c", json!({}));
    let search = json!({"collection": "c", "vectors": [[1, 0]]}).to_string();
    model.grant_at_most(0);
    let waiting = instance.submit("vector.search", &search, vec![]);
    std::thread::sleep(Duration::from_millis(150));
    assert!(waiting.is_open());
    waiting.cancel();
    let answer = waiting.wait_for(Duration::from_secs(5));
    assert_eq!(answer.failure().and_then(Failure::canonical), Some(Code::Cancelled), "{answer:?}");
    model.grant_at_most(u32::MAX);
    assert!(instance.submit("vector.search", &search, vec![]).wait().is_done());
}
