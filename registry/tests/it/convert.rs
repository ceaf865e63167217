//! Weights that are made into ONNX while they are pulled.

use crate::common::{Bench, Reply, Server};
use backplane_registry::{Digest, PullOptions};

const CONFIG: &str = "[net]\nwidth=32\nheight=32\nchannels=3\n[convolutional]\nfilters=6\nsize=1\nstride=32\nactivation=linear\n\
                      [yolo]\nmask=0\nanchors=10,20\nclasses=1\nnum=1\n";

/// Of [`CONFIG`]: a header, six biases, and six kernels of three numbers.
fn weights() -> Vec<u8> {
    let header = [0_i32, 2, 0, 1, 0].into_iter().flat_map(i32::to_le_bytes);
    header.chain((0..24).flat_map(|n| (n as f32).to_le_bytes())).collect()
}

fn card(bench: &Bench, inputs: &str, more: &str) -> String {
    let path = bench.path("card.toml");
    let text = format!(
        "name = 'm'\nformat = 'onnx'\n[[files]]\nrole = 'model'\nname = 'm.onnx'\nconvert = 'darknet'\ninputs = [{inputs}]\n{more}"
    );
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

fn pinned(source: &str, body: &[u8]) -> String {
    format!("{{ source = '{source}', sha256 = '{}', size = {} }}", Digest::of(body), body.len())
}

#[test]
fn what_is_made_is_pinned_and_stored_as_if_it_had_been_fetched() {
    let server = Server::new(|request| match request.path.as_str() {
        "/m.cfg" => Reply::bytes(CONFIG),
        "/m.weights" => Reply::file(request, &weights(), "\"v1\""),
        _ => Reply::status(404),
    });
    let bench = Bench { agrees: true, ..Bench::new() };
    let inputs = [
        pinned(&format!("{}/m.cfg", server.url), CONFIG.as_bytes()),
        pinned(&format!("{}/m.weights", server.url), &weights()),
    ]
    .join(", ");
    let installed = bench.pull(&card(&bench, &inputs, "")).unwrap();
    let file = &installed.files[0];
    let graph = std::fs::read(&file.path).unwrap();
    assert!(graph.windows(10).any(|window| window == b"detections"));
    assert_eq!((file.sha256, file.name.as_str()), (Some(Digest::of(&graph)), "m.onnx"));
    assert_eq!((bench.blobs(), bench.partials()), (1, vec![]), "what it was made of is not kept");

    // With its pin it is present, and nothing is asked for.
    let asked = server.log().len();
    let pin = format!("sha256 = '{}'\nsize = {}", Digest::of(&graph), graph.len());
    let again = bench.pull(&card(&bench, &inputs, &pin)).unwrap();
    assert_eq!((again.files[0].sha256, server.log().len()), (file.sha256, asked));

    let fresh = Bench { agrees: true, ..Bench::new() };
    fresh.pull(&card(&fresh, &inputs, &pin)).unwrap();
    let other = format!("sha256 = '{}'", Digest::of(b"other"));
    assert_eq!(fresh.pull(&card(&fresh, &inputs, &other)).unwrap_err().code(), "checksum_mismatch");
}

#[test]
fn local_files_are_made_into_a_model_too() {
    let bench = Bench::new();
    std::fs::write(bench.path("mine.cfg"), CONFIG).unwrap();
    std::fs::write(bench.path("mine.weights"), weights()).unwrap();
    let path = card(&bench, "{ path = 'mine.cfg' }, { path = 'mine.weights' }", "");
    let options = PullOptions { offline: true, ..PullOptions::default() };
    assert!(bench.pull_with(&path, &options).0.unwrap().size > 500);
}

#[test]
fn inputs_that_are_not_as_pinned_or_cannot_be_converted_are_refused_and_removed() {
    let served = weights();
    let server = Server::new(move |request| Reply::file(request, &served, "\"v1\""));
    let bench = Bench { agrees: true, ..Bench::new() };
    let url = |name: &str| format!("{}/{name}", server.url);
    for (inputs, code, says) in [
        (
            [pinned(&url("a"), b"other bytes of other length"), pinned(&url("b"), &weights())].join(", "),
            "size_mismatch",
            "/a is 116 bytes long, expected 27",
        ),
        (
            [
                format!("{{ source = '{}', sha256 = '{}' }}", url("a"), Digest::of(b"x")),
                pinned(&url("b"), &weights()),
            ]
            .join(", "),
            "checksum_mismatch",
            "/a holds other bytes than pinned",
        ),
        (
            [pinned(&url("a"), &weights()), pinned(&url("b"), &weights())].join(", "),
            "not_convertible",
            "its .cfg is not text",
        ),
    ] {
        let error = bench.pull(&card(&bench, &inputs, "")).unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.to_string().contains(says), "{error}");
        assert_eq!((bench.blobs(), bench.partials()), (0, vec![]));
    }
}

#[test]
fn a_card_says_all_that_a_converter_takes() {
    let bench = Bench::new();
    let two = "{ path = 'a' }, { path = 'b' }";
    for (inputs, more, says) in [
        ("{ path = 'a' }", "", "made of a .cfg and a .weights as `inputs`, and 1 are given"),
        ("{ path = 'a' }, { }", "", "needs either `source` or `path`"),
        ("{ path = 'a' }, { path = '../b' }", "", "has to lie beside the card"),
        (
            two,
            "path = 'm.onnx'",
            "exactly one of `source`, `parts`, `inputs` and `path` is needed, 2 are given",
        ),
        ("", "path = 'm.onnx'", "and 0 are given"),
    ] {
        let refused = bench.pull(&card(&bench, inputs, more)).unwrap_err().to_string();
        assert!(refused.contains(says), "{refused}");
    }
    let path = card(&bench, two, "");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("convert = 'darknet'\n", "")).unwrap();
    assert!(bench.pull(&path).unwrap_err().to_string().contains("`convert` is missing"));
    std::fs::write(&path, text.replace("'darknet'", "'caffe'")).unwrap();
    assert!(bench.pull(&path).unwrap_err().to_string().contains("darknet"));
}
