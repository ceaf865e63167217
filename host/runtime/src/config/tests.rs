//! Through [`Config::load`], as a user meets it.

use super::reload::{ReloadReport, diff};
use super::*;
use std::fs;

/// Loads this file, these variables and these flags.
fn load(file: &str, variables: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("backplane.toml");
    fs::write(&path, file).unwrap();
    let owned =
        |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let options = LoadOptions { file: Some(path), overrides: owned(flags), env: false };
    Config::load_with(options, &owned(variables).into_iter().collect())
}

fn problems(file: &str) -> Vec<String> {
    let error = load(file, &[], &[]).expect_err("it must not load");
    error.problems.iter().map(|problem| format!("{}: {}", problem.key, problem.message)).collect()
}

#[track_caller]
fn refused(file: &str, key: &str, words: &str) {
    let found = problems(file);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with(&format!("{key}: ")) && found[0].contains(words), "{found:?}");
}

fn configs() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../configs")
}

#[test]
fn every_file_in_configs_loads() {
    let mut seen = 0;
    for entry in fs::read_dir(configs()).unwrap() {
        let file = entry.unwrap().path();
        if file.extension().is_some_and(|ext| ext == "toml") {
            seen += 1;
            let name = file.display().to_string();
            Config::load(LoadOptions { file: Some(file), ..Default::default() })
                .unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }
    assert!(seen >= 3, "{seen} files");
}

/// `BACKPLANE_UPDATE=1 cargo test -p backplane config` writes it.
#[test]
fn the_reference_file_is_generated_from_the_types() {
    let file = configs().join("backplane.toml");
    if std::env::var_os("BACKPLANE_UPDATE").is_some() {
        fs::write(&file, Config::reference()).unwrap();
    }
    let text = fs::read_to_string(file).unwrap();
    assert!(
        text == Config::reference(),
        "configs/backplane.toml is stale: run this test with BACKPLANE_UPDATE=1"
    );
}

#[test]
fn the_reference_file_lists_every_key_with_its_default_and_a_comment() {
    let raw: raw::Raw = toml::from_str(&Config::reference()).unwrap();
    assert_eq!(raw, raw::Raw::default());

    let text = Config::reference();
    for (path, value) in layers::leaves(&raw) {
        let key = path.last().unwrap();
        let line = format!("\n{key} = {}\n", reference::toml_value(&value));
        let at = text.find(&line).unwrap_or_else(|| panic!("{} is not in it", path.join(".")));
        assert!(text[..at].lines().last().unwrap().starts_with("# "), "{} has no comment", path.join("."));
    }
}

#[test]
fn the_examples_in_the_reference_file_load() {
    let uncommented: String = Config::reference()
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(example) if !example.is_empty() && !example.starts_with(' ') => format!("{example}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    let config = load(&uncommented, &[], &[]).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(config.models.aliases["*"], "smollm2");
    assert_eq!(config.models.overrides["smollm2"].batch_window, Some(Duration::from_millis(2)));
    assert_eq!(config.models.routes["cascade"].escalate_below, 0.6);
    assert!(config.plugins.settings["dev.backplane.onnx"].contains_key("runtime"));
    let fields = Config::schema()["properties"]["models"]["properties"]["override"]["additionalProperties"]["properties"]
        .as_object()
        .unwrap()
        .keys()
        .cloned()
        .collect::<Vec<_>>();
    assert!(fields.len() > 5);
    for field in fields {
        assert!(Config::reference().contains(&format!("\n#{field} = ")), "the example leaves out `{field}`");
    }
}

#[test]
fn a_misspelt_key_names_its_path_and_the_nearest_right_one() {
    refused("[server]\nadress = \"127.0.0.1:1\"", "server.adress", "did you mean `server.address`?");
    refused("[servr]\naddress = \"127.0.0.1:1\"", "servr", "did you mean `server`?");
    refused(
        "[models.override.\"a.b\"]\npinned = true",
        "models.override.\"a.b\".pinned",
        "did you mean `models.override.\"a.b\".pin`?",
    );
    refused("[auth]\nzzz = 1", "auth.zzz", "there are `enabled`");
}

#[test]
fn every_problem_is_reported_at_once() {
    let found = problems(
        "[server]\nadress = 1\nbody_limit = \"8 parsecs\"\njson_depth = 1000\nkeep_alive = 30\n\
         [cache]\nmax_entry = \"1GiB\"\n[models.routes.r]\nmodels = []\nescalate_below = 2.0\n\
         [models.aliases]\na = \"b\"\nb = \"c\"\n[log]\nformat = \"yaml\"\nlevel = \"loud\"\n",
    );
    for (key, words) in [
        ("server.adress", "server.address"),
        ("server.body_limit", "not a size; write"),
        ("server.json_depth", "1 to 128"),
        ("server.keep_alive", "a length of time in quotes"),
        ("cache.max_entry", "`cache.max_bytes`, which is 64MiB"),
        ("models.routes.r.models", "at least one"),
        ("models.routes.r.escalate_below", "0 to 1"),
        ("models.aliases.a", "write what that stands for: `c`"),
        ("log.format", "`auto`, `text`, `json`"),
        ("log.level", "`error`, `warn`"),
    ] {
        let hit =
            found.iter().any(|problem| problem.starts_with(&format!("{key}: ")) && problem.contains(words));
        assert!(hit, "{key}: {words} is not in {found:#?}");
    }
    assert_eq!(found.len(), 10, "{found:#?}");
    assert!(found.is_sorted(), "told in another order each time: {found:#?}");
}

#[test]
fn whom_pictures_are_fetched_from_is_checked() {
    assert!(Config::default().fetch.hosts.is_empty(), "nobody, unless somebody is named");
    let file = "[fetch]\nhosts = [\"*.example.com\", \"https://a.example/\"]\nnetworks = [\"10.0.0.0/8\", \"10.0.0.1\"]\n\
                timeout = \"0s\"\nmax_bytes = \"0B\"";
    let error = load(file, &[], &[]).unwrap_err().to_string();
    for words in [
        "`https://a.example/` is not a host; write `images.example.com`",
        "`10.0.0.1` is not a network; write `10.1.2.0/24`",
        "`fetch.timeout` = \"0s\"",
        "`fetch.max_bytes` = \"0B\"",
    ] {
        assert!(error.contains(words), "{error}");
    }
    let right = "[fetch]\nhosts = [\"*.example.com\"]\nnetworks = [\"10.0.0.0/8\"]\nmax_bytes = \"1MiB\"";
    let fetch = load(right, &[], &[]).unwrap().fetch;
    assert!(fetch.hosts[0].covers("a.example.com", 443, 443) && !fetch.hosts[0].covers("a.org", 443, 443));
    assert_eq!((fetch.networks[0].to_string(), fetch.max_bytes), ("10.0.0.0/8".to_owned(), 1 << 20));
}

#[test]
fn a_problem_names_the_value_and_who_set_it() {
    let error = load("", &[("cache.ttl", "ten")], &[("server.workers", "many")]).unwrap_err().to_string();
    let ttl =
        "`cache.ttl` = \"ten\" in the environment variable `BACKPLANE__CACHE__TTL`: not a length of time";
    assert!(error.contains(ttl), "{error}");
    let workers = "`server.workers` = \"many\" in the command line: invalid type: string \"many\", expected a whole number from 0";
    assert!(error.contains(workers), "{error}");
    let error = load("[cache]\nttl = \"0s\"", &[], &[]).unwrap_err().to_string();
    assert!(
        error.contains("`cache.ttl` = \"0s\" in `") && error.contains("backplane.toml`: must be longer"),
        "{error}"
    );
}

#[test]
fn what_cannot_be_read_is_named() {
    let absent = LoadOptions { file: Some("/nonexistent/backplane.toml".into()), ..Default::default() };
    let error = Config::load(absent).unwrap_err().to_string();
    assert!(error.contains("`/nonexistent/backplane.toml`: there is no such file"), "{error}");
    let error = load("[server\n", &[], &[]).unwrap_err().to_string();
    assert!(error.contains("is not TOML") && error.contains("line 1"), "{error}");
    let error = load("", &[], &[("server..address", "x")]).unwrap_err().to_string();
    assert!(error.contains("is not the path of a key"), "{error}");
}

#[test]
fn a_flag_beats_the_environment_beats_the_file_beats_the_default() {
    let file = "[server]\naddress = \"127.0.0.1:1\"\nworkers = 1\ndrain = \"1s\"\n[models.aliases]\n\"gpt-4.1\" = \"file\"";
    let variables = [("server.address", "127.0.0.1:2"), ("server.workers", "2"), ("cache.enabled", "false")];
    let flags = [("server.address", "127.0.0.1:3"), ("models.aliases.\"gpt-4.1\"", "7")];
    let config = load(file, &variables, &flags).unwrap();
    assert_eq!(config.server.address, "127.0.0.1:3".parse().unwrap());
    assert_eq!((config.server.workers, config.server.drain), (2, Duration::from_secs(1)));
    assert!(!config.cache.enabled);
    assert_eq!(config.models.aliases["gpt-4.1"], "7", "text stays text, whatever it looks like");
    for (key, source) in [
        ("server.address", Source::Flag),
        ("server.workers", Source::Environment),
        ("server.drain", Source::File),
        ("server.json_depth", Source::Default),
        ("models.aliases.\"gpt-4.1\"", Source::Flag),
    ] {
        assert_eq!(config.sources()[key], source, "{key}");
    }
}

/// In a process of its own, since a test may not change the environment of the others.
#[test]
fn the_environment_counts_when_it_is_asked_for() {
    let child = |env: &str| {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child.args([
            "--exact",
            "config::tests::prints_what_the_environment_sets",
            "--ignored",
            "--nocapture",
        ]);
        child
            .env("BACKPLANE__SERVER__BODY_LIMIT", "7MiB")
            .env("BACKPLANE_STATE", "/elsewhere")
            .env("ASKED", env);
        String::from_utf8(child.output().unwrap().stdout).unwrap()
    };
    assert!(child("yes").contains("body limit 7340032, from environment"), "{}", child("yes"));
    assert!(child("no").contains("body limit 33554432, from default"), "{}", child("no"));
}

#[test]
#[ignore = "the other half of the test before"]
fn prints_what_the_environment_sets() {
    let env = std::env::var("ASKED").is_ok_and(|asked| asked == "yes");
    let config = Config::load(LoadOptions { env, ..LoadOptions::default() }).unwrap();
    println!("body limit {}, from {}", config.server.body_limit, config.sources()["server.body_limit"]);
}

#[test]
fn lists_can_be_set_from_outside_the_file() {
    let variables = [("plugins.load", "[\"/a.so\", \"/b.so\"]")];
    let config = load("", &variables, &[("plugins.settings.x.deep.key", "5")]).unwrap();
    assert_eq!(config.plugins.load, [PathBuf::from("/a.so"), PathBuf::from("/b.so")]);
    assert_eq!(config.plugins.settings["x"]["deep"]["key"], 5);
}

#[test]
fn a_plugins_settings_are_handed_on_unread() {
    let config = load("[plugins.settings.\"dev.x.Y\"]\nAnything = [1, { b = 2.5 }]", &[], &[]).unwrap();
    assert_eq!(config.plugins.settings["dev.x.Y"]["Anything"], serde_json::json!([1, { "b": 2.5 }]));
}

#[test]
fn without_keys_only_this_machine_may_ask() {
    refused(
        "[auth]\nenabled = false\n[server]\naddress = \"0.0.0.0:8484\"",
        "server.address",
        "auth.enabled",
    );
    load("[auth]\nenabled = false\n[server]\naddress = \"[::1]:8484\"", &[], &[]).unwrap();
    load("[auth]\nenabled = false\n[server]\naddress = \"localhost:8484\"", &[], &[]).unwrap();
    // Every web page that the operator visits would be an administrator.
    refused(
        "[auth]\nenabled = false\n[server]\ncors_origins = [\"*\"]",
        "server.cors_origins",
        "auth.enabled",
    );
    load("[server]\ncors_origins = [\"*\"]", &[], &[]).unwrap();
    load("[auth]\nenabled = false\n[server]\ncors_origins = [\"https://a.example\"]", &[], &[]).unwrap();
}

#[test]
fn values_that_cannot_work_are_refused() {
    refused("[server]\naddress = \"8484\"", "server.address", "write `127.0.0.1:8484`");
    refused("[server]\ncors_origins = [\"https://a.example/\"]", "server.cors_origins", "is not an origin");
    refused("[models]\nmax_queue = 0", "models.max_queue", "at least 1");
    refused("[models]\nmax_queue = -1", "models.max_queue", "-1");
    refused("[models]\nmemory_budget = \"120%\"", "models.memory_budget", "`1%` to `100%`");
    refused("[models.override.m]\nweight = 0.0", "models.override.m.weight", "0.01 to 100");
    refused("[models.override.m]\ninstances = 0", "models.override.m.instances", "at least 1");
    refused("[plugins.workers.x]\nports = [443, 0]", "plugins.workers.x.ports", "at least 1");
    refused("[plugins.workers.x]\nthreads = 0", "plugins.workers.x.threads", "at least 1");
    refused("[plugins.workers.x]\nprogress = \"0s\"", "plugins.workers.x.progress", "longer than nothing");
    refused("[models.routes.r]\nmodels = [\"a\", \"a\"]", "models.routes.r.models", "twice");
    refused("[models.routes.r]\nescalate_below = 0.5", "models.routes.r", "missing field `models`");
    refused("[plugins]\ndisabled = [\"\"]", "plugins.disabled", "empty");
    refused("[log]\nlevel = \"info,=debug\"", "log.level", "info,backplane=debug");
    refused("server = 5", "server", "invalid type");
}

#[test]
fn the_values_in_force_can_be_written_and_read_again() {
    let file = "[server]\ndrain = \"90s\"\n[models]\nkeep_alive = \"forever\"\n[models.override.m]\nweight = 2.0\n\
                parameters = { context = 4096 }\n[plugins.settings.\"a.b\"]\nx = [1, 2]\n[models.routes.r]\nmodels = [\"a\"]";
    let config = load(file, &[], &[]).unwrap();
    let again =
        load(&config.to_toml(), &[], &[]).unwrap_or_else(|error| panic!("{error}\n{}", config.to_toml()));
    assert_eq!(again.raw, config.raw);
    assert_eq!(again.models, config.models);
}

#[test]
fn a_reload_says_what_changed_and_what_has_to_wait() {
    let old = load("[cache]\nttl = \"1m\"\n[models.override.m]\npin = true", &[], &[]).unwrap();
    let file = "[cache]\nttl = \"2m\"\n[server]\naddress = \"127.0.0.1:9\"\n[compute]\nthreads = 1\n\
                [models.aliases]\n\"a.b\" = \"c\"";
    let report = diff(&old, &load(file, &[], &[]).unwrap());
    assert_eq!(
        report.changed,
        ["cache.ttl", "compute.threads", "models.aliases.\"a.b\"", "models.override.m.pin", "server.address"]
    );
    assert_eq!(report.needs_restart, ["compute.threads", "server.address"]);
    assert_eq!(diff(&old, &old), ReloadReport::default());
}

#[test]
fn what_needs_a_restart_names_keys_that_exist() {
    let keys = layers::leaves(&raw::Raw::default());
    for read_once in reload::READ_ONCE {
        let exists = ["plugins.isolation", "plugins.workers", "plugins.settings"].contains(&read_once)
            || keys.iter().any(|(path, _)| reload::is_below(&path.join("."), read_once));
        assert!(exists, "{read_once}");
    }
}

#[test]
fn the_schema_describes_every_key() {
    fn described(schema: &Value, path: &str) {
        for (key, inner) in schema["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{key}");
            assert!(inner["description"].is_string(), "{path} has no description");
            described(inner, &path);
        }
    }
    let schema = Config::schema();
    assert!(schema["properties"]["server"]["properties"]["address"]["default"].is_string());
    assert_eq!(schema["properties"]["server"]["additionalProperties"], false);
    described(&schema, "");
}

#[test]
fn tests_listen_on_any_free_port() {
    assert_eq!(Config::for_tests().server.address.port(), 0);
    assert_eq!(Config::default().raw, raw::Raw::default());
}
