//! Vectors through the real program: kept, found, and still there after a restart.

#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test a failure is the test's")]

use e2e::{Server, state_with_models_of};
use serde_json::{Value, json};
use std::time::Duration;

const ROUTE: &str = "/v1/capabilities/vector.search";

fn ask(server: &Server, params: Value, tensors: Value) -> Value {
    let (status, answer) = server.post(ROUTE, &json!({"params": params, "tensors": tensors}));
    assert_eq!(status, 200, "{answer}");
    answer
}

#[test]
fn collections_are_served_by_their_capability_and_outlast_a_restart() {
    let mut server = Server::start_on(state_with_models_of(&[]), "");
    ask(&server, json!({"operation": "create", "collection": "docs", "dimension": 2}), json!([]));
    let vectors =
        json!([{"name": "vectors", "datatype": "FP32", "shape": [2, 2], "data": [2.0, 0.0, 0.0, 1.0]}]);
    let upsert = json!({"operation": "upsert", "collection": "docs", "ids": ["east", "north"],
        "metadata": [null, {"cold": true}]});
    assert_eq!(ask(&server, upsert, vectors)["result"]["count"], 2);

    let search = json!({"collection": "docs", "vectors": [[0.8, 0.6]], "include_metadata": true});
    let before = ask(&server, search.clone(), json!([]));
    assert_eq!(before["model"], "vectors", "found by its capability alone");
    let hits = &before["result"]["results"][0];
    assert_eq!((&hits[0]["id"], &hits[1]["id"]), (&json!("east"), &json!("north")));
    assert_eq!(hits[1]["metadata"], json!({"cold": true}));

    let (status, refused) =
        server.post(ROUTE, &json!({"params": {"collection": "none", "vectors": [[1, 2]]}}));
    assert_eq!((status, &refused["error"]["code"]), (404, &json!("collection_not_found")), "{refused}");

    // The model is closed and opened again.
    let (status, answer) = server.post("/admin/v1/models/vectors/unload", &json!({}));
    assert!(status < 500, "{answer}");
    assert_eq!(ask(&server, search.clone(), json!([]))["result"], before["result"]);

    // The host is killed and started again.
    server.signal("KILL");
    server.wait(Duration::from_secs(10)).unwrap();
    let state = std::mem::replace(&mut server.state, tempfile::tempdir().unwrap());
    let server = Server::start_on(state, "");
    assert_eq!(ask(&server, search, json!([]))["result"], before["result"]);
}
