//! Downloads from a hub and from the web that goes wrong in every way it does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::common::{Bench, Reply, Request, Server, noise};
use backplane_registry::{Progress, PullOptions, RegistryError, Settings, Token};

#[test]
fn a_cut_transfer_is_taken_up_where_it_ended() {
    let body = noise(300_000);
    let served = body.clone();
    let server = Server::new(move |request| {
        let reply = Reply::file(request, &served, "\"v1\"");
        if request.nth < 2 { reply.cut_after(100_000) } else { reply }
    });
    let bench = Bench::new();
    let card = bench.pinned("m", &format!("{}/m.gguf", server.url), &body);
    let (installed, steps) = bench.pull_with(&card, &PullOptions::default());
    assert_eq!(std::fs::read(installed.unwrap().file("model").unwrap()).unwrap(), body);
    assert_eq!(server.log(), ["GET 0", "GET 100000", "GET 200000"]);
    assert_eq!(server.requests()[1].header("if-range"), Some("\"v1\""));
    assert_eq!(steps.iter().filter(|step| matches!(step, Progress::Retrying { .. })).count(), 2);
    assert!(steps.iter().any(|step| matches!(
        step,
        Progress::Downloading { done: 300_000, total: Some(300_000), resumed_from: 200_000, .. }
    )));
    assert!(bench.partials().is_empty());
}

#[test]
fn the_next_pull_goes_on_where_a_failed_one_stopped() {
    let body = noise(300_000);
    let served = body.clone();
    let server = Server::new(move |request| {
        let reply = Reply::file(request, &served, "\"v1\"");
        if request.nth == 0 { reply.cut_after(120_000) } else { reply }
    });
    let mut bench = Bench::new();
    bench.settings.attempts = 1;
    let url = format!("{}/m.gguf", server.url);
    let card = bench.pinned("m", &url, &body);
    let error = bench.pull(&card).unwrap_err();
    assert_eq!(error.code(), "transfer_failed");
    assert!(error.to_string().contains("pull again to resume"), "{error}");
    assert_eq!(bench.partials(), [".data", ".data.etag"]);
    let plan = bench.models().plan_pull(&card, &PullOptions::default()).unwrap();
    assert_eq!((plan.files[0].arrived, plan.download), (120_000, Some(180_000)));
    bench.pull(&card).unwrap();
    assert_eq!(server.log(), ["GET 0", "GET 120000"]);
}

#[test]
fn a_file_without_a_pin_is_resumed_only_while_it_is_the_same() {
    let (old, new) = (noise(200_000), noise(250_000));
    let (first, second) = (old.clone(), new.clone());
    let server = Server::new(move |request| match request.nth {
        0 => Reply::file(request, &first, "\"old\"").cut_after(50_000),
        _ => Reply::file(request, &second, "\"new\""),
    });
    let bench = Bench { agrees: true, ..Bench::new() };
    let installed = bench.pull(&format!("{}/m.gguf", server.url)).unwrap();
    assert_eq!(std::fs::read(installed.file("model").unwrap()).unwrap(), new);
    assert_eq!(server.log(), ["GET 0", "GET 50000"]);
    assert_eq!(
        installed.files[0].sha256,
        Some(backplane_registry::Digest::of(&new)),
        "it is pinned from now on"
    );
}

#[test]
fn two_versions_are_not_joined_where_a_server_ignores_if_range() {
    let (old, new) = (noise(200_000), noise(250_001)[1..].to_vec());
    let (first, second) = (old.clone(), new.clone());
    let server = Server::new(move |request| {
        let mut request = request.clone();
        request.headers.retain(|(name, _)| name != "if-range");
        match (request.method.as_str(), request.nth) {
            ("GET", 0) => Reply::file(&request, &first, "\"old\"").cut_after(50_000),
            _ => Reply::file(&request, &second, "\"new\""),
        }
    });
    let bench = Bench::new();
    let installed = bench.pull(&format!("{}/m.gguf", server.url)).unwrap();
    assert!(std::fs::read(installed.file("model").unwrap()).unwrap() == new);
    assert_eq!(server.log(), ["HEAD 0", "GET 0", "GET 50000", "GET 0"]);
}

#[test]
fn what_nothing_shows_to_be_the_same_is_not_appended_to() {
    let (old, new) = (noise(200_000), noise(250_001)[1..].to_vec());
    // What the first answer says of its version, and the others of theirs.
    for (first_says, then_says, expected) in [
        (None, None, &["HEAD 0", "GET 0", "GET 0"][..]),
        (Some(("etag", "\"old\"")), None, &["HEAD 0", "GET 0", "GET 50000", "GET 0"]),
        (Some(("etag", "W/\"weak\"")), Some(("etag", "W/\"weak\"")), &["HEAD 0", "GET 0", "GET 0"]),
        (
            Some(("last-modified", "Sat, 21 Nov 2026 10:00:00 GMT")),
            Some(("last-modified", "Sat, 21 Nov 2026 10:00:01 GMT")),
            &["HEAD 0", "GET 0", "GET 50000", "GET 0"],
        ),
    ] {
        let (first, second) = (old.clone(), new.clone());
        let server = Server::new(move |request| {
            let mut request = request.clone();
            request.headers.retain(|(name, _)| name != "if-range");
            let (body, says) = match (request.method.as_str(), request.nth) {
                ("GET", 0) => (&first, first_says),
                _ => (&second, then_says),
            };
            let reply = says
                .into_iter()
                .fold(Reply::file(&request, body, ""), |reply, (name, value)| reply.with(name, value));
            if (request.method.as_str(), request.nth) == ("GET", 0) { reply.cut_after(50_000) } else { reply }
        });
        let installed = Bench::new().pull(&format!("{}/m.gguf", server.url));
        assert_eq!(server.log(), expected, "{first_says:?}");
        let installed = installed.unwrap();
        assert_eq!(installed.files[0].sha256, Some(backplane_registry::Digest::of(&new)), "{first_says:?}");
    }
}

#[test]
fn when_a_file_was_changed_tells_its_version_too() {
    let body = noise(200_000);
    let served = body.clone();
    let server = Server::new(move |request| {
        let reply = Reply::file(
            &Request {
                headers: request.headers.clone().into_iter().filter(|(name, _)| name != "if-range").collect(),
                ..request.clone()
            },
            &served,
            "",
        )
        .with("last-modified", "Sat, 21 Nov 2026 10:00:00 GMT");
        if request.nth == 0 && request.method == "GET" { reply.cut_after(50_000) } else { reply }
    });
    Bench::new().pull(&format!("{}/m.gguf", server.url)).unwrap();
    assert_eq!(server.log(), ["HEAD 0", "GET 0", "GET 50000"]);
    assert_eq!(server.requests()[2].header("if-range"), Some("Sat, 21 Nov 2026 10:00:00 GMT"));
}

#[test]
fn a_known_sum_decides_and_is_given_one_more_start() {
    let body = noise(200_000);
    for (stale, expected) in [(false, &["GET 50000"][..]), (true, &["GET 50000", "GET 0"])] {
        let served = body.clone();
        let server = Server::new(move |request| Reply::file(request, &served, ""));
        let bench = Bench::new();
        let card = bench.pinned("m", &format!("{}/m.gguf", server.url), &body);
        let partial = bench.path("state/models/blobs/partial");
        std::fs::create_dir_all(&partial).unwrap();
        let arrived = if stale { &noise(50_001)[1..] } else { &body[..50_000] };
        std::fs::write(partial.join(format!("{}.data", backplane_registry::Digest::of(&body))), arrived)
            .unwrap();
        let (installed, steps) = bench.pull_with(&card, &PullOptions::default());
        assert_eq!(std::fs::read(installed.unwrap().file("model").unwrap()).unwrap(), body);
        assert_eq!(server.log(), expected);
        assert_eq!(steps.iter().any(|step| matches!(step, Progress::Retrying { .. })), stale);
    }
    // Not for ever: a server that has something else is told of after the second time.
    let server = Server::new(|request| Reply::file(request, &noise(200_001)[1..], ""));
    let bench = Bench::new();
    let card = bench.pinned("m", &format!("{}/m.gguf", server.url), &body);
    let partial = bench.path("state/models/blobs/partial");
    std::fs::create_dir_all(&partial).unwrap();
    let path = partial.join(format!("{}.data", backplane_registry::Digest::of(&body)));
    std::fs::write(path, &body[..50_000]).unwrap();
    assert_eq!(bench.pull(&card).unwrap_err().code(), "checksum_mismatch");
    assert_eq!(server.log(), ["GET 50000", "GET 0"]);
    assert!(bench.partials().is_empty());
}

#[test]
fn a_server_that_ignores_ranges_is_served_from_the_start() {
    let body = noise(200_000);
    let served = body.clone();
    let server = Server::new(move |request| {
        let reply = Reply::bytes(served.clone());
        if request.nth == 0 { reply.cut_after(50_000) } else { reply }
    });
    let bench = Bench::new();
    let installed = bench.pull(&bench.pinned("m", &format!("{}/m.gguf", server.url), &body)).unwrap();
    assert_eq!(std::fs::read(installed.file("model").unwrap()).unwrap(), body);
    assert_eq!(server.log(), ["GET 0", "GET 50000"]);
}

#[test]
fn a_server_that_answers_another_range_is_not_believed() {
    let body = noise(100_000);
    let served = body.clone();
    let server = Server::new(move |request| match request.nth {
        0 => Reply::bytes(served.clone()).cut_after(40_000),
        1 => Reply::file(&Default::default(), &served, "\"x\"").with("content-range", "bytes 0-99999/100000"),
        _ => Reply::file(request, &served, "\"x\""),
    });
    let bench = Bench::new();
    let installed = bench.pull(&bench.pinned("m", &format!("{}/m.gguf", server.url), &body)).unwrap();
    assert_eq!(std::fs::read(installed.file("model").unwrap()).unwrap(), body);
}

#[test]
fn a_transfer_that_had_just_ended_is_not_asked_for_again() {
    let body = noise(100_000);
    let served = body.clone();
    // The length is not told the first time, so that only the next answer shows that all of it had arrived.
    let server = Server::new(move |request| Reply::file(request, &served, "\"x\""));
    let bench = Bench::new();
    let card = bench.pinned("m", &format!("{}/m.gguf", server.url), &body);
    let partial = bench.path("state/models/blobs/partial");
    std::fs::create_dir_all(&partial).unwrap();
    std::fs::write(partial.join(format!("{}.data", backplane_registry::Digest::of(&body))), &body).unwrap();
    bench.pull(&card).unwrap();
    assert_eq!(server.log(), ["GET 100000"]);
}

#[test]
fn wrong_bytes_are_refused_and_removed() {
    let body = noise(10_000);
    let (good, bad) = (body.clone(), noise(10_001)[1..].to_vec());
    let server =
        Server::new(move |request| Reply::bytes(if request.nth == 0 { bad.clone() } else { good.clone() }));
    let bench = Bench::new();
    let card = bench.pinned("m", &format!("{}/m.gguf", server.url), &body);
    let error = bench.pull(&card).unwrap_err();
    assert!(
        matches!(error, RegistryError::Checksum { expected, .. } if expected == backplane_registry::Digest::of(&body))
    );
    assert!(bench.partials().is_empty() && bench.blobs() == 0);
    assert_eq!(bench.models().list().unwrap().models.len(), 0);
    bench.pull(&card).unwrap();
}

#[test]
fn more_bytes_than_pinned_are_refused() {
    let server = Server::new(|_| Reply::bytes(noise(10_001)));
    let bench = Bench::new();
    let error =
        bench.pull(&bench.pinned("m", &format!("{}/m.gguf", server.url), &noise(10_000))).unwrap_err();
    assert!(matches!(error, RegistryError::WrongSize { expected: 10_000, found: 10_001, .. }), "{error}");
    assert!(bench.partials().is_empty());
}

#[test]
fn refusals_are_named_and_not_retried() {
    let server = Server::new(|request| match request.path.as_str() {
        "/gone.gguf" => Reply::status(404),
        "/o/r/resolve/main/secret.gguf" => Reply::status(401),
        "/teapot.gguf" => Reply::status(418),
        _ => Reply::status(503),
    });
    let mut bench = Bench::new();
    bench.settings = Settings {
        hub: server.url.clone(),
        hub_token: Some(Token::new("hf_sesame")),
        attempts: 3,
        ..bench.settings
    };
    let refused = |what: String| {
        let error = bench.pull(&bench.card("m", &format!("source = '{what}'\nsize = 1"))).unwrap_err();
        assert!(!error.to_string().contains("sesame") && !format!("{error:?}").contains("sesame"), "{error}");
        (error.code(), error.to_string())
    };
    assert_eq!(refused(format!("{}/gone.gguf", server.url)).0, "source_not_found");
    let (code, message) = refused("hf:o/r/secret.gguf".into());
    assert_eq!(code, "access_denied");
    assert!(message.contains("HF_TOKEN") && message.contains("401"), "{message}");
    assert_eq!(refused(format!("{}/teapot.gguf", server.url)).0, "transfer_failed");
    assert_eq!(server.requests().len(), 3);
    let (code, message) = refused(format!("{}/busy.gguf", server.url));
    assert_eq!(code, "transfer_failed");
    assert!(message.contains("503"), "{message}");
    assert_eq!(server.requests().len(), 6, "three attempts");
}

#[test]
fn the_token_stays_with_the_hub_when_that_redirects() {
    let body = noise(5_000);
    let served = body.clone();
    let cdn = Server::new(move |request| Reply::file(request, &served, "\"x\""));
    let (to, digest) = (format!("{}/blob", cdn.url), backplane_registry::Digest::of(&body));
    let hub = Server::new(move |_| Reply::redirect(&to).with("x-linked-etag", &format!("\"{digest}\"")));
    let mut bench = Bench::new();
    bench.settings =
        Settings { hub: format!("{}/", hub.url), hub_token: Some(Token::new("hf_sesame")), ..bench.settings };
    let installed = bench.pull("hf:Owner/Repo/sub/Tiny-Q4.gguf@refs/pr/1").unwrap();
    assert_eq!(installed.name.to_string(), "tiny-q4");
    assert_eq!(hub.requests()[0].path, "/Owner/Repo/resolve/refs%2Fpr%2F1/sub/Tiny-Q4.gguf");
    assert_eq!(hub.requests()[0].header("authorization"), Some("Bearer hf_sesame"));
    assert!(!cdn.requests().is_empty());
    assert!(cdn.requests().iter().all(|request| request.header("authorization").is_none()));
}

#[test]
fn the_hub_states_what_an_unpinned_file_must_be() {
    let hub = Server::new(|request| {
        let stated = backplane_registry::Digest::of(b"something else");
        Reply::file(request, &noise(5_000), "\"x\"").with("x-linked-etag", &format!("\"{stated}\""))
    });
    let mut bench = Bench::new();
    bench.settings.hub = hub.url.clone();
    assert_eq!(bench.pull("hf:o/r/m.gguf").unwrap_err().code(), "checksum_mismatch");
}

#[test]
fn a_redirect_to_plain_http_elsewhere_or_in_a_circle_is_refused() {
    let server = Server::new(|request| match request.path.as_str() {
        "/out.gguf" => Reply::redirect("http://192.0.2.1/m.gguf"),
        "/nowhere.gguf" => Reply::status(302),
        _ => Reply::redirect("/circle.gguf"),
    });
    let bench = Bench::new();
    for (path, says) in
        [("out", "not `https:`"), ("circle", "in a circle"), ("nowhere", "redirects to nowhere")]
    {
        let card = bench.card("m", &format!("size = 1\nsource = '{}/{path}.gguf'", server.url));
        let error = bench.pull(&card).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn a_server_that_was_busy_is_asked_again() {
    let body = noise(1_000);
    let served = body.clone();
    let server = Server::new(move |request| match request.nth {
        0 => Reply::status(503),
        1 => Reply::status(429),
        _ => Reply::bytes(served.clone()),
    });
    let bench = Bench::new();
    bench.pull(&bench.pinned("m", &format!("{}/m.gguf", server.url), &body)).unwrap();
    assert_eq!(server.requests().len(), 3);
}

#[test]
fn a_stopped_pull_keeps_what_arrived() {
    let body = noise(3_000_000);
    let served = body.clone();
    let server = Server::new(move |request| Reply::file(request, &served, "\"x\""));
    let bench = Bench::new();
    let card = bench.pinned("m", &format!("{}/m.gguf", server.url), &body);
    let cancel = Arc::new(AtomicBool::new(false));
    let options = PullOptions { cancel: Some(cancel.clone()), ..PullOptions::default() };
    let stopped = bench.models().pull(&card, &options, &mut |step| {
        if matches!(step, Progress::Downloading { .. }) {
            cancel.store(true, Ordering::Relaxed);
        }
    });
    assert!(matches!(stopped, Err(RegistryError::Cancelled)));
    assert!(bench.partials().contains(&".data".to_owned()));
    assert_eq!(bench.blobs(), 0);
    bench.pull(&card).unwrap();
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn one_transfers_while_the_others_wait() {
    let body = noise(400_000);
    let served = body.clone();
    let server = Server::new(move |request| {
        std::thread::sleep(std::time::Duration::from_millis(200));
        Reply::file(request, &served, "\"x\"")
    });
    let bench = Bench::new();
    let card = bench.pinned("m", &format!("{}/m.gguf", server.url), &body);
    let waits: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let (installed, steps) = bench.pull_with(&card, &PullOptions::default());
                    assert_eq!(std::fs::read(installed.unwrap().file("model").unwrap()).unwrap(), body);
                    steps.iter().filter(|step| matches!(step, Progress::Waiting { .. })).count()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(server.log(), ["GET 0"]);
    assert_eq!(waits, 3);
}

#[test]
fn without_room_nothing_is_transferred() {
    let server = Server::new(|_| Reply::bytes("x"));
    let bench = Bench::new();
    let options = PullOptions { allow_large: true, ..PullOptions::default() };
    let card = bench.card("m", &format!("size = {}\nsource = '{}/m.gguf'", 1_u64 << 60, server.url));
    let error = bench.pull_with(&card, &options).0.unwrap_err();
    assert!(matches!(error, RegistryError::NotEnoughSpace { needed, .. } if needed == 1 << 60), "{error}");
    assert!(server.requests().is_empty());
}

#[test]
fn a_large_download_is_agreed_to_first() {
    let server = Server::new(|_| Reply::status(404));
    let bench = Bench::new();
    let card = bench.card("m", &format!("size = {}\nsource = '{}/m.gguf'", 600 << 20, server.url));
    match bench.pull(&card).unwrap_err() {
        RegistryError::NeedsConsent(plan) => assert_eq!(plan.download, Some(600 << 20)),
        error => panic!("{error}"),
    }
    assert!(server.requests().is_empty());
    let agreed = PullOptions { allow_large: true, ..PullOptions::default() };
    assert_eq!(bench.pull_with(&card, &agreed).0.unwrap_err().code(), "source_not_found");
}

#[test]
fn a_download_of_unknown_size_is_agreed_to_first() {
    let server = Server::new(|request| match request.method.as_str() {
        "HEAD" => Reply::status(405),
        _ => Reply::bytes("GGUF"),
    });
    let mut bench = Bench::new();
    let url = format!("{}/m.gguf", server.url);
    let part = bench.card("parts", &format!("parts = ['{url}', '{url}']"));
    for what in [&url, "pypi:p==1#m.gguf", &part] {
        let error = bench.pull(what).unwrap_err();
        assert!(error.to_string().contains("an unknown number of bytes"), "{error}");
        assert!(matches!(error, RegistryError::NeedsConsent(plan) if plan.download.is_none()));
    }
    assert_eq!(server.log(), ["HEAD 0"]);
    bench.agrees = true;
    bench.pull(&url).unwrap();
    bench.agrees = false;
    bench.pull("m").unwrap(); // it is here, whatever its size was
}

#[test]
fn offline_asks_nobody() {
    let server = Server::new(|_| Reply::bytes("GGUF"));
    let bench = Bench::new();
    let options = PullOptions { offline: true, ..PullOptions::default() };
    let url = format!("{}/m.gguf", server.url);
    assert_eq!(bench.pull_with(&url, &options).0.unwrap_err().code(), "offline");
    assert_eq!(bench.pull_with("smollm2", &options).0.unwrap_err().code(), "offline");
    assert!(server.requests().is_empty());
    let installed = bench.pull(&url).unwrap();
    let card = bench.pinned("again", &url, b"GGUF");
    assert_eq!(bench.pull_with(&card, &options).0.unwrap().files[0].sha256, installed.files[0].sha256);
}
