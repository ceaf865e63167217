//! Installed models: by name, by path, copied, removed, broken.

use crate::common::{Bench, files, noise};
use backplane_registry::{Digest, Installed, PullOptions, RegistryError};

#[test]
fn a_local_file_becomes_a_model() {
    let bench = Bench::new();
    let path = bench.path("My Model.Q4.gguf");
    std::fs::write(&path, noise(1000)).unwrap();
    let installed = bench.pull(path.to_str().unwrap()).unwrap();
    assert_eq!(installed.name.to_string(), "my-model.q4");
    assert_eq!(installed.card.format, "gguf");
    assert_eq!(installed.size, 1000);
    std::fs::remove_file(path).unwrap();
    bench.models().verify("my-model.q4").unwrap();
    assert_eq!(bench.models().resolve("My-Model.Q4:latest").unwrap(), installed);
}

#[test]
fn a_folder_with_a_card_is_installed_with_its_parameters() {
    let bench = Bench::new();
    let folder = bench.path("here");
    std::fs::create_dir_all(folder.join("sub")).unwrap();
    std::fs::write(folder.join("sub/m.onnx"), "onnx").unwrap();
    std::fs::write(folder.join("tokenizer.json"), "{}").unwrap();
    let card = "name = 'acme/embed'\naliases = ['e']\nformat = 'onnx'\ncapabilities = ['embed']\n[parameters]\npooling = 'cls'\n\
                [[files]]\nrole = 'model'\npath = 'sub/m.onnx'\n[[files]]\nrole = 'tokenizer'\npath = 'tokenizer.json'\n";
    std::fs::write(folder.join("model.toml"), card).unwrap();

    let local = Installed::local(&folder.join("model.toml")).unwrap();
    assert_eq!(local.file("model").unwrap(), folder.join("sub/m.onnx"));

    // Another file of the same size is another model; the same one is not.
    assert_eq!(Installed::local(&folder.join("model.toml")).unwrap().id, local.id);
    let file = std::fs::File::options().write(true).open(folder.join("tokenizer.json")).unwrap();
    file.set_modified(std::time::SystemTime::now() + std::time::Duration::from_secs(2)).unwrap();
    assert_ne!(Installed::local(&folder.join("model.toml")).unwrap().id, local.id);

    let installed = bench.pull(folder.to_str().unwrap()).unwrap();
    // A graph names its weights by their file; in the store that is a digest.
    for model in [&local, &installed] {
        let names: Vec<_> = model.files.iter().map(|file| &*file.name).collect();
        assert_eq!(names, ["m.onnx", "tokenizer.json"]);
    }
    assert_eq!(installed.card.parameters["pooling"], "cls");
    assert_eq!(std::fs::read(installed.file("tokenizer").unwrap()).unwrap(), b"{}");
    assert_eq!(bench.models().resolve("e").unwrap().name.to_string(), "acme/embed");
    std::fs::remove_file(folder.join("tokenizer.json")).unwrap();
    assert!(matches!(Installed::local(&folder.join("model.toml")), Err(RegistryError::Incomplete { .. })));
}

#[test]
fn a_file_that_no_name_can_be_made_of_is_given_one() {
    let bench = Bench::new();
    std::fs::write(bench.path("模型.gguf"), "GGUF").unwrap();
    let path = bench.path("模型.gguf").display().to_string();
    let error = bench.pull(&path).unwrap_err();
    assert_eq!(error.code(), "name_needed");
    assert!(error.to_string().contains("`模型.gguf`; give it one with `--name`"), "{error}");
    let options = PullOptions { name: Some("mine".parse().unwrap()), ..PullOptions::default() };
    let installed = bench.pull_with(&path, &options).0.unwrap();
    assert_eq!((installed.name.to_string().as_str(), &*installed.files[0].name), ("mine", "模型.gguf"));

    let folder = bench.path("empty").display().to_string();
    std::fs::create_dir(&folder).unwrap();
    let error = bench.pull(&folder).unwrap_err().to_string();
    assert_eq!(error, format!("there is no `model.toml` at {folder}"));
}

#[test]
fn what_is_for_another_machine_is_not_missing_here() {
    let bench = Bench::new();
    let body = noise(1000);
    std::fs::write(bench.path("m.gguf"), &body).unwrap();
    let pin = format!(
        "sha256 = '{}'\nsize = 1000\nsource = 'file:{}'",
        Digest::of(&body),
        bench.path("m.gguf").display()
    );
    let here = format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH);
    let elsewhere = format!("platform = 'plan9/vax'\n{pin}");
    let card =
        bench.card("m", &format!("platform = '{here}'\n{pin}\n[[files]]\nrole = 'model'\n{elsewhere}"));
    let planned = || bench.models().plan_pull(&card, &PullOptions::default()).unwrap().installed;
    assert!(!planned());
    bench.pull(&card).unwrap();
    assert!(planned());
}

#[test]
fn files_in_common_are_stored_once_and_removed_with_the_last_name() {
    let bench = Bench::new();
    for name in ["a", "b"] {
        std::fs::write(bench.path(&format!("{name}.gguf")), noise(5000)).unwrap();
        bench.pull(bench.path(&format!("{name}.gguf")).to_str().unwrap()).unwrap();
    }
    assert_eq!(bench.blobs(), 1);
    let models = bench.models();
    let copy = models.copy("a", "acme/c:v1").unwrap();
    assert_eq!(copy.id, models.resolve("a").unwrap().id);
    assert_eq!(models.copy("a", "acme/c:v1").unwrap(), copy, "copying twice changes nothing");
    assert_eq!(
        models.list().unwrap().models.iter().map(|m| m.name.to_string()).collect::<Vec<_>>(),
        ["a", "b", "acme/c:v1"]
    );

    let a = models.remove("a").unwrap();
    assert_eq!((a.freed, a.shared), (0, 1));
    assert_eq!(models.remove("b").unwrap().freed, 0);
    let blob = models.resolve("acme/c:v1").unwrap().file("model").unwrap().to_owned();
    assert!(blob.exists());
    let last = models.remove("acme/c:v1").unwrap();
    assert_eq!((last.freed, last.shared), (5000, 0));
    assert!(!blob.exists() && bench.blobs() == 0);
    assert!(files(&bench.path("state/models/cards")).is_empty());
}

#[test]
fn what_was_removed_while_one_waited_is_not_installed() {
    let bench = Bench::new();
    std::fs::write(bench.path("m.gguf"), noise(100)).unwrap();
    type Act = fn(&backplane_registry::Models) -> Result<(), RegistryError>;
    let acts: [Act; 2] = [|models| models.copy("m", "copy").map(drop), |models| models.remove("m").map(drop)];
    for act in acts {
        let installed = bench.pull(bench.path("m.gguf").to_str().unwrap()).unwrap();
        // Another process is at the cards, and takes the model away.
        let lock = std::fs::File::open(bench.path("state/models/locks/cards")).unwrap();
        lock.lock().unwrap();
        let error = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| act(&bench.models()).unwrap_err());
            std::thread::sleep(std::time::Duration::from_millis(100));
            std::fs::remove_file(bench.path("state/models/cards/m.toml")).unwrap();
            std::fs::remove_file(installed.file("model").unwrap()).unwrap();
            lock.unlock().unwrap();
            waiting.join().unwrap()
        });
        assert_eq!(error.code(), "model_not_installed", "{error}");
        assert!(files(&bench.path("state/models/cards")).is_empty());
    }
    assert_eq!(Bench::new().models().copy("m", "n").unwrap_err().code(), "model_not_installed");
}

#[test]
fn names_that_are_not_there_come_with_near_ones() {
    let bench = Bench::new();
    std::fs::write(bench.path("tiny-chat.gguf"), "GGUF").unwrap();
    bench.pull(bench.path("tiny-chat.gguf").to_str().unwrap()).unwrap();
    let error = bench.models().resolve("tinychat").unwrap_err();
    assert_eq!(error.to_string(), "model `tinychat` is not installed; did you mean `tiny-chat`?");
    let error = bench.pull("smolm2").unwrap_err();
    assert!(error.to_string().ends_with("did you mean `smollm2`?"), "{error}");
    assert_eq!(bench.models().remove("nothing-like-it").unwrap_err().code(), "model_not_installed");
    assert_eq!(bench.pull("../escape").unwrap_err().code(), "source_not_found");
    assert_eq!(bench.pull("a/../../b").unwrap_err().code(), "name_invalid");
    assert_eq!(bench.pull("oci:registry/image").unwrap_err().code(), "source_invalid");
    assert_eq!(bench.pull("./absent.gguf").unwrap_err().code(), "source_not_found");
}

#[test]
fn a_name_does_not_silently_change_its_meaning() {
    let bench = Bench::new();
    for folder in ["one", "two"] {
        std::fs::create_dir(bench.path(folder)).unwrap();
        std::fs::write(bench.path(&format!("{folder}/m.gguf")), folder).unwrap();
    }
    let (one, two) = (bench.path("one/m.gguf"), bench.path("two/m.gguf"));
    bench.pull(one.to_str().unwrap()).unwrap();
    assert_eq!(bench.pull(two.to_str().unwrap()).unwrap_err().code(), "name_taken");
    let other = PullOptions { name: Some("n".parse().unwrap()), ..PullOptions::default() };
    assert_eq!(bench.pull_with(two.to_str().unwrap(), &other).0.unwrap().name.to_string(), "n");
    assert_eq!(bench.models().copy("n", "m").unwrap_err().code(), "name_taken");
    let replace = PullOptions { replace: true, ..PullOptions::default() };
    bench.pull_with(two.to_str().unwrap(), &replace).0.unwrap();
    assert_eq!(std::fs::read(bench.models().resolve("m").unwrap().file("model").unwrap()).unwrap(), b"two");
}

#[test]
fn a_card_that_was_changed_takes_a_name_only_where_that_is_said_and_files_that_were_are_news() {
    let bench = Bench::new();
    let (card, file) = (bench.path("model.toml"), bench.path("m.gguf"));
    let write = |more: &str| {
        let files = "[[files]]\nrole = \"model\"\npath = \"m.gguf\"\n";
        std::fs::write(&card, format!("name = \"m\"\nformat = \"gguf\"\n{more}{files}")).unwrap();
    };
    std::fs::write(&file, "one").unwrap();
    write("description = \"first\"\n[parameters]\nslots = 2\n");
    let pull = || bench.pull(card.to_str().unwrap());
    let first = pull().unwrap().id;
    // What is for people, and what lies in the files, may be others by now.
    std::fs::write(&file, "another").unwrap();
    write("description = \"second\"\n[parameters]\nslots = 2\n");
    let second = pull().unwrap();
    assert!(second.id != first && second.card.description.as_deref() == Some("second"));
    write("context = 64\n[parameters]\nslots = 3\n");
    let error = pull().unwrap_err();
    assert_eq!(error.code(), "name_taken");
    let said = error.to_string();
    assert!(
        said.contains("`context` and `parameters` of its card are others") && said.contains("`--replace`"),
        "{said}"
    );
    assert_eq!(bench.models().resolve("m").unwrap(), second, "and nothing was changed");
    let replace = PullOptions { replace: true, ..PullOptions::default() };
    let third = bench.pull_with(card.to_str().unwrap(), &replace).0.unwrap();
    assert_eq!(third.card.parameters["slots"], 3);
}

#[test]
fn a_broken_model_hides_no_other_and_can_be_removed() {
    let bench = Bench::new();
    for name in ["good", "bad", "changed"] {
        std::fs::write(bench.path(&format!("{name}.gguf")), name).unwrap();
        bench.pull(bench.path(&format!("{name}.gguf")).to_str().unwrap()).unwrap();
    }
    let models = bench.models();
    std::fs::remove_file(models.resolve("bad").unwrap().file("model").unwrap()).unwrap();
    std::fs::write(bench.path("state/models/cards/typo.toml"), "nmae = 'typo'").unwrap();
    std::fs::copy(bench.path("state/models/cards/good.toml"), bench.path("state/models/cards/moved.toml"))
        .unwrap();
    let changed = models.resolve("changed").unwrap().file("model").unwrap().to_owned();
    std::fs::remove_file(&changed).unwrap();
    std::fs::write(&changed, "CHANGED").unwrap();

    let listing = models.list().unwrap();
    assert_eq!(listing.models.iter().map(|m| m.name.to_string()).collect::<Vec<_>>(), ["changed", "good"]);
    let broken: Vec<String> = listing.broken.iter().map(ToString::to_string).collect();
    assert_eq!(broken.len(), 3, "{broken:?}");
    assert!(
        broken[0].contains("pull it again")
            && broken[1].contains("it is the card of `good`")
            && broken[2].contains("`nmae`"),
        "{broken:?}"
    );

    models.verify("good").unwrap();
    assert_eq!(models.verify("changed").unwrap_err().code(), "model_incomplete");
    bench.pull(bench.path("changed.gguf").to_str().unwrap()).unwrap();
    models.verify("changed").unwrap();
    for name in ["typo", "bad", "moved"] {
        models.remove(name).unwrap();
    }
    assert!(models.list().unwrap().broken.is_empty());
    models.verify("good").unwrap();
}

#[test]
fn what_nobody_needs_is_pruned() {
    let bench = Bench::new();
    assert_eq!(bench.models().prune().unwrap(), 0);
    std::fs::write(bench.path("m.gguf"), noise(100)).unwrap();
    bench.pull(bench.path("m.gguf").to_str().unwrap()).unwrap();
    let key = backplane_registry::Digest::of(b"orphan");
    std::fs::write(bench.path(&format!("state/models/blobs/sha256/{key}")), noise(10)).unwrap();
    std::fs::write(bench.path(&format!("state/models/blobs/partial/{key}.data")), noise(20)).unwrap();
    assert_eq!(bench.models().prune().unwrap(), 30);
    bench.models().verify("m").unwrap();
}

#[test]
fn a_runtime_is_put_where_plugins_look_for_it() {
    let bench = Bench::new();
    std::fs::write(bench.path("lib.so"), noise(64)).unwrap();
    let card = "name = 'onnxruntime'\nkind = 'runtime'\nversion = '1.2.3'\n[[files]]\nrole = 'library'\nname = 'libonnxruntime.so.1.2.3'\npath = 'lib.so'\n";
    std::fs::write(bench.path("ort.toml"), card).unwrap();
    bench.pull(bench.path("ort.toml").to_str().unwrap()).unwrap();
    let runtime = bench.models().runtime("onnxruntime").unwrap();
    assert_eq!(runtime.library, bench.path("state/runtimes/onnxruntime/1.2.3/libonnxruntime.so.1.2.3"));
    assert_eq!(std::fs::read(&runtime.library).unwrap(), noise(64));
    let listing = bench.models().list().unwrap();
    assert_eq!((listing.models.len(), listing.runtimes.len()), (0, 1));
    bench.models().remove("onnxruntime").unwrap();
    assert_eq!(bench.models().runtime("onnxruntime"), None);
    assert_eq!(bench.blobs(), 0);
}

#[test]
fn pulling_again_transfers_nothing_and_says_so() {
    let bench = Bench::new();
    std::fs::write(bench.path("m.gguf"), noise(100)).unwrap();
    let card = bench
        .card("m", &format!("path = 'm.gguf'\nsha256 = '{}'", backplane_registry::Digest::of(&noise(100))));
    let first = bench.pull(&card).unwrap();
    let plan = bench.models().plan_pull(&card, &PullOptions::default()).unwrap();
    assert!(plan.files[0].present && plan.download == Some(0), "{plan:?}");
    std::fs::remove_file(bench.path("m.gguf")).unwrap();
    let (again, steps) = bench.pull_with("m", &PullOptions::default());
    assert_eq!(again.unwrap().id, first.id);
    assert!(matches!(steps[1], backplane_registry::Progress::Present { size: 100, .. }), "{steps:?}");
    assert!(bench.models().plan_pull("m", &PullOptions::default()).unwrap().installed);
}

#[test]
fn a_state_directory_that_cannot_be_written_is_named() {
    let bench = Bench::new();
    std::fs::write(bench.state(), "a file").unwrap();
    std::fs::write(bench.path("m.gguf"), "GGUF").unwrap();
    let error = bench.pull(bench.path("m.gguf").to_str().unwrap()).unwrap_err();
    assert!(error.to_string().contains("state/models"), "{error}");
}

#[test]
fn what_is_no_model_is_told_and_leaves_nothing() {
    let bench = Bench::new();
    let look = PullOptions { look: true, ..PullOptions::default() };
    let page = "<!DOCTYPE html><title>Sign in</title>";
    std::fs::write(bench.path("m.gguf"), page).unwrap();
    std::fs::write(bench.path("m.onnx"), page).unwrap();
    let card = bench.path("card.toml");
    let graphs = "name = 'reader'\nformat = 'vision'\ncapabilities = ['vision.ocr']\ngraphs = { det = {} }\n\
                  [[files]]\nrole = 'det'\npath = 'm.onnx'\n[[files]]\nrole = 'labels'\npath = 'm.gguf'\n";
    std::fs::write(&card, graphs).unwrap();
    for path in [bench.path("m.gguf"), bench.path("m.onnx"), card] {
        let error = bench.pull_with(path.to_str().unwrap(), &look).0.unwrap_err();
        assert_eq!(error.code(), "model_invalid", "{error}");
        assert!(error.to_string().contains("but a web page"), "{error}");
        assert!(bench.models().list().unwrap().models.is_empty());
        assert_eq!(bench.models().prune().unwrap(), 0, "nothing was left");
    }
    // Version 3, no tensors, no keys.
    let gguf = [&b"GGUF\x03\0\0\0"[..], &[0; 16]].concat();
    std::fs::write(bench.path("m.gguf"), &gguf[..20]).unwrap();
    let cut = bench.pull_with(bench.path("m.gguf").to_str().unwrap(), &look).0.unwrap_err();
    assert!(cut.code() == "model_invalid" && cut.to_string().contains("it is cut off"), "{cut}");
    assert!(bench.models().list().unwrap().models.is_empty());
    std::fs::write(bench.path("m.gguf"), gguf).unwrap();
    bench.pull_with(bench.path("m.gguf").to_str().unwrap(), &look).0.unwrap();
}

#[test]
fn a_pipe_is_refused_and_not_waited_for() {
    let bench = Bench::new();
    for name in ["card.toml", "m.gguf"] {
        let pipe = bench.path(name);
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        assert_eq!(bench.pull(pipe.to_str().unwrap()).unwrap_err().code(), "file_invalid", "{name}");
    }
}
