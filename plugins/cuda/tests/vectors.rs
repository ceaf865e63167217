//! `vector.search` on a device, beside the plugin that owns the collections: the same answers, to the bit. The device is the
//! processor, which runs the kernels' own source, and then the GPU where there is one.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod emulator;
mod support;

use backplane_testkit::{CallInput, Case, Chunk, DType, Failure, Instance, Model, PluginTest, TensorInput};
use cudarc::driver::sys::CUresult;
use emulator::{again_on_the_device, fail, stand_in};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const OWNER: &str = r#"{"name":"vectors","capabilities":["vector.search"]}"#;
const MODEL: &str = r#"{"name":"vectors-cuda","capabilities":["vector.search"]}"#;

/// A device that fails is everybody's.
static ALONE: Mutex<()> = Mutex::new(());

/// The owner of the collections, and what it was asked.
struct Owner {
    instance: Instance,
    operations: Arc<Mutex<Vec<String>>>,
    _alone: MutexGuard<'static, ()>,
}

impl Owner {
    fn new() -> (Self, PluginTest) {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        stand_in();
        let instance =
            PluginTest::build("backplane-vector").unwrap().open(OWNER).unwrap().instance().unwrap();
        let operations = Arc::new(Mutex::new(Vec::new()));
        let plugin = PluginTest::of(backplane_cuda::backplane_export::bp_entry_v1);
        let (asked, noted) = (instance.clone(), operations.clone());
        let plugin = plugin.answering(move |call: &CallInput| -> Result<Vec<Chunk>, Failure> {
            assert_eq!((&*call.capability, &*call.model), ("vector.search", "vectors"));
            noted.lock().unwrap().push(call.params["operation"].as_str().unwrap_or("search").to_owned());
            let tensor = |tensor: &backplane_testkit::TensorOutput| {
                TensorInput::new(&tensor.name, tensor.dtype, &tensor.shape, tensor.data.clone())
            };
            let tensors = call.tensors.iter().map(tensor).collect();
            let answer = asked.submit("vector.search", &call.params.to_string(), tensors).wait();
            answer.failure().map_or(Ok(answer.chunks.clone()), |failure| Err(failure.clone()))
        });
        (Self { instance, operations, _alone: alone }, plugin)
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.operations.lock().unwrap())
    }
}

fn ask(instance: &Instance, params: &Value, tensors: Vec<TensorInput>) -> Result<Value, Failure> {
    let answer = instance.submit("vector.search", &params.to_string(), tensors).wait();
    answer.failure().map_or_else(|| Ok(answer.json()), |failure| Err(failure.clone()))
}

fn ok(instance: &Instance, params: &Value) -> Value {
    ask(instance, params, Vec::new()).unwrap()
}

/// Numbers that look like noise: whole ones from -128 to 127, or such parts of them that nothing is exact.
fn noise(count: usize, seed: usize, part: f32) -> Vec<f32> {
    let number = |n: usize| {
        let bits = (n as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
            ^ (seed as u64).wrapping_mul(0x2545_f491_4f6c_dd1d);
        ((bits ^ bits >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 56) as f32 - 128.0
    };
    (0..count).map(|n| number(n) * part).collect()
}

fn upsert(instance: &Instance, name: &str, first: usize, dimension: usize, rows: &[f32]) {
    let count = rows.len() / dimension;
    let ids: Vec<String> = (first..first + count).map(|n| format!("v{n}")).collect();
    let metadata: Vec<Value> = (first..first + count).map(|n| json!({"third": n % 3 == 0})).collect();
    let params = json!({"operation": "upsert", "collection": name, "ids": ids, "metadata": metadata});
    let rows = TensorInput::fp32("vectors", &[count as i64, dimension as i64], rows);
    ask(instance, &params, vec![rows]).unwrap();
}

#[test]
fn every_search_gives_the_very_bits_that_the_owner_gives() {
    let (owner, plugin) = Owner::new();
    let device = plugin.open(MODEL).unwrap().instance().unwrap();
    // Rows that fill what is read at once, and rows that do not; whole numbers, among which many are equally near.
    for (dtype, dimension, part) in [("f32", 48, 0.37), ("f16", 21, 0.37), ("i8", 40, 1.0), ("f32", 3, 1.0)] {
        for metric in ["cosine", "dot", "l2"] {
            let name = format!("{dtype}-{dimension}-{metric}");
            let create = json!({"operation": "create", "collection": name, "dimension": dimension, "dtype": dtype,
                "metric": metric});
            ok(&owner.instance, &create);
            upsert(&owner.instance, &name, 0, dimension, &noise(700 * dimension, 1, part));
            let query = |seed: usize, part: f32| -> Vec<f32> { noise(dimension, seed, part) };
            let searches = [
                json!({"collection": name, "vectors": [query(7, 0.11)]}),
                json!({"collection": name, "vectors": [query(7, 1.0), query(8, 0.3), query(9, 1.0), query(2, 0.7),
                    query(3, 0.1)], "k": 20, "include_metadata": true}),
                json!({"collection": name, "vectors": [query(11, 1.0)], "k": 700}),
                json!({"collection": name, "vectors": [query(5, 0.3)], "k": 400, "include_metadata": true,
                    "filter": {"metadata": {"third": true}}}),
                json!({"collection": name, "vectors": [query(5, 0.3)], "k": 3,
                    "filter": {"ids": ["v3", "v4", "v5", "v699", "nobody"]}}),
                json!({"collection": name, "vectors": [query(5, 0.3)], "filter": {"ids": []}}),
            ];
            for (number, search) in searches.iter().enumerate() {
                owner.asked();
                let here = ok(&device, search);
                assert_eq!(owner.asked(), ["read"], "the device answered itself");
                assert_eq!(here, ok(&owner.instance, search), "{name}, search {number}");
            }
            // What changes is followed: some replaced, some new, some gone, and the last row in the place of another.
            upsert(&owner.instance, &name, 690, dimension, &noise(400 * dimension, 2, part));
            ok(
                &owner.instance,
                &json!({"operation": "delete", "collection": name, "ids": ["v0", "v17", "v1089"]}),
            );
            assert_eq!(ok(&device, &searches[1]), ok(&owner.instance, &searches[1]), "{name}, changed");
            // Made anew under its name it is another one.
            ok(&owner.instance, &json!({"operation": "drop", "collection": name}));
            ok(&owner.instance, &create);
            assert_eq!(ok(&device, &searches[1])["results"], json!([[], [], [], [], []]));
            upsert(&owner.instance, &name, 5, dimension, &noise(9 * dimension, 3, part));
            assert_eq!(ok(&device, &searches[1]), ok(&owner.instance, &searches[1]), "{name}, anew");
            ok(&owner.instance, &json!({"operation": "drop", "collection": name}));
        }
    }
}

#[test]
fn on_the_device_that_is_here() {
    again_on_the_device(&[
        "every_search_gives_the_very_bits_that_the_owner_gives",
        "where_all_are_equally_near_the_ids_decide",
        "what_is_no_plain_search_is_the_owners",
        "copies_take_no_more_than_they_may_and_the_oldest_goes",
        "it_conforms_on_a_device",
    ]);
}

#[test]
fn where_all_are_equally_near_the_ids_decide() {
    let (owner, plugin) = Owner::new();
    let device = plugin.open(MODEL).unwrap().instance().unwrap();
    ok(&owner.instance, &json!({"operation": "create", "collection": "c", "dimension": 2, "dtype": "i8"}));
    let search = json!({"collection": "c", "vectors": [[1, 1], [2, 0.5]], "k": 5});
    // More than are sorted together; then more than are fetched, which is the owner's.
    for (count, asked) in [(3000, vec!["read"]), (9000, vec!["read", "search"])] {
        upsert(&owner.instance, "c", 0, 2, &[3.0, 3.0].repeat(count));
        owner.asked();
        let here = ok(&device, &search);
        assert_eq!(here["results"][0][4]["id"], "v1000", "behind v0, v1, v10 and v100");
        assert_eq!(
            (here, owner.asked()),
            (ok(&owner.instance, &search), asked.iter().map(ToString::to_string).collect())
        );
    }
}

#[test]
fn what_is_no_plain_search_is_the_owners() {
    let (owner, plugin) = Owner::new();
    let device = plugin.open(MODEL).unwrap().instance().unwrap();
    let both = |params: Value| {
        let (here, there) = (ask(&device, &params, vec![]), ask(&owner.instance, &params, vec![]));
        assert_eq!(
            here.clone().map_err(|error| error.message),
            there.map_err(|error| error.message),
            "{params}"
        );
        here
    };
    ok(&device, &json!({"operation": "create", "collection": "c", "dimension": 2}));
    let kept = json!({"operation": "upsert", "collection": "c", "ids": ["a", "b"], "vectors": [[1, 2], [3, 4]],
        "metadata": [{"n": 1.5}, null]});
    assert_eq!(ok(&device, &kept)["count"], 2);
    assert_eq!(both(json!({"operation": "list"})).unwrap()["collections"][0]["count"], 2);
    assert_eq!(
        both(json!({"collection": "c", "vectors": [[1, 0]], "k": 5000})).unwrap()["results"][0][0]["id"],
        "b"
    );
    for wrong in [
        json!({"collection": "none", "vectors": [[1, 0]]}),
        json!({"collection": "c", "vectors": [[1, 0, 0]]}),
        json!({"collection": "c", "vectors": [[1, 0], [1]]}),
        json!({"collection": "c", "vectors": [[0, 0]]}),
        json!({"collection": "c", "vectors": [[1e20, 0]]}),
        json!({"collection": "c", "vectors": []}),
        json!({"collection": "c"}),
        json!({"collection": "c", "vectors": [[1, 0]], "k": 0}),
        json!({"collection": "c", "vectors": [[1, 0]], "limit": 3}),
        json!({"operation": "find", "collection": "c"}),
        json!({"collection": 7}),
    ] {
        both(wrong).unwrap_err();
    }
    let odd = || vec![TensorInput::new("vectors", DType::Int64, &[1, 2], vec![0; 16])];
    let search = json!({"collection": "c"});
    let (here, there) = (ask(&device, &search, odd()), ask(&owner.instance, &search, odd()));
    assert_eq!(here.unwrap_err().message, there.unwrap_err().message);
    // As a tensor, of whatever type.
    let query = || vec![TensorInput::new("vectors", DType::Int8, &[2], vec![255, 2])];
    owner.asked();
    assert_eq!(ask(&device, &search, query()).unwrap(), ask(&owner.instance, &search, query()).unwrap());
    assert_eq!(owner.asked(), ["read"]);
}

#[test]
fn it_conforms_on_a_device() {
    let (owner, plugin) = Owner::new();
    ok(&owner.instance, &json!({"operation": "create", "collection": "c", "dimension": 4}));
    upsert(&owner.instance, "c", 0, 4, &noise(400, 1, 1.0));
    let search = json!({"collection": "c", "vectors": [[1, 2, 3, 4]], "k": 3});
    plugin
        .check_conformance(&[Case::new(MODEL, "vector.search", search.to_string()).named("search")])
        .assert_ok();
}

fn bounded(memory: &str) -> (Owner, Model) {
    let (owner, plugin) = Owner::new();
    let model = plugin.config(json!({"memory": memory}).to_string()).open(MODEL).unwrap();
    (owner, model)
}

#[test]
fn copies_take_no_more_than_they_may_and_the_oldest_goes() {
    let (owner, model) = bounded("1MiB");
    let device = model.instance().unwrap();
    // 1024 rows of 256 bytes and their scales: three fit.
    let search = |n: usize| json!({"collection": format!("c{n}"), "vectors": [noise(64, 5, 1.0)], "k": 2});
    for n in 0..4 {
        let name = format!("c{n}");
        ok(&owner.instance, &json!({"operation": "create", "collection": name, "dimension": 64}));
        upsert(&owner.instance, &name, 0, 64, &noise(640, n, 1.0));
        assert_eq!(ok(&device, &search(n)), ok(&owner.instance, &search(n)));
    }
    // The first was let go, and comes back.
    assert_eq!(ok(&device, &search(0)), ok(&owner.instance, &search(0)));
    // One that is too large alone is refused, so that the router asks the owner.
    upsert(&owner.instance, "c3", 0, 64, &noise(64 * 5000, 3, 1.0));
    let failure = ask(&device, &search(3), vec![]).unwrap_err();
    assert_eq!(
        (failure.canonical(), &*failure.reason),
        (Some(backplane_testkit::Code::ResourceExhausted), "vector_memory")
    );
    assert_eq!(ok(&device, &search(0)), ok(&owner.instance, &search(0)), "and harms no other");
}

#[test]
fn a_device_that_fails_is_named_and_the_next_instance_serves() {
    let (owner, model) = bounded("1GiB");
    ok(&owner.instance, &json!({"operation": "create", "collection": "c", "dimension": 8}));
    upsert(&owner.instance, "c", 0, 8, &noise(800, 1, 1.0));
    let search = json!({"collection": "c", "vectors": [noise(8, 5, 1.0)], "k": 4});
    let right = ok(&owner.instance, &search);
    use backplane_testkit::Code as C;
    for (what, code, canonical, reason, is_fatal) in [
        ("alloc", CUresult::CUDA_ERROR_OUT_OF_MEMORY, C::ResourceExhausted, "device_memory", false),
        ("launch", CUresult::CUDA_ERROR_INVALID_VALUE, C::Internal, "device_error", false),
        ("read", CUresult::CUDA_ERROR_ILLEGAL_ADDRESS, C::Internal, "kernel_fault", true),
        ("launch", CUresult::CUDA_ERROR_ECC_UNCORRECTABLE, C::Unavailable, "device_lost", true),
        ("write", CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED, C::Unavailable, "device_lost", true),
    ] {
        let device = model.instance().unwrap();
        // Once before there is a copy, and once after.
        for _ in 0..2 {
            fail(what, code);
            let failure = ask(&device, &search, vec![]).unwrap_err();
            assert_eq!((failure.canonical(), &*failure.reason), (Some(canonical), reason), "{failure}");
            assert_eq!(failure.sub == 3, is_fatal, "{failure}");
            if is_fatal {
                let again = ask(&device, &search, vec![]).unwrap_err();
                assert_eq!(again.reason, reason, "it stays broken, and says so");
                break;
            }
            assert_eq!(ok(&device, &search), right, "it goes on");
        }
        drop(device);
        assert_eq!(ok(&model.instance().unwrap(), &search), right, "the next one begins anew");
    }
}
